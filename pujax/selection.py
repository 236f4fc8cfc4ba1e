"""Which pool images to keep: pure functions of the score table, made again in seconds."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScoreTable:
    """The readable images of the pool, one row each, in pool order."""

    index: np.ndarray  # int64 [N], position in the pool
    pu_logit: np.ndarray  # float32 [N], larger is more likely in-domain
    teacher_class: np.ndarray  # int32 [N], the teacher's argmax
    teacher_confidence: np.ndarray  # float32 [N], the teacher's largest probability


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the sorted rows of the `count` largest scores; ties go to the earlier row."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def select_threshold(table: ScoreTable, threshold: float) -> np.ndarray:
    """Return the rows whose PU logit is above `threshold`; 0 is the released rule."""
    return np.flatnonzero(table.pu_logit > threshold)


def select_top_k(table: ScoreTable, budget: int) -> np.ndarray:
    """Return the `budget` rows of largest PU logit."""
    return _best(table.pu_logit, budget)


def select_prior(table: ScoreTable, class_prior: float) -> np.ndarray:
    """Return as many of the best rows as the class prior says there are positives."""
    return _best(table.pu_logit, round(class_prior * len(table.index)))


def select_class_balanced(table: ScoreTable, budget: int) -> np.ndarray:
    """Return `budget` rows, the best of each of the teacher's classes in equal shares.

    A class with fewer images than its share gives all it has, and the rest is shared among the others.
    """
    counts = np.bincount(table.teacher_class)
    quotas = _fill_evenly(counts, min(budget, len(table.index)))
    rows = [np.flatnonzero(table.teacher_class == k) for k in range(len(counts))]
    return np.sort(np.concatenate([own[_best(table.pu_logit[own], quota)] for own, quota in zip(rows, quotas)]))


def _fill_evenly(capacities: np.ndarray, total: int) -> np.ndarray:
    """Return quotas <= capacities that sum to `total` and are as equal as can be; remainders go to low k first."""
    quotas = np.zeros_like(capacities)
    while total > 0:
        free = np.flatnonzero(quotas < capacities)
        share = max(total // len(free), 1)
        for k in free[:total]:
            given = min(share, capacities[k] - quotas[k])
            quotas[k] += given
            total -= given
    return quotas


def select_random(table: ScoreTable, budget: int, seed: int) -> np.ndarray:
    """Return `budget` rows drawn uniformly without replacement."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(len(table.index), min(budget, len(table.index)), replace=False))


def select_teacher_confidence(table: ScoreTable, budget: int) -> np.ndarray:
    """Return the `budget` rows of which the teacher is surest: DFND's filter, which needs no labelled image.

    Reference: Chen et al., "Learning student networks in the wild", CVPR 2021.
    """
    return _best(table.teacher_confidence, budget)


def select_mean_rank(table: ScoreTable, budget: int) -> np.ndarray:
    """Return the `budget` rows of best mean rank, the ranks being by PU logit and by the teacher's confidence.

    What is like the task and what the teacher has a clear answer to: a student learns most from images that are both.
    """
    scores = (table.pu_logit, table.teacher_confidence)
    ranks = [np.argsort(np.argsort(-score, kind="stable")) for score in scores]  # 0 is the best
    return _best(-np.sum(ranks, axis=0), budget)


def select_all(table: ScoreTable) -> np.ndarray:
    """Return every row."""
    return np.arange(len(table.index))


SELECTIONS = {
    "prior": lambda table, o: select_prior(table, o["class_prior"]),
    "threshold": lambda table, o: select_threshold(table, o["threshold"]),
    "top_k": lambda table, o: select_top_k(table, o["budget"]),
    "class_balanced": lambda table, o: select_class_balanced(table, o["budget"]),
    "random": lambda table, o: select_random(table, o["budget"], o["seed"]),
    "teacher_confidence": lambda table, o: select_teacher_confidence(table, o["budget"]),
    "mean_rank": lambda table, o: select_mean_rank(table, o["budget"]),
    "all": lambda table, o: select_all(table),
}


def select(name: str, table: ScoreTable, *, threshold: float, budget: int, class_prior: float, seed: int) -> np.ndarray:
    """Return the sorted int64 rows of `table` that the selection called `name` keeps.

    Args:
        name: a key of `SELECTIONS`; each uses those of the other arguments that it needs.
        table: scores of the pool.
        threshold: of the PU logit.
        budget: number of images to keep.
        class_prior: share of positives in the pool.
        seed: of the random choice.

    Raises:
        ValueError: nothing would be kept.
    """
    options = {"threshold": threshold, "budget": budget, "class_prior": class_prior, "seed": seed}
    rows = SELECTIONS[name](table, options)
    if len(rows) == 0:
        highest = table.pu_logit.max() if len(table.pu_logit) else float("nan")
        raise ValueError(
            f"mining.selection={name} keeps none of {len(table.index)} images (threshold {threshold}, class prior "
            f"{class_prior:.4g}, highest score {highest:.3g}); lower mining.threshold or set mining.budget"
        )
    return rows
