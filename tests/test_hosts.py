"""Jobs that are stopped, and hosts that are lost: a clear end within the limit, and the same command goes on."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPE = """
import importlib.util
spec = importlib.util.spec_from_file_location("quickstart", {quickstart!r})
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)

def get_config():
    config = recipe.get_config()
    config.baselines, config.export.formats = (), ()
    config.data.pool.limit, config.data.test.limit, config.score.shard_size = 2000, 200, 400
    config.scorer.frozen.num_steps, config.scorer.frozen.styles = 20, "off"
    config.select.rule, config.select.budget = "top_k", 200
    config.distill.num_steps, config.distill.batch_size, config.distill.steps_per_call = {steps}, 32, 1
    config.run.checkpoint_every, config.run.log_every = 100_000, 20
    return config
"""


def recipe(folder, steps):
    path = folder / "small.py"
    path.write_text(RECIPE.format(quickstart=str(ROOT / "configs" / "quickstart.py"), steps=steps))
    return path


def start(folder, *arguments, steps=4000, rank=0, count=1, port=0, environment=None):
    from conftest import CACHE

    environment = os.environ | (environment or {}) | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    environment |= {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="}
    if count > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
        environment |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(rank)}
    command = [sys.executable, "-m", "pujax.launch", "--config", recipe(folder, steps)]
    command += [f"--workdir={folder / 'run'}", *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def wait_for_training(folder, job):
    """Wait until the student's training has logged something."""
    log, until = folder / "run" / "metrics.jsonl", time.monotonic() + 200
    while not (log.exists() and "distill/loss" in log.read_text()):
        assert job.poll() is None and time.monotonic() < until, job.communicate()
        time.sleep(0.02)


def student(folder):
    return (folder / "run" / "distill" / "student.safetensors").read_bytes()


def test_a_host_that_never_comes_is_named(tmp_path):
    began = time.monotonic()
    job = start(tmp_path, "--host_timeout=6", count=3, port=free_port())
    errors = job.communicate(timeout=100)[1]
    assert job.returncode == 75 and "Traceback" not in errors
    assert "process 1, 2 of 3 did not come within 6 s; start the command on every host" in errors
    assert time.monotonic() - began < 60
    assert not list((tmp_path / "run" / "hosts").iterdir())


@pytest.mark.parametrize(("name", "value"), [("JAX_NUM_PROCESSES", ""), ("JAX_PROCESS_ID", "one")])
def test_a_number_that_is_none_is_named(tmp_path, monkeypatch, name, value):
    from pujax import launch
    from pujax.errors import UserError

    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} is '{value}'; set it to a number"):
        launch._number(name)


def whole(folder, count):
    """A job of so many processes that nothing happened to."""
    port = free_port()
    jobs = [start(folder, steps=400, rank=i, count=count, port=port) for i in range(count)]
    assert [job.wait(timeout=280) for job in jobs] == [0] * count
    return folder


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("of_two"), 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_saves_the_training_and_the_same_command_ends_with_the_same_student(tmp_path):
    (tmp_path / "whole").mkdir()
    undisturbed = whole(tmp_path / "whole", 1)
    job = start(tmp_path, steps=400)
    wait_for_training(tmp_path, job)
    job.send_signal(signal.SIGTERM)
    began = time.monotonic()
    errors = job.communicate(timeout=60)[1]
    assert job.returncode == 75 and time.monotonic() - began < 20
    step = int(re.search(r"pujax: stopped by SIGTERM at step (\d+) of distill, which is saved; the same", errors)[1])
    assert 0 < step < 400 and "Traceback" not in errors
    assert (tmp_path / "run" / "distill" / "checkpoints" / str(step)).is_dir()
    again = start(tmp_path, steps=400)
    assert again.wait(timeout=200) == 0
    assert student(tmp_path) == student(undisturbed)


@pytest.mark.slow
def test_sigterm_before_training_ends_at_once(tmp_path):
    job = start(tmp_path)
    until = time.monotonic() + 100
    while not (tmp_path / "run" / "scorer" / "INPUTS.json").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    errors = job.communicate(timeout=60)[1]
    assert job.returncode == 75 and errors.splitlines()[-1].startswith("pujax: stopped by SIGTERM")
    assert not (tmp_path / "run" / "LOCK.json").exists()


@pytest.mark.slow
def test_two_hosts_and_a_bucket_share_no_disk_and_new_machines_go_on(tmp_path, store):
    address, bucket = store
    bucket.__init__()
    own = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    own |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}
    options = ["--workdir=s3://bucket/run", "--config.run.checkpoint_every=20"]
    scratch = [tmp_path / f"host{i}" / "pujax" / "s3-bucket-run" for i in (0, 1)]

    def begin():
        port = free_port()
        hosts = [own | {"TMPDIR": str(tmp_path / f"host{i}")} for i in (0, 1)]
        return [start(tmp_path, *options, steps=60, rank=i, count=2, port=port, environment=hosts[i]) for i in (0, 1)]

    for folder in scratch:  # of a job that was here before
        (folder / "distill").mkdir(parents=True)
        (folder / "distill" / "images.npy").write_bytes(b"another job's")
    jobs = begin()
    until = time.monotonic() + 200
    while "run/distill/checkpoints/40.npz" not in bucket.objects:
        assert all(job.poll() is None for job in jobs) and time.monotonic() < until, jobs[0].communicate()
        time.sleep(0.01)
    for job in jobs:
        job.kill()
        job.communicate()
    assert {f"run/select/images/{name}" for name in ("IMAGES.json", "chosen-00000-of-00001.array_record")} == {
        key for key in bucket.objects if "images" in key
    }
    for i in (0, 1):
        shutil.rmtree(tmp_path / f"host{i}")
    jobs = begin()
    errors = [job.communicate(timeout=250)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert "run/distill/student.safetensors" in bucket.objects
    assert not [*tmp_path.rglob("images.npy"), *tmp_path.rglob("*.array_record")]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("which", "how"), [(1, signal.SIGTERM), (1, signal.SIGKILL), (0, signal.SIGKILL)])
def test_what_happens_to_one_of_two_hosts_ends_both_and_nothing_is_lost(of_two, tmp_path, which, how):
    port = free_port()
    jobs = [start(tmp_path, "--host_timeout=10", steps=400, rank=i, count=2, port=port) for i in (0, 1)]
    wait_for_training(tmp_path, jobs[0])
    jobs[which].send_signal(how)
    began = time.monotonic()
    errors = [job.communicate(timeout=120)[1] for job in jobs]
    assert time.monotonic() - began < 60
    assert jobs[1 - which].returncode == 75, errors
    if how == signal.SIGTERM:
        assert jobs[which].returncode == 75
        steps = [re.search(r"stopped by SIGTERM at step (\d+) of distill", text)[1] for text in errors]
        assert steps[0] == steps[1]
    elif which == 0:
        assert "pujax: process 0, on localhost, is gone; the same command on all hosts continues" in errors[1]
    else:
        assert re.search(r"process 1 of 2, on host \S+, has given no sign of life for 10 s", errors[0])
    port = free_port()
    again = [start(tmp_path, steps=400, rank=i, count=2, port=port) for i in (0, 1)]
    assert [job.wait(timeout=250) for job in again] == [0, 0]
    assert student(tmp_path) == student(of_two)
