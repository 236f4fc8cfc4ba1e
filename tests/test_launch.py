"""The command line as a whole, in this process: each mistake ends in one line on stderr and the right exit status."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from etils import epath
from PIL import Image

from pujax import launch
from pujax.data.embedded import embedded_path, load_embedded
from pujax.lock import locked
from pujax.networks import load_network, save_network

QUICK = [
    "--config=configs/quickstart.py",
    "--config.baselines=",
    "--config.scorer.frozen.num_steps=20",
    "--config.distill.num_steps=4",
    "--config.data.pool.limit=1000",
    "--config.data.test.limit=200",
]


@pytest.fixture
def call(monkeypatch, capfd):
    """A function from options to (exit status, the one line on stderr)."""
    monkeypatch.chdir(Path(__file__).parent.parent)

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["pujax.launch", *options])
        sys.modules.pop("config_config", None)  # where ml_collections keeps the recipe before
        with pytest.raises(SystemExit) as stop:
            launch.run()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # defined anew by every recipe
        for name in ("config", "workdir", "stages", "dry_run", "topology"):
            flags.FLAGS[name].unparse()
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("pujax: "), lines
        return stop.value.code, lines[0]

    return call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no --config"),
        (["--config", "configs/none.py"], "there is no config file configs/none.py"),
        (["--config"], "Missing value for flag --config"),
        ([QUICK[0], "extra"], "unexpected argument 'extra'"),
        ([QUICK[0], "--wrokdir=x"], "Did you mean: workdir"),
        ([QUICK[0], "--config.distill.lerning_rate=1"], "did you mean --config.distill.learning_rate"),
        ([QUICK[0], "--config.distill.num_steps=many"], "num_steps"),
        (
            [QUICK[0], "--config.baselines=labelled,random"],
            "baselines contains 'labelled'; did you mean 'labelled_only'?",
        ),
        ([QUICK[0], "--stages=minee"], "there is no stage 'minee'"),
        ([QUICK[0], "--stages="], "there is no stage ''"),
        ([QUICK[0], "--nodry_run=3"], "does not take an argument"),
        ([QUICK[0], "--topology=v5e:4x4"], "--topology plans for devices that are not here; add --dry_run"),
        ([QUICK[0], "--dry_run", "--topology=v9:2x2"], "--topology is 'v9:2x2'; give a TPU slice by its layout"),
        (["--config=configs/mnist.py", "--workdir=unused"], "`tfds build mnist --file_format=array_record`"),
        ([QUICK[0], "--config.scorer.mode=finetune"], "scorer.frozen.batch_size is 320, but scorer.mode is finetune"),
        ([QUICK[0], "--workdir=unused", "--config.data.pool.path=heap"], "heap"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_command_lines(call, options, message, tmp_path):
    status, line = call(*(f"--workdir={tmp_path}" if option == "--workdir=unused" else option for option in options))
    assert status == 2
    assert message in line


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config(:", "line 1: SyntaxError"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError"),
        ("def get_config():\n    raise ValueError('no such cluster')", "line 2: ValueError: no such cluster"),
        ("from pujax.config import Config\ndef get_config():\n    return Config(sede=1)", "line 3: TypeError"),
        ("x = 1", "has no function get_config()"),
        ("def get_config():\n    return {}", "must return a pujax.config.Config, not"),
    ],
)
def test_recipes_with_mistakes_are_named_with_the_line(call, tmp_path, recipe, message):
    (tmp_path / "recipe.py").write_text(recipe)
    status, line = call(f"--config={tmp_path}/recipe.py")
    assert status == 2
    assert f"{tmp_path}/recipe.py" in line and message in line


def labelled_folder(root, *, flat=False, broken=False):
    for i in range(20):
        folder = root if flat else root / f"class{i // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((28, 28), 10 * i, np.uint8)).save(folder / f"{i}.png")
    if broken:
        path = root / "class1" / "3.png"
        path.write_bytes(path.read_bytes()[:60])
    return ["--config.data.labelled.kind=folder", f"--config.data.labelled.path={root}"]


def nameless_classes(root):
    """Teacher and test images that do not say what their classes are called."""
    teacher = load_network(epath.Path(embedded_path("teacher_lenet5.safetensors")), dtype=jnp.dtype(jnp.float32))
    save_network(epath.Path(root / "teacher.safetensors"), dataclasses.replace(teacher, class_names=None))
    np.savez(root / "test.npz", **{name: column[:200] for name, column in load_embedded("test").items()})
    return [f"--config.teacher.weights={root}/teacher.safetensors", "--config.data.test.kind=array",
            f"--config.data.test.path={root}/test.npz"]  # fmt: skip


def missing(part, kind):
    return lambda root: [f"--config.data.{part}.kind={kind}", f"--config.data.{part}.path={root}/nowhere"]


def damaged_array(root):
    np.savez(root / "pool.npz", images=np.zeros((99, 28, 28), np.uint8))
    (root / "pool.npz").write_bytes((root / "pool.npz").read_bytes()[:5000])
    return ["--config.data.pool.kind=array", f"--config.data.pool.path={root}/pool.npz"]


def damaged_summary(root):
    (root / "run" / "teacher").mkdir(parents=True)
    (root / "run" / "teacher" / "DONE.json").write_text('{"accuracy": 0.')
    return []


def file_as_workdir(root):
    (root / "file").write_text("")
    return [f"--workdir={root}/file"]


WRONG_INPUTS = {
    "missing folder": (missing("pool", "folder"), "there is no folder"),
    "missing array": (missing("labelled", "array"), "there is no file"),
    "missing weights": (
        lambda root: ["--config.teacher.weights=none.safetensors"],
        "no weights file at none.safetenso",
    ),
    "wrong class count": (lambda root: ["--config.data.num_classes=12"], "but data.num_classes is 12"),
    "wrong normalisation": (lambda root: ["--config.data.mean=0.5"], "mean (0.286,), but data.mean is (0.5,)"),
    "weights that are a folder": (lambda root: [f"--config.teacher.weights={root}"], "is a folder, not a .safeten"),
    "wrong model": (
        lambda root: ["--config.teacher.model=lenet5_half"],
        "holds a lenet5, but teacher.model is lenet5_h",
    ),
    "no model": (lambda root: ["--config.distill.model="], "distill.model is not set; choose from lenet5"),
    "no teacher": (lambda root: ["--config.teacher.weights="], "neither teacher.weights nor data.full is set"),
    "no pool": (lambda root: ["--config.data.pool.kind="], "data.pool is not set"),
    "flat folder as labelled": (lambda root: labelled_folder(root / "in", flat=True), "has no labels"),
    "image that does not decode": (
        lambda root: labelled_folder(root / "in", broken=True) + nameless_classes(root),
        "class1/3.png does not dec",
    ),
    "damaged array file": (damaged_array, "pool.npz is damaged"),
    "damaged summary block": (damaged_summary, "teacher/DONE.json is damaged; delete"),
    "empty selection": (
        lambda root: ["--config.select.rule=threshold", "--config.select.threshold=1e6"],
        "keeps none of 1000 images",
    ),
    "batch larger than the data": (
        lambda root: ["--config.distill.batch_size=80000"],
        "distill.batch_size is 80000, but there are 100 labelled and 1000 pool images",
    ),
    "batch that does not split": (lambda root: ["--config.distill.batch_size=100"], "does not split over 8 devices"),
    "baseline without truth": (
        lambda root: ["--config.distill.batch_size=32", "--config.baselines=true_positives", *flat_pool(root)],
        "baseline true_positives needs a pool that carries truth",
    ),
    "baseline without its data": (lambda root: ["--config.baselines=full_data"], "full_data needs data.full"),
    "stage before its time": (lambda root: ["--stages=teacher,score"], "stage score needs stage scorer"),
    "too few for the folds": (
        lambda root: ["--config.data.labelled.limit=3"],
        "3 labelled and 1000 pool images are too few",
    ),
    "work directory that is a file": (file_as_workdir, "cannot be a work directory: File exists"),
    "work directory that cannot be made": (
        lambda root: ["--workdir=/proc/none"],
        "/proc/none cannot be a work directory: No such file",
    ),
}


def flat_pool(root):
    labelled_folder(root / "pool", flat=True)
    return ["--config.data.pool.kind=folder", f"--config.data.pool.path={root}/pool"]


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_wrong_inputs(call, tmp_path, name):
    options, message = WRONG_INPUTS[name]
    status, line = call(*QUICK, f"--workdir={tmp_path}/run", *options(tmp_path))
    assert status == 2
    assert message in line


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/mnt/run/a"), "no space left on the disk of /mnt/run/a; make room"),
        (
            ValueError("RESOURCE: write failed: No space left on device"),
            "no space left on the disk of the results; make room, and give the same command again",
        ),
        (chained(RuntimeError("save failed"), OSError(122, "Quota", "/mnt/b")), "no space left on the disk of /mnt/b"),
        (
            OSError(116, "Stale file handle", "/mnt/pool"),
            "/mnt/pool: Stale file handle; mend that, and give the same command again",
        ),
        (PermissionError(13, "Permission denied", "/mnt/pool"), "/mnt/pool: Permission denied"),
    ],
    ids=["full disk", "full disk, by a library", "quota, as a cause", "stale mount", "permission"],
)
def test_trouble_of_the_machine_is_one_line_and_status_1(call, tmp_path, monkeypatch, error, message):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("pujax.pipeline.run", fail)
    status, line = call(*QUICK, f"--workdir={tmp_path}")
    assert status == 1 and message in line


def test_an_error_of_our_own_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.chdir(Path(__file__).parent.parent)
    code = "import pujax.launch as l, pujax.pipeline as p; p.run = lambda *_: {}['bug']; l.run()"
    options = [QUICK[0], f"--workdir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True)
    assert done.returncode == 1 and "KeyError: 'bug'" in done.stderr


def test_a_kind_on_the_command_line_replaces_what_the_recipe_says_of_the_source(call, tmp_path):
    status, line = call(*QUICK, f"--workdir={tmp_path}", "--config.data.pool.kind=folder")
    assert status == 2 and "there is no folder ''" in line  # neither the name nor the path is the recipe's


def test_a_second_job_in_a_work_directory_is_refused(call, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(epath.Path(tmp_path / "run" / "LOCK.json")):
        status, line = call(*QUICK, f"--workdir={tmp_path}/run")
    assert status == 2 and "is in use by process" in line


def test_an_interrupt_ends_in_one_line(call, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("pujax.pipeline.run", interrupted)
    assert call(*QUICK, f"--workdir={tmp_path}") == (1, "pujax: stopped; the same command continues the run")


def test_processes_that_have_not_joined_are_refused(call, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 4)
    status, line = call(*QUICK, f"--workdir={tmp_path}")
    assert status == 2
    assert "this is one of 4 processes; set PUJAX_DISTRIBUTED=1" in line
