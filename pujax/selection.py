"""Which pool images to keep: pure functions of the score table, which is streamed and never held.

Every rule is the same act: give each image a priority, and keep so many of the highest, in all or in each of the
teacher's classes. The lowest priority that is kept is found digit by digit, as in a radix sort, by one pass over the
table a digit; a last pass takes what lies above it, and of those that are equal to it the first in the pool.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from pujax.errors import UserError

Batch = dict[str, np.ndarray]
Priority = Callable[[Batch], np.ndarray]  # columns of n images -> uint64 [n] below 2^36, larger is kept first
_BITS, _DIGIT = 36, 12  # of a priority; those that one pass decides
_RANK_BITS = 24  # of a float32 whose rank is taken: values that agree in them share a rank
_HISTOGRAM_BITS = 20  # of a float32: values that agree in them, to one part in 2,048, count as equal


class Table(Protocol):
    """What selections know of a score table."""

    def batches(self, *columns: str) -> Iterator[Batch]:
        """Yield columns of the readable images, and their "index" in the pool, in pool order; again at every call."""


def select(
    rule: str,
    table: Table,
    *,
    budget: int,
    threshold: float = 0.0,
    sharpness: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """Return the sorted pool indices, int64 [n], of the images that a rule keeps.

    Args:
        rule: a key of `RULES`; each uses those of the other arguments that it needs.
        table: scores of the pool.
        budget: number of images to keep.
        threshold: of the score.
        sharpness: of the draw; 0 finds it from the budget.
        seed: of the random choice.

    Raises:
        UserError: nothing would be kept.
    """
    options = {"threshold": threshold, "budget": budget, "sharpness": sharpness, "seed": seed}
    chosen = RULES[rule](table, options)
    if len(chosen) == 0:
        scores = (batch["score"] for batch in table.batches("score"))
        highest = max((own.max() for own in scores if len(own)), default=float("nan"))
        raise UserError(
            f"select.rule={rule} keeps none of {_count(table)} images (threshold {threshold}, budget {budget}, highest "
            f"score {highest:.3g}); lower select.threshold or set select.budget"
        )
    return chosen


def select_all(table: Table) -> np.ndarray:
    """Return every readable image."""
    return _join(batch["index"] for batch in table.batches())


def select_threshold(table: Table, threshold: float) -> np.ndarray:
    """Return the images whose score is above `threshold`; 0 is the released rule."""
    return _join(batch["index"][batch["score"] > threshold] for batch in table.batches("score"))


def select_top_k(table: Table, budget: int) -> np.ndarray:
    """Return the `budget` images of largest score."""
    return keep_highest(table, ("score",), _by("score"), budget)


def select_class_balanced(table: Table, budget: int) -> np.ndarray:
    """Return `budget` images, the best of each of the teacher's classes in equal shares.

    A class with fewer images than its share gives all it has, and the rest is shared among the others.
    """
    counts = np.zeros(1, np.int64)
    for batch in table.batches("teacher_class"):
        more = np.bincount(batch["teacher_class"], minlength=len(counts))
        counts = more + np.pad(counts, (0, len(more) - len(counts)))
    quotas = _fill_evenly(counts, min(budget, int(counts.sum())))
    return keep_highest(table, ("score", "teacher_class"), _by("score"), quotas, group="teacher_class")


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


def select_random(table: Table, budget: int, seed: int) -> np.ndarray:
    """Return `budget` images drawn uniformly without replacement: those of largest hash of seed and index."""
    return keep_highest(table, (), lambda batch: _hash(batch["index"], seed), budget)


def select_sample(table: Table, budget: int, seed: int, sharpness: float = 0.0) -> np.ndarray:
    """Return `budget` images drawn without replacement with weights exp(sharpness * score).

    A trained head's logit is the log of a density ratio, labelled to pool: sharpness 1 draws what is distributed like
    the labelled images, 0 uniformly, infinity the best. Where it is not given, the weights' effective sample size
    (sum w)^2 / sum w^2 is made a quarter of the budget, which does not mind the scale of the score.

    Reference: the largest of score + Gumbel noise are such a draw: Kool et al., "Stochastic beams and where to find
    them", ICML 2019.
    """
    sharpness = sharpness or effective_sharpness(table, budget / 4)

    def priority(batch: Batch) -> np.ndarray:
        uniform = (_hash(batch["index"], seed).astype(np.float64) + 0.5) / 2.0**_BITS
        return _ordered(sharpness * batch["score"].astype(np.float64) - np.log(-np.log(uniform)))

    return keep_highest(table, ("score",), priority, budget)


def effective_sharpness(table: Table, size: float) -> float:
    """Return the sharpness at which the weights exp(sharpness * score) have an effective sample size of `size`."""
    counts = _histogram(table, "score", _HISTOGRAM_BITS)
    bins = np.flatnonzero(counts)
    counts, scores = counts[bins], _values(bins, _HISTOGRAM_BITS)
    low, high = 0.0, 1e4 / max(float(np.ptp(scores)), 1e-6)
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(middle * (scores - scores.max()))
        effective = (counts @ weights) ** 2 / (counts @ weights**2)
        low, high = (middle, high) if effective > size else (low, middle)
    return low


def select_teacher_confidence(table: Table, budget: int) -> np.ndarray:
    """Return the `budget` images of which the teacher is surest: DFND's filter, which needs no labelled image.

    Reference: Chen et al., "Learning student networks in the wild", CVPR 2021.
    """
    return keep_highest(table, ("teacher_confidence",), _by("teacher_confidence"), budget)


def select_mean_rank(table: Table, budget: int) -> np.ndarray:
    """Return the `budget` images of best mean rank, the ranks being by score and by the teacher's confidence.

    What is like the task and what the teacher has a clear answer to: a student learns most from images that are both.
    Values that agree in their leading 24 bits (15 of the mantissa) share the mean of their ranks.
    """
    names = ("score", "teacher_confidence")
    ranks = {name: _ranks(table, name) for name in names}

    def priority(batch: Batch) -> np.ndarray:
        return sum(ranks[name][_ordered(batch[name]) >> np.uint64(32 - _RANK_BITS)] for name in names)

    return keep_highest(table, names, priority, budget)


RULES: dict[str, Callable[[Table, dict[str, float]], np.ndarray]] = {
    "threshold": lambda table, o: select_threshold(table, o["threshold"]),
    "top_k": lambda table, o: select_top_k(table, o["budget"]),
    "class_balanced": lambda table, o: select_class_balanced(table, o["budget"]),
    "random": lambda table, o: select_random(table, o["budget"], o["seed"]),
    "sample": lambda table, o: select_sample(table, o["budget"], o["seed"], o["sharpness"]),
    "teacher_confidence": lambda table, o: select_teacher_confidence(table, o["budget"]),
    "mean_rank": lambda table, o: select_mean_rank(table, o["budget"]),
    "all": lambda table, o: select_all(table),
}


def keep_highest(
    table: Table,
    columns: tuple[str, ...],
    priority: Priority,
    quotas: int | np.ndarray,
    *,
    group: str | None = None,
) -> np.ndarray:
    """Return the sorted pool indices, int64 [n], of the images of highest priority; ties go to the first in the pool.

    Args:
        table: scores of the pool.
        columns: what `priority` and `group` read.
        priority: see `Priority`.
        quotas: images to keep, int, or int [G] of each group; a group that has fewer gives all.
        group: the column of groups 0..G-1; None for a single one.
    """
    left = np.atleast_1d(np.asarray(quotas, np.int64)).copy()  # to be found at or below the digits decided so far
    floors = np.zeros(len(left), np.uint64)  # the lowest priority that is kept, by group
    for shift in range(_BITS - _DIGIT, -1, -_DIGIT):
        counts = _count_digits(table, columns, priority, group, floors, shift)
        from_top = counts[:, ::-1]
        np.cumsum(from_top, axis=1, out=from_top)  # in place: with many groups the counts are what memory goes to
        digit = np.maximum((counts >= left[:, None]).sum(1) - 1, 0)  # counts: of this digit or a higher one
        next_digit = np.minimum(digit + 1, counts.shape[1] - 1)
        left -= np.where(digit < next_digit, counts[np.arange(len(left)), next_digit], 0)
        floors |= digit.astype(np.uint64) << np.uint64(shift)
        del from_top, counts  # before the next ones are made
    return _take(table, columns, priority, group, floors, left)


def _count_digits(
    table: Table, columns: tuple[str, ...], priority: Priority, group: str | None, floors: np.ndarray, shift: int
) -> np.ndarray:
    """Return, int64 [G, 2^12], how many images that agree with their group's floor above a digit have which digit."""
    size = 1 << _DIGIT
    counts = np.zeros(len(floors) * size, np.int64)
    for batch in table.batches(*columns):
        values, groups = priority(batch), _groups(batch, group)
        agree = values >> np.uint64(shift + _DIGIT) == floors[groups] >> np.uint64(shift + _DIGIT)
        values, groups = values[agree], groups[agree]
        digits = (values >> np.uint64(shift)).astype(np.int64) & (size - 1)
        np.add.at(counts, groups * size + digits, 1)  # bincount would make all of them anew for each shard
    return counts.reshape(len(floors), size)


