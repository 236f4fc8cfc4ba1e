"""The `pujax` command, and those of its subcommands that have no file of their own: export, report, status."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from test_artifacts import Store
from test_exporters import LITERT

import pujax
from pujax import command, command_line, evaluate, export_model, report_runs
from pujax.artifacts import save_json
from pujax.data.embedded import embedded_path, load_embedded
from pujax.errors import UserError
from pujax.exporters.formats import FORMATS
from pujax.lock import locked
from pujax.networks import load_network
from pujax.presence import who
from pujax.status import as_text, status

ROOT = Path(__file__).parent.parent


@pytest.fixture
def in_here(monkeypatch, capsys):
    """A function that runs `pujax` in this process: (exit status, what it printed, what it complained of)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pujax", *map(str, arguments)])
        try:
            command.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return (status or 0, *capsys.readouterr())

    return call


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished job that may be changed."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    return tmp_path / "run"


# --- the command itself -------------------------------------------------------------------------------------------


def test_help_takes_no_time():
    program = "import sys; sys.argv = ['', '--help']; from pujax import command; command.main(); print(*sys.modules)"
    began = time.monotonic()
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - began < 2  # 0.1 s where nothing else runs
    assert all(f"  {name} " in out for name in command.COMMANDS)
    assert not {"jax", "numpy", "pyarrow", "absl"} & set(out.splitlines()[-1].split())


def test_as_a_module_it_is_the_same():
    out = subprocess.check_output([sys.executable, "-m", "pujax", "--version"], cwd=ROOT, text=True)
    assert out == f"pujax {pujax.__version__}\n"
    out = subprocess.check_output([sys.executable, "-m", "pujax", "status", "--help"], cwd=ROOT, text=True)
    assert out.startswith("usage: python -m pujax status ") and "\n  python -m pujax status runs/quickstart\n" in out


def test_the_script_is_the_command():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["pujax"]
    module, _, function = told.partition(":")
    assert getattr(importlib.import_module(module), function) is command.main


@pytest.mark.parametrize("name", [name for name in command.COMMANDS if name != "run"])
def test_each_calls_itself_by_the_name_it_was_called_by(in_here, name, monkeypatch, capsys):
    code, out, _ = in_here(name, "--help")
    assert code == 0 and out.startswith(f"usage: pujax {name} ") and "python -m" not in out
    module = importlib.import_module(command.COMMANDS[name][0])
    monkeypatch.setattr(sys, "argv", [module.__file__, "--help"])
    with pytest.raises(SystemExit) as stop:
        command_line.run(module.main)
    out = capsys.readouterr().out
    assert stop.value.code == 0 and out.startswith(f"usage: python -m {module.__name__} ")


def test_run_is_the_job(in_here):
    code, out, _ = in_here("run", "--help")
    assert code == 0 and "  pujax run --config configs/quickstart.py" in out and "python -m pujax" not in out
    code, _, err = in_here("run", "--config", "configs/none.py")
    assert (code, err) == (2, "pujax: there is no config file configs/none.py\n")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stauts", "did you mean pujax status?"),
        ("preditc", "did you mean pujax predict?"),
        ("xyz", "choose from run, "),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(in_here, name, hint):
    code, out, err = in_here(name)
    assert code == 2 and not out and hint in err and len(err.splitlines()) == 1


def test_nothing_at_all_is_answered_with_help(in_here):
    code, out, _ = in_here()
    assert code == 0 and "pujax COMMAND --help" in out


def test_mistakes_are_one_line_and_status_2(in_here, tmp_path):
    for arguments in (("evaluate", tmp_path), ("predict", tmp_path), ("status", tmp_path), ("export", tmp_path),
                      ("report", tmp_path), ("import",)):  # fmt: skip
        code, _, err = in_here(*arguments)
        assert code == 2 and err.startswith("pujax: ") and len(err.splitlines()) == 1, arguments


def test_a_reader_that_has_seen_enough_is_no_error():
    program = "from pujax.command_line import run; run(lambda _: [print('x' * 99) for _ in range(9999)])"
    line = f'{sys.executable} -c "{program}" | head -1'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "x" * 99 + "\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_one_line():
    program = "from pujax.predictions import write, make_schema; from pujax.command_line import run; import pyarrow; " \
        "s = make_schema(1); run(lambda _: write(None, [pyarrow.Table.from_pylist([], s)], s))"  # fmt: skip
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    message = "pujax: no space left on the disk of the results; make room, and give the same command again\n"
    assert (done.returncode, done.stderr) == (1, message)


# --- export -------------------------------------------------------------------------------------------------------


