"""Many image files at once, decoded by worker processes into memory that they share with this one.

Pillow holds Python's lock for headers and for the copy to NumPy, so threads do not use all cores. The workers import
NumPy and Pillow alone (those of `multiprocessing` import the main module again, and JAX with it). They start with the
first large batch and end with this process, however it ends; nothing of theirs has a name that could be left behind.
"""

import contextlib
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pujax.data.decode import decode

_ARENA = 4 << 20  # bytes that one worker shares with this process
_FEW = 32  # as many are decoded sooner here than sent away
_RUN = 64  # images a request, at most
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_WORKERS = min(_CORES, 64)
# glibc would give the pages of every photograph back and fault them in again for the next: a third of the time.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_MMAP_THRESHOLD_": str(1 << 28)}


class _Worker:
    """One process, started by its first run of files."""

    _process: subprocess.Popen | None = None

    def _start(self) -> None:
        descriptor = _nameless_file()
        os.ftruncate(descriptor, _ARENA)
        self._arena = mmap.mmap(descriptor, _ARENA)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(descriptor,),
            env=os.environ | _KEEP_MEMORY | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        os.close(descriptor)

    def decode(self, items: Sequence[bytes | str], out: np.ndarray, readable: np.ndarray) -> None:
        """Fill `out`, uint8 [n, size, size, channels], and `readable`, bool [n]."""
        if self._process is None:
            self._start()
        try:
            pickle.dump((items, *out.shape[2:]), self._process.stdin)
            self._process.stdin.flush()
            readable[:] = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            status, self._process = self._process.wait(), None
            raise RuntimeError(
                f"a decoding process ended with status {status} at one of {len(items)} images; "
                "-9 means that the system was short of memory, -11 that a file broke Pillow"
            ) from error
        out[:] = np.frombuffer(self._arena, np.uint8, out.size).reshape(out.shape)
        out[~readable] = 0


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pujax")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_threads = ThreadPoolExecutor(2 * _WORKERS, "decode")  # half of them fetch while the others wait for their workers
_idle: "queue.SimpleQueue[_Worker]" = queue.SimpleQueue()
for _ in range(_WORKERS):
    _idle.put(_Worker())


def decode_files(
    fetch: Callable[[slice], Sequence[bytes | str]], count: int, *, size: int, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decode image files; see `pujax.data.decode.decode`.

    Args:
        fetch: `rows -> contents of these files, or their paths`; called in several threads.
        count: number of files.
        size: side of the images, in pixels.
        channels: 1 or 3.

    Returns:
        (uint8 [count, size, size, channels], readable bool [count]); what is not readable is zero.

    Raises:
        RuntimeError: a worker process ended.
    """
    images = np.zeros((count, size, size, channels), np.uint8)
    readable = np.zeros(count, bool)
    run = min(_ARENA // images[:1].nbytes, _RUN, -(-count // _WORKERS)) if count > _FEW else 0
    if run == 0:
        _decode_here(fetch(slice(count)), images, readable)
        return images, readable

    def decode_run(start: int) -> None:
        rows = slice(start, min(start + run, count))
        items = fetch(rows)
        worker = _idle.get()
        try:
            worker.decode(items, images[rows], readable[rows])
        finally:
            _idle.put(worker)

    list(_threads.map(decode_run, range(0, count, run)))
    return images, readable


def _decode_here(items: Sequence[bytes | str], out: np.ndarray, readable: np.ndarray) -> None:
    """Decode in this thread into `out`, and say in `readable` what did."""
    for row, item in enumerate(items):
        image = None
        with contextlib.suppress(OSError):
            data = item if isinstance(item, bytes) else Path(item).read_bytes()
            image = decode(data, size=out.shape[2], channels=out.shape[3])
        readable[row] = image is not None
        if image is not None:
            out[row] = image


def main() -> None:
    """Serve the process that started this one, until it closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the one that started this decides
        signal.signal(number, signal.SIG_IGN)
    arena = mmap.mmap(int(sys.argv[1]), _ARENA)
    while True:
        try:
            items, size, channels = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        out = np.frombuffer(arena, np.uint8, len(items) * size * size * channels)
        readable = np.zeros(len(items), bool)
        _decode_here(items, out.reshape(len(items), size, size, channels), readable)
        pickle.dump(readable, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
