"""The export stage in a small job: what it leaves, what it skips, what it refuses, and how it goes on."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import in_process

from pujax.config import Config, ExportConfig, resolve
from pujax.errors import UserError
from pujax.exporters.formats import FORMATS
from pujax.exporters.torch import export_torch

DOCS = Path(__file__).parent.parent / "docs" / "export.md"
HERE = tuple(name for name, form in FORMATS.items() if not form.missing() and not form.calibrated)


def formats(*names, **options):
    def change(config):
        config.export = ExportConfig(formats=names, **options)

    return change


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """The folder of a job that has a student, and wrote no files."""
    folder = tmp_path_factory.mktemp("distilled")
    in_process(folder, formats())
    return folder


@pytest.fixture
def again(distilled, tmp_path):
    """A function that exports in a copy of that job."""
    shutil.copytree(distilled / "run", tmp_path / "run")
    return lambda *names, **options: in_process(tmp_path, formats(*names, **options), ("export",))


@pytest.fixture(scope="module")
def exported(distilled, tmp_path_factory):
    """A job that wrote its student in every format that can be written here, and in one that cannot."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(distilled / "run", folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        missing = dataclasses.replace(FORMATS["litert_int8"], packages=("no_such_package",))
        patch.setitem(FORMATS, "litert_int8", missing)
        summary = in_process(folder, formats(*HERE, "litert_int8"))
    return folder, summary


def test_every_file_is_there_and_measured(exported):
    folder, summary = exported
    for name in HERE:
        block = summary["export"][name]
        assert (folder / "run" / block["path"]).stat().st_size == block["bytes"]
        assert block["top1_agreement"] >= 0.99 and block["relative_diff"] <= FORMATS[name].limits.difference
        assert block["accuracy"] == pytest.approx(summary["student"]["accuracy"], abs=0.011)  # 200 test images
        assert ("latency_ms" in block) == (name != "torch")
        assert block["takes"] == ("normalised" if name == "torch" else "pixels")
    assert json.loads((folder / "run" / "summary.json").read_text())["export"] == summary["export"]


def test_a_missing_package_is_a_line_and_a_reason(exported, again, capfd, monkeypatch):
    _, summary = exported
    reason = 'no_such_package not installed: pip install "pujax[export]"'
    assert summary["export"]["litert_int8"] == {"skipped": reason}
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], packages=("no_such_package",)))
    assert again("onnx")["export"] == {"onnx": {"skipped": reason}}
    assert f"export: onnx skipped, {reason}" in capfd.readouterr().err.splitlines()
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["torch"]))  # it is installed now
    assert "bytes" in again("onnx")["export"]["onnx"]


def test_the_model_card_says_where_the_student_is_from(exported):
    folder, summary = exported
    card = json.loads((folder / "run" / "export" / "MODEL_CARD.json").read_text())
    assert card["model"] == "lenet5_half" and card["class_names"][0] == "T-shirt/top"
    assert card["preprocessing"]["mean"] == [0.286]
    assert card["accuracy"]["student"] == summary["student"]["accuracy"]
    assert card["mining"]["chosen"] == summary["mining"]["selected"]
    assert card["mining"]["class_prior"] == summary["scorer"]["class_prior"] or card["mining"]["reason"]
    assert {"contents of data.pool", "contents of data.labelled", "contents of data.test"} <= card[
        "fingerprints"
    ].keys()
    assert card["licences"] == dict.fromkeys(("model", "teacher", "labelled", "pool", "test"), "")
    assert card["config"]["distill"]["num_steps"] == 4
    assert card["files"] == summary["export"]
    text = (folder / "run" / "export" / "MODEL_CARD.md").read_text()
    assert "| torch | `student_torch.safetensors` | normalised |" in text and "skipped: no_such_package" in text


def test_a_second_run_writes_nothing_and_other_formats_come_back(again, tmp_path, capfd):
    first = again("torch")
    path = tmp_path / "run" / "export" / "student_torch.safetensors"
    before = path.stat().st_mtime_ns
    assert again("torch")["export"] == first["export"]
    assert path.stat().st_mtime_ns == before and "export: done before, skipped" in capfd.readouterr().out
    normalised = again("torch", preprocessing=False)
    assert normalised["export"]["torch"]["top1_agreement"] == 1 and normalised["student"] == first["student"]
    assert again("torch")["export"] == first["export"]
    assert path.stat().st_mtime_ns == before
    assert "export" not in again()