def test_a_student_is_exported_outside_its_job(finished, tmp_path, capsys):
    out = tmp_path / "phone"
    export_model.main([str(finished), "--formats=torch", f"--out={out}"])
    export_model.main([str(finished), "--formats=onnx", f"--out={out}"])
    printed = capsys.readouterr().out
    assert "the same class for 100.00 % of 200 images" in printed and f"onnx: {out}/student.onnx" in printed
    card, own = (json.loads((folder / "MODEL_CARD.json").read_text()) for folder in (out, finished / "export"))
    assert {name: block["takes"] for name, block in card["files"].items()} == {"torch": "normalised", "onnx": "pixels"}
    for name in ("class_names", "preprocessing", "accuracy", "mining", "config", "num_params", "flops_per_image"):
        assert card[name] == own[name], name
    assert own["fingerprints"].items() <= card["fingerprints"].items()
    here, there = (told["files"]["onnx"] for told in (card, own))
    assert {name for name in there if here[name] != there[name]} <= {"path", "latency_ms"}
    with pytest.raises(UserError, match=r"phone holds a MODEL_CARD.json of another network; choose another --out"):
        export_model.main([str(finished), "--formats=torch", f"--out={out}", "--unit=teacher"])


def test_any_weights_are_exported(tmp_path):
    weights = "embedded:teacher_lenet5.safetensors"
    options = ["--formats=onnx", f"--out={tmp_path}/a", "--images=embedded:labelled", "--without_preprocessing"]
    export_model.main([weights, *options])
    evaluate.main([f"{tmp_path}/a/teacher_lenet5.onnx", "embedded:labelled", f"--out={tmp_path}/e.json"])
    network = load_network(epath.Path(embedded_path("teacher_lenet5.safetensors")), dtype=jnp.dtype(jnp.float32))
    part = load_embedded("labelled")
    padded = np.pad(part["images"], ((0, 0), (2, 2), (2, 2)))[..., None]
    right = (network(padded).argmax(1) == part["labels"]).mean()
    assert json.loads((tmp_path / "e.json").read_text())["accuracy"] == right
    assert "trained on" not in (tmp_path / "a" / "MODEL_CARD.md").read_text()


@LITERT
def test_int8_is_made_for_the_labelled_images(finished, tmp_path):
    export_model.main([str(finished), "--formats=litert_int8", f"--out={tmp_path}/a"])
    assert json.loads((tmp_path / "a" / "MODEL_CARD.json").read_text())["files"]["litert_int8"]["top1_agreement"] > 0.98


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": "onx"}, "there is no format 'onx'; choose from stablehlo, torch"),
        ({"formats": ""}, "there is no format ''; choose from"),
        ({"formats": "torch", "calibration": "embedded:labelled"}, "--calibration is for litert_int8"),
        ({"formats": "torch", "unit": "studnet"}, "there is no network 'studnet'"),
        ({"formats": "torch", "unit": "export/student.onnx"}, "student.onnx is no weights file"),
        ({"formats": "torch", "model": "{run}/distill/student.safetensors"}, "give labelled images to compare on"),
        ({"formats": "torch", "model": "{run}/distill/student.safetensors", "unit": "teacher"}, "--unit names a netw"),
        ({"formats": "torch", "model": "{run}/none.pth"}, "there is nothing at .*none.pth; give a work"),
        ({"formats": "torch", "network": "lenet5"}, "says itself what network it holds"),
        ({"formats": "missing"}, "missing cannot be written: no_such_package not installed"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value.values()).replace("/", ":"),
)
def test_exports_that_cannot_be_are_refused(finished, tmp_path, monkeypatch, options, message):
    monkeypatch.setitem(FORMATS, "missing", dataclasses.replace(FORMATS["onnx"], packages=("no_such_package",)))
    given = [f"--{name}={value}" for name, value in options.items() if name != "model"]
    model = options.get("model", "{run}").format(run=finished)
    with pytest.raises(UserError, match=message):
        export_model.main([model, f"--out={tmp_path}/a", *given])
    assert not (tmp_path / "a").exists()


# --- report -------------------------------------------------------------------------------------------------------


def test_the_page_of_one_run_is_made_again(workdir, capsys):
    page, summary = workdir / "report.html", (workdir / "summary.json").read_bytes()
    before = page.read_text()
    page.unlink()
    report_runs.main([str(workdir)])
    assert page.read_text() == before and (workdir / "summary.json").read_bytes() == summary
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {page}"
    with locked(epath.Path(workdir / "LOCK.json")), pytest.raises(UserError, match="is in use by process"):
        report_runs.main([str(workdir)])


# --- status -------------------------------------------------------------------------------------------------------

ALL = ["teacher", "scorer", "score", "select", "distill", "export", "baselines/random", "report"]


def test_a_job_that_is_done(finished, in_here):
    found = status(str(finished))
    summary = json.loads((finished / "summary.json").read_text())
    assert found["stages"] == dict.fromkeys(ALL, "done") and found["job"] is None
    assert found["score"] == {"images": 1000, "shards": 3, "of_images": 1000, "of_shards": 3,
                              "seconds_left": None}  # fmt: skip
    assert found["accuracy"] == {"teacher": summary["teacher"]["accuracy"], "student": summary["student"]["accuracy"],
                                 "random": summary["baselines"]["random"]["accuracy"]}  # fmt: skip
    assert found["seconds"]["distill"] == summary["student"]["seconds"]
    last = (finished / "metrics.jsonl").read_text().splitlines()[-1]
    assert found["log"]["line"] == json.loads(last) and found["log"]["age"] >= 0
    code, out, err = in_here("status", finished, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "") and told["stages"] == found["stages"]
    code, out, _ = in_here("status", finished)
    assert "nobody is at work" in out and f"{100 * summary['teacher']['accuracy']:.2f} %" in out


