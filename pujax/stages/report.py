"""The last stage: the page that shows a run, of as much of it as there is."""

from typing import Any

from pujax.artifacts import is_remote, load_arrays, write_atomic
from pujax.job import Job
from pujax.report.curves import read_curves
from pujax.report.page import Facts, run_page
from pujax.report.pool_view import PoolView, view_pool
from pujax.report.thumbnails import thumbnails
from pujax.score_table import read_selection
from pujax.sharding import is_main_process

RESULTS_VERSION = 1


def run(job: Job, *, summary: dict[str, Any], seconds: dict[str, float | None]) -> dict[str, Any]:
    """Write `report.html`; return the summary block.

    Args:
        job: the job.
        summary: what the other stages have found so far.
        seconds: that each stage and baseline took; None of those that have not run.
    """
    if not is_main_process():
        return {}
    view, pictures = None, {}
    if seconds["score"] is not None and "pool" in job.sources:
        view = _view(job, selected=seconds["select"] is not None)
        pool = job.sources["pool"]
        pictures = thumbnails([*view.grids.values(), *view.by_class.values()], pool.read, pool.keys)
    page = run_page(
        Facts(
            name=job.workdir.root.name,
            config=job.config,
            summary=summary,
            seconds=seconds,
            curves=read_curves(_metrics(job)),
            class_names=_class_names(job),
            view=view,
            pictures=pictures,
        )
    ).encode()
    write_atomic(job.workdir.report, page)
    return {"bytes": len(page)}


def _view(job: Job, *, selected: bool) -> PoolView:
    arrays = load_arrays(job.workdir.held_out)
    held_out = arrays["positive"][0], arrays["pool"]
    return view_pool(
        job.score_table(),
        held_out,
        read_selection(job.workdir.selected, ["index"])["index"].to_numpy() if selected else None,
        num_classes=job.config.data.num_classes,
        seed=job.config.seed,
    )


def _metrics(job: Job) -> list[str]:
    """Return the lines of the log: this machine's, or those in the object store where this one has none."""
    lines = (job.workdir.scratch / "metrics.jsonl").read_text().splitlines()
    stored = job.workdir.root / "metrics.jsonl"
    if not lines and is_remote(job.workdir.root) and stored.exists():
        return stored.read_text().splitlines()
    return lines


def _class_names(job: Job) -> tuple[str, ...] | None:
    """Return the names that the teacher knows, else those of the first labelled source that has any."""
    labelled = [source.class_names for part, source in job.sources.items() if part != "pool"]
    teacher = job.given_teacher.class_names if job.given_teacher else None
    return next((names for names in (teacher, *labelled) if names), None)
