"""The batches that training draws, through Grain.

An element of the Grain dataset is a whole chunk of batches, computed from its number alone: per-example pipelines
cost 3 to 25 times as much at these image sizes. Grain gives threads and prefetching; a resumed run begins at its step.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grain
import jax
import numpy as np

from pujax.errors import UserError

Chunks = Iterator[dict[str, np.ndarray]]


@dataclass(frozen=True)
class _Permutations:
    """An endless stream of rows in 0..size-1: one fresh permutation an epoch, its remainder dropped.

    With `repeats` > 1 an epoch holds every row that often, so that a batch may be larger than the set.
    """

    size: int
    batch_size: int
    seed: tuple[int, ...]
    repeats: int = 1

    def batches(self, steps: range) -> np.ndarray:
        """Return int32 [len(steps), batch_size]."""
        size, rows = self.size * self.repeats, []
        for step in steps:
            epoch, at = divmod(step, size // self.batch_size)
            order = _permutation(size, (*self.seed, epoch))
            rows.append(order[at * self.batch_size : (at + 1) * self.batch_size] % self.size)
        return np.stack(rows).astype(np.int32)


@functools.lru_cache(maxsize=8)
def _permutation(size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return int64 [size]; remembered, for a chunk needs only a slice of it."""
    return np.random.default_rng(seed).permutation(size)


@dataclass(frozen=True)
class _Chunks:
    """Grain source: element i is the chunk of the k steps from first_step + i*k, this process's part of it."""

    streams: tuple[tuple[int, _Permutations], ...]  # (offset added to the rows, stream)
    first_step: int
    steps_per_call: int
    images: np.ndarray | None
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return 2**31 // self.steps_per_call

    def __getitem__(self, chunk: int) -> dict[str, np.ndarray]:
        first = self.first_step + chunk * self.steps_per_call
        steps = range(first, first + self.steps_per_call)
        index = np.concatenate([offset + stream.batches(steps) for offset, stream in self.streams], axis=1)
        part = index.shape[1] // self.process_count
        index = index[:, self.process_index * part : (self.process_index + 1) * part]
        return {"index": index} if self.images is None else {"index": index, "image": self.images[index]}


def index_batches(
    num_examples: int,
    batch_size: int,
    *,
    seed: int,
    first_step: int = 0,
    steps_per_call: int = 1,
    images: np.ndarray | None = None,
) -> Chunks:
    """Return an endless iterator of chunks of batches drawn without replacement within an epoch.

    Args:
        num_examples: size of the training set.
        batch_size: global.
        seed: of the permutations.
        first_step: the step that the first batch is of; the batches are a function of the step alone.
        steps_per_call: k, batches per chunk; the stream of batches does not depend on it.
        images: [num_examples, ...], to gather from on the host; without them only indices are given.

    Returns:
        Iterator of {"index": int32 [k, B]} and, with `images`, {"image": [k, B, ...]},
        where B is this process's part of the batch.

    Raises:
        UserError: the batch is larger than the training set.
    """
    stream = _Permutations(num_examples, batch_size, (seed, 0))
    return _iterate(((0, stream),), first_step, steps_per_call, images)


def mixed_index_batches(
    num_positive: int,
    num_pool: int,
    *,
    num_positive_per_batch: int,
    num_pool_per_batch: int,
    seed: int,
    first_step: int = 0,
    steps_per_call: int = 1,
    images: np.ndarray | None = None,
) -> Chunks:
    """Return batches with fixed shares of two sets that lie one after the other; else as `index_batches`.

    Rows 0..num_positive-1 are the first set, num_positive.. the second. Few positives may be repeated in a batch.
    """
    repeats = -(-num_positive_per_batch // num_positive)
    positive = _Permutations(num_positive, num_positive_per_batch, (seed, 1), repeats)
    pool = _Permutations(num_pool, num_pool_per_batch, (seed, 2))
    return _iterate(((0, positive), (num_positive, pool)), first_step, steps_per_call, images)


def make_batches(sizes: list[int], batch_size: int, *, share: int, seed: int) -> Callable[..., Chunks]:
    """Return what makes batches of one or two sets: drawn uniformly, or `share` images of each batch from the first.

    Args:
        sizes: of the sets, which lie one after the other.
        batch_size: global.
        share: images of the first set in a batch; 0 draws uniformly, as a single set always is.
        seed: of the permutations.

    Returns:
        `index_batches` or `mixed_index_batches`, to be called with their `first_step`, `steps_per_call` and `images`.
    """
    if share == 0 or len(sizes) == 1:
        return functools.partial(index_batches, sum(sizes), batch_size, seed=seed)
    shares = {"num_positive_per_batch": share, "num_pool_per_batch": batch_size - share}
    return functools.partial(mixed_index_batches, *sizes, **shares, seed=seed)


def _iterate(
    streams: tuple[tuple[int, _Permutations], ...], first_step: int, steps_per_call: int, images: np.ndarray | None
) -> Chunks:
    for _, stream in streams:
        if stream.batch_size > stream.size * stream.repeats:
            raise UserError(
                f"batch_size {stream.batch_size} is larger than the {stream.size} images to draw from; lower it"
            )
    source = _Chunks(streams, first_step, steps_per_call, images, jax.process_index(), jax.process_count())
    # A mapped file may wait for its disk. In memory, on one core, one thread gathers 1.9 M 32x32 images/s and two 0.9
    # to 1.4 M: the allocator gives their buffers back to the system, and every batch faults its pages in again.
    threads = 4 if isinstance(images, np.memmap) else 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
