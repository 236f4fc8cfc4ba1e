"""The command line: `python -m pujax.launch --config configs/quickstart.py [--config.a.b=value ...]`."""

import contextlib
import os
import re
import sys
import time
import traceback
from pathlib import Path

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from pujax import hosts, pipeline, plan, preemption
from pujax.artifacts import Workdir, write_atomic
from pujax.command_line import in_one_line, outcome, program
from pujax.config import Config, SourceConfig, require_known_field, resolve
from pujax.data.sources.spec import parse_source
from pujax.errors import UserError
from pujax.hosts import HostLost
from pujax.preemption import EXIT_STATUS, Preempted
from pujax.sharding import barrier, configure_backend, is_main_process
from pujax.topology import open_topology

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a Python file with get_config().", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder for all results; default runs/<name of the config file>.")
_STAGES = flags.DEFINE_list("stages", list(pipeline.STAGES), "Stages to run, of " + ", ".join(pipeline.STAGES) + ".")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything that can be checked without training; print the plan.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "With --dry_run: plan for these devices, as v5e:4x4 or h100:8.")

_OF_THE_NETWORK = re.compile(r"gloo|nccl|coordination service", re.IGNORECASE)  # it may come as any error
_HOST_TIMEOUT = flags.DEFINE_integer(
    "host_timeout", 300, "Seconds after which another host that does not come, or answers no more, is an error.",
    lower_bound=5,
)  # fmt: skip

_USAGE = """pujax: compress an image classifier with a few labelled images and an unlabelled pool.

  python -m pujax.launch --config configs/quickstart.py
  python -m pujax.launch --config configs/cifar10.py --workdir runs/a --config.distill.num_steps=500
  python -m pujax.launch --config configs/cifar10.py --config.data.pool=s3://bucket/{000..999}.tar
  python -m pujax.launch --config configs/quickstart.py --stages=score,select --dry_run

Options of a recipe are the fields in pujax/config.py, given as --config.<field>=<value>; lists as a,b,c.
The same command continues a run that was stopped. Exit status: 0 done, 2 the input is wrong, 75 start it again (stopped
by SIGTERM, or another host was lost), 1 anything else.

  --config    recipe, a Python file with get_config(); see configs/
  --workdir   folder for all results, local, gs:// or s3:// (default: runs/<name of the recipe>)
  --stages    stages to run (default: all): """ + ", ".join(pipeline.STAGES) + """
  --dry_run   check files, classes, shapes and memory without training, and print the plan
  --topology  with --dry_run: what the job takes on a TPU slice, v5e:4x4, or on GPUs, h100:8, that are not here
  --host_timeout  seconds after which a host that does not come, or answers no more, is an error (default: 300)
"""  # fmt: skip


def main(argv: list[str]) -> None:
    """Run the job that the flags describe."""
    config, workdir, stages = _read_flags(argv)
    logging.set_verbosity(logging.ERROR)  # libraries warn of what pujax reports itself
    if _TOPOLOGY.value:
        jax.config.update("jax_platforms", "cpu")  # of what is here, nothing else is wanted
    configure_backend()
    watch = _join_hosts(workdir)
    preemption.listen()
    try:
        report = _carry_out(config, workdir, stages)
    except BaseException as error:
        if watch:
            _end_with(watch, error, workdir)
        raise
    if watch:
        barrier("end")
        watch.close()
    if is_main_process():
        print(report)


def _carry_out(config: Config, workdir: Workdir, stages: tuple[str, ...]) -> str:
    """Run the job, or describe it; return what to print."""
    if _DRY_RUN.value:
        topology = open_topology(_TOPOLOGY.value) if _TOPOLOGY.value else None
        report = plan.describe(config, workdir, stages, topology)
    else:
        verdict = pipeline.verdict(pipeline.run(config, workdir.root, stages))
        report = f"\n{verdict}summary: {workdir.summary}"
        report += f"\nreport: {workdir.report}" if "report" in stages else ""
    return report


