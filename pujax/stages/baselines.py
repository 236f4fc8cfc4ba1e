"""Stage 6: students trained for comparison: same network, same updates, same recipe, other images."""

from typing import Any

import numpy as np

from pujax.data.sources import ImageSource
from pujax.errors import UserError
from pujax.job import Job
from pujax.metrics import precision_and_recall
from pujax.selection import select
from pujax.student import Parts, make_student

RESULTS_VERSION = 2


def run(job: Job, name: str, *, budget: int) -> dict[str, Any]:
    """Train the student of one baseline; return its accuracy, number of training images, and what a choice found.

    Args:
        job: the job.
        name: one of config.BASELINES.
        budget: images of those baselines that choose as many as pujax did.
    """
    parts = training_parts(job, name, budget)
    block = make_student(job, f"baselines/{name}", parts)
    found = precision_and_recall(parts[1][0].truth, parts[1][1]) if len(parts) == 2 else {}
    return {name: block[name] for name in ("accuracy", "lowest_class_accuracy", "train_images")} | found


def check_data(sources: dict[str, ImageSource], name: str) -> None:
    """Raise UserError if the data that a baseline needs beyond those of the job are not there."""
    if name == "full_data" and "full" not in sources:
        raise UserError("baseline full_data needs data.full, the whole labelled training set; it is not set")
    if name == "true_positives" and sources["pool"].truth is None:
        raise UserError("baseline true_positives needs a pool that carries truth for evaluation; this one does not")


def training_parts(job: Job, name: str, budget: int) -> Parts:
    """Return the (source, indices) that a baseline trains on."""
    if name == "full_data":
        full = job.sources["full"]
        return [(full, np.arange(len(full)))]
    labelled, pool = job.sources["labelled"], job.sources["pool"]
    rows = np.arange(len(labelled))
    if name == "labelled_only":  # repeated until a batch is full
        return [(labelled, np.tile(rows, -(-job.config.distill.batch_size // len(rows))))]
    if name == "true_positives":
        return [(labelled, rows), (pool, np.flatnonzero(pool.truth))]
    return [(labelled, rows), (pool, select(name, job.score_table(), budget=budget, seed=job.config.seed))]
