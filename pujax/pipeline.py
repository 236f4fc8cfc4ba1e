"""The order of the stages: what runs, what is skipped because it is done, and the summary.

Each stage owns a folder of the work directory, and so does each baseline. `INPUTS.json`, written first, records every
option and the content of every source that its results depend on, its own and those of the stages before it, and the
results version of each; `DONE.json`, written last, holds its summary block.

Teacher, scorer and score table that were made from other inputs are refused by the name of what differs. The choice and
the students follow the options instead: what was made from others is set aside under `previous/`, and comes back
with them. The report, which shows whatever there is, is made again when any result that it shows has changed.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

import pujax
from pujax import artifacts
from pujax.artifacts import Workdir, load_json, save_json, write_atomic
from pujax.config import STAGES, Config, flatten
from pujax.data.class_names import given_class_names
from pujax.data.sources import ImageSource, hold_out, open_source
from pujax.errors import UserError
from pujax.exporters.formats import FORMATS
from pujax.inference import resolve_dtype
from pujax.job import Job
from pujax.lock import locked, read_holder, turn
from pujax.metrics import MetricsLog
from pujax.models import CLASSIFIERS, parse_name
from pujax.networks import check_class_names
from pujax.pu.heads import check_enough
from pujax.sharding import barrier, check_divisible, is_main_process, make_mesh
from pujax.stages import baselines, distill, export, report, score, scorer, select, teacher
from pujax.student import abstract_student, begin_with

PARTS = ("full", "test", "labelled", "pool")

_BEFORE = {
    "teacher": (),
    "scorer": ("teacher",),
    "score": ("teacher", "scorer"),
    "select": ("teacher", "scorer", "score"),
    "distill": ("teacher", "scorer", "score", "select"),
    "export": ("teacher", "scorer", "score", "select", "distill"),
    "baselines": ("teacher", "scorer", "score", "select"),
    "report": (),  # shows what there is
}
_VERSIONS = {module.__name__.rsplit(".", 1)[-1]: module.RESULTS_VERSION
             for module in (teacher, scorer, score, select, distill, export, baselines, report)}  # fmt: skip
_WITHOUT_POOL = {"teacher", "report"}  # stages that do without labelled images and pool
_SHARED = {"score"}  # what many processes may do in one work directory at a time, each by itself
_REFUSED = ("teacher", "scorer", "score")  # what took long to make is never set aside
_TASK_FIELDS = ("data.num_classes", "data.image_size", "data.channels", "data.mean", "data.std", "data.crop",
                "data.interpolation", "data.class_names")  # fmt: skip
_RUN_ONLY_FIELDS = ("run.", "baselines", "score.max_unreadable", "scorer.min_in_range", "select.images")


@dataclass(frozen=True)
class Unit:
    """One piece of work with a folder of its own: a stage, or one baseline."""

    name: str
    paths: artifacts.Unit
    given: dict[str, Any]  # every option and source its results depend on
    run: Callable[[], dict[str, Any]]
    shown: tuple["Unit", ...] = ()  # those whose results, whatever they are by then, it depends on

    @property
    def stage(self) -> str:
        """The stage that it belongs to."""
        return self.name.split("/")[0]

    @property
    def inputs(self) -> dict[str, Any]:
        """What its results depend on, as it is now."""
        results = {f"results of {unit.name}": _file_digest(unit.paths.done) for unit in self.shown if unit.is_done()}
        return self.given | results

    def differs(self) -> str | None:
        """Return the name of an input that the folder was made without or with another value of; None if all agree.

        Sources that were not opened, now or then, since the stages asked for do without them, are not compared.
        """
        if not self.paths.inputs.exists():
            return None
        before, now = load_json(self.paths.inputs), self.inputs
        unopened = {name for name in before.keys() ^ now.keys() if name.startswith("contents of data.")}
        names = sorted((before.keys() | now.keys()) - unopened)
        return next((name for name in names if before.get(name) != now.get(name)), None)

    def is_done(self) -> bool:
        """Whether the folder holds finished results of these inputs."""
        return self.paths.done.exists() and self.differs() is None

    def block(self) -> dict[str, Any]:
        """Return the summary block of a finished unit."""
        return load_json(self.paths.done)


def run(config: Config, path: str | epath.Path, stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
    """Run the stages that are not done, in order; return the summary, also written to `summary.json`.

    A process that is asked for nothing but stage score helps whoever is at work in the directory: it takes no lock, and
    leaves the job's own options and logs alone.

    Raises:
        UserError: an input is wrong, the work directory holds results of another config, or another job is at work.
    """
    started = time.monotonic()
    workdir = artifacts.open_workdir(path)
    owner = is_main_process() and not set(stages) <= _SHARED
    with locked(workdir.lock) if owner else nullcontext(), opened(config, workdir, stages) as (job, units):
        check(job, units, stages)
        if owner:
            save_json(workdir.config, dataclasses.asdict(job.config))
            for unit in units.values():
                if unit.stage in stages and unit.stage not in _REFUSED and not unit.shown:
                    bring_back(unit, workdir)
        barrier("work directory")
        asked = [unit for unit in units.values() if unit.stage in stages]
        for unit in asked:
            if not unit.shown:
                run_unit(unit)
        summary = summarize(job.config, units, time.monotonic() - started)
        if owner or (is_main_process() and not _is_at_work(workdir)):
            save_json(workdir.summary, summary)
        for unit in asked:  # when all numbers are safe
            if unit.shown:
                run_unit(unit)
    return summary


def _is_at_work(workdir: Workdir) -> bool:
    """Whether a job holds the work directory, whose summary is its own."""
    holder = read_holder(workdir.lock)
    return holder is not None and holder[1]


@contextmanager
def opened(
    config: Config, workdir: Workdir, stages: tuple[str, ...], *, dry: bool = False
) -> Iterator[tuple[Job, dict[str, Unit]]]:
    """Open the sources that the stages need, once, and the log; give the job and its units of work.

    Args:
        config: the job's options.
        workdir: its folder.
        stages: those that are asked for.
        dry: write nothing.
    """
    config = dataclasses.replace(config, compute_dtype=resolve_dtype(config.compute_dtype).name)
    config, given = teacher.settle(config, teacher.given_teacher(config))
    mesh = make_mesh()
    names = given.class_names if given else given_class_names(config.data)
    sources = open_sources(config, workdir, stages, class_names=names, dry=dry)
    logs = is_main_process() and not dry and not set(stages) <= _SHARED
    with closing(MetricsLog(workdir.scratch, enabled=logs)) as log:
        job = Job(config, workdir, sources, given, mesh, log)
        yield job, make_units(job)
    if artifacts.is_remote(workdir.root) and logs:
        write_atomic(workdir.root / "metrics.jsonl", (workdir.scratch / "metrics.jsonl").read_bytes())


def open_sources(
    config: Config,
    workdir: Workdir,
    stages: tuple[str, ...],
    *,
    class_names: tuple[str, ...] | None = None,
    dry: bool = False,
) -> dict[str, ImageSource]:
    """Return the data sources by part: those that the stages need, and the whole labelled set where it is used.

    Without a test set some of the labelled images are kept out to be one.
    """
    measures = "test" if config.data.test.kind else "labelled"
    needed = {measures, "labelled", "pool"}
    if set(stages) <= _SHARED:
        needed = {"pool"}
    elif set(stages) <= _WITHOUT_POOL:
        needed = {measures} | ({"pool"} if "report" in stages and config.data.pool.kind else set())
    for part in sorted(needed):
        if not getattr(config.data, part).kind:
            raise UserError(f"data.{part} is not set; give --config.data.{part}=PATH")
    wanted = [
        part
        for part in PARTS
        if getattr(config.data, part).kind and (part in needed or (part == "full" and not set(stages) <= _SHARED))
    ]
    if config.teacher.weights and "full_data" not in config.baselines and "full" in wanted:
        wanted.remove("full")
    sources = {}
    for process_turn in (True, False):  # a folder is listed by the main process first
        if process_turn == is_main_process():
            sources = {part: _open(config, workdir, part, class_names, dry=dry) for part in wanted}
        barrier("sources")
    if measures == "labelled" and "labelled" in sources:
        sources["labelled"], sources["test"] = hold_out(sources["labelled"], config.data.holdout)
    return sources


def _open(
    config: Config, workdir: Workdir, part: str, class_names: tuple[str, ...] | None, *, dry: bool
) -> ImageSource:
    listed = (workdir.pool / "MANIFEST.json").exists()
    manifest = workdir.pool if part == "pool" and (listed or not dry) else None
    return open_source(
        getattr(config.data, part), config.data, labelled=part != "pool", manifest=manifest, class_names=class_names
    )


def make_units(job: Job) -> dict[str, Unit]:
    """Return every unit of work by name, in the order in which they run."""
    units: dict[str, Unit] = {}

    def block(name: str) -> dict[str, Any]:
        return units[name].block()

    work: dict[str, Callable[[], dict[str, Any]]] = {
        "teacher": lambda: teacher.run(job),
        "scorer": lambda: scorer.run(job),
        "score": lambda: score.run(job),
        "select": lambda: select.run(job, found=block("scorer")),
        "distill": lambda: distill.run(job),
    }
    if job.config.export.formats:
        work["export"] = lambda: export.run(
            job, found={name: block(name) for name in _BEFORE["export"]}, inputs=units["distill"].inputs
        )
    for name in job.config.baselines:
        work[f"baselines/{name}"] = lambda name=name: baselines.run(job, name, budget=block("select")["selected"])
    weights = weights_digests(job.config)
    for name, stage in work.items():
        units[name] = Unit(name, job.workdir.unit(name), unit_inputs(job, name, weights), stage)
    others = dict(units)
    units["report"] = Unit(
        "report",
        job.workdir.unit("report"),
        report_inputs(job.config),
        lambda: report.run(job, summary=summarize(job.config, others, 0.0), seconds=spent(others)),
        shown=tuple(others.values()),
    )
    return units


def weights_digests(config: Config) -> dict[str, str]:
    """Return a digest of each weights file that the options give, by its option; large files are read once for it."""
    given = {"teacher.weights": teacher.weights_path(config), "distill.weights": config.distill.weights}
    return {option: _file_digest(epath.Path(path)) for option, path in given.items() if path}


def unit_inputs(job: Job, name: str, weights: dict[str, str]) -> dict[str, Any]:
    """Return the options, sources, weights and results versions that a unit's numbers depend on.

    Args:
        job: the job.
        name: of the unit.
        weights: from `weights_digests`.
    """
    config, stage = job.config, name.split("/")[0]
    stages = (*_BEFORE[stage], stage)
    trains_teacher = not config.teacher.weights
    prefixes = {
        "teacher": ("seed", "compute_dtype", *_TASK_FIELDS, *(("teacher.",) if trains_teacher else ())),
        "scorer": ("scorer.",),
        "score": ("score.",),
        "select": ("select.", "distill.num_steps", "distill.batch_size"),
        "distill": ("distill.",),
        "export": ("export.preprocessing", "export.int8_"),
        "baselines": ("distill.",),
    }
    wanted = tuple(prefix for own in stages for prefix in prefixes[own])
    inputs = {
        field: list(value) if isinstance(value, tuple) else value
        for field, value in flatten(config)
        if field.startswith(wanted) and not field.startswith(_RUN_ONLY_FIELDS)
    }
    parts = {"teacher": ("test", *(("full",) if trains_teacher else ())), "scorer": ("labelled", "pool")}
    used = [part for own in stages for part in parts.get(own, ())] + (["full"] if name == "baselines/full_data" else [])
    inputs |= {f"contents of data.{part}": job.sources[part].fingerprint for part in used if part in job.sources}
    own = {"teacher.weights", *(("distill.weights",) if stage in ("distill", "export", "baselines") else ())}
    inputs |= {f"contents of {option}": digest for option, digest in weights.items() if option in own}
    if stage == "export":  # a package that is installed later makes a format possible
        inputs["export.formats"] = [name for name in config.export.formats if not FORMATS[name].missing()]
    return inputs | {f"results version of {own}": _VERSIONS[own] for own in stages}


def report_inputs(config: Config) -> dict[str, Any]:
    """Return what the report depends on beside the results: every option, since it shows them all."""
    options = {field: list(value) if isinstance(value, tuple) else value for field, value in flatten(config)}
    return options | {"results version of report": _VERSIONS["report"]}


def spent(units: dict[str, Unit]) -> dict[str, float | None]:
    """Return the seconds that each unit took; None of those that are not done."""
    return {name: unit.block()["seconds"] if unit.is_done() else None for name, unit in units.items()}


def _file_digest(path: epath.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def check(job: Job, units: dict[str, Unit], stages: tuple[str, ...]) -> None:
    """Raise UserError for what would stop one of the stages hours later."""
    config, mesh = job.config, job.mesh
    for unit in units.values():
        if unit.stage in _REFUSED and (name := unit.differs()):
            refuse(unit, name)
        if unit.is_done():
            unit.block()  # damaged?
    to_do = {unit.stage for unit in units.values() if not unit.is_done()}
    for stage in to_do.intersection(stages):
        missing = sorted(to_do.intersection(_BEFORE[stage]).difference(stages), key=STAGES.index)
        if missing:
            raise UserError(f"stage {stage} needs stage {missing[0]}, which has not run; add it to --stages")
    if not config.teacher.weights:
        if not config.data.full.kind:
            raise UserError("neither teacher.weights nor data.full is set; give weights, or images to train on")
        _check_model("teacher.model", config.teacher.model)
        check_divisible(config.teacher.batch_size, mesh, "teacher.batch_size")
    given = job.given_teacher
    named = [
        (f"data.{part}", job.sources[part].class_names) for part in PARTS if part in job.sources and part != "pool"
    ]
    check_class_names([("the teacher", given.class_names if given else None), *named])
    if set(stages) <= _WITHOUT_POOL or set(stages) <= _SHARED:
        return
    if config.scorer.mode == "finetune" and given and given.graph:
        raise UserError(
            f"scorer.mode=finetune trains the teacher's network, but {config.teacher.weights} holds a fixed graph; "
            "use scorer.mode=frozen"
        )
    _check_model("distill.model", config.distill.model)
    if config.distill.weights:
        begin_with(config.distill, abstract_student(config.distill, teacher.abstract_teacher(config, given)))
    options = getattr(config.scorer, config.scorer.mode)
    check_divisible(options.batch_size, mesh, f"scorer.{config.scorer.mode}.batch_size")
    check_divisible(config.distill.batch_size, mesh, "distill.batch_size")
    labelled, pool = len(job.sources["labelled"]), len(job.sources["pool"])
    if config.scorer.mode == "frozen":
        check_enough(labelled, min(pool, config.scorer.pool_sample or pool), config.scorer.frozen.folds)
    if not config.distill.labelled_per_batch and config.distill.batch_size > labelled + pool:
        raise UserError(
            f"distill.batch_size is {config.distill.batch_size}, but there are {labelled} labelled and {pool} "
            "pool images; lower it"
        )
    for name in config.baselines:
        baselines.check_data(job.sources, name)


def _check_model(field: str, model: str) -> None:
    if not model:
        raise UserError(f"{field} is not set; choose from {', '.join(CLASSIFIERS)}")
    try:
        parse_name(model)
    except ValueError as error:
        raise UserError(f"{field} is {model!r}: {error}") from error


def refuse(unit: Unit, name: str) -> None:
    """Raise UserError that names an input in which the unit's folder differs from this run."""
    before = load_json(unit.paths.inputs).get(name)
    raise UserError(
        f"{unit.paths.folder} was made with {name}={before!r}, this run has {unit.inputs.get(name)!r}; "
        f"choose another --workdir, or delete that folder and those of later stages"
    )


