"""Students trained for comparison: same network, same updates, same recipe, other images."""

from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from pujax.config import Config
from pujax.data.sources import ImageSource, open_source
from pujax.distill import train_student
from pujax.metrics import MetricsLog
from pujax.mining import read_scores, read_selection, truth_block
from pujax.selection import select_all, select_random, select_teacher_confidence


def run(config: Config, workdir: Path, mesh: Mesh, log: MetricsLog, *, name: str) -> dict[str, Any]:
    """Train the student of one baseline; return its accuracy, number of training images, and what a choice found."""
    parts = training_parts(config, workdir, name)
    block = train_student(config, workdir, workdir / "baselines" / name, parts, mesh, log)
    found = truth_block(*parts[1]) if len(parts) == 2 else {}
    return {"accuracy": block["accuracy"], "train_images": block["train_images"], **found}


def check_data(config: Config, name: str) -> None:
    """Raise ValueError if the data that a baseline needs beyond those of the job are not there."""
    if name == "full_data" and not config.data.full.kind:
        raise ValueError("baseline full_data needs data.full, the whole labelled training set; it is not set")
    if name == "true_positives" and open_source(config.data.pool, config.data, labelled=False).truth is None:
        raise ValueError("baseline true_positives needs a pool that carries truth for evaluation; this one does not")


def training_parts(config: Config, workdir: Path, name: str) -> list[tuple[ImageSource, np.ndarray]]:
    """Return the (source, indices) that a baseline trains on; mined-set size is the budget of those that need one."""
    if name == "full_data":
        full = open_source(config.data.full, config.data)
        return [(full, np.arange(len(full)))]
    labelled = open_source(config.data.labelled, config.data)
    rows = np.arange(len(labelled))
    if name == "labelled_only":  # repeated until a batch is full
        return [(labelled, np.tile(rows, -(-config.distill.batch_size // len(rows))))]
    pool = open_source(config.data.pool, config.data, labelled=False)
    return [(labelled, rows), (pool, _choose(config, workdir, pool, name))]


def _choose(config: Config, workdir: Path, pool: ImageSource, name: str) -> np.ndarray:
    if name == "true_positives":
        return np.flatnonzero(pool.truth)
    table, _ = read_scores(workdir / "mine" / "shards", num_images=len(pool), shard_size=config.mining.shard_size)
    budget = len(read_selection(workdir))
    if name == "random":
        rows = select_random(table, budget, seed=config.seed)
    elif name == "teacher_confidence":
        rows = select_teacher_confidence(table, budget)
    else:
        rows = select_all(table)
    return table.index[rows]
