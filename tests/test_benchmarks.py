"""The benchmark programs do what they say, at settings that take seconds; what they measure here is not looked at."""

import argparse
import functools
import importlib
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from benchmarks import ablation, real_pools, results_file, rivals, run_on_gpu, scorers, speed_tables, tables, throughput
from configs import quickstart
from pujax.config import Config, FrozenScorerConfig, ScorerConfig, resolve, with_options
from pujax.data.embedded import load_embedded

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("case", ["scoring", "kd_step_cached"])
def test_both_frameworks_compute_the_same_before_they_are_timed(case, tmp_path):
    args = argparse.Namespace(batch_size=16, learning_rate=1e-2, seconds=0.03, rounds=1, compile_mode="default")
    measure = functools.partial(throughput.measure, case, ("lenet5", "lenet5_half"), args)
    line = results_file.measured(tmp_path / "throughput.jsonl", measure)
    assert line["loss_difference"] < 5e-4  # of losses near 0.007: float32 rounding alone makes 1e-4
    assert all(rate > 0 for rate in line["images_per_second"].values())
    assert line["machine_after"]["cores"] >= 1 and line["flops_per_image"] > 1e5
    assert ("ratio_to_best_uncached" in line) == (case == "kd_step_cached")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_programs_for_a_gpu_do_each_slice_once(tmp_path, monkeypatch, capsys):
    rates = ("--seconds", "0.03", "--rounds", "1", "--batch_size", "8", "--compile_mode", "default")
    timed = ("benchmarks.throughput", *rates, "--cases", "kd_step", "--out", str(tmp_path / "throughput.jsonl"))
    score = (
        "--images",
        "3000",
        "--shard_size",
        "1000",
        "--seconds",
        "0.1",
        "--out",
        str(tmp_path / "score_rate.jsonl"),
    )
    few = [
        run_on_gpu.Slice("kd", 1, (*timed, "--pairs", "lenet5:lenet5_half")),
        run_on_gpu.Slice("broken", 1, (*timed, "--pairs", "lenet5:no_such_network")),
        run_on_gpu.Slice("score_rate", 1, ("benchmarks.score_rate", *score)),
        run_on_gpu.Slice("long", 10_000, ("benchmarks.throughput",)),
    ]
    monkeypatch.setattr(run_on_gpu, "slices", lambda *_: few)
    monkeypatch.setattr(sys, "argv", ["run_on_gpu", str(tmp_path)])
    told = []
    for _ in range(2):
        with pytest.raises(SystemExit, match="1"):  # the broken slice is tried again, and says so
            run_on_gpu.main()
        told.append(capsys.readouterr().out)
    started = [[line.split()[1] for line in text.splitlines() if line.startswith("== ")] for text in told]
    assert started == [["kd", "broken", "score_rate", "long"], ["broken", "long"]]
    assert "broken ended with 1; see " in told[1] and "for another run" in told[1]
    assert "robust distillation step, lenet5 -> lenet5_half, 8" in told[1] and "of the step alone" in told[1]
    lines = results_file.read(tmp_path / "score_rate.jsonl")
    assert speed_tables.score_rate_table(lines).count("\n| ") == 2 and 0 < lines[0]["ratio"] < 2


