"""The page of a run, made again, or one page that compares several: `pujax report --help`."""

import argparse
from collections.abc import Sequence

from etils import epath

from pujax.artifacts import Workdir, load_json, write_atomic
from pujax.command_line import Parser, run
from pujax.errors import UserError
from pujax.lock import locked
from pujax.report.compare import Run, compare_page, flatten_json

_DESCRIPTION = """Compare runs in one HTML page. Runs that differ only in their seed are one line, with mean and spread.
Of a single run its own page is made again, report.html in its work directory.

  python -m pujax.report_runs runs/quickstart runs/seed1 runs/seed2 --out compare.html
  python -m pujax.report_runs runs/quickstart

Exit status: 0 done, 2 the input is wrong, 1 anything else."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser("pujax.report_runs", _DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="WORKDIR", help="work directories, local or in an object store")
    parser.add_argument("--out", default="", metavar="FILE", help="the page that compares (default: compare.html)")
    return parser


def load_run(path: str) -> Run:
    """Read what a work directory tells of its run.

    Raises:
        UserError: there is no run in it, or a file is damaged.
    """
    workdir = Workdir(epath.Path(path))
    for file in (workdir.summary, workdir.config):
        if not file.exists():
            raise UserError(f"there is no {file.name} in {path}; give work directories of runs that have ended")
    return Run(path.rstrip("/"), flatten_json(load_json(workdir.config)), load_json(workdir.summary))


def main(argv: Sequence[str]) -> None:
    """Write the page that the arguments ask for.

    Raises:
        UserError: they are wrong.
    """
    options = make_parser().parse_args(argv)
    if len(options.runs) == 1 and not options.out:
        out = str(make_again(options.runs[0]))
    else:
        out = options.out or "compare.html"
        write_atomic(epath.Path(out), compare_page([load_run(path) for path in options.runs]).encode())
    print(f"report: {out}")


def make_again(path: str) -> epath.Path:
    """Make the page of one run again, with the options of its last run; return where it is.

    Raises:
        UserError: there is no run, another job is at work there, or its images are gone.
    """
    from pujax import pipeline  # with JAX, which comparing does without
    from pujax.loaded import load_config
    from pujax.sharding import configure_backend

    configure_backend()
    workdir = Workdir(epath.Path(path))
    config = load_config(workdir)
    with locked(workdir.lock), pipeline.opened(config, workdir, ("report",)) as (_, units):
        units["report"].paths.done.unlink(missing_ok=True)
        pipeline.run_unit(units["report"])
    return workdir.report


if __name__ == "__main__":
    run(main)