def _end_with(watch: hosts.Watch, error: BaseException, workdir: Workdir) -> None:
    """End this process of several for an error: the others wait for it somewhere, and so does JAX at its end.

    The whole error is left in a file of this process, since many hosts' standard errors are hard to tell apart.

    An error of the network may be another's death, which the watch will notice: it is given the time.
    """
    if isinstance(error, jax.errors.JaxRuntimeError) or _OF_THE_NETWORK.search(str(error)):
        time.sleep(_HOST_TIMEOUT.value + 2 * hosts.LONGEST_BEAT)
    status, text = _status(error)
    print(f"pujax: {text}" if text else traceback.format_exc(), file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        write_atomic(workdir.hosts / f"error-{jax.process_index()}.txt", traceback.format_exc().encode())
    watch.tell_end(status, text or repr(error))
    os._exit(status)


def _read_flags(argv: list[str]) -> tuple[Config, Workdir, tuple[str, ...]]:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options start with --")
    if _CONFIG.value is None:
        raise UserError("no --config; try --config configs/quickstart.py, or --help")
    if _TOPOLOGY.value and not _DRY_RUN.value:
        raise UserError("--topology plans for devices that are not here; add --dry_run")
    path = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not isinstance(_CONFIG.value, Config):
        raise UserError(f"{path}: get_config() must return a pujax.config.Config, not {type(_CONFIG.value).__name__}")
    for stage in _STAGES.value or [""]:
        if stage not in pipeline.STAGES:
            raise UserError(f"there is no stage {stage!r}; choose from {', '.join(pipeline.STAGES)}")
    workdir = Workdir(epath.Path(_WORKDIR.value or Path("runs") / path.stem))
    return resolve(_CONFIG.value), workdir, tuple(_STAGES.value)


def _parse(argv: list[str]) -> list[str]:
    """Parse flags; the user's mistakes become UserErrors that name the option."""
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(_USAGE.replace("python -m pujax.launch", program("pujax.launch")))
        sys.exit(0)
    for argument in argv[1:]:
        if match := re.match(r"--?(?:no)?config\.([\w.]+)", argument):
            require_known_field(match.group(1))
    if "--config" in argv and (at := argv.index("--config") + 1) < len(argv):
        argv = [*argv[: at - 1], f"--config={argv[at]}", *argv[at + 1 :]]
    sys.argv = argv = _begin_sources_anew(_spell_out_sources(argv))  # ml_collections reads the overrides there
    recipe = next((Path(a.removeprefix("--config=")) for a in argv[1:] if a.startswith("--config=")), None)
    if recipe and not recipe.is_file():
        raise UserError(f"there is no config file {recipe}")
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # whatever a recipe raises
        where = _place_in_recipe(error, recipe) if recipe else ""
        if not where and not isinstance(error, flags.Error | ValueError):
            raise
        raise UserError(where or str(error)) from error


def _spell_out_sources(argv: list[str]) -> list[str]:
    """Replace `--config.data.pool=TEXT`, or `--config.data.pool TEXT`, by the fields that the text stands for."""
    out, rest, seen = [], iter(argv), set()
    for argument in rest:
        match = re.fullmatch(rf"--?config\.data\.({'|'.join(pipeline.PARTS)})(=.*)?", argument, re.DOTALL)
        if not match:
            out.append(argument)
            continue
        text = match[2][1:] if match[2] else next(rest, None)
        if text is None:
            raise UserError(f"{argument} needs a value; {argument}=PATH")
        if match[1] in seen:  # a shell that expands braces would leave the last file of many
            raise UserError(
                f"--config.data.{match[1]} is given more than once; put a pattern in quotes, "
                f"--config.data.{match[1]}='shards/{{000..999}}.tar'"
            )
        seen.add(match[1])
        source = parse_source(text) if text else SourceConfig()
        told = {"kind": source.kind, "path": source.path, "name": source.name, "split": source.split}
        out += [f"--config.data.{match[1]}.{name}={value}" for name, value in told.items()]
    return out


def _begin_sources_anew(argv: list[str]) -> list[str]:
    """Clear what a recipe says of a source whose kind is given: what it says of another kind would be refused."""
    found = [re.match(r"--?config\.data\.(\w+)\.kind=.", argument) for argument in argv]
    parts = [match.group(1) for match in found if match]
    empty = [f"--config.data.{part}.{field}" for part in parts for field in ("name=", "path=", "split=train")]
    recipes = [argument for argument in argv[1:] if argument.startswith("--config=")]
    return [argv[0], *recipes, *empty, *(argument for argument in argv[1:] if argument not in recipes)]


def _place_in_recipe(error: BaseException, recipe: Path) -> str:
    """Return "file, line n: what", if the error or what it was made from came out of the recipe; else ""."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    lines = [line for file, line in frames if Path(file).resolve() == recipe.resolve()]
    if lines:
        return f"{recipe}, line {lines[-1]}: {type(error).__name__}: {error}"
    if isinstance(error, AttributeError) and "'get_config'" in str(error):
        return f"{recipe} has no function get_config()"
    return ""


def _join_hosts(workdir: Workdir) -> hosts.Watch | None:
    """Join the other processes, where the environment says that there are any, and watch them.

    Raises:
        HostLost: not all of them came.
        UserError: the devices belong to several processes that have not joined.
    """
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        count, index = (_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        hosts.join(workdir.hosts, address=address, count=count, index=index, timeout=_HOST_TIMEOUT.value)
    elif (
        os.environ.get("PUJAX_DISTRIBUTED") == "1"
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")  # set on GKE, not on TPU VMs
        or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    ):
        hosts.join_by_environment(_HOST_TIMEOUT.value)
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise UserError(f"this is one of {jax.process_count()} processes; set PUJAX_DISTRIBUTED=1 on all of them")
    return hosts.Watch(_HOST_TIMEOUT.value) if jax.process_count() > 1 else None


def _number(name: str) -> int:
    """Return the whole number that an environment variable holds."""
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise UserError(f"JAX_COORDINATOR_ADDRESS is set, but {name} is {value!r}; set it to a number")
    return int(value)


def run() -> None:
    """Entry point: one line and an exit status for what the user can mend, a traceback for all else."""
    try:
        app.run(main, flags_parser=_parse)
    except (Exception, KeyboardInterrupt, Preempted) as error:
        status, text = _status(error)
        if not text:
            raise
        print(f"pujax: {text}", file=sys.stderr)
        sys.exit(status)


def _status(error: BaseException) -> tuple[int, str]:
    """Return `command_line.outcome`, and that of what only a job meets."""
    if isinstance(error, KeyboardInterrupt):
        return 1, "stopped; the same command continues the run"
    if isinstance(error, Preempted | HostLost):
        return getattr(error, "status", EXIT_STATUS), f"{in_one_line(error)}; the same command continues the run"
    if isinstance(error, FloatingPointError):
        return 1, in_one_line(error)
    return outcome(error)


if __name__ == "__main__":
    run()
