"""A row of the accuracy tables: the pool images nearest to labelled ones in the teacher's features; no training."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from pujax.config import Config
from pujax.data.sources import open_source, read_or_fail
from pujax.distill import train_student
from pujax.metrics import MetricsLog, auc
from pujax.mining import read_selection
from pujax.scorer import extract_inputs
from pujax.sharding import make_mesh, replicate
from pujax.teacher import load_teacher

NEIGHBOURS = 5


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Train the student on as many of the nearest images as the finished job in `workdir` mined; return its line."""
    labelled = open_source(config.data.labelled, config.data)
    pool = open_source(config.data.pool, config.data, labelled=False)
    mesh, started = make_mesh(), time.perf_counter()
    module, variables = load_teacher(config, workdir)
    on_mesh = replicate(mesh, variables)
    positives, unlabelled = (
        extract_inputs(
            config,
            module,
            on_mesh,
            lambda rows, s=s: read_or_fail(s, rows, "images"),
            len(s),
            mesh=mesh,
            name="nearest",
        )["features"]
        for s in (labelled, pool)
    )
    mean, std = unlabelled.mean(0), unlabelled.std(0) + 1e-6
    scores = -mean_distances((unlabelled - mean) / std, (positives - mean) / std)
    budget = len(read_selection(workdir))
    chosen, scored = np.sort(np.argsort(-scores, kind="stable")[:budget]), time.perf_counter()
    log = MetricsLog(workdir, enabled=False)
    parts = [(labelled, np.arange(len(labelled))), (pool, chosen)]
    block = train_student(config, workdir, workdir / "nearest_neighbour", parts, mesh, log)
    return {
        "row": "nearest_neighbour",
        "accuracy": block["accuracy"],
        "train_images": block["train_images"],
        "truth_auc": auc(scores[pool.truth], scores[~pool.truth]),
        "precision": float(pool.truth[chosen].mean()),
        "recall": float(pool.truth[chosen].sum() / pool.truth.sum()),
        "seconds": {"scorer": scored - started, "student": time.perf_counter() - scored},
    }


def mean_distances(queries: np.ndarray, references: np.ndarray, *, chunk: int = 4096) -> np.ndarray:
    """Return the mean Euclidean distance [Q] of each query [Q, D] to its five nearest references [R, D]."""
    out, norms = [], (references**2).sum(1)
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        squared = (part**2).sum(1)[:, None] - 2 * part @ references.T + norms
        nearest = np.partition(squared, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        out.append(np.sqrt(np.maximum(nearest, 0)).mean(1))
    return np.concatenate(out)