@pytest.mark.slow
def test_the_input_pipeline_is_measured_in_every_form(tmp_path):
    options = ["--images", "600", "--files", "64", "--seconds", "0.03", "--rounds", "1", "--out", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-m", "benchmarks.input_pipeline", *options], check=True, cwd=ROOT)
    lines = results_file.read(tmp_path / "out")
    assert len(lines) == 4 and all(rate > 0 for line in lines for rate in line["images_per_second"].values())
    assert speed_tables.pipeline_table(lines).count("\n| ") == 7  # head, rule excluded, and six rows


def test_what_a_gpu_is_for_is_the_whole_list(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_on_gpu", str(tmp_path), "--list", "--data", str(tmp_path)])
    run_on_gpu.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(float(line.split()[1]) for line in lines) <= 13 * 60 and lines[0].startswith("quickstart: ")
    for line in lines:  # every command line is one that its program takes
        module, *options = line.partition(" python -m ")[2].split()
        if module.startswith("benchmarks."):
            program = importlib.import_module(module)
            monkeypatch.setattr(program, "measured", lambda *_: {"images_per_second": {}, "ratio_to_best": 1.0}, False)
            monkeypatch.setattr(program, "jobs", lambda args: [], raising=False)
            monkeypatch.setattr(sys, "argv", [module, *options])
            program.main()


def test_the_pages_hold_what_the_result_files_say():
    for page in tables.PAGES:
        text = page.read_text()
        assert tables.fill(text) == text, f"{page.name}: run python -m benchmarks.tables"
    for name, svg in tables.figures().items():
        assert (results_file.RESULTS / "figures" / name).read_text() == svg


def test_speed_tables_and_charts_show_the_newest_commit_and_pytorch_at_its_best():
    common = {"device": "cpu", "teacher": "a", "student": "b", "case": "kd_step", "batch_size": 2, "versions": {}}
    common |= {"ratio_to_best": 1.5, "ratio_to_released": 2.0, "achieved_flops": 3e9}
    lines = [
        {**common, "commit": commit, "images_per_second": {"pujax": 300, "best": best, "released": 50}}
        for commit, best in (("old", 900), ("new", 200), ("new", 100))
    ]
    assert [line["images_per_second"]["best"] for line in speed_tables.measured(lines)] == [200]
    assert "| cpu | a -> b | 2 | 300 | 200 | 1.50x |  | 2.00x | 3 |  |" in speed_tables.throughput_table(lines)
    charts = speed_tables.figures({"throughput": lines, "input_pipeline": [], "job": []})
    assert list(charts) == ["throughput.svg"]
    bars = ElementTree.fromstring(charts["throughput.svg"]).iter("{http://www.w3.org/2000/svg}rect")
    widths = np.array([float(bar.get("width")) for bar in bars if bar.get("y")])
    np.testing.assert_allclose(widths / widths[0], [1, 2 / 3, 1 / 6], rtol=1e-3)


def test_a_draw_holds_what_it_says(tmp_path):
    rng = np.random.default_rng(0)
    for i, name in enumerate(("target", "others")):
        images = rng.integers(0, 100, (400, 4, 4), np.uint8) + np.uint8(100 * i)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(400) % 10)
    paths = tmp_path / "labelled.npz", tmp_path / "pool.npz"
    options = ablation.drawn(*paths, 3, 5, {"target": 60, "others": 140})
    assert options["data.pool"].path == str(paths[1])
    labelled, pool = map(np.load, paths)
    assert np.bincount(labelled["labels"]).tolist() == [5] * 10
    assert pool["truth"].sum() == 60 and len(pool["images"]) == 200
    assert (pool["images"].max((1, 2)) < 100).tolist() == pool["truth"].tolist()
    known = {image.tobytes() for image in labelled["images"]}
    assert not any(image.tobytes() in known for image in pool["images"])


def test_a_real_pool_is_shifted_in_its_positives_alone(tmp_path):
    """The pools of clothes, from small sets of flat images whose level says where they come from."""
    for level, name in ((200, "fashion_train"), (20, "mnist_train"), (100, "letters")):
        images = np.full((60_000 if name == "letters" else 61_000, 28, 28), level, np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(len(images)) % 10)
    setting = {"task": "clothes", "per_class": 10, "rate": 0.02, "seed": 0, "data": tmp_path, "workdir": tmp_path}
    for pool, count, level in (("none", 800, 200), ("inverted", 800, 55), ("empty", 0, 0)):
        config = real_pools.pool_config(pool=pool, **setting)
        columns = np.load(config.data.pool.path)
        middles, truth = columns["images"][:, 16, 16], columns["truth"]
        assert len(truth) == real_pools.SIZE and truth.sum() == count
        assert (middles[truth] == level).all() and set(np.unique(middles[~truth])) == {20, 100}
        assert np.bincount(np.load(config.data.labelled.path)["labels"]).tolist() == [10] * 10
        resolve(config)


def test_real_pools_differ_in_what_they_are_named_for(tmp_path):
    rows = [job.row for job in real_pools.jobs(False, 1, tmp_path, tmp_path)]
    assert rows.count("pujax") == 16 and set(rows) == set(real_pools.ROWS)
    remedies = real_pools.jobs(True, 3, tmp_path, tmp_path)
    assert len(remedies) == 3 * len(real_pools.CLASSES) * len(real_pools.REMEDIES)
    assert all(shares.sum() == pytest.approx(1) for shares in real_pools.CLASSES.values())
    image, rng = Image.fromarray(np.pad(load_embedded("test")["images"][0], 2)), np.random.default_rng(0)
    shifted = {name: np.asarray(shift(image, rng)) for name, shift in real_pools.SHIFTS.items()}
    assert np.array_equal(shifted["inverted"], 255 - shifted["none"])
    assert shifted["blurred"].std() < shifted["none"].std()
    assert all(np.mean(shifted[name] != shifted["none"]) > 0.2 for name in shifted if name != "none")


def test_a_table_of_changes_holds_the_default_and_each_change_without_baselines(tmp_path):
    common = {"table": "quickstart", "rows": None, "baselines": None, "seeds": 2, "first_seed": 1}
    args = argparse.Namespace(**common, data=tmp_path, workdir=tmp_path, changes=True)
    jobs = ablation.jobs(args)
    assert [job.row for job in jobs] == 2 * ["pujax", "released scorer", *ablation.CHANGES]
    configs = {(job.row, job.seed): resolve(job.make_config()) for job in jobs}
    assert all(config.baselines == () for config in configs.values())
    assert configs["loss balanced nnPU", 2].scorer.frozen.loss == "balanced_nnpu"
    assert configs["loss balanced nnPU", 2].seed == 2 and configs["released scorer", 1].scorer.mode == "finetune"
    assert configs["released scorer", 1].distill == configs["pujax", 1].distill
    assert configs["released distillation", 1].scorer == configs["pujax", 1].scorer
    with pytest.raises(AttributeError, match="no_such"):
        with_options(configs["pujax", 1], {"scorer.no_such": 1})


def test_nearest_neighbours_are_the_five_nearest():
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(23, 6)), rng.normal(size=(40, 6))
    distances = np.sort(np.linalg.norm(queries[:, None] - references, axis=-1), axis=1)[:, :5].mean(1)
    np.testing.assert_allclose(rivals.mean_distances(queries, references, chunk=10), distances)


