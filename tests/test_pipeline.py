"""The whole job on the embedded images, small: stages, skipping, killing, device counts, and what it refuses."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pujax import baselines
from pujax.config import BASELINES, SourceConfig
from pujax.data.embedded import load_embedded

ROOT = Path(__file__).parent.parent
SMALL = [
    "--config.scorer.num_steps=200",
    "--config.distill.num_steps=60",
    "--config.mining.shard_size=2000",
    "--config.data.pool.limit=8000",
    "--config.data.test.limit=1000",
    "--config.checkpoint_every=20",
    "--config.baselines=random",
]


def command(workdir, *options):
    launch = [sys.executable, "-m", "pujax.launch", "--config", "configs/quickstart.py", "--workdir", str(workdir)]
    return [*launch, *SMALL, *options]


def environment(devices=1):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_experimental_ynn_fusion_type="
    from conftest import CACHE

    return os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PLATFORMS": "cpu"}


def run(workdir, *options, devices=1):
    done = subprocess.run(
        command(workdir, *options), cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "summary.json").read_text()), done.stdout


def numbers(summary):
    """The summary without what may differ between equal runs: times and devices."""
    if isinstance(summary, dict):
        timing = {"seconds", "wall_seconds", "images_per_second", "run"}
        return {key: numbers(value) for key, value in summary.items() if key not in timing}
    return summary


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    summary, output = run(workdir)
    return workdir, summary, output


def test_the_job_mines_and_says_what_it_was_worth(undisturbed):
    workdir, summary, output = undisturbed
    assert summary["teacher"]["accuracy"] > 0.85
    assert summary["scorer"]["truth_auc"] > 0.97
    assert summary["mining"]["scored"] == summary["mining"]["pool_images"] == 8000
    assert summary["mining"]["precision"] > 0.7
    assert summary["student"]["train_images"] == 100 + summary["mining"]["selected"]
    assert summary["baselines"]["random"]["train_images"] == summary["student"]["train_images"]
    assert 0.01 < summary["baselines"]["random"]["precision"] < 0.15  # 5 % of the pool
    assert "mining is worth" in output
    selected = pq.read_table(workdir / "mine" / "selected.parquet")
    assert len(set(selected["key"].to_pylist())) == summary["mining"]["selected"]


def test_a_second_run_skips_everything(undisturbed):
    workdir, summary, _ = undisturbed
    started = time.monotonic()
    again, output = run(workdir)
    assert output.count("done before, skipped") == 5
    assert numbers(again) == numbers(summary)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "begun",
    [
        "teacher/INPUTS.json",
        "scorer/INPUTS.json",
        "mine/shards/scores-0000002000-0000004000.parquet",
        "distill/checkpoints/20",
        "baselines/random/images.npy",
    ],
    ids=["teacher", "scorer", "mine", "distill", "baselines"],
)
def test_killed_and_resumed_equals_never_killed(undisturbed, tmp_path, begun):
    _, summary, _ = undisturbed
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(workdir), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (workdir / begun).exists():
        assert process.poll() is None, "the job ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "summary.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in workdir.glob("mine/shards/*.parquet")}
    resumed, _ = run(workdir)
    assert numbers(resumed) == numbers(summary)
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    for name in ("scorer/scorer.safetensors", "mine/selected.parquet", "distill/student.safetensors"):
        assert (workdir / name).read_bytes() == (undisturbed[0] / name).read_bytes(), name


def test_eight_devices_mine_the_same_images(undisturbed, tmp_path):
    one_dir, one, _ = undisturbed
    eight, _ = run(tmp_path / "run", "--stages=teacher,scorer,mine", devices=8)
    tables = [pq.read_table(workdir / "mine" / "selected.parquet") for workdir in (one_dir, tmp_path / "run")]
    assert tables[0]["index"].to_pylist() == tables[1]["index"].to_pylist()
    np.testing.assert_allclose(*(table["pu_logit"].to_numpy() for table in tables), atol=1e-4)
    assert eight["scorer"]["class_prior"] == pytest.approx(one["scorer"]["class_prior"], abs=1e-5)


def test_two_processes_do_what_one_does(undisturbed, tmp_path):
    one_dir, one, _ = undisturbed
    workdir = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            command(workdir, "--config.baselines="),
            cwd=ROOT,
            env=environment()
            | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=250)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    two = json.loads((workdir / "summary.json").read_text())
    assert two["run"]["processes"] == two["run"]["devices"] == 2
    assert two["scorer"]["class_prior"] == pytest.approx(one["scorer"]["class_prior"], abs=1e-5)
    tables = [pq.read_table(path / "mine" / "selected.parquet") for path in (one_dir, workdir)]
    assert tables[0]["key"].to_pylist() == tables[1]["key"].to_pylist()
    assert two["student"]["accuracy"] == pytest.approx(one["student"]["accuracy"], abs=0.02)


def refused(*options, workdir="runs/unused"):
    done = subprocess.run(
        [sys.executable, "-m", "pujax.launch", *options], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("pujax: ")]
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


def test_a_loss_that_is_not_finite_is_status_1_and_names_the_step(tmp_path):
    status, line = refused(*command(tmp_path / "run", "--config.distill.learning_rate=1e30")[3:])
    assert status == 1
    assert "distill: the loss is not finite at step" in line


def test_a_work_directory_of_another_config_is_refused(undisturbed):
    workdir, _, _ = undisturbed
    status, line = refused(*command(workdir, "--config.scorer.learning_rate=0.01")[3:])
    assert status == 2
    assert "scorer.learning_rate=0.05, this run has 0.01" in line


def test_help_and_dry_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pujax.launch", "--help"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and "--workdir" in done.stdout
    done = subprocess.run(
        command(tmp_path / "run", "--dry_run"), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "data.pool: 8000 images, no labels" in done.stdout
    assert "stage distill: to do" in done.stdout
    assert not (tmp_path / "run").exists()


def in_process(tmp_path, change):
    """Run a changed quickstart config in this process."""
    import importlib.util

    from pujax import pipeline
    from pujax.config import resolve

    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "configs" / "quickstart.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config()
    config.baselines = ()
    config.data.pool.limit, config.data.test.limit, config.distill.num_steps = 1000, 200, 4
    config.scorer.num_steps = 20
    change(config)
    return pipeline.run(resolve(config), tmp_path / "run")


def write_pool_folder(root, num_images=200):
    root.mkdir()
    for i, image in enumerate(load_embedded("pool")["images"][:num_images]):
        Image.fromarray(image).save(root / f"{i:04d}.png")
    (root / "0007.png").write_bytes((root / "0007.png").read_bytes()[:60])


def test_pool_images_that_do_not_decode_stop_the_run_or_are_counted(tmp_path):
    write_pool_folder(tmp_path / "pool")

    def change(config):
        config.data.pool = SourceConfig(kind="folder", path=str(tmp_path / "pool"))
        config.distill.batch_size = 32

    def tolerate(config):
        change(config)
        config.mining.max_unreadable, config.mining.selection = 0.01, "all"

    with pytest.raises(ValueError, match=r"data.pool: the image 0007.png does not decode"):
        in_process(tmp_path, change)
    mining = in_process(tmp_path / "tolerant", tolerate)["mining"]
    assert (mining["pool_images"], mining["scored"], mining["unreadable"], mining["selected"]) == (200, 199, 1, 199)


def test_a_teacher_is_trained_from_labels_and_every_baseline_gets_its_images(tmp_path):
    kept = []

    def change(config):
        config.teacher.weights, config.teacher.num_steps, config.teacher.batch_size = "", 40, 64
        config.data.full = SourceConfig(kind="embedded", name="test", limit=640)
        config.baselines, config.distill.num_steps = ("full_data",), 1
        config.mining.selection, config.mining.budget = "class_balanced", 70
        kept.append(config)

    summary = in_process(tmp_path, change)
    assert summary["teacher"]["accuracy"] > 0.3
    assert summary["baselines"]["full_data"]["train_images"] == 640
    parts = {name: baselines.training_parts(kept[0], tmp_path / "run", name) for name in BASELINES}
    counts = {name: sum(len(index) for _, index in part) for name, part in parts.items()}
    truth = int(load_embedded("pool")["truth"][:1000].sum())
    expected = {"labelled_only": 200, "random": 170, "teacher_confidence": 170, "all": 1100, "full_data": 640}
    assert counts == expected | {"true_positives": 100 + truth}


@pytest.mark.parametrize("robust", ["none", "paper", "worst_case"])
def test_every_distillation_form_runs(tmp_path, robust):
    def change(config):
        config.distill.robust, config.distill.class_weights = robust, "inverse_frequency"
        config.distill.label_weight, config.scorer.distance, config.scorer.energy = 0.5, 1.0, 1.0
        config.scorer.flip, config.scorer.quarter_turn, config.scorer.reliable_negatives = True, True, 0.5
        config.distill.noise_adaptation, config.distill.labelled_per_batch = 0.9, 96
        config.scorer.class_prior = "0.05"

    assert 0 < in_process(tmp_path, change)["student"]["accuracy"] < 1


def test_the_released_scorer_runs(tmp_path):
    def change(config):
        config.scorer.mode, config.scorer.loss, config.scorer.surrogate = "finetune", "nnpu", "sigmoid"
        config.scorer.class_prior, config.scorer.positives_per_batch, config.scorer.hidden = "0.05", 0, 0
        config.scorer.num_steps, config.scorer.learning_rate = 20, 0.001

    summary = in_process(tmp_path, change)
    assert summary["scorer"]["class_prior_interval"] is None
    assert summary["mining"]["selected"] == 50
