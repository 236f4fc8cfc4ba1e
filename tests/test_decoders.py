"""Decoding in worker processes: as in this one, whatever happens to the workers and to this process."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pujax.data import decoders
from pujax.data.decode import ImageSpec, try_decode
from pujax.data.decoders import decode_files


def files(count, damaged=()):
    rng = np.random.default_rng(0)
    out = []
    for i in range(count):
        buffer = io.BytesIO()
        image = Image.fromarray(rng.integers(0, 256, (rng.integers(30, 70), rng.integers(30, 70), 3), np.uint8))
        image.save(buffer, "JPEG" if i % 2 else "PNG")
        out.append(b"no image" if i in damaged else buffer.getvalue())
    return out


def run(contents, size=24, channels=3):
    return decode_files(contents.__getitem__, len(contents), ImageSpec(size, channels))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 32, 33, 70, 300])
def test_values_order_and_damage_are_those_of_one_process(count, channels):
    contents = files(count, damaged={5, 40, 299})
    images, reasons = run(contents, channels=channels)
    expected = [try_decode(content, ImageSpec(24, channels)) for content in contents]
    assert reasons.tolist() == [reason for _, reason in expected]
    for image, (one, _) in zip(images, expected):
        assert (image == (0 if one is None else one)).all()


def test_paths_are_read_and_missing_files_are_not_readable(tmp_path):
    contents = files(50)
    for i, content in enumerate(contents):
        if i != 47:
            (tmp_path / f"{i}").write_bytes(content)
    paths = [str(tmp_path / f"{i}") for i in range(50)]
    images, reasons = decode_files(paths.__getitem__, 50, ImageSpec(24, 3))
    readable = reasons == ""
    assert readable.tolist() == [i != 47 for i in range(50)] and "No such file" in reasons[47]
    np.testing.assert_array_equal(images[readable], run(contents)[0][readable])
    assert not images[47].any()


def test_images_larger_than_the_shared_memory(monkeypatch):
    monkeypatch.setattr(decoders, "_ARENA", 24 * 24 * 3 - 1)
    images, reasons = run(files(33))
    assert not any(reasons) and images.shape == (33, 24, 24, 3)


def test_a_file_that_cannot_be_held_and_an_item_that_is_none_are_unreadable(monkeypatch):
    def too_large(path):
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", too_large)
    items = ["huge.png", None]
    assert [reason.split(":")[0] for reason in decode_files(items.__getitem__, 2, ImageSpec(8, 1))[1]] == [
        "MemoryError",
        "TypeError",
    ]


def workers():
    """Return the process numbers of this process's workers."""
    children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
    return [int(pid) for pid in children if b"pujax.data.decoders" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_worker_that_is_killed_is_an_error_and_is_replaced():
    contents = files(300)
    expected = run(contents)[0]
    assert 1 <= len(workers()) <= decoders._WORKERS
    for pid in workers():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="a decoding process ended with status -9"):
        run(contents)
    for _ in range(decoders._WORKERS):  # each of the killed is met once
        try:
            images, reasons = run(contents)
        except RuntimeError:
            continue
    assert not any(reasons)
    np.testing.assert_array_equal(images, expected)


def test_a_worker_that_answers_nonsense_and_lives_on_is_killed(monkeypatch):
    echo = [sys.executable, "-c", "import sys, time; print('nonsense', flush=True); time.sleep(600)"]
    start = subprocess.Popen

    monkeypatch.setattr(decoders.subprocess, "Popen", lambda _, **options: start(echo, **options))
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="a decoding process ended with status -9"):
        decoders._Worker().decode([b"x"], ImageSpec(24, 3), np.zeros((1, 24, 24, 3), np.uint8), np.full(1, "", object))
    assert time.monotonic() - began < 30


SCRIPT = """
import os, signal, sys
from tests.test_decoders import files, run, workers
run(files(300))
print(*workers(), flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["kill", "return"])
def test_workers_end_with_the_process_that_started_them(how):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=60)
    assert done.returncode == (-signal.SIGKILL if how == "kill" else 0), done.stderr
    assert done.stderr == ""
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, "workers outlive the process"
        time.sleep(0.05)


def test_workers_do_without_jax():
    code = "import pujax.data.decoders, sys; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
