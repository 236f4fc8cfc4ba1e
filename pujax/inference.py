"""Forward passes over many images: fixed batches, padded and cut, read ahead while the device works."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pujax.config import Config
from pujax.data.sources import ImageSource, read_or_fail
from pujax.data.transforms import normalize
from pujax.metrics import Progress
from pujax.sharding import shard_batch


def compute_dtype(config: Config) -> jnp.dtype:
    """Return the dtype that networks compute in; parameters, BatchNorm statistics and losses stay float32."""
    if config.compute_dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.compute_dtype)


def prepare(config: Config, images: jax.Array) -> jax.Array:
    """Return uint8 [B, H, W, C] images as the normalised floats that networks take."""
    return normalize(images, config.data.mean, config.data.std)


def map_images(
    fn: Callable[[Any, Any], dict[str, jax.Array]],
    arguments: Any,
    read: Callable[[np.ndarray], Any],
    num_images: int,
    *,
    batch_size: int,
    mesh: Mesh,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Apply `fn` to images 0..num_images-1 and return its outputs in that order.

    Args:
        fn: `(arguments, what `read` returned) -> dict of [B, ...]`; compiled here, once.
        arguments: arrays for `fn`, on the mesh.
        read: `indices [n] -> uint8 [n, H, W, C]`, or a dict of [n, ...]; called in another thread, one batch ahead.
        num_images: how many images there are.
        batch_size: global; rounded up to split over the mesh.
        mesh: devices. Where it spans processes each reads its own part of every batch, and all get every output.
        progress: advanced by the images done.

    Returns:
        Dict of [num_images, ...] arrays.
    """
    batch_size = min(batch_size, num_images)
    batch_size += -batch_size % mesh.size
    starts = range(0, num_images, batch_size)
    processes = sorted({device.process_index for device in mesh.devices.flat})
    part, own = batch_size // len(processes), processes.index(jax.process_index())
    compiled = jax.jit(fn, out_shardings=NamedSharding(mesh, P()))

    def read_part(start: int) -> Any:
        rows = start + own * part + np.arange(part)
        return read(np.minimum(rows, num_images - 1))  # the last batch is filled up with its last image, and cut below

    outputs: list[dict[str, np.ndarray]] = []

    def collect(start: int, output: dict[str, jax.Array]) -> None:
        count = min(batch_size, num_images - start)
        outputs.append({name: np.asarray(value)[:count] for name, value in output.items()})
        if progress:
            progress.advance(count)

    waiting: list[tuple[int, dict[str, jax.Array]]] = []
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read_part, 0)
        for start in starts:
            images = following.result()
            following = reader.submit(read_part, min(start + batch_size, starts[-1]))
            waiting.append((start, compiled(arguments, shard_batch(mesh, images))))
            if len(waiting) > 1:
                collect(*waiting.pop(0))
    for item in waiting:
        collect(*item)
    result = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
    assert all(len(value) == num_images for value in result.values())
    return result


def accuracy(config: Config, module: Any, variables: Any, test: ImageSource, mesh: Mesh) -> float:
    """Return the share of a labelled source's images that the network puts into their class."""

    def predict(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        logits, _ = module.apply(variables, prepare(config, batch), train=False)
        return {"label": jnp.argmax(logits, axis=-1)}

    def read(rows: np.ndarray) -> np.ndarray:
        return read_or_fail(test, rows, "data.test")

    predicted = map_images(predict, variables, read, len(test), batch_size=config.mining.batch_size, mesh=mesh)
    return float(np.mean(predicted["label"] == test.labels))
