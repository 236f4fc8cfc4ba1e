"""The report: its numbers are those of the run, it stands alone, and it is made anew when what it shows has changed."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import finished_job
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from test_artifacts import Store
from test_pipeline import in_process

from pujax import pipeline, report_runs
from pujax.config import Config, SourceConfig, resolve, with_options
from pujax.errors import UserError
from pujax.report.compare import Run, compare_page, flatten_json, group_runs, mean_and_spread
from pujax.report.curves import read_curves
from pujax.report.findings import headline, useful_share, warnings
from pujax.report.page import Facts, class_balance, exports, funnel, recipe, run_page
from pujax.report.pool_view import BINS, CLASSES, PER_CLASS, PER_GRID, Highest, histogram, view_pool
from pujax.report.quantities import accuracy_error, amount, duration, percent, points, size
from pujax.report.thumbnails import data_uri, thumbnails
from pujax.score_table import ScoreTable

HOSTILE = '<script>alert("x")</script>\'&'
SUMMARY = {
    "teacher": {"accuracy": 0.917, "lowest_class_accuracy": 0.739, "test_images": 10000, "num_params": 61706,
                "flops_per_image": 8.33e5, "seconds": 0.6},
    "scorer": {"class_prior": 0.05, "class_prior_interval": [0.045, 0.055], "class_prior_holds": True,
               "selected_at_random_z": -0.2, "like_labelled": 0.046, "seconds": 8.0},
    "mining": {"pool_images": 1000, "scored": 900, "unreadable": 0, "images_per_second": 27000.0, "rule": "top_k",
               "selected": 40, "threshold": 1.5, "seconds": 1.7},
    "student": {"accuracy": 0.8354, "lowest_class_accuracy": 0.531, "num_params": 15738, "flops_per_image": 2.67e5,
                "train_images": 140, "seconds": 35.0},
    "baselines": {"random": {"accuracy": 0.7348, "train_images": 140, "seconds": 24.0}},
    "run": {"seed": 0, "devices": 1, "device_kind": "cpu", "processes": 1, "versions": {"jax": "0.10"},
            "wall_seconds": 70.0},
}  # fmt: skip
SECONDS = {"teacher": 0.6, "scorer": 8.0, "score": 1.2, "select": 0.5, "distill": 35.0, "baselines/random": 24.0}


def summary(**changes):
    """A summary with values of its blocks changed: mining={"selected": 0}."""
    return {name: block | changes.get(name, {}) for name, block in SUMMARY.items()} | {
        name: block for name, block in changes.items() if name not in SUMMARY
    }


def columns(num_images, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    readable = rng.random(num_images) > 0.1
    return {
        "key": [f"a/{i}{HOSTILE}" for i in range(num_images)],
        "index": np.arange(num_images),
        "score": np.where(readable, rng.normal(size=num_images), np.nan).astype(np.float32),
        "teacher_class": rng.integers(0, num_classes, num_images).astype(np.int32),
        "teacher_confidence": rng.random(num_images).astype(np.float32),
        "readable": readable,
        "reason": np.where(readable, "", "truncated").astype(object),
    }


def write_table(folder, whole, shard_size):
    table = ScoreTable(epath.Path(folder), len(whole["index"]), shard_size)
    for start, stop in table.shards:
        table.write(start, stop, {name: column[start:stop] for name, column in whole.items()})
    return table


@pytest.fixture
def whole():
    return columns(1000, 7)


@pytest.fixture
def chosen(whole):
    order = np.flatnonzero(whole["readable"])
    return np.sort(order[np.argsort(-whole["score"][order])][:40])


@pytest.fixture
def view(tmp_path, whole, chosen):
    held_out = np.random.default_rng(1).normal(2, 1, 50), whole["score"][whole["readable"]]
    return view_pool(write_table(tmp_path / "view", whole, 130), held_out, chosen, num_classes=7, seed=3)


def test_what_is_counted_adds_up_to_the_pool_and_to_the_choice(view, whole, chosen):
    readable = whole["readable"]
    assert (view.labelled.sum(), view.pool.sum(), view.chosen.sum()) == (50, readable.sum(), 40)
    assert (view.chosen <= view.pool).all() and len(view.edges) == BINS + 1
    lowest_chosen = whole["score"][chosen].min()
    assert not view.chosen[view.edges[1:] < lowest_chosen].any()
    np.testing.assert_array_equal(view.pool_classes, np.bincount(whole["teacher_class"][readable], minlength=7))
    np.testing.assert_array_equal(view.chosen_classes, np.bincount(whole["teacher_class"][chosen], minlength=7))


def test_the_images_to_look_at_are_the_best_the_last_and_the_first_that_were_rejected(view, whole, chosen):
    score, order = whole["score"], np.flatnonzero(whole["readable"])
    order = order[np.argsort(-score[order])]
    assert view.grids["best"]["index"].tolist() == order[:PER_GRID].tolist()
    assert view.grids["last"]["index"].tolist() == order[39 : 39 - PER_GRID : -1].tolist()
    assert view.grids["rejected"]["index"].tolist() == order[40 : 40 + PER_GRID].tolist()
    random = view.grids["random"]["index"]
    assert len(set(random.tolist())) == PER_GRID and whole["readable"][random].all()
    np.testing.assert_array_equal(view.grids["random"]["score"], score[random])
    for k, rows in view.by_class.items():
        own = [i for i in order[:40] if whole["teacher_class"][i] == k]
        assert rows["index"].tolist() == own[:PER_CLASS]


@pytest.mark.parametrize("shard_size", [17, 1000])
def test_shards_of_any_size_show_the_same(tmp_path, whole, chosen, view, shard_size):
    held_out = np.random.default_rng(1).normal(2, 1, 50), whole["score"][whole["readable"]]
    again = view_pool(write_table(tmp_path / "again", whole, shard_size), held_out, chosen, num_classes=7, seed=3)
    for field in ("edges", "labelled", "pool", "chosen", "pool_classes", "chosen_classes"):
        np.testing.assert_array_equal(getattr(again, field), getattr(view, field))
    for name, rows in view.grids.items():
        assert again.grids[name]["index"].tolist() == rows["index"].tolist(), name


def test_before_the_choice_there_is_nothing_chosen_or_rejected(tmp_path, whole):
    held_out = np.ones(5), whole["score"][whole["readable"]]
    view = view_pool(write_table(tmp_path / "view", whole, 400), held_out, None, num_classes=7, seed=0)
    assert view.chosen.sum() == view.chosen_classes.sum() == 0 and view.by_class == {}
    assert {name: len(rows["index"]) for name, rows in view.grids.items()} == {
        "best": 0, "last": 0, "rejected": 0, "random": PER_GRID
    }  # fmt: skip


def test_the_highest_are_kept_by_group_and_ties_go_to_the_first():
    best = Highest(2)
    for start in (0, 4, 8):
        index = np.arange(start, start + 4)
        rows = {"index": index, "score": np.zeros(4, np.float32), "teacher_class": (index % 2).astype(np.int32)}
        best.add(rows, rows["score"], group=rows["teacher_class"])
    assert best.rows["index"].tolist() == [0, 2, 1, 3]


def test_what_lies_beyond_the_edges_is_counted_in_the_outer_bins():
    assert histogram(np.array([-9.0, 0.1, 0.9, 9.0]), np.array([0.0, 0.5, 1.0])).tolist() == [2, 2]


def test_curves_begin_anew_where_training_did_and_survive_a_cut_line():
    lines = [json.dumps({"step": step, "distill/loss": value, "distill/kl": 9.0}) for step, value in
             [(100, 5.0), (200, 4.0), (300, 3.0), (200, 3.5), (300, 2.5)]]  # fmt: skip
    lines += [json.dumps({"step": 1, "scorer/loss": 0.5}), '{"step": 400, "distill/lo', "3", ""]
    assert read_curves(lines) == {"distill": [(100, 5.0), (200, 3.5), (300, 2.5)], "scorer": [(1, 0.5)]}
    again = [*lines, json.dumps({"step": 100, "distill/loss": 7.0})]
    assert read_curves(again)["distill"] == [(100, 7.0)]
    long = [json.dumps({"step": step, "distill/loss": 1.0}) for step in range(1000)]
    thin = read_curves(long, points=50)["distill"]
    assert len(thin) == 50 and thin[-1] == (999, 1.0)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.8354), "83.5 %"),
        (percent(0.00001), "< 0.1 %"),
        (percent(0.99999), "> 99.9 %"),
        (percent(1.0), "100.0 %"),
        (percent(0.0), "0.0 %"),
        (points(-0.012), "−1.2"),
        (points(0.1006), "+10.1"),
        (amount(61706), "61.7 k"),
        (amount(999_700), "1.00 M"),
        (amount(8.33e5), "833 k"),
        (amount(12), "12"),
        (amount(63_000), "63.0 k"),
        (size(200_275), "200 kB"),
        (size(512), "512 B"),
        (duration(0.63), "0.6 s"),
        (duration(59.4), "59 s"),
        (duration(124), "2 min 4 s"),
        (duration(18_720), "5 h 12 min"),
    ],
)
def test_numbers_are_written_as_people_read_them(written, expected):
    assert written == expected


def test_the_first_sentence_says_what_came_out():
    assert headline(SUMMARY) == (
        "The student is right on 83.5 % of 10,000 test images, the teacher on 91.7 %; "
        "mining was worth +10.1 points over random images."
    )
    same = summary(baselines={"random": {"accuracy": 0.8300}})
    assert "mining made no difference from random images that can be told (+0.5 ± 0.5 points)" in headline(same)
    assert "There is no student yet" in headline({"teacher": SUMMARY["teacher"]})
    assert headline({}) == "No stage has run yet."
    assert accuracy_error(0.5, 100) == pytest.approx(0.05)


def titles(found):
    return [finding.title for finding in warnings(found)]


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"scorer": {"class_prior_interval": [0.02, 0.09]}}, "The share of useful images is known only roughly"),
        ({"scorer": {"class_prior_holds": False, "selected_at_random_z": 5.0}, "mining": {"doubt": "it is unlike"}},
         "The labelled images are no random sample of the task's part of the pool"),
        ({"scorer": {"selected_at_random_z": 2.5, "class_prior_interval": None}},
         "The labelled images are no random sample of the task's part of the pool"),
        ({"scorer": {"class_prior_holds": False}}, "The share of useful images is not known"),
        ({"baselines": {"random": {"accuracy": 0.84}}}, "Mining is not better than random images"),
        ({"baselines": {}}, "What mining was worth is not known"),
        ({"teacher": {"test_images": 400}}, "Few test images"),
        ({"teacher": {"doubt": "it is right on 9 %"}}, "The teacher seems to be used wrongly"),
        ({"mining": {"unreadable": 3}}, "Unreadable images"),
        ({"mining": {"copies_of_test": 1}}, "Copies of test images among the chosen"),
        ({"mining": {"skipped": {"links": 2, "folders": 0}}}, "Files of the pool that are no images"),
        ({"student": {"lowest_class_accuracy": 0.1}}, "One class is nearly lost"),
        ({"export": {"onnx": {"top1_agreement": 0.5}, "seconds": 3.0}}, "The onnx file answers differently"),
        ({"export": {"tflite": {"skipped": "no converter"}}}, "No tflite file"),
    ],
)  # fmt: skip
def test_what_to_be_careful_about(changes, title):
    changed = summary(**changes)
    if "baselines" in changes:
        changed["baselines"] = changes["baselines"]
    assert titles(changed) == [title]
    assert all(finding.text.endswith(".") for finding in warnings(changed))


def test_where_all_is_well_nothing_is_found(view):
    assert titles(SUMMARY) == []
    page = run_page(Facts("run", Config(), SUMMARY, SECONDS, view=view))
    assert "Nothing to worry about was found" in page
    assert useful_share(SUMMARY) == ("5.0 %", "95 % interval 4.5 % to 5.5 %")


def test_the_funnel_has_the_numbers_of_the_summary():
    steps = [(step["name"], step["number"]) for step in funnel(SUMMARY)]
    assert steps == [("In the pool", "1,000"), ("Readable", "900"), ("Like labelled", "41"), ("Chosen", "40")]
    known = funnel(summary(mining={"precision": 0.975, "recall": 0.5}))
    assert "97.5 % of them belong to the task, which are 50.0 % of all that do" in known[-1]["note"]


def noise(side, channels):
    """A source's read: images that compress badly, every fifth of which does not decode."""

    def read(index):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (len(index), side, side, channels)).astype(np.uint8)
        return images, np.where(index % 5 == 0, "truncated", "").astype(object)

    return read


