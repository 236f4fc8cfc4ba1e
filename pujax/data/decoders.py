"""Many image files at once, decoded by worker processes into memory that they share with this one.

Decoders hold Python's lock for headers and copies, so threads do not use all cores. The workers import NumPy and the
decoders alone (those of `multiprocessing` import the main module again, and JAX with it). They start with the first
large batch and end with this process, however it ends; nothing of theirs has a name that could be left behind.
"""

import contextlib
import json
import math
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

from pujax.data.decode import ImageSpec, describe, try_decode

_ARENA = 4 << 20  # bytes that one worker shares with this process
_FEW = 32  # as many are decoded sooner here than sent away
_RUN = 64  # images a request, at most
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_WORKERS = min(CORES, 64)
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

    def decode(self, items: Sequence[bytes | str], spec: ImageSpec, out: np.ndarray, reasons: np.ndarray) -> None:
        """Fill `out`, uint8 [n, size, size, channels], and `reasons`, text [n]."""
        if self._process is None:
            self._start()
        try:
            pickle.dump((items, tuple(spec)), self._process.stdin)
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            reasons[:] = np.array(answer, object)
        except (OSError, ValueError) as error:  # a broken pipe, or an answer that is none
            process, self._process = self._process, None
            status = _end(process)
            raise RuntimeError(
                f"a decoding process ended with status {status} at one of {len(items)} images; "
                "-9 means that the system was short of memory, -11 that a file broke a decoder"
            ) from error
        out[:] = np.frombuffer(self._arena, np.uint8, out.size).reshape(out.shape)
        out[reasons != ""] = 0


def _end(process: subprocess.Popen) -> int:
    """Return the exit status of a worker that no longer answers; one that lives all the same is killed."""
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(BrokenPipeError):  # what was not sent is lost with it
        process.stdin.close()
    process.stdout.close()
    return process.returncode


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
    fetch: Callable[[slice], Sequence[bytes | os.PathLike | str]], count: int, spec: ImageSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Decode image files; see `pujax.data.decode.try_decode`.

    Args:
        fetch: `rows -> contents of these files, or their paths`; called in several threads.
        count: number of files.
        spec: the form that they are brought to.

    Returns:
        (uint8 [count, size, size, channels], reasons text [count]): a reason is empty where the image is there; where
        there is one the image is zero.

    Raises:
        RuntimeError: a worker process ended.
    """
    images = np.zeros((count, *spec.shape), np.uint8)
    reasons = np.full(count, "", object)
    run = min(_ARENA // images[:1].nbytes, _RUN, -(-count // _WORKERS)) if count > _FEW else 0
    if run == 0:
        _decode_here(fetch(slice(count)), spec, images, reasons)
        return images, reasons

    def decode_run(start: int) -> None:
        rows = slice(start, min(start + run, count))
        items = fetch(rows)
        worker = _idle.get()
        try:
            worker.decode(items, spec, images[rows], reasons[rows])
        finally:
            _idle.put(worker)

    list(_threads.map(decode_run, range(0, count, run)))
    return images, reasons


def _decode_here(items: Sequence[bytes | str], spec: ImageSpec, out: np.ndarray, reasons: np.ndarray) -> None:
    """Decode in this thread into `out`, and say in `reasons` why some did not."""
    for row, item in enumerate(items):
        try:
            data = item if isinstance(item, bytes) else Path(item).read_bytes()
        except Exception as error:  # a file larger than memory raises no OSError
            reasons[row] = describe(error)
            continue
        image, reasons[row] = try_decode(data, spec)
        if image is not None:
            out[row] = image


def main() -> None:
    """Serve the process that started this one, until it closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the one that started this decides
        signal.signal(number, signal.SIG_IGN)
    arena = mmap.mmap(int(sys.argv[1]), _ARENA)
    while True:
        try:
            items, fields = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):  # the latter where it ended in the middle of a request
            return
        spec = ImageSpec(*fields)
        out = np.frombuffer(arena, np.uint8, len(items) * math.prod(spec.shape)).reshape(len(items), *spec.shape)
        reasons = np.full(len(items), "", object)
        _decode_here(items, spec, out, reasons)
        try:
            sys.stdout.write(json.dumps(reasons.tolist()) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the one that started this is gone
            os._exit(0)


if __name__ == "__main__":
    main()
