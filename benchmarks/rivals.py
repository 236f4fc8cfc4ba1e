"""Rivals as rows of the accuracy tables: what each chooses, and what it changes in the recipe of the student.

The pipeline's own baselines differ from pujax in the images alone. "As published" leaves the labelled images out, and
brings the method's own distillation.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.other_losses import noise_adaptation
from pujax.config import FrozenScorerConfig
from pujax.data.reading import read_or_fail
from pujax.data.sources import ImageSource
from pujax.job import Job
from pujax.metrics import auc, precision_and_recall
from pujax.pu.scorer import extract_inputs
from pujax.score_table import read_selection
from pujax.selection import select
from pujax.student import make_student

NEIGHBOURS = 5
Choice = tuple[np.ndarray, dict[str, Any]]  # pool indices [n], and what else the line says

# The released scorer: fine-tuned, uniform batches, sigmoid nnPU at the true prior. Its 170 epochs are cut to what the
# CPU allows ("steps" in a result line). Its threshold of 0 keeps no image where the estimator has collapsed, so it is
# told how many to keep.
RELEASED_SCORER = {
    "scorer.mode": "finetune",
    "scorer.frozen": FrozenScorerConfig(),  # what the table's recipe says of the other mode would be refused
    "scorer.finetune.learning_rate": 1e-3,
    "scorer.finetune.weight_decay": 5e-3,
    "select.rule": "prior",
    "select.budget": 0,
}
RELEASED_DISTILLATION = {"distill.class_weights": "inverse_frequency", "distill.robust": "paper"}
RELEASED_DISTILLATION |= {"distill.temperature": 1.0, "distill.labelled_per_batch": 0}


@dataclass(frozen=True)
class Rival:
    """A method that chooses from a pool that pujax has scored."""

    choose: Callable[[Job, int], Choice]
    labelled: bool = False  # whether it trains on the labelled images too
    distill: dict[str, Any] = field(default_factory=dict)  # what it changes in the student's recipe
    noise_adaptation: bool = False  # with the teacher's accuracy on the diagonal


def run(job: Job, name: str, *, teacher_accuracy: float) -> dict[str, Any]:
    """Train the student of a rival on as many pool images as the finished job has chosen; return its line."""
    rival, config, started = RIVALS[name], job.config, time.perf_counter()
    chosen, found = rival.choose(job, len(read_selection(job.workdir.selected, ["index"])))
    pool, labelled, chosen_at = job.sources["pool"], job.sources["labelled"], time.perf_counter()
    parts = [(labelled, np.arange(len(labelled)))] if rival.labelled else []
    extra = noise_adaptation(config.data.num_classes, teacher_accuracy) if rival.noise_adaptation else None
    recipe = dataclasses.replace(config.distill, **rival.distill)
    block = make_student(job, name, [*parts, (pool, chosen)], distill=recipe, extra=extra)
    seconds = {"scorer": chosen_at - started, "student": time.perf_counter() - chosen_at}
    line = {"row": name, "accuracy": block["accuracy"], "train_images": block["train_images"], **found}
    return line | precision_and_recall(pool.truth, chosen) | {"seconds": seconds}


def by_rule(rule: str, job: Job, budget: int) -> Choice:
    """Choose by a rule of the library."""
    return select(rule, job.score_table(), budget=budget, seed=job.config.seed), {}


def nearest(job: Job, budget: int) -> Choice:
    """Choose the pool images nearest to labelled ones in the teacher's features; no training."""
    pool, config = job.sources["pool"], job.config
    options = {"mesh": job.mesh, "batch_size": config.run.inference_batch_size}

    def features(source: ImageSource) -> np.ndarray:
        read = functools.partial(read_or_fail, source, what="images")
        return extract_inputs(config.scorer.frozen, job.teacher(), read, len(source), **options)["features"]

    scores = nearness(features(pool), features(job.sources["labelled"]))
    chosen = np.sort(np.argsort(-scores, kind="stable")[:budget])
    return chosen, {"truth_auc": auc(scores[pool.truth], scores[~pool.truth])}


def nearness(pool: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Return minus the mean distance [U] of each of the pool's features [U, D] to its nearest labelled ones [P, D]."""
    mean, std = pool.mean(0), pool.std(0) + 1e-6
    return -mean_distances((pool - mean) / std, (labelled - mean) / std)


def mean_distances(queries: np.ndarray, references: np.ndarray, *, chunk: int = 4096) -> np.ndarray:
    """Return the mean Euclidean distance [Q] of each query [Q, D] to its five nearest references [R, D]."""
    out, norms = [], (references**2).sum(1)
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        squared = (part**2).sum(1)[:, None] - 2 * part @ references.T + norms
        nearest_few = np.partition(squared, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        out.append(np.sqrt(np.maximum(nearest_few, 0)).mean(1))
    return np.concatenate(out)


_PLAIN = {"class_weights": "none", "robust": "none", "label_weight": 0.0, "labelled_per_batch": 0}
_RANDOM, _CONFIDENT = (functools.partial(by_rule, rule) for rule in ("random", "teacher_confidence"))
RIVALS = {
    "nearest_neighbour": Rival(nearest, labelled=True),
    # plain distillation on random pool images, as in "Positive-Unlabeled Compression on the Cloud"
    "random_published": Rival(_RANDOM, distill=_PLAIN | {"temperature": 1.0}),
    # Chen et al., "Learning student networks in the wild", CVPR 2021
    "dfnd_published": Rival(_CONFIDENT, distill=_PLAIN | {"temperature": 4.0}, noise_adaptation=True),
}
