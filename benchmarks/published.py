"""Rows of the accuracy tables that stand for others' methods as published: no labelled images, their own distillation.

The pipeline's baselines `random` and `teacher_confidence` differ from pujax in the images alone: they train on the
labelled images too and with pujax's recipe. These do not.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from pujax.config import Config
from pujax.data.sources import open_source
from pujax.distill import train_student
from pujax.metrics import MetricsLog
from pujax.mining import read_scores, read_selection
from pujax.selection import select_random, select_teacher_confidence
from pujax.sharding import make_mesh

ROWS = ("random_published", "dfnd_published")


def run(config: Config, workdir: Path, name: str) -> dict[str, Any]:
    """Train the student of one row on as many images as the finished job in `workdir` mined; return its line.

    `random_published`: plain distillation at temperature 1 on random pool images, as in "Positive-Unlabeled Compression
    on the Cloud". `dfnd_published`: the teacher's most confident images, temperature 4 and noise adaptation with the
    teacher's accuracy on the diagonal (Chen et al., CVPR 2021).
    """
    pool = open_source(config.data.pool, config.data, labelled=False)
    table, _ = read_scores(workdir / "mine" / "shards", num_images=len(pool), shard_size=config.mining.shard_size)
    budget, started = len(read_selection(workdir)), time.perf_counter()
    plain = {"class_weights": "none", "robust": "none", "label_weight": 0.0, "labelled_per_batch": 0}
    if name == "random_published":
        rows, changes = select_random(table, budget, seed=config.seed), {"temperature": 1.0}
    else:
        teacher = json.loads((workdir / "teacher" / "DONE.json").read_text())
        rows = select_teacher_confidence(table, budget)
        changes = {"temperature": 4.0, "noise_adaptation": teacher["accuracy"]}
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, **plain, **changes))
    parts = [(pool, table.index[rows])]
    block = train_student(config, workdir, workdir / name, parts, make_mesh(), MetricsLog(workdir, enabled=False))
    return {
        "row": name,
        **{key: block[key] for key in ("accuracy", "train_images")},
        "precision": float(pool.truth[table.index[rows]].mean()),
        "seconds": {"student": time.perf_counter() - started},
    }