def begin_scoring_again(workdir):
    """Leave the job as it is in the middle of scoring: one shard is missing, and nothing after it has begun."""
    for name in ("select", "distill", "export", "baselines", "report"):
        shutil.rmtree(workdir / name)
    (workdir / "score" / "DONE.json").unlink()
    sorted((workdir / "score" / "shards").iterdir())[-1].unlink()


def test_a_job_at_work_and_one_that_was_stopped(workdir):
    begin_scoring_again(workdir)
    stopped = status(str(workdir))
    assert list(stopped["stages"].values()) == ["done", "done", "stopped", *["not begun"] * 5]
    assert stopped["score"] == {"images": 800, "shards": 2, "of_images": 1000, "of_shards": 3,
                              "seconds_left": None}  # fmt: skip
    assert "2 of 3 shards, 800 of 1,000 images" in as_text(stopped) and "nobody is at work" in as_text(stopped)
    with locked(epath.Path(workdir / "LOCK.json")):
        inputs = workdir / "score" / "INPUTS.json"
        inputs.touch()  # as a job does when it takes up a stage
        found = status(str(workdir))
        assert found["stages"]["score"] == "running" and found["job"]["alive"] and 0 <= found["job"]["age"] < 60
        assert re.search(r"at work: process \d+ on .*; last sign of life", as_text(found))
        inputs.write_bytes(inputs.read_bytes())
        (workdir / "distill").mkdir()
        stale = workdir / "distill" / "INPUTS.json"
        stale.write_text("{}")
        os.utime(stale, (1e9, 1e9))  # of a job before
        assert status(str(workdir))["stages"]["distill"] == "stopped"
        killed = json.loads((workdir / "LOCK.json").read_text())
    (workdir / "LOCK.json").write_text(json.dumps(killed | {"process": 2**30}))
    found = status(str(workdir))
    assert not found["job"]["alive"] and found["stages"]["score"] == "stopped"
    assert "has ended without its last word" in as_text(found)


def test_what_is_missing_or_cut_short_is_no_obstacle(workdir):
    begin_scoring_again(workdir)
    (workdir / "score" / "SHARDS.json").unlink()
    (workdir / "LOCK.json").write_text('{"host": ')
    with (workdir / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "distill/lo')
    found = status(str(workdir))
    assert found["job"] is None and found["score"]["of_shards"] is None and found["log"]["line"]["step"] == 4
    assert "2 shards, 800 images" in as_text(found)
    (workdir / "metrics.jsonl").unlink()
    shutil.rmtree(workdir / "score" / "shards")
    found = status(str(workdir))
    assert found["log"] is None and found["score"]["shards"] == 0


def test_a_folder_without_a_job(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"there is no job in .*; give the --workdir of one that has begun"):
            status(str(path))
    assert not list(tmp_path.iterdir())  # nothing was made


def test_a_job_in_an_object_store(finished, monkeypatch):
    import fsspec

    monkeypatch.setattr(Store, "store", {})
    monkeypatch.setattr(Store, "pseudo_dirs", [""])
    fsspec.register_implementation("s3", Store, clobber=True)
    Store.clear_instance_cache()
    for path in finished.rglob("*"):
        if path.suffix in (".json", ".jsonl") or path.parent.name == "shards":
            target = epath.Path("s3://bucket/run") / path.relative_to(finished).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    before = sorted(Store.store)
    found = status("s3://bucket/run")
    local = status(str(finished))
    for name in ("stages", "score", "accuracy", "seconds"):
        assert found[name] == local[name], name
    assert found["log"]["line"] == local["log"]["line"] and sorted(Store.store) == before


def test_it_needs_no_jax(finished):
    program = f"import sys; from pujax import status; status.main(['{finished}']); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"jax", "flax", "orbax"} & set(out.splitlines()[-1].split())


def test_workers_that_score_are_told_of(workdir):
    begin_scoring_again(workdir)
    folder = epath.Path(workdir) / "score" / "workers"
    told = {**who(), "shard": [800, 1000], "done": 2, "images_per_second": 50.0}
    save_json(folder / "a.json", told)
    save_json(folder / "b.json", told | {"process": 2**22 + 1})  # no such process
    found = status(str(workdir))
    assert found["stages"]["score"] == "running" and found["job"] is None
    assert [worker["alive"] for worker in found["workers"]] == [True, False]
    assert found["score"]["seconds_left"] == 4
    text = as_text(found)
    assert "2 of 3 shards, 800 of 1,000 images, 4.0 s left" in text
    assert f"worker {told['process']} on {told['host']}: 2 shards, 50 images/s" in text
    assert f"worker {2**22 + 1} on {told['host']}: dead" in text