def keys(index):
    return [f"a/{i}{HOSTILE}" for i in index]


@pytest.mark.parametrize("channels", [1, 3])
def test_thumbnails_leave_out_what_does_not_decode(channels):
    rows = [{"index": np.array([7, 3, 5])}, {"index": np.array([3, 4])}]
    found = thumbnails(rows, noise(200, channels), keys)
    assert sorted(found) == [3, 4, 7] and found[3][0] == keys([3])[0]
    assert all(address.startswith("data:image/jpeg;base64,") for _, address in found.values())
    assert len(data_uri(np.zeros((28, 28, channels), np.uint8))) < 1500
    assert thumbnails([], noise(8, 1), keys) == {}


def large_facts(tmp_path, **changes):
    """A run with a thousand classes of hostile names, colour images, and every block."""
    num_classes = 1000
    whole = columns(3000, num_classes)
    held_out = np.linspace(0, 2, 20), whole["score"][whole["readable"]]
    chosen = np.flatnonzero(whole["readable"])[::3]
    table = write_table(tmp_path / "large", whole, 1000)
    view = view_pool(table, held_out, chosen, num_classes=num_classes, seed=0)
    facts = Facts(
        name=f"run {HOSTILE}",
        config=Config(),
        summary=summary(export={"onnx": {"bytes": 63_000, "max_abs_diff": 1e-5, "top1_agreement": 1.0,
                                         "accuracy": 0.83, "latency_ms": 0.2, "path": "a.onnx"},
                                "tflite": {"skipped": HOSTILE}, "seconds": 2.0}),
        seconds=SECONDS,
        curves={name: [(step, 1 / step) for step in range(1, 121)] for name in ("distill", "distill_random", "scorer")},
        class_names=tuple(f"{HOSTILE}{k}" * 40 for k in range(num_classes)),
        view=view,
        pictures=thumbnails([*view.grids.values(), *view.by_class.values()], noise(224, 3), keys),
    )  # fmt: skip
    return dataclasses.replace(facts, **changes)