@pytest.mark.slow
def test_a_job_gives_a_line_for_every_row_with_images_of_its_own(tmp_path):
    def make_config():
        options = {"baselines": ("random",), "data.pool.limit": 2000, "data.test.limit": 200}
        options |= {"scorer.frozen.num_steps": 50, "distill.num_steps": 4, "distill.batch_size": 32}
        return with_options(quickstart.get_config(), options)

    job = ablation.Job("pujax", 0, {"student_steps": 4}, make_config)
    lines = {line["row"]: line for line in ablation.run_job(job, "quickstart", tmp_path, extra_rows=True)}
    assert list(lines) == ["pujax", "random", "nearest_neighbour", "random_published", "dfnd_published"]
    budget = lines["pujax"]["selected"]
    assert {row: line["train_images"] for row, line in lines.items()} == {
        "pujax": 100 + budget,
        "random": 100 + budget,
        "nearest_neighbour": 100 + budget,
        "random_published": budget,
        "dfnd_published": budget,
    }
    assert all(line["student_steps"] == 4 and 0 <= line["accuracy"] <= 1 for line in lines.values())
    assert lines["random_published"]["precision"] < 0.3 < lines["pujax"]["precision"]


@pytest.mark.slow
def test_every_score_is_ranked_against_the_same_truth():
    rng = np.random.default_rng(0)
    truth = rng.random(600) < 0.2
    features = (rng.normal(size=(600, 12)) + 1.2 * truth[:, None]).astype(np.float32)
    pool = {"features": features, "energy": features.sum(1), "confidence": rng.random(600)}
    labelled = {"features": (rng.normal(size=(40, 12)) + 1.2).astype(np.float32), "last_stage": np.arange(6, 12)}
    labelled |= {"energy": labelled["features"].sum(1), "labels": np.arange(40, dtype=np.int32) % 2}
    frozen = FrozenScorerConfig(num_steps=100, learning_rate=0.05, batch_size=64, positives_per_batch=16)
    config = Config(scorer=ScorerConfig(frozen=frozen))
    config.data.num_classes = 2
    more = {"features": (rng.normal(size=(300, 12)) + 1.2).astype(np.float32)}
    more |= {"energy": more["features"].sum(1), "labels": np.arange(300, dtype=np.int32) % 2}
    rows = scorers.rows_of(config, labelled, pool, truth, lambda: more)
    aucs = {row: rows[row]()["auc"] for row in ("teacher confidence", "five nearest labelled", "distance alone")}
    aucs |= {row: rows[row]()["auc"] for row in ("head, distance, energy", "head alone, last stage", "ceiling")}
    oracles = "true negatives (oracle)", "every label (oracle)", "every label, true negatives (oracle)"
    aucs |= {row: rows[row]()["auc"] for row in oracles}
    aucs["labelled from the pool"] = rows["head alone, labelled from the pool"]()["auc"]
    assert 0.4 < aucs.pop("teacher confidence") < 0.6
    assert aucs["head alone, last stage"] < aucs["head, distance, energy"]
    assert min(aucs.values()) > 0.9


def test_result_lines_say_where_they_come_from_and_are_found_again(tmp_path):
    path = tmp_path / "new" / "table.jsonl"
    assert not results_file.is_there(path, {"row": "a"})
    results_file.append(path, {"row": "a", "seed": 1}, {"row": "b", "seed": 1})
    line = results_file.read(path)[0]
    assert line["seed"] == 1 and line["versions"]["jax"] and line["commit"] and line["date"]
    assert results_file.is_there(path, {"row": "b", "seed": 1})
    assert not results_file.is_there(path, {"row": "b", "seed": 2})
