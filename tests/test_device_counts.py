"""A whole job on one device, and on two processes of four: the same numbers."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from test_hosts import ROOT, free_port, recipe

# A small rate: a ReLU whose input is zero to rounding may open on one device count and not on another, and every step
# makes the difference larger: a hundred times so in 20 steps at a rate of 0.01.
CHANGES = ("distill.model=cifar_resnet10_w8", "distill.learning_rate=0.0003", "run.log_every=1")


def run(folder, *, processes, devices):
    """Run a job whose student has BatchNorm; every process has so many devices."""
    from conftest import CACHE

    folder.mkdir()
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_experimental_ynn_fusion_type="
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(CACHE), "XLA_FLAGS": flags}
    environment |= {"PYTHONPATH": str(ROOT)}
    if processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    command = [sys.executable, "-m", "pujax.launch", "--config", recipe(folder, 20), f"--workdir={folder / 'run'}"]
    command += [f"--config.{change}" for change in CHANGES]
    jobs = [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(rank)}, cwd=ROOT,
                         stderr=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]  # fmt: skip
    errors = [job.communicate(timeout=280)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * processes, errors
    return folder / "run"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run(tmp_path_factory.mktemp("jobs") / "one", processes=1, devices=1)


def scores(folder):
    tables = [pq.ParquetFile(path).read() for path in sorted((folder / "score" / "shards").glob("*.parquet"))]
    return np.concatenate([table["score"].to_numpy() for table in tables])


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return np.array([line["distill/loss"] for line in lines if "distill/loss" in line])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("processes", "devices"), [(2, 4)])
def test_any_number_of_devices_and_processes_gives_the_same_numbers(one, tmp_path, processes, devices):
    other = run(tmp_path / "other", processes=processes, devices=devices)
    scale = np.abs(scores(one)).max()
    np.testing.assert_allclose(scores(other), scores(one), atol=1e-5 * scale)
    chosen = [pq.ParquetFile(folder / "select" / "selected.parquet").read()["index"] for folder in (one, other)]
    assert chosen[0].equals(chosen[1]) and len(chosen[0]) == 200
    assert len(losses(one)) == 20
    np.testing.assert_allclose(losses(other), losses(one), rtol=1e-5)
    ours, theirs = (load_file(folder / "distill" / "student.safetensors") for folder in (other, one))
    assert any("batch_stats" in name for name in theirs) and ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=name)
