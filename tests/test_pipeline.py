"""The whole job on the embedded images, small: stages, skipping, killing, device counts, and what it refuses."""

import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from PIL import Image
from test_artifacts import Store

from pujax import artifacts, pipeline, plan
from pujax.artifacts import Workdir
from pujax.config import (
    BASELINES,
    Config,
    DistillConfig,
    FinetunedScorerConfig,
    SelectConfig,
    SourceConfig,
    resolve,
)
from pujax.data.embedded import load_embedded
from pujax.data.styles import STYLES
from pujax.errors import UserError
from pujax.loaded import load_config
from pujax.lock import locked
from pujax.stages import baselines
from pujax.stages.select import decide

ROOT = Path(__file__).parent.parent
SMALL = [
    "--config.scorer.frozen.num_steps=200",
    "--config.distill.num_steps=60",
    "--config.score.shard_size=2000",
    "--config.data.pool.limit=8000",
    "--config.data.test.limit=1000",
    "--config.run.checkpoint_every=20",
    "--config.baselines=random",
    "--config.export.formats=",  # see test_export_stage.py
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
    selected = pq.read_table(workdir / "select" / "selected.parquet")
    assert len(set(selected["key"].to_pylist())) == summary["mining"]["selected"]


def test_a_second_run_skips_everything(undisturbed):
    workdir, summary, _ = undisturbed
    started = time.monotonic()
    again, output = run(workdir)
    assert output.count("done before, skipped") == 7
    assert numbers(again) == numbers(summary)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param("teacher/INPUTS.json", marks=pytest.mark.slow),
        pytest.param("scorer/INPUTS.json", marks=pytest.mark.slow),
        pytest.param("score/shards/scores-0000002000-0000004000.parquet", marks=pytest.mark.slow),
        "distill/checkpoints/20",
        pytest.param("baselines/random/images.npy", marks=pytest.mark.slow),
    ],
    ids=["teacher", "scorer", "score", "distill", "baselines"],
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
    finished = {path: path.stat().st_mtime_ns for path in workdir.glob("score/shards/*.parquet")}
    resumed, _ = run(workdir)
    assert numbers(resumed) == numbers(summary)
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    for name in ("scorer/scorer.safetensors", "select/selected.parquet", "distill/student.safetensors"):
        assert (workdir / name).read_bytes() == (undisturbed[0] / name).read_bytes(), name


def test_eight_devices_mine_the_same_images(undisturbed, tmp_path):
    one_dir, one, _ = undisturbed
    eight, _ = run(tmp_path / "run", "--stages=teacher,scorer,score,select", devices=8)
    tables = [pq.read_table(workdir / "select" / "selected.parquet") for workdir in (one_dir, tmp_path / "run")]
    assert tables[0]["index"].to_pylist() == tables[1]["index"].to_pylist()
    np.testing.assert_allclose(*(table["score"].to_numpy() for table in tables), atol=1e-4)
    assert eight["scorer"]["class_prior"] == pytest.approx(one["scorer"]["class_prior"], abs=1e-5)


@pytest.mark.slow
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
    tables = [pq.read_table(path / "select" / "selected.parquet") for path in (one_dir, workdir)]
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


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_status_1_and_names_the_step(tmp_path):
    status, line = refused(*command(tmp_path / "run", "--config.distill.learning_rate=1e30")[3:])
    assert status == 1
    assert "distill: the loss is not finite at step" in line


def test_a_work_directory_of_another_config_is_refused(undisturbed):
    workdir, _, _ = undisturbed
    status, line = refused(*command(workdir, "--config.scorer.frozen.learning_rate=0.01")[3:])
    assert status == 2
    assert "scorer.frozen.learning_rate=0.05, this run has 0.01" in line


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
    assert "it is right on 96.0 % of 100 images of data.labelled" in done.stdout
    where = tmp_path / "run"
    assert f"disk: 100,000 chosen images take 102 MB: in {where}/select/images, and in {where}/distill" in done.stdout
    assert [path.name for path in where.iterdir()] == ["contact_sheet.jpg"]


