"""The processes of one job watch each other: who never comes, dies or is cut off is an error that names it, not a hang.

Before they are joined they meet by files in the work directory. From then on each counts up a number in the store of
JAX's coordination service, which the first process serves, and looks at the others' numbers.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax
from etils import epath
from jax._src import distributed  # the store has no public name; Orbax takes it from here too

from pujax.preemption import EXIT_STATUS
from pujax.presence import Presence, read_presences, who

LONGEST_BEAT = 10.0  # seconds
_ALIVE, _ENDED, _HOST = "pujax/alive/", "pujax/ended/", "pujax/host/"


class HostLost(Exception):
    """Another process of the job is missing; the same command, on all hosts, continues the run."""

    def __init__(self, message: str, status: int = EXIT_STATUS):
        super().__init__(message)
        self.status = status  # to end with


def join(folder: epath.Path, *, address: str, count: int, index: int, timeout: float) -> None:
    """Wait until all processes have come, then join them.

    Args:
        folder: in the work directory, where they meet.
        address: host and port of the first one, for JAX.
        count: of the processes.
        index: of this one.
        timeout: seconds to wait.

    Raises:
        HostLost: not all of them came; the message says which.
    """
    with contextlib.closing(Presence(folder / f"{index}.json", {**who(), "address": address})) as presence:
        began, before, come = time.monotonic(), read_presences(folder), {index}
        presence.tell()
        while len(come) < count:
            if time.monotonic() - began > timeout:
                missing = [f"{i}" for i in range(count) if i not in come]
                raise HostLost(
                    f"process {', '.join(missing)} of {count} did not come within {timeout:.0f} s; start the command "
                    "on every host, with JAX_PROCESS_ID from 0"
                )
            time.sleep(0.2)
            for name, told in read_presences(folder).items():
                # A file that lies here from an earlier run says nothing: it must be of this address, and change.
                known = before.setdefault(name, told)
                if told["address"] == address and (told["renewed"] != known["renewed"] or _is_new(told)):
                    come.add(int(name.removesuffix(".json")))
        _initialize(timeout, address, count, index)


def _is_new(told: dict[str, Any]) -> bool:
    """Whether a sign was written at about this time, as far as the hosts' clocks agree."""
    return abs(time.time() - told["renewed"]) < 60


def _patience(timeout: float) -> dict[str, int]:
    """Return what to tell JAX: it ends the process where a host is lost, and says little; `Watch` comes first."""
    return {"initialization_timeout": int(timeout), "heartbeat_timeout_seconds": 2 * int(timeout) + 60}


def join_by_environment(timeout: float) -> None:
    """Join the others as JAX finds them by itself: on TPU slices, Slurm, GKE.

    Raises:
        HostLost: not all of them came.
    """
    _initialize(timeout)


def _initialize(timeout: float, *where: Any) -> None:
    try:
        jax.distributed.initialize(*where, **_patience(timeout))
    except jax.errors.JaxRuntimeError as error:
        raise HostLost(f"not all hosts came within {timeout:.0f} s: {error}") from error


def _end(lost: HostLost) -> None:
    print(f"pujax: {lost}; the same command on all hosts continues the run", file=sys.stderr, flush=True)
    os._exit(lost.status)  # the main thread may be inside a collective that never ends


def _first() -> tuple[str, str]:
    """Return host and port of the first process, as they were given to JAX."""
    host, _, port = distributed.global_state.coordinator_address.rpartition(":")
    return host, port


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborting(_: int) -> None:
    """Say who is gone where JAX aborts this process, as it does, in C++, once the first one no longer answers."""
    host, port = _first()
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        _end(HostLost(f"process 0, on {host}, is gone"))
    faulthandler.enable()  # it is there: what was meant to happen
    os.abort()


class Watch:
    """Threads that end this process, with a line that names the other, when another one is lost or has failed."""

    def __init__(self, timeout: float):
        self._timeout, self._beat = timeout, min(LONGEST_BEAT, timeout / 5)
        self._ended = threading.Event()
        self._index, self._count = jax.process_index(), jax.process_count()
        self._store = distributed.global_state.client
        self._store.key_value_set(f"{_HOST}{self._index}", socket.gethostname(), allow_overwrite=True)
        self._answered = time.monotonic()
        ctypes.CDLL(None).signal(signal.SIGABRT, _aborting)  # Python's own handlers do not run in an abort
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._guard)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop watching; the others must not take it for death any more, so all close it at the same time."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def tell_end(self, status: int, reason: str) -> None:
        """Tell the others that this process ends, and why; they end too."""
        self._ended.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first process, which serves the store, is gone
            self._store.key_value_set(f"{_ENDED}{self._index}", f"{status} {reason}", allow_overwrite=True)
            time.sleep(2 * self._beat)  # the others must read it before the first process ends

    def _watch(self) -> None:
        seen = {i: ("", time.monotonic()) for i in range(self._count) if i != self._index}
        beats = 0
        while not self._ended.wait(self._beat):
            beats += 1
            try:
                self._store.key_value_set(f"{_ALIVE}{self._index}", str(beats), allow_overwrite=True)
                self._look(seen)
                self._answered = time.monotonic()
            except jax.errors.JaxRuntimeError:  # the store does not answer: for the guard to notice
                continue
            except HostLost as lost:
                self._end(lost)

    def _guard(self) -> None:
        """End this process when the store has not answered for too long; a question to it may wait for ever."""
        while not self._ended.wait(1.0):
            if time.monotonic() - self._answered > self._timeout + self._beat:
                first, _ = _first()
                self._end(HostLost(f"process 0, on {first}, has not answered for {self._timeout:.0f} s"))

    def _look(self, seen: dict[int, tuple[str, float]]) -> None:
        """Look at the others' numbers; `seen` has those of the last look, and when each was new."""
        alive = dict(self._store.key_value_dir_get(_ALIVE))
        ended = dict(self._store.key_value_dir_get(_ENDED))
        hosts = dict(self._store.key_value_dir_get(_HOST))
        for other, (count, since) in seen.items():
            host = hosts.get(f"{_HOST}{other}", "unknown")
            if said := ended.get(f"{_ENDED}{other}"):
                status, _, reason = said.partition(" ")
                raise HostLost(f"process {other} of {self._count}, on host {host}, ended: {reason}", int(status))
            now = alive.get(f"{_ALIVE}{other}", "")
            if now != count:
                seen[other] = now, time.monotonic()
            elif time.monotonic() - since > self._timeout:
                raise HostLost(
                    f"process {other} of {self._count}, on host {host}, has given no sign of life for "
                    f"{self._timeout:.0f} s"
                )

    def _end(self, lost: HostLost) -> None:
        if not self._ended.is_set():
            _end(lost)
