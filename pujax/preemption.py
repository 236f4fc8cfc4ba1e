"""SIGTERM, which a spot machine gets half a minute before its end: training is saved, and the program ends with 75.

The status is `EX_TEMPFAIL` of sysexits.h: what schedulers are told to start again. Whatever is not training is whole or
not there, and is left at once.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pujax.sharding import shard_batch

EXIT_STATUS = os.EX_TEMPFAIL
_VOTES_IN_FLIGHT = 2  # a vote is read when two more are cast, so that no step waits for it


class Preempted(BaseException):
    """This process was told to stop; the same command continues the run."""


class _State:
    asked = False  # whether SIGTERM has come
    deferred = False  # whether the main thread will look at `asked` by itself


def listen() -> None:
    """Take SIGTERM as the order to stop; call in the main thread, after other libraries have set their handlers."""

    def stop(number: int, frame: Any) -> None:
        _State.asked = True
        if not _State.deferred:
            raise Preempted("stopped by SIGTERM")

    signal.signal(signal.SIGTERM, stop)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let the body run on when SIGTERM comes, until it has saved what it must; raise `Preempted` behind it."""
    _State.deferred = True
    try:
        yield
    finally:
        _State.deferred = False
    if _State.asked:
        raise Preempted("stopped by SIGTERM")


class StopVote:
    """Whether any process of a mesh was told to stop: all learn of it at the same step, and save the same one."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._processes = {device.process_index for device in mesh.devices.flat}
        self._local = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
        self._count = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))
        self._cast: list[jax.Array] = []

    def cast(self) -> bool:
        """Cast this process's vote, once every call of the step function; return whether to stop now."""
        if len(self._processes) == 1:
            return _State.asked
        votes = shard_batch(self._mesh, np.full(self._local, _State.asked, np.int32))
        self._cast.append(self._count(votes))
        return len(self._cast) > _VOTES_IN_FLIGHT and int(self._cast.pop(0)) > 0
