"""Devices: one mesh axis, "data", over all devices of all processes; batches are split over it, state is copied."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pujax.errors import UserError
from pujax.models.layers import traced_for


def configure_backend() -> None:
    """Set XLA's flags and the compilation cache; call before the first computation.

    Note: jaxlib 0.10 sends CPU convolutions and dots to YNNPACK, which costs up to 1.4x; later versions do not.
    """
    if jax.__version_info__ < (0, 11) and "ynn_fusion_type" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_experimental_ynn_fusion_type=".strip()
    if not jax.config.jax_compilation_cache_dir:
        base = Path(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")))
        jax.config.update("jax_compilation_cache_dir", str(base / "pujax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Return a one-axis mesh over `devices` (default: every device of every process), process after process.

    Note: `jax.make_mesh` orders devices by their network on a TPU slice, which interleaves processes; here the rows
    that a process feeds are one block of the global batch.
    """
    devices = jax.devices() if devices is None else devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


def platform_of(mesh: Mesh) -> str:
    """Return what the devices of a mesh are: "cpu", "gpu", "tpu"; a mesh may be of devices that are not there."""
    return mesh.devices.flat[0].platform


def traced_on(mesh: Mesh) -> contextlib.AbstractContextManager[None]:
    """Trace networks in the forms that are fast on the devices of a mesh; also a decorator."""
    return traced_for(platform_of(mesh))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copy a tree of arrays, equal on every process, to every device of the mesh."""
    return jax.tree.map(lambda x: _put(NamedSharding(mesh, P()), x), tree)


def shard_batch(mesh: Mesh, tree: Any, *, axis: int = 0) -> Any:
    """Split this process's part of a batch over the mesh along `axis`; the global array is the whole batch."""
    sharding = NamedSharding(mesh, P(*[None] * axis, "data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def _put(sharding: NamedSharding, x: Any) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(sharding, jax.random.key_data(x)))
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))


def check_divisible(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raise UserError unless the global batch splits evenly over the devices."""
    check_splits(batch_size, mesh.size, field)


def check_splits(batch_size: int, count: int, field: str) -> None:
    """Raise UserError unless the global batch splits evenly over so many devices."""
    if batch_size % count:
        raise UserError(
            f"{field} is {batch_size}, which does not split over {count} devices; use a multiple of {count}"
        )


def barrier(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def is_main_process() -> bool:
    """Whether this process writes what all processes share."""
    return jax.process_index() == 0
