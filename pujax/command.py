"""The `pujax` command: each of its subcommands is a module of its own, imported when it is asked for."""

import difflib
import importlib
import sys
from pathlib import Path

import pujax
from pujax.command_line import run
from pujax.errors import UserError

COMMANDS = {
    "run": ("pujax.launch", "carry out a job: mine the pool, distil the student, measure, export, report"),
    "evaluate": ("pujax.evaluate", "measure any classifier on labelled images"),
    "predict": ("pujax.predict", "classify any images with any classifier"),
    "export": ("pujax.export_model", "write a network as ONNX, LiteRT, StableHLO or PyTorch files, each compared"),
    "report": ("pujax.report_runs", "compare runs in one HTML page, or make a run's page again"),
    "status": ("pujax.status", "tell how far a job is, from any machine"),
    "import": ("pujax.import_torch", "make a PyTorch network a teacher"),
}
_USAGE = """{program}: compress an image classifier with a few labelled images and an unlabelled pool.

  {program} run --config configs/quickstart.py
  {program} status runs/quickstart
  {program} evaluate runs/quickstart
  {program} predict runs/quickstart /data/photos --out classes.csv

{commands}

{program} COMMAND --help tells more, {program} --version the version.
Exit status: 0 done, 2 the input is wrong, 1 anything else; of {program} run also 75, start it again."""


def main() -> None:
    """Entry point: run the subcommand that the command line names."""
    program = "python -m pujax" if Path(sys.argv[0]).name == "__main__.py" else "pujax"
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in COMMANDS:
        module = importlib.import_module(COMMANDS[name][0])
        sys.argv = [f"{program} {name}", *rest]  # by which it calls itself
        if name == "run":
            module.run()
        else:
            run(module.main)
    elif name in ("--help", "-h"):
        print(usage(program))
    elif name == "--version":
        print(f"pujax {pujax.__version__}")
    else:
        run(lambda _: refuse(program, name))


def usage(program: str) -> str:
    """Return what `--help` prints."""
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return _USAGE.format(program=program, commands="\n".join(lines))


def refuse(program: str, name: str) -> None:
    """Raise UserError for a subcommand that there is not."""
    close = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"did you mean {program} {close[0]}? " if close else ""
    raise UserError(f"there is no command {name!r}; {hint}choose from {', '.join(COMMANDS)}, or see {program} --help")