def outside(page):
    """What a page would fetch from elsewhere, or where it would lead."""
    fetching = [address for address in re.findall(r"""(?:src|href|srcset)\s*=\s*["']?([^"'\s>]+)""", page)
                if not address.startswith("data:")]  # fmt: skip
    return fetching + re.findall(r"https?:|url\(|@import|<link|<iframe", page)


def test_the_largest_page_is_small_stands_alone_and_escapes_what_others_wrote(tmp_path):
    facts = large_facts(tmp_path)
    page = run_page(facts)
    assert len(page.encode()) < 2e6
    assert outside(page) == []
    assert page.count("<script") == 1 and "alert(" in page and "&lt;script&gt;alert(" in page
    assert not re.search(r"""alt="[^"]*[<>]""", page)
    for word in ("prefers-color-scheme: dark", 'data-theme="dark"', 'id="theme"', 'name="viewport"', 'lang="en"'):
        assert word in page
    for section in ("findings", "accuracy", "pool", "images", "classes", "training", "cost", "exports", "again"):
        assert f'<section id="{section}">' in page, section
    assert "971 other classes" in page and len(facts.view.by_class) == CLASSES
    assert page.count("<img") == page.count('src="data:image/jpeg') == page.count("alt=")
    assert "mining was worth +10.1 points" in html.unescape(page)