def bring_back(unit: Unit, workdir: Workdir) -> None:
    """Set results of other inputs aside, and bring back those of these inputs, where there are any."""
    if unit.differs():
        aside = workdir.previous / _place(unit.name, load_json(unit.paths.inputs))
        _move(unit.paths.folder, aside)
        _say(f"{unit.name}: made with other options, set aside in {aside}")
    kept = workdir.previous / _place(unit.name, unit.inputs)
    if kept.exists() and not unit.paths.inputs.exists():
        _move(kept, unit.paths.folder)
        _say(f"{unit.name}: brought back from {kept}")


def _place(name: str, inputs: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    return f"{name.replace('/', '-')}-{digest}"


def _move(source: epath.Path, target: epath.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rmtree()
    source.rename(target)


def run_unit(unit: Unit) -> None:
    """Run a unit unless it is done; its inputs are recorded first, its results last."""
    done = unit.is_done()
    barrier(f"{unit.name} looked at")  # before the main process changes what the others look at
    if done:
        _say(f"{unit.name}: done before, skipped")
        return
    if is_main_process():
        unit.paths.done.unlink(missing_ok=True)  # of a former report, which other inputs would make look done
        save_json(unit.paths.inputs, unit.inputs)
    if artifacts.is_remote(unit.paths.folder):
        _claim_scratch(unit)
    barrier(f"{unit.name} starts")
    started = time.monotonic()
    block = unit.run()
    block["seconds"] = round(time.monotonic() - started, 2)
    if is_main_process():
        save_json(unit.paths.done, block)
    barrier(f"{unit.name} done")
    _say(f"{unit.name}: " + ", ".join(f"{key} {_short(value)}" for key, value in block.items()))


def _claim_scratch(unit: Unit) -> None:
    """Empty this host's local folder of a unit, unless it was made from the same inputs."""
    scratch = unit.paths.scratch
    with turn(scratch.with_name(f"{scratch.name}.turn")):
        own = epath.Path(scratch) / "INPUTS.json"
        if not own.exists() or load_json(own) != unit.inputs:
            shutil.rmtree(scratch, ignore_errors=True)
            save_json(own, unit.inputs)


def summarize(config: Config, units: dict[str, Unit], seconds: float) -> dict[str, Any]:
    """Return the content of `summary.json`: one block per finished stage, the baselines, and the run."""
    done = {name: unit.block() for name, unit in units.items() if unit.is_done()}
    summary = {name: done[name] for name in ("teacher", "scorer") if name in done}
    if "score" in done:
        chosen = done.get("select", {})
        spent = round(done["score"]["seconds"] + chosen.get("seconds", 0.0), 2)
        summary["mining"] = done["score"] | chosen | {"seconds": spent}
    if "distill" in done:
        summary["student"] = done["distill"]
    if "export" in done:
        summary["export"] = done["export"]["formats"]
    if config.baselines:
        compared = {name.split("/")[1]: block for name, block in done.items() if name.startswith("baselines/")}
        summary["baselines"] = compared
    summary["run"] = {
        "seed": config.seed,
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "processes": jax.process_count(),
        "versions": versions(),
        "wall_seconds": round(seconds, 2),
    }
    return summary


def versions() -> dict[str, str]:
    """Return the versions of Python, of pujax, and of what its numbers come from."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow", "simplejpeg",
                "opencv-python-headless")  # fmt: skip
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found, "pujax": pujax.__version__}


def verdict(summary: dict[str, Any]) -> str:
    """Return a plain statement of what mining was worth, in whole lines; none while there is no student."""
    if "student" not in summary:
        return ""
    student = 100 * summary["student"]["accuracy"]
    count = summary["teacher"].get("test_images", 0)
    lines = [f"student {student:.2f} % on the test set, teacher {100 * summary['teacher']['accuracy']:.2f} %"]
    if 0 < count < 1000:
        error = math.sqrt(student * (100 - student) / count)
        lines.append(f"but: measured on {count} images, so with a standard error of {error:.1f} points")
    if wrong := summary["teacher"].get("doubt"):
        lines.append(f"but: the teacher seems to be used wrongly: {wrong}")
    for name, block in summary.get("baselines", {}).items():
        other = 100 * block["accuracy"]
        lines.append(f"  {name:<20} {other:6.2f} %   mining is worth {student - other:+.2f} points")
    mining = summary.get("mining", {})
    if doubt := mining.get("doubt"):
        lines.append(f"but: {doubt}")
    for part in ("test", "labelled"):
        if count := mining.get(f"copies_of_{part}"):
            lines.append(
                f"{count} of the chosen images look like copies of {part} images; select.copies=drop leaves them out"
            )
    return "".join(f"{line}\n" for line in lines)


def _say(line: str) -> None:
    if is_main_process():
        print(line, flush=True)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_short(entry)}" for key, entry in value.items()) + "}"
    return "[" + ", ".join(map(_short, value)) + "]" if isinstance(value, list) else str(value)