def test_a_file_that_answers_otherwise_ends_the_job_and_is_not_left(again, tmp_path, monkeypatch):
    def write(network, path, **options):
        params = network.variables["params"]
        linear = {name: np.array(value)[..., ::-1] for name, value in params["linear"].items()}  # classes reversed
        export_torch(network.with_variables({"params": params | {"linear": linear}}), path, **options)

    monkeypatch.setitem(FORMATS, "torch", dataclasses.replace(FORMATS["torch"], write=write))
    message = (
        r"export as torch: student_torch.safetensors does not answer as the network does, and is not kept: logits "
        r"differ by [\d.]+ of the largest, the limit is 0.0001; to do without, leave it out of export.formats"
    )
    with pytest.raises(UserError, match=message):
        again("torch")
    assert [path.name for path in (tmp_path / "run" / "export").iterdir()] == ["INPUTS.json"]  # not done


def test_an_unknown_format_is_refused():
    with pytest.raises(UserError, match=r"export.formats contains 'onx'; did you mean 'onnx'\? choose from stablehlo,"):
        resolve(Config(export=ExportConfig(formats=("stablehlo", "onx"))))


def examples():
    """The code of the documentation, by the title before it."""
    blocks = re.findall(r"^## (.+?)$.*?```python\n(.*?)```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    return [pytest.param(code, id=title) for title, code in blocks]


@pytest.mark.parametrize("code", examples())
def test_the_documentations_lines_load_the_files(exported, monkeypatch, code):
    from reference import torch_models

    from pujax.data.decode import ImageSpec, fit_arrays
    from pujax.data.embedded import load_embedded

    folder, _ = exported
    monkeypatch.chdir(folder / "run" / "export")
    for file in re.findall(r'"(student[\w.]+)"', code):
        if not Path(file).exists():
            pytest.skip(f"{file} cannot be written here")
    images = fit_arrays(load_embedded("test")["images"][:5], ImageSpec(32, 1))
    names = {"images": images, "np": np, "model": torch_models.NETWORKS["lenet5_half"](10).eval()}
    exec(code, names)
    logits = names["logits"][0] if isinstance(names["logits"], tuple) else names["logits"]  # ours has features too
    assert logits.shape[-1] == 10


def test_further_steps_for_int8_are_taken_once_and_change_that_file_alone(again, tmp_path, monkeypatch):
    seen = {}

    def write(network, path, *, images, **options):  # a float file, which can be run without LiteRT
        seen.update(calibration=images, params=network.variables["params"])
        export_torch(network, path, **options)

    form = dataclasses.replace(FORMATS["torch"], write=write, calibrated=True, limits=FORMATS["litert_int8"].limits)
    monkeypatch.setitem(FORMATS, "litert_int8", form)
    plain = again("litert_int8")["export"]["litert_int8"]
    before = seen["params"]
    assert plain["top1_agreement"] == 1 and "int8_steps" not in plain
    assert seen["calibration"].dtype == np.uint8 and 100 <= len(seen["calibration"]) <= 512
    options = {"int8_steps": 3, "int8_learning_rate": 1e-3}
    tuned = again("litert_int8", **options)["export"]["litert_int8"]
    assert tuned["int8_steps"] == 3 and tuned["max_abs_diff"] > 0 and tuned["top1_agreement"] > 0.9
    moved = np.abs(seen["params"]["linear"]["kernel"] - before["linear"]["kernel"]).max()
    assert 0 < moved < 0.1 * np.abs(before["linear"]["kernel"]).max()
    (tmp_path / "run" / "export" / "DONE.json").unlink()
    student = tmp_path / "run" / "export" / "int8" / "student.safetensors"
    written = student.stat().st_mtime_ns
    assert again("litert_int8", **options)["export"]["litert_int8"]["max_abs_diff"] == tuned["max_abs_diff"]
    assert student.stat().st_mtime_ns == written