def test_class_balance_is_that_of_the_view_and_sums_up_the_rest(tmp_path, view):
    facts = Facts("run", Config(), SUMMARY, SECONDS, view=view)
    rows = class_balance(facts)["rows"]
    assert [row["name"] for row in rows] == [f"class {k}" for k in range(7)]
    assert [int(row["before"]) for row in rows] == view.pool_classes.tolist()
    assert [int(row["after"]) for row in rows] == view.chosen_classes.tolist()
    many = large_facts(tmp_path)
    rows = class_balance(many)["rows"]
    assert len(rows) == 30
    assert sum(int(row["after"].replace(",", "")) for row in rows) == many.view.chosen_classes.sum()
    assert sum(int(row["before"].replace(",", "")) for row in rows) == many.view.pool_classes.sum()


def test_formats_that_were_not_made_say_why():
    rows = exports(
        {"export": {"onnx": {"bytes": 63_000, "top1_agreement": 0.9999}, "a": {"skipped": "no"}, "seconds": 2}}
    )
    assert [row["name"] for row in rows] == ["onnx", "a"]
    assert (rows[0]["size"], rows[0]["agreement"], rows[0]["latency"]) == ("63.0 kB", "99.99 %", "")
    assert rows[1]["skipped"] == "no"
    assert exports(SUMMARY) == []


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ((), "No stage has run yet."),
        (("teacher",), "There is no student yet."),
        (("teacher", "scorer", "mining"), "Like labelled"),
        (("teacher", "student"), "no baseline ran"),
    ],
)
def test_a_page_of_a_part_of_a_run_says_what_is_missing(blocks, told):
    part = {name: block for name, block in SUMMARY.items() if name in blocks}
    page = run_page(Facts("run", Config(), part, dict.fromkeys(SECONDS) | {"teacher": 0.6}))
    assert told in page and "Not run yet" in page and "baselines/random" in page