def _take(
    table: Table,
    columns: tuple[str, ...],
    priority: Priority,
    group: str | None,
    floors: np.ndarray,
    left: np.ndarray,
) -> np.ndarray:
    """Return the images above their group's floor, and of those at it the first `left` of the group."""

    def chosen() -> Iterator[np.ndarray]:
        room = left.copy()
        for batch in table.batches(*columns):
            values, groups = priority(batch), _groups(batch, group)
            keep = values > floors[groups]
            level = np.flatnonzero(values == floors[groups])
            level = level[np.argsort(groups[level], kind="stable")]  # by group, and in it by the order of the pool
            own = groups[level]
            place = np.arange(len(own)) - np.searchsorted(own, own)  # among those of its group
            keep[level[place < room[own]]] = True
            np.subtract.at(room, own, 1)
            yield batch["index"][keep]

    return _join(chosen())


def _groups(batch: Batch, group: str | None) -> np.ndarray:
    return np.zeros(len(batch["index"]), np.int64) if group is None else batch[group].astype(np.int64)


def _join(parts: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _count(table: Table) -> int:
    return sum(len(batch["index"]) for batch in table.batches())


def _by(column: str) -> Priority:
    return lambda batch: _ordered(batch[column])


def _ordered(values: np.ndarray) -> np.ndarray:
    """Return uint64 [n] below 2^32 in the order of float32 values [n]; -0 and 0 are equal."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    negative = bits >> np.uint32(31) == 1
    return np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)


def _ranks(table: Table, column: str) -> np.ndarray:
    """Return, uint64 [2^24], twice the mean rank from below of the images whose value has these leading bits."""
    counts = _histogram(table, column, _RANK_BITS)
    return (2 * np.cumsum(counts) - counts).astype(np.uint64)


def _histogram(table: Table, column: str, bits: int) -> np.ndarray:
    """Return, int64 [2^bits], how many images have a value with these leading bits, in the order of the values."""
    counts = np.zeros(1 << bits, np.int64)
    for batch in table.batches(column):
        bins, more = np.unique(_ordered(batch[column]) >> np.uint64(32 - bits), return_counts=True)
        counts[bins] += more
    return counts


def _values(bins: np.ndarray, bits: int) -> np.ndarray:
    """Return, float64 [n], the middle of bins [n] of a histogram: the inverse of `_ordered`."""
    ordered = (bins.astype(np.uint32) << np.uint32(32 - bits)) | np.uint32(1 << (31 - bits))
    positive = ordered >> np.uint32(31) == 1
    return np.where(positive, ordered & np.uint32((1 << 31) - 1), ~ordered).view(np.float32).astype(np.float64)


def _hash(index: np.ndarray, seed: int) -> np.ndarray:
    """Return uint64 [n] below 2^36, as good as random, of indices and a seed (SplitMix64's output function)."""
    x = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64((seed * 0xD1B54A32D192ED03 + 1) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x >> np.uint64(64 - _BITS)
