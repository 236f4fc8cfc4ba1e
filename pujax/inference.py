"""Forward passes over many images: fixed batches, padded and cut, read ahead while the device works."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pujax.data.reading import read_or_fail
from pujax.data.sources import ImageSource
from pujax.networks import Network
from pujax.progress import Progress
from pujax.sharding import replicate, shard_batch, traced_on


def resolve_dtype(name: str) -> jnp.dtype:
    """Return the dtype that networks compute in; parameters, BatchNorm statistics and losses stay float32."""
    if name == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(name)


_IN_FLIGHT = 3  # batches that the device has, or is sent, before the first is waited for
MapFn = Callable[[Any, Any], dict[str, jax.Array]]  # (arguments, what was read) -> dict of [B, ...]
CompiledMap = Callable[[Any, jax.Array, Any], tuple[jax.Array, dict[str, jax.Array]]]


def compile_map(fn: MapFn, mesh: Mesh) -> CompiledMap:
    """Return `fn` for `map_compiled`: with the rows that a batch is of beside it, and outputs on every device."""

    @traced_on(mesh)
    def run(arguments: Any, rows: jax.Array, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return rows, fn(arguments, batch)

    return jax.jit(run, out_shardings=NamedSharding(mesh, P()))


def map_images(
    fn: MapFn,
    arguments: Any,
    read: Callable[[np.ndarray], Any],
    num_images: int,
    *,
    batch_size: int,
    mesh: Mesh,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Return `map_compiled` of a function that is compiled for this call."""
    compiled = compile_map(fn, mesh)
    return map_compiled(compiled, arguments, read, num_images, batch_size=batch_size, mesh=mesh, progress=progress)


def map_compiled(
    compiled: CompiledMap,
    arguments: Any,
    read: Callable[[np.ndarray], Any],
    num_images: int,
    *,
    batch_size: int,
    mesh: Mesh,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Apply a function to images 0..num_images-1; return its outputs in that order, a dict of [num_images, ...] arrays.

    The arguments, and what is raised, are those of `stream_images`.
    """
    stream = stream_images(compiled, arguments, read, num_images, batch_size=batch_size, mesh=mesh, progress=progress)
    outputs = list(stream)
    result = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
    assert all(len(value) == num_images for value in result.values())
    return result


def stream_images(
    compiled: CompiledMap,
    arguments: Any,
    read: Callable[[np.ndarray], Any],
    num_images: int,
    *,
    batch_size: int,
    mesh: Mesh,
    progress: Progress | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Apply a function to images 0..num_images-1 and yield its outputs in that order, a batch at a time.

    Args:
        compiled: the function, by `compile_map`.
        arguments: arrays for the function, on the mesh.
        read: `indices [n] -> uint8 [n, H, W, C]`, or a dict of [n, ...]; called in another thread, one batch ahead,
            once for every image; n may be 0 where a process has no part in the last batch.
        num_images: how many images there are.
        batch_size: global; rounded up to split over the mesh.
        mesh: devices. Where it spans processes each reads its own part of every batch, and all get every output.
        progress: advanced by the images done.

    Yields:
        Dict of [n, ...] arrays, n the images of a batch.

    Raises:
        RuntimeError: rows came back in another order than they were sent in.
    """
    batch_size = min(batch_size, num_images)
    batch_size += -batch_size % mesh.size
    starts = range(0, num_images, batch_size)
    processes = sorted({device.process_index for device in mesh.devices.flat})
    part, own = batch_size // len(processes), processes.index(jax.process_index())

    def read_part(start: int) -> tuple[np.ndarray, Any]:
        """Return this process's rows of a batch, and what is read for them, filled up with zeros to a full part."""
        rows = start + own * part + np.arange(part)
        images = read(rows[rows < num_images])
        return rows, jax.tree.map(lambda x: np.pad(x, [(0, part - len(x)), *[(0, 0)] * (x.ndim - 1)]), images)

    def collect(start: int, rows: jax.Array, output: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        if not np.array_equal(rows, start + np.arange(batch_size)):
            raise RuntimeError("rows of a batch came back in another order; the mesh must list devices by process")
        count = min(batch_size, num_images - start)
        if progress:
            progress.advance(count)
        return {name: np.asarray(value)[:count] for name, value in output.items()}

    waiting: list[tuple[int, jax.Array, dict[str, jax.Array]]] = []
    for start, (rows, images) in zip(starts, read_ahead(read_part, starts)):
        waiting.append((start, *compiled(arguments, shard_batch(mesh, rows), shard_batch(mesh, images))))
        for output in jax.tree.leaves(waiting[-1][1:]):
            output.copy_to_host_async()
        if len(waiting) == _IN_FLIGHT:
            yield collect(*waiting.pop(0))
    for item in waiting:
        yield collect(*item)


def read_ahead(read: Callable[[int], Any], starts: Iterable[int]) -> Iterator[Any]:
    """Yield `read(start)` of every start, in their order, each read in another thread while the one before is used."""
    with ThreadPoolExecutor(1) as reader:
        following = None
        for start in starts:
            current, following = following, reader.submit(read, start)
            if current:
                yield current.result()
        if following:
            yield following.result()


def accuracy(network: Network, test: ImageSource, *, mesh: Mesh, batch_size: int) -> dict[str, float]:
    """Return how many of a labelled source's images the network puts into their class.

    Returns:
        "accuracy", the share, and "lowest_class_accuracy", that of the class in which it is least.
    """

    def predict(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        return {"label": jnp.argmax(network.logits(variables, batch), axis=-1)}

    def read(rows: np.ndarray) -> np.ndarray:
        return read_or_fail(test, rows, "data.test")

    variables = replicate(mesh, network.folded)
    predicted = map_images(predict, variables, read, len(test), batch_size=batch_size, mesh=mesh)
    right = predicted["label"] == test.labels
    by_class = [right[test.labels == k].mean() for k in np.unique(test.labels)]
    return {"accuracy": float(right.mean()), "lowest_class_accuracy": float(min(by_class))}