def test_the_recipe_gives_the_same_options():
    config = with_options(Config(), {"data.mean": (0.1, 0.2, 0.3), "data.class_names": ("it's", 'a "b"'),
                                     "distill.model": "lenet5", "baselines": ("random",), "seed": 3,
                                     "data.pool": SourceConfig(kind="folder", path="s3://b/{0..9}.tar")})  # fmt: skip
    names = {}
    exec(recipe(resolve(config)), names)
    assert resolve(names["get_config"]()) == resolve(config)


def run_of(name, accuracy, random=0.7, **options):
    config = flatten_json(dataclasses.asdict(with_options(Config(), options)))
    changed = summary(student={"accuracy": accuracy}, baselines={"random": {"accuracy": random}})
    return Run(name, config, changed)


def test_runs_that_differ_only_in_their_seed_are_one_line():
    runs = [
        run_of("a", 0.80),
        run_of(HOSTILE, 0.84, random=0.71, seed=1, **{"run.log_every": 7, "baselines": ("random",)}),
        run_of("c", 0.90, **{"select.budget": 50, "select.rule": "top_k"}),
    ]
    groups = group_runs(runs)
    assert [[run.name for run in group.runs] for group in groups] == [["a", HOSTILE], ["c"]]
    page = compare_page(runs)
    assert "82.0 ± 2.8" in page  # (0.80, 0.84): the sample standard deviation is 0.0283
    assert "+11.5 ± 2.1" in page and "+20.0" in page  # 0.10 and 0.13
    assert "3 runs of 2 kinds; the best student is right on 90.0 % of the test images (c)." in page
    assert "<code>select.budget</code>" in page and "<code>run.log_every</code>" not in page
    assert outside(page) == [] and page.count("<script") == 1
    assert "have the same options" in compare_page(runs[:2])


