"""What the score table shows, gathered in one pass over it: histograms, classes, and which images to look at."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pujax.selection import Batch, Table

BINS = 48  # of the score
PER_GRID, PER_CLASS, CLASSES = 16, 6, 10  # images of a grid, of a class; classes that have images
_COLUMNS = ("score", "teacher_class")


@dataclass(frozen=True)
class PoolView:
    """A pool as its score table and the held-out scores show it; the size does not grow with the pool."""

    edges: np.ndarray  # float64 [BINS + 1], of the scores; what lies beyond is counted in the outer bins
    labelled: np.ndarray  # int64 [BINS], held-out labelled images
    pool: np.ndarray  # int64 [BINS], readable images
    chosen: np.ndarray  # int64 [BINS]
    pool_classes: np.ndarray  # int64 [K], readable images by the teacher's class
    chosen_classes: np.ndarray  # int64 [K]
    grids: dict[str, Batch]  # "best", "last", "rejected", "random" -> index, score, teacher_class, each [n]
    by_class: dict[int, Batch]  # the classes most chosen -> their best chosen images


def view_pool(
    table: Table,
    held_out: tuple[np.ndarray, np.ndarray],
    chosen: np.ndarray | None,
    *,
    num_classes: int,
    seed: int,
) -> PoolView:
    """Look at every image of a score table once.

    Args:
        table: scores of the pool.
        held_out: scores float [P] of labelled images and [U] of a pool sample, by models that did not train on them.
        chosen: sorted pool indices int64 [n] of the chosen images; None where nothing has been chosen yet.
        num_classes: of the teacher.
        seed: of the random images.
    """
    edges = score_edges(*held_out)
    counts = {name: np.zeros(BINS, np.int64) for name in ("pool", "chosen")}
    classes = {name: np.zeros(num_classes, np.int64) for name in ("pool", "chosen")}
    best, last, rejected, at_random = (Highest(PER_GRID) for _ in range(4))
    per_class = Highest(PER_CLASS)
    rng = np.random.default_rng(seed)
    for batch, is_chosen in _marked(table, chosen):
        kept = {name: column[is_chosen] for name, column in batch.items()}
        for name, rows in (("pool", batch), ("chosen", kept)):
            counts[name] += histogram(rows["score"], edges)
            classes[name] += np.bincount(rows["teacher_class"], minlength=num_classes)
        best.add(kept, kept["score"])
        last.add(kept, -kept["score"])
        per_class.add(kept, kept["score"], group=kept["teacher_class"])
        at_random.add(batch, rng.random(len(batch["index"])))
        if chosen is not None:
            others = {name: column[~is_chosen] for name, column in batch.items()}
            rejected.add(others, others["score"])
    grids = {"best": best.rows, "last": last.rows, "rejected": rejected.rows, "random": at_random.rows}
    most = [int(k) for k in np.argsort(-classes["chosen"], kind="stable")[:CLASSES] if classes["chosen"][k]]
    return PoolView(
        edges=edges,
        labelled=histogram(held_out[0], edges),
        pool=counts["pool"],
        chosen=counts["chosen"],
        pool_classes=classes["pool"],
        chosen_classes=classes["chosen"],
        grids=grids,
        by_class={k: _where(per_class.rows, per_class.rows["teacher_class"] == k) for k in sorted(most)},
    )


def score_edges(positive: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Return the edges float64 [BINS + 1] of bins that hold all but the outermost thousandth of a pool's scores."""
    low, high = np.quantile(pool, (0.001, 0.999))
    low, high = float(min(low, positive.min())), float(max(high, positive.max()))
    return np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 0.5, low + 0.5, BINS + 1)


def histogram(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return how many of the scores [n] lie in each bin, int64 [len(edges) - 1]; the outer ones hold what is beyond."""
    return np.histogram(np.clip(scores.astype(np.float64), edges[0], edges[-1]), edges)[0]


def _marked(table: Table, chosen: np.ndarray | None) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield the batches of a table, and which of their images, bool [n], are among the sorted chosen indices."""
    for batch in table.batches(*_COLUMNS):
        mark = np.zeros(len(batch["index"]), bool)
        if chosen is not None and len(mark):
            first, last = np.searchsorted(chosen, (batch["index"][0], batch["index"][-1] + 1))
            mark = np.isin(batch["index"], chosen[first:last], assume_unique=True)
        yield batch, mark


class Highest:
    """Keeps the rows of highest priority, so many in all or of each group, out of batches that come one by one."""

    def __init__(self, count: int):
        self._count = count
        self._priority = np.zeros(0)
        self.rows: Batch = {"index": np.zeros(0, np.int64), "score": np.zeros(0, np.float32),
                            "teacher_class": np.zeros(0, np.int32)}  # fmt: skip

    def add(self, rows: Batch, priority: np.ndarray, group: np.ndarray | None = None) -> None:
        """Take a batch into account.

        Args:
            rows: index, score and teacher_class, each [n].
            priority: float [n]; the highest are kept, of equal ones those of lowest index.
            group: int [n], the teacher's classes; without, all rows are one group.
        """
        if group is None and len(priority) > 4 * self._count:  # the rest need not be sorted
            bar = np.partition(priority, -self._count)[-self._count]
            rows, priority = _where(rows, priority >= bar), priority[priority >= bar]
        joined = {name: np.concatenate([own, rows[name]]) for name, own in self.rows.items()}
        priority = np.concatenate([self._priority, priority])
        groups = np.zeros(len(priority), np.int64) if group is None else joined["teacher_class"]
        order = np.lexsort((joined["index"], -priority, groups))
        groups = groups[order]
        kept = order[np.arange(len(order)) - np.searchsorted(groups, groups) < self._count]
        self.rows, self._priority = _where(joined, kept), priority[kept]


def _where(rows: Batch, wanted: np.ndarray) -> Batch:
    return {name: column[wanted] for name, column in rows.items()}