def test_a_dry_run_of_scoring_alone_needs_no_labelled_images(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    shutil.rmtree(tmp_path / "run" / "score")
    workdir = Workdir(epath.Path(tmp_path / "run"))
    told = plan.describe(load_config(workdir), workdir, ("score",))
    assert "score: 3 shards; reading" in told and "stage score: to do" in told
    assert "ms a step" not in told and "data.labelled" not in told and "disk" not in told


def test_a_worker_leaves_the_summary_of_the_job_at_work_alone(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    workdir = Workdir(epath.Path(tmp_path / "run"))
    before = workdir.summary.read_text()
    with locked(workdir.lock):
        found = pipeline.run(load_config(workdir), workdir.root, ("score",))
    assert workdir.summary.read_text() == before and found["run"] != json.loads(before)["run"]
    pipeline.run(load_config(workdir), workdir.root, ("score",))
    assert json.loads(workdir.summary.read_text())["run"]["wall_seconds"] < json.loads(before)["run"]["wall_seconds"]


def quickstart(change):
    """The quickstart's config, smaller and changed."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "configs" / "quickstart.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config()
    config.baselines, config.export.formats = (), ()
    config.data.pool.limit, config.data.test.limit, config.distill.num_steps = 1000, 200, 4
    config.score.shard_size = 400
    config.scorer.frozen.num_steps = 20
    change(config)
    return resolve(config)


def in_process(tmp_path, change, stages=pipeline.STAGES, workdir=None):
    """Run a changed quickstart config in this process."""
    return pipeline.run(quickstart(change), workdir or tmp_path / "run", stages)


def write_pool_folder(root, num_images=200):
    root.mkdir()
    for i, image in enumerate(load_embedded("pool")["images"][:num_images]):
        Image.fromarray(image).save(root / f"{i:04d}.png")
    (root / "0007.png").write_bytes((root / "0007.png").read_bytes()[:60])


def broken_files():
    """One file of every kind of damage that a crawl brings, by name."""

    def encoded(kind, **options):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, kind, **options)
        return buffer.getvalue()

    jpeg, png = encoded("JPEG"), encoded("PNG")
    floats = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.float32)).save(floats, "TIFF")
    bomb = bytearray(png)
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0x55
    return {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "short.jpg": jpeg[:-2],
        "zeros.jpg": jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2),
        "cut.png": png[: len(png) // 2],
        "flipped.png": bytes(flipped),
        "bomb.png": bytes(bomb),
        "cut.gif": encoded("GIF")[:200],
        "cut.webp": encoded("WEBP", lossless=True)[:300],
        "floats.tif": floats.getvalue(),
        "page.jpg": b"<html><body>404</body></html>",
        "empty.jpg": b"",
        "noise.bmp": np.random.default_rng(1).bytes(500),
    }


def test_pool_images_that_do_not_decode_are_counted_and_listed_or_stop_the_run(tmp_path):
    write_pool_folder(tmp_path / "pool", 228)
    for name, content in broken_files().items():
        (tmp_path / "pool" / name).write_bytes(content)

    def change(config):
        config.data.pool = SourceConfig(kind="folder", path=str(tmp_path / "pool"))
        config.distill.batch_size, config.select.rule, config.scorer.min_in_range = 32, "all", 0.0

    def strict(config):
        change(config)
        config.score.max_unreadable = 0.05

    with pytest.raises(
        UserError, match=r"13 of 240 .* the first is 0007.png .*scorer/unreadable.parquet.*max_unreadable"
    ):
        in_process(tmp_path, strict)
    summary = in_process(tmp_path, change)  # the option may change: it is no input of any number
    mining = summary["mining"]
    assert (mining["pool_images"], mining["scored"], mining["unreadable"], mining["selected"]) == (240, 227, 13, 227)
    for stage in ("scorer", "score"):
        listed = pq.read_table(tmp_path / "run" / stage / "unreadable.parquet")
        assert sorted(listed["key"].to_pylist()) == sorted(["0007.png", *broken_files()])
        assert all(listed["reason"].to_pylist())
    assert summary["student"]["train_images"] == 327


def test_a_teacher_is_trained_from_labels_and_every_baseline_gets_its_images(tmp_path):
    kept = []

    def change(config):
        config.teacher.weights, config.teacher.num_steps, config.teacher.batch_size = "", 40, 64
        config.data.full = SourceConfig(kind="embedded", name="test", limit=640)
        config.baselines, config.distill.num_steps = ("full_data",), 1
        config.select.rule, config.select.budget = "class_balanced", 70
        kept.append(config)

    summary = in_process(tmp_path, change)
    assert summary["teacher"]["accuracy"] > 0.3
    assert summary["baselines"]["full_data"]["train_images"] == 640
    workdir = artifacts.open_workdir(tmp_path / "run")
    with pipeline.opened(resolve(kept[0]), workdir, pipeline.STAGES, dry=True) as (job, _):
        parts = {name: baselines.training_parts(job, name, 70) for name in BASELINES}
    counts = {name: sum(len(index) for _, index in part) for name, part in parts.items()}
    truth = int(load_embedded("pool")["truth"][:1000].sum())
    expected = {"labelled_only": 200, "random": 170, "teacher_confidence": 170, "all": 1100, "full_data": 640}
    assert counts == expected | {"true_positives": 100 + truth}


@pytest.mark.parametrize(
    "robust", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("none", "paper")), "worst_case"]
)
def test_every_distillation_form_runs(tmp_path, robust):
    def change(config):
        config.distill.robust, config.distill.class_weights = robust, "inverse_frequency"
        config.distill.label_weight, config.distill.labelled_per_batch = 0.5, 96
        frozen = config.scorer.frozen
        frozen.distance, frozen.energy, frozen.reliable_negatives = 1.0, 1.0, 0.5
        frozen.flip, frozen.quarter_turn, config.scorer.class_prior = True, True, "0.05"

    assert 0 < in_process(tmp_path, change)["student"]["accuracy"] < 1


@pytest.mark.slow
def test_the_released_scorer_runs(tmp_path):
    def change(config):
        config.scorer.mode, config.scorer.class_prior = "finetune", "0.05"
        config.scorer.frozen = type(config.scorer.frozen)()
        config.scorer.finetune = FinetunedScorerConfig(num_steps=20, learning_rate=0.001)

    summary = in_process(tmp_path, change)
    assert summary["scorer"]["class_prior_interval"] is None
    assert summary["mining"]["selected"] == 50


def shards_of(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.glob("score/shards/*.parquet")}


def test_another_budget_rule_or_baseline_scores_no_image_again_and_comes_back(tmp_path, capsys):
    run_dir = tmp_path / "run"

    def choose(rule, budget=0, baselines=()):
        def change(config):
            config.select.rule, config.select.budget, config.baselines = rule, budget, baselines
            config.run.inference_batch_size = 100 + budget  # may change as well

        return change

    first = in_process(tmp_path, choose("prior"))
    scored, student = shards_of(run_dir), (run_dir / "distill" / "student.safetensors").read_bytes()
    second = in_process(tmp_path, choose("top_k", 70, ("random",)))
    assert second["mining"]["selected"] == 70 and second["baselines"]["random"]["train_images"] == 170
    output = capsys.readouterr().out
    assert "select: made with other options, set aside in" in output
    back = in_process(tmp_path, choose("prior"))
    assert "distill: brought back from" in capsys.readouterr().out
    assert numbers(back) == numbers(first)
    assert (run_dir / "distill" / "student.safetensors").read_bytes() == student
    assert shards_of(run_dir) == scored


def test_inputs_that_changed_are_refused_by_name(tmp_path):
    teacher_file = tmp_path / "teacher.safetensors"
    original = (ROOT / "pujax/data/embedded/teacher_lenet5.safetensors").read_bytes()
    arrays = {name: load_embedded(name) for name in ("labelled", "pool")}
    arrays["pool"] = {name: column[:1000] for name, column in arrays["pool"].items()}

    def write(teacher=original, **changed):
        teacher_file.write_bytes(teacher)
        for name, columns in arrays.items():
            np.savez(tmp_path / f"{name}.npz", **columns | changed.get(name, {}))

    def change(config):
        config.teacher.weights = str(teacher_file)
        for name in arrays:
            setattr(config.data, name, SourceConfig(kind="array", path=str(tmp_path / f"{name}.npz")))

    write()
    in_process(tmp_path, change)
    write(teacher=original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(UserError, match=r"made with contents of teacher.weights="):
        in_process(tmp_path, change)
    images = arrays["labelled"]["images"].copy()
    images[37, 14, 14] ^= 1  # one pixel of one image
    write(labelled={"images": images})
    with pytest.raises(UserError, match=r"made with contents of data.labelled="):
        in_process(tmp_path, change)
    write(pool={"truth": ~arrays["pool"]["truth"]})
    with pytest.raises(UserError, match=r"made with contents of data.pool="):
        in_process(tmp_path, change)
    write()
    in_process(tmp_path, change)  # nothing was lost by being refused


def test_results_of_another_version_of_a_stage_are_refused(tmp_path, monkeypatch):
    in_process(tmp_path, lambda config: None)
    monkeypatch.setitem(pipeline._VERSIONS, "score", 99)
    with pytest.raises(UserError, match="made with results version of score=2, this run has 99"):
        in_process(tmp_path, lambda config: None)


def test_a_teacher_alone_needs_neither_labelled_images_nor_pool(tmp_path):
    def teacher_only(config):
        config.data.labelled = config.data.pool = SourceConfig()

    summary = in_process(tmp_path, teacher_only, stages=("teacher",))
    assert summary["teacher"]["accuracy"] > 0.85 and "scorer" not in summary
    in_process(tmp_path / "whole", lambda config: None)
    again = in_process(tmp_path / "whole", lambda config: None, stages=("teacher",))
    assert "student" in again  # what was done before is still in the summary


def test_too_few_chosen_images_name_the_options(tmp_path):
    def change(config):
        config.data.labelled.per_class, config.select.rule, config.select.budget = 1, "top_k", 20

    with pytest.raises(UserError, match=r"distill.batch_size is 128, of which 128 are drawn from 30 images"):
        in_process(tmp_path, change)


def pool_of(tmp_path, keep, change_positives=lambda images: images):
    """The options of a job whose pool is the first kept images, with its positives changed."""
    pool = load_embedded("pool")
    rows = np.flatnonzero(keep(pool["truth"]))[:1500]
    images, truth = np.pad(pool["images"][rows], ((0, 0), (2, 2), (2, 2))), pool["truth"][rows]
    images[truth] = change_positives(images[truth])
    np.savez(tmp_path / "pool.npz", images=images, truth=truth)

    def change(config):
        config.data.pool = SourceConfig(kind="array", path=str(tmp_path / "pool.npz"))
        config.scorer.frozen.num_steps, config.scorer.frozen.batch_size = 300, 320

    return change


def test_a_pool_of_another_style_is_seen_in_styles_and_drawn_from(tmp_path, capsys):
    change = pool_of(tmp_path, np.ones_like, lambda images: 255 - images)
    summary = in_process(tmp_path, change)
    assert summary["scorer"]["styles"] == len(STYLES) and not summary["scorer"]["class_prior_holds"]
    assert summary["mining"]["rule"] == "class_balanced"
    assert summary["mining"]["selected"] == 128  # four updates need no more
    assert "differ in kind or style" in summary["mining"]["doubt"] and "set select.budget" in capsys.readouterr().err

    def off(config):
        change(config)
        config.scorer.frozen.styles = "off"

    plain = in_process(tmp_path / "off", off)["scorer"]
    assert plain["styles"] == 1 and not plain["class_prior_holds"]
    assert summary["scorer"]["truth_auc"] > plain["truth_auc"] + 0.05


@pytest.mark.slow
def test_a_pool_without_positives_stops_the_run_unless_told_to_go_on(tmp_path):
    change = pool_of(tmp_path, np.logical_not)
    with pytest.raises(
        UserError, match=r"of 1500 pool images looked at, \d score like a labelled one .* 9 other styles"
    ):
        in_process(tmp_path, change)

    def go_on(config):
        change(config)
        config.scorer.min_in_range = 0

    assert in_process(tmp_path, go_on)["mining"]["selected"] == 128


def test_a_pool_that_is_all_in_domain_is_taken_whole(tmp_path):
    summary = in_process(tmp_path, pool_of(tmp_path, np.array))
    assert summary["scorer"]["class_prior_holds"] and summary["mining"]["selected"] == 1500


def test_copies_of_test_images_among_the_chosen_are_counted_or_left_out(tmp_path):
    pool, test = load_embedded("pool"), load_embedded("test")["images"][:20]
    images, truth = np.concatenate([pool["images"][:1000], test]), np.append(pool["truth"][:1000], np.ones(20, bool))
    np.savez(tmp_path / "pool.npz", images=images, truth=truth)

    def choose(copies):
        def change(config):
            config.data.pool = SourceConfig(kind="array", path=str(tmp_path / "pool.npz"))
            config.select.rule, config.select.budget, config.select.copies = "top_k", 500, copies

        return change

    count, ignore, drop = (in_process(tmp_path, choose(copies))["mining"] for copies in ("count", "ignore", "drop"))
    assert 20 <= count["copies_of_test"] < 30 and count["copies_of_labelled"] < 10
    assert count["selected"] == ignore["selected"] == 500 and "copies_of_test" not in ignore
    assert 465 < drop["selected"] <= 480
    assert pq.read_table(tmp_path / "run" / "select" / "selected.parquet")["index"].to_numpy().max() < 1000


@pytest.mark.parametrize(
    ("options", "found", "expected"),
    [
        ({}, {}, ("top_k", 500)),  # 5 % of 10,000
        ({}, {"like_labelled": 0.2}, ("class_balanced", 1280)),  # 500 updates of 128 show that many 50 times
        ({}, {"like_labelled": 0.06}, ("class_balanced", 600)),
        ({}, {"class_prior": 0.3, "like_labelled": 0.5}, ("top_k", 3000)),
        ({}, {"class_prior": 0.9, "class_prior_interval": [0.8, 1.0]}, ("top_k", 10_000)),
        ({}, {"class_prior_interval": None, "like_labelled": 0.2}, ("top_k", 500)),  # the user's own
        ({}, {"class_prior_holds": False}, ("class_balanced", 450)),
        ({}, {"class_prior_holds": False, "like_labelled": 0.5}, ("class_balanced", 1280)),
        ({"rule": "mean_rank"}, {"class_prior_holds": False}, ("mean_rank", 450)),
        ({"rule": "top_k"}, {"like_labelled": 0.06}, ("top_k", 600)),
        ({"rule": "sample", "passes": 250}, {"class_prior_holds": False}, ("sample", 256)),
        ({"rule": "sample", "budget": 7}, {"class_prior_holds": False}, ("sample", 7)),
        ({"rule": "all"}, {}, ("all", 0)),
        ({"passes": 1}, {"class_prior_holds": False, "like_labelled": 0.9}, ("class_balanced", 9000)),
        ({"passes": 1000}, {"class_prior_holds": False, "like_labelled": 0.0}, ("class_balanced", 128)),  # a batch
    ],
)
def test_how_many_are_chosen(options, found, expected):
    config = Config(distill=DistillConfig(num_steps=500, batch_size=128), select=SelectConfig(**options))
    usual = {"class_prior": 0.05, "class_prior_interval": [0.04, 0.06], "class_prior_holds": True}
    usual |= {"like_labelled": 0.045, "selected_at_random_z": 0.0}
    rule, budget, doubt = decide(config, usual | found, 10_000)
    assert (rule, budget) == expected
    assert bool(doubt) == (not found.get("class_prior_holds", True) and "budget" not in options)


def test_classes_of_other_names_are_refused(tmp_path):
    def change(config):
        columns = load_embedded("test")
        names = ["T-shirt/top", "Skirt", *"cdefghij"]
        np.savez(
            tmp_path / "test.npz", images=columns["images"][:200], labels=columns["labels"][:200], class_names=names
        )
        config.data.test = SourceConfig(kind="array", path=str(tmp_path / "test.npz"))

    with pytest.raises(UserError, match=r"test.npz has a class 'Skirt', which is none of the 10 of the teacher"):
        in_process(tmp_path, change)


def test_a_job_in_an_object_store_gives_the_numbers_of_a_local_one(tmp_path, monkeypatch):
    Store.install(monkeypatch)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)

    def choose(budget):
        def change(config):
            config.select.rule, config.select.budget, config.run.checkpoint_every = "top_k", budget, 2

        return change

    local = in_process(tmp_path, choose(60))
    scratch = tmp_path / "scratch" / "pujax" / "s3-bucket-run"
    (scratch / "distill").mkdir(parents=True)
    (scratch / "distill" / "images.npy").write_bytes(b"of a former job")
    remote = in_process(tmp_path, choose(60), workdir="s3://bucket/run")
    assert numbers(remote) == numbers(local)
    for name in ("distill/student.safetensors", "select/images/chosen-00000-of-00001.array_record"):
        assert bytes(Store.store[f"/bucket/run/{name}"].getbuffer()) == (tmp_path / "run" / name).read_bytes()
    other = in_process(tmp_path, choose(70), workdir="s3://bucket/run")
    assert other["student"]["train_images"] == 170  # and not the images of the former choice
    assert numbers(in_process(tmp_path, choose(60), workdir="s3://bucket/run")) == numbers(local)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "scratch"]  # nothing strays
    assert not [*scratch.rglob("*.array_record"), *scratch.rglob("*.npy")]
    assert {"/bucket/run/metrics.jsonl", "/bucket/run/distill/student.safetensors"} <= Store.store.keys()