@pytest.mark.parametrize(
    ("shares", "sign", "expected"),
    [([], "", "–"), ([0.5], "", "50.0"), ([0.5, 0.5], "", "50.0 ± 0.0"), ([-0.1, -0.2], "+", "−15.0 ± 7.1")],
)
def test_mean_and_spread(shares, sign, expected):
    assert mean_and_spread(shares, sign=sign) == expected


def test_runs_without_a_student_are_compared_as_well():
    config = flatten_json(dataclasses.asdict(Config()))
    page = compare_page([Run("a", config, {"teacher": SUMMARY["teacher"]}), Run("b", config | {"seed": 1}, {})])
    assert "2 runs; none has a student yet." in page and "91.7" in page


# --- in a job -------------------------------------------------------------------------------------------------


def quick(config):
    config.select.rule, config.select.budget = "top_k", 60
    config.run.log_every = 2


def another_choice(config):
    quick(config)
    config.select.budget = 70


@pytest.fixture(scope="module")
def job(finished):
    """A small job that has run: its work directory, and its summary."""
    return finished, json.loads((finished / "summary.json").read_text())


def test_the_page_of_a_job_tells_its_numbers(job, tmp_path):
    workdir, found = job
    page = (workdir / "report.html").read_text()
    assert outside(page) == [] and len(page) < 1e6
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert f"right on {percent(found['student']['accuracy'])} of 200 test images" in text
    assert "Few test images" in text and "T-shirt/top" in text and "Just rejected" in text
    assert page.count("<img") > 50 and "distillation loss" in text
    names = {}
    exec(html.unescape(re.search(r"<pre>(from pujax.*?)</pre>", page, re.DOTALL)[1]), names)
    assert json.loads(json.dumps(dataclasses.asdict(resolve(names["get_config"]())))) == json.loads(
        (workdir / "config.json").read_text()
    )
    chosen = pq.read_table(workdir / "select" / "selected.parquet")["teacher_class"].to_numpy()
    classes = page[page.index('<section id="classes">') :]
    after = [int(n) for n in re.findall(r'<td class="n optional">(\d+)</td><td class="n">[^<]*</td></tr>', classes)]
    assert after == np.bincount(chosen, minlength=10).tolist()
    report_runs.main([str(workdir), str(workdir) + "/", "--out", str(tmp_path / "compare.html")])
    assert outside((tmp_path / "compare.html").read_text()) == []
    with pytest.raises(UserError, match=r"there is no summary.json in .*; give work directories of runs"):
        report_runs.main([str(workdir.parent), "--out=compare.html"])


