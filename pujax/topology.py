"""Devices that are not there: the chips of a TPU slice, for which programs can be compiled but not run, or of GPUs."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from pujax.errors import UserError
from pujax.roofline import GPUS, TPUS, Device
from pujax.sharding import make_mesh

# What keeps the compiler for TPUs from looking for one, from asking the cloud about this machine, from refusing to be
# loaded by two processes, and from complaining that it does not know what machine this is; whichever it is told.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}


@dataclass(frozen=True)
class Topology:
    """Devices of one kind."""

    name: str
    device: Device
    count: int
    hosts: int
    unit: str  # what one of them is: "chip", "core" or "GPU"
    mesh: Mesh | None  # over all of them; None where nothing can be compiled for them
    host_mesh: Mesh | None  # over those of one host


def open_topology(name: str) -> Topology:
    """Return the devices that a name such as "v5e:4x4" or "h100:8" stands for.

    Raises:
        UserError: there is no such slice or chip, or TPU's compiler is not installed.
    """
    kind, _, layout = name.partition(":")
    if kind in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", layout):
        return _tpu_slice(name, TPUS[kind], [int(size) for size in layout.split("x")])
    if kind in GPUS and re.fullmatch(r"[1-9]\d*", layout):
        return Topology(name, GPUS[kind], int(layout), hosts=1, unit="GPU", mesh=None, host_mesh=None)
    raise UserError(
        f"--topology is {name!r}; give a TPU slice by its layout, as v5e:4x4 ({', '.join(TPUS)}), or GPUs by their "
        f"number, as h100:8 ({', '.join(GPUS)})"
    )


def _tpu_slice(name: str, chip: Device, layout: list[int]) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f'--topology={name} needs the compiler for TPUs; pip install "pujax[tpu]"')
    host = [min(size, 2) for size in layout[:2]] + [1]
    try:
        with _environment():
            devices = list(topologies.get_topology_desc(name, platform="tpu", chips_per_host_bounds=host).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology={name}: {error}; take a layout that this TPU has, such as 2x2, 2x4 or 4x4 of v5e and v6e, "
            "2x2x1 or 2x2x2 of v4 and v5p"
        ) from error
    cores = len(devices) // math.prod(layout)  # that are devices of their own, of one chip
    share = {field: getattr(chip, field) / cores for field in ("flops", "bandwidth", "memory")}
    first = [device for device in devices if device.process_index == 0]
    return Topology(
        name,
        dataclasses.replace(chip, **share),
        len(devices),
        hosts=len({device.process_index for device in devices}),
        unit="core" if cores > 1 else "chip",
        mesh=make_mesh(devices),
        host_mesh=make_mesh(first),
    )


@contextlib.contextmanager
def outside_compile_cache() -> Iterator[None]:
    """Compile without leaving the program in JAX's cache: one for devices that are not there could not be read back."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set what TPU's compiler reads when it is loaded, and take it back."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