def test_it_is_made_again_when_what_it_shows_has_changed_and_only_then(job, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(job[0], workdir)

    def page():
        return (workdir / "report.html").read_bytes()

    first = page()
    in_process(tmp_path, finished_job.options)
    assert "report: done before, skipped" in capsys.readouterr().out and page() == first
    in_process(tmp_path, another_choice, stages=("select", "report"))
    partial = page().decode()
    assert "report: bytes" in capsys.readouterr().out
    assert "Not run yet</strong>distill" in partial and ">70</dd>" in partial
    in_process(tmp_path, finished_job.options)  # all comes back, and the page is of it again
    assert ">60</dd>" in page().decode() and "Not run yet" not in page().decode()
    assert {path.name.split("-")[0] for path in (workdir / "previous").iterdir()} == {"select"}


def test_a_page_that_cannot_be_made_costs_no_number(job, tmp_path, monkeypatch):
    shutil.copytree(job[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()

    def fails(*_, **__):
        raise OSError("the pool is gone")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the pool is gone"):
        patch.setattr(pipeline.report, "run", fails)
        in_process(tmp_path, another_choice, stages=("select", "report"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["mining"]["selected"] == 70
    assert not (tmp_path / "run" / "report" / "DONE.json").exists()  # it is tried again


def test_a_teacher_alone_has_a_page_with_and_without_a_pool(tmp_path):
    def no_pool(config):
        config.data.labelled = config.data.pool = SourceConfig()

    in_process(tmp_path, no_pool, stages=("teacher", "report"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "There is no student yet" in page and "<img" not in page
    in_process(tmp_path / "pool", quick, stages=("teacher", "report"))
    assert "Not run yet</strong>scorer, score, select, distill" in (tmp_path / "pool/run/report.html").read_text()


def test_unreadable_images_are_not_shown_and_a_store_holds_the_page(tmp_path, monkeypatch):
    from test_pipeline import write_pool_folder

    monkeypatch.setattr(Store, "store", {})
    fsspec.register_implementation("s3", Store, clobber=True)
    Store.clear_instance_cache()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    write_pool_folder(tmp_path / "pool")

    def change(config):
        config.data.pool = SourceConfig(kind="folder", path=str(tmp_path / "pool"))
        config.select.rule, config.scorer.min_in_range, config.scorer.frozen.styles = "all", 0.0, "off"

    in_process(tmp_path, change, stages=("teacher", "scorer", "score", "select", "report"), workdir="s3://bucket/run")
    page = Store.store["/bucket/run/report.html"].getvalue().decode()
    assert "1 pool image, 0.5 % of them, does not decode" in page
    shown = set(re.findall(r'alt="(\d{4}.png): score', page))
    assert len(shown) > PER_GRID and "0007.png" not in shown


# --- in a browser ---------------------------------------------------------------------------------------------

PROBE = """<script>
const seen = { width: innerWidth, wide: document.documentElement.scrollWidth, themes: [] };
seen.sections = Object.fromEntries([...document.querySelectorAll("section")].map(
  (section) => [section.id, section.getBoundingClientRect().height > 20 && section.checkVisibility()]));
seen.images = [...document.images].every((image) => image.alt.length > 0);
for (let i = 0; i < 2; i++) {
  const style = getComputedStyle(document.body);
  seen.themes.push([style.backgroundColor, style.color]);
  document.getElementById("theme").click();
}
parent.document.title = JSON.stringify(seen);
</script>"""


def in_browser(browser, page, tmp_path, *, width):
    """Return (what a page measures of itself in a window of some width, what it wrote to the console)."""
    path, probed = tmp_path / "page.html", page.replace("</body>", f"{PROBE}</body>")
    frame = f'<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{html.escape(probed)}"></iframe>'
    path.write_text(f"<!doctype html><title></title>{frame}")  # for a window of its own has at least 500 pixels
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--window-size=1400,1000", "--enable-logging=stderr", "--dump-dom", path.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    return json.loads(html.unescape(title)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize(
    ("kind", "width"),
    [("run", 390), *(pytest.param(kind, width, marks=pytest.mark.slow) for kind, width in
                     [("run", 1100), ("large", 390), ("large", 1100), ("compare", 390), ("compare", 1100)])],
)  # fmt: skip
def test_in_a_browser_every_section_is_seen_in_both_themes_at_any_width(job, tmp_path, kind, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("there is no Chromium")
    page = {
        "run": lambda: (job[0] / "report.html").read_text(),
        "large": lambda: run_page(large_facts(tmp_path)),
        "compare": lambda: compare_page([run_of("a", 0.8), run_of("b", 0.9, **{"select.passes": 7})]),
    }[kind]()
    seen, console = in_browser(browser, page, tmp_path, width=width)
    assert console == []
    assert seen["width"] == width and seen["wide"] <= width
    assert seen["sections"] and all(seen["sections"].values()), seen["sections"]
    assert seen["images"]
    first, second = seen["themes"]
    assert first[0] != second[0] and first[1] != second[1]
