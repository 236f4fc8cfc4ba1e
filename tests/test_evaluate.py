"""`pujax evaluate`: numbers of every kind of model against the network's own logits, and what it refuses."""

import csv
import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from etils import epath
from PIL import Image
from reference import torchvision_models
from test_artifacts import Store
from test_exporters import LITERT
from torch.nn import functional

from pujax import evaluate
from pujax.artifacts import Workdir
from pujax.config import Config, SourceConfig, from_json, resolve
from pujax.corruptions import CORRUPTIONS, corrupt
from pujax.data.decode import ImageSpec, fit_arrays, try_decode
from pujax.data.embedded import CLASS_NAMES, load_embedded
from pujax.data.sources import open_source
from pujax.errors import UserError
from pujax.evaluation import Shown, corrupted_accuracy, remembering
from pujax.exporters.formats import FORMATS
from pujax.loaded import data_of, load_config, open_model, test_images
from pujax.networks import describe, load_network, save_network
from pujax.report.measured import as_text
from pujax.sharding import make_mesh

test_images.__test__ = False  # it is none, whatever its name
FLOAT32 = jnp.dtype(jnp.float32)
IMAGES = 200
LITE = ("litert", "litert_int8")


@pytest.fixture(scope="module")
def expected(finished):
    """The student's and the teacher's logits of the test images, by their networks, and the labels."""
    part = load_embedded("test")
    networks = (
        load_network(epath.Path(finished / name), dtype=FLOAT32)
        for name in ("distill/student.safetensors", "teacher/teacher.safetensors")
    )
    images = fit_arrays(part["images"][:IMAGES], ImageSpec(32, 1))
    return *(np.array(network(images)) for network in networks), part["labels"][:IMAGES]


@pytest.fixture
def few(finished, tmp_path):
    """The test images of the job as a file that others can be made of."""
    part = load_embedded("test")
    arrays = {"images": part["images"][:IMAGES], "labels": part["labels"][:IMAGES]}
    np.savez(tmp_path / "few.npz", **arrays, class_names=np.array(CLASS_NAMES))
    np.savez(tmp_path / "unnamed.npz", **arrays)
    return str(tmp_path / "few.npz")


def found(tmp_path, *arguments):
    """What the command writes."""
    evaluate.main([*map(str, arguments), f"--out={tmp_path}/found.json"])
    return json.loads((tmp_path / "found.json").read_text())


def check(numbers, logits, labels):
    assert numbers["images"] == len(labels)
    assert numbers["accuracy"] == (logits.argmax(1) == labels).mean()
    nll = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels).long())
    assert numbers["calibration"]["nll"] == pytest.approx(float(nll), rel=1e-4)


def test_a_work_directorys_student_is_measured_as_its_job_did(finished, expected, tmp_path, capsys):
    student, teacher, labels = expected
    numbers = found(tmp_path, finished)
    check(numbers, student, labels)
    summary = json.loads((finished / "summary.json").read_text())
    for name in ("accuracy", "lowest_class_accuracy"):
        assert numbers[name] == pytest.approx(summary["student"][name])
    assert numbers["teacher"]["accuracy"] == summary["teacher"]["accuracy"]
    assert numbers["teacher"]["top1_agreement"] == (student.argmax(1) == teacher.argmax(1)).mean()
    log_q, log_p = (torch.from_numpy(logits).log_softmax(1) for logits in (student, teacher))
    kl = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    assert numbers["teacher"]["kl"] == pytest.approx(float(kl), rel=1e-4)
    assert [row["name"] for row in numbers["classes"]] == list(CLASS_NAMES)
    recall = [float((student.argmax(1) == k)[labels == k].mean()) for k in range(10)]
    assert [row["recall"] for row in numbers["classes"]] == pytest.approx(recall)
    text = capsys.readouterr().out
    assert f"accuracy     {100 * numbers['accuracy']:.2f} %" in text and "Ankle boot" in text


@pytest.mark.parametrize("unit", ["teacher", "baselines/random", "export/student.onnx"])
def test_other_networks_of_a_work_directory(finished, tmp_path, unit):
    numbers = found(tmp_path, finished, f"--unit={unit}")
    summary = json.loads((finished / "summary.json").read_text())
    said = {"teacher": summary["teacher"], "baselines/random": summary["baselines"]["random"],
            "export/student.onnx": summary["student"]}[unit]  # fmt: skip
    assert numbers["accuracy"] == pytest.approx(said["accuracy"])
    assert ("teacher" in numbers) == (unit != "teacher")


@pytest.mark.parametrize("file", ["student.onnx", "student.stablehlo"])
def test_exported_files_run_by_themselves(finished, expected, few, tmp_path, file):
    shutil.copytree(finished / "export", tmp_path / "export")  # far from the student
    student, _, labels = expected
    numbers = found(tmp_path, tmp_path / "export" / file, few, f"--teacher={finished}")
    check(numbers, student, labels)
    assert numbers["model"].endswith(file)
    assert numbers["teacher"]["accuracy"] == (expected[1].argmax(1) == labels).mean()


@pytest.mark.parametrize("name", ["stablehlo", "torch", "onnx", *(pytest.param(n, marks=LITERT) for n in LITE)])
def test_files_without_preprocessing_are_given_what_they_take(finished, expected, few, tmp_path, name):
    network, form = load_network(epath.Path(finished / "distill" / "student.safetensors"), dtype=FLOAT32), FORMATS[name]
    typical = fit_arrays(load_embedded("labelled")["images"], ImageSpec(32, 1))
    options = {"images": typical} if form.calibrated else {}
    form.write(network, tmp_path / form.file, preprocessing=False, **options)
    files = {name: {"path": form.file, "takes": "normalised"}}
    (tmp_path / "MODEL_CARD.json").write_text(json.dumps(describe(network) | {"files": files}))
    numbers = found(tmp_path, tmp_path / form.file, few)
    if name == "litert_int8":
        assert numbers["accuracy"] == pytest.approx((expected[0].argmax(1) == expected[2]).mean(), abs=0.02)
    else:
        check(numbers, expected[0], expected[2])


def test_a_work_directory_in_an_object_store(finished, expected, tmp_path, monkeypatch):
    Store.install(monkeypatch)
    for name in ("config.json", "distill/student.safetensors", "teacher/teacher.safetensors",
                 "export/student.stablehlo", "export/MODEL_CARD.json"):  # fmt: skip
        target = epath.Path("s3://bucket/run") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((finished / name).read_bytes())
    for unit in ("student", "export/student.stablehlo"):
        numbers = found(tmp_path, "s3://bucket/run", f"--unit={unit}")
        check(numbers, expected[0], expected[2])
        assert numbers["teacher"]["accuracy"] == (expected[1].argmax(1) == expected[2]).mean()


def test_onnx_files_need_no_card_and_others_say_so(finished, expected, few, tmp_path):
    for file in ("student.onnx", "student.stablehlo"):
        shutil.copy(finished / "export" / file, tmp_path / file)
    numbers = found(tmp_path, tmp_path / "student.onnx", few)
    check(numbers, expected[0], expected[2])
    assert "teacher" not in numbers
    with pytest.raises(UserError, match=r"student.stablehlo does not say its classes .* there is no MODEL_CARD.json"):
        evaluate.main([f"{tmp_path}/student.stablehlo", few])
    card = json.loads((finished / "export" / "MODEL_CARD.json").read_text())
    del card["files"]["stablehlo"]["takes"]
    (tmp_path / "MODEL_CARD.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"MODEL_CARD.json does not say what the file takes"):
        evaluate.main([f"{tmp_path}/student.stablehlo", few])


@pytest.mark.slow
def test_a_pytorch_state_dict_is_run_as_torchvision_shows_images(tmp_path):
    """The network is PyTorch's, and so are resizing by Pillow, crop and normalisation."""
    module = torchvision_models.randomize(torchvision_models.NETWORKS["mobilenet_v2_x0.35"](10)).eval()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "w.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), np.uint8)
    logits = []
    for i, image in enumerate(pixels):
        (tmp_path / "images" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        large = Image.fromarray(image).resize((256, 256), Image.Resampling.NEAREST)
        large.save(tmp_path / "images" / str(i % 2) / f"{i}.png")
        seen = np.asarray(large.crop((16, 16, 240, 240))) / np.float32(255)
        seen = (seen - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        with torch.no_grad():
            logits.append(module(torch.from_numpy(seen.transpose(2, 0, 1)[None].copy())).numpy()[0])
    order = [0, 2, 4, 1, 3, 5]  # of the folders
    names = tmp_path / "names.txt"
    names.write_text("\n".join("0123456789"))
    numbers = found(tmp_path, tmp_path / "w.pth", tmp_path / "images", "--network=mobilenet_v2_x0.35",
                    f"--class_names={names}")  # fmt: skip
    check(numbers, np.stack(logits)[order], np.int32([0, 0, 0, 1, 1, 1]))
    assert [row["images"] for row in numbers["classes"]] == [3, 3] + [0] * 8


@pytest.mark.parametrize("unit", ["student", "export/student.onnx"])
def test_batches_of_any_size_give_the_same(finished, tmp_path, capsys, unit):
    first = found(tmp_path, finished, f"--unit={unit}", "--batch_size=200")
    text = capsys.readouterr().out
    again = found(tmp_path, finished, f"--unit={unit}", "--batch_size=48")
    assert again["confusion"] == first["confusion"]
    assert again["teacher"] == pytest.approx(first["teacher"], abs=1e-6)
    assert again["calibration"]["ece"] == pytest.approx(first["calibration"]["ece"], abs=1e-6)
    assert capsys.readouterr().out == text


def test_a_teacher_that_sees_images_otherwise_is_shown_them_so(finished, tmp_path):
    network = load_network(epath.Path(finished / "teacher" / "teacher.safetensors"), dtype=FLOAT32)
    seen = dataclasses.replace(network.preprocessing, crop=0.6)
    part = load_embedded("test")
    for i in range(20):
        folder = tmp_path / "images" / CLASS_NAMES[part["labels"][i]].replace("/", "")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(part["images"][i]).save(folder / f"{i:02d}.png")
    names = [name.replace("/", "") for name in CLASS_NAMES]
    files = sorted((tmp_path / "images").rglob("*.png"))
    images = np.stack([try_decode(file.read_bytes(), seen.spec)[0] for file in files])
    labels = [names.index(file.parent.name) for file in files]
    for file in ("near", "plain"):
        preprocessing = seen if file == "near" else network.preprocessing
        renamed = dataclasses.replace(network, preprocessing=preprocessing, class_names=tuple(names))
        save_network(epath.Path(tmp_path / f"{file}.safetensors"), renamed)
    numbers = found(tmp_path, tmp_path / "plain.safetensors", tmp_path / "images",
                    f"--teacher={tmp_path}/near.safetensors")  # fmt: skip
    assert numbers["teacher"]["accuracy"] == (network(images).argmax(1) == labels).mean() < numbers["accuracy"]


def test_precision_of_the_forward_pass(finished, few, tmp_path):
    nll = [found(tmp_path, finished, few, "--teacher=none", f"--compute_dtype={dtype}")["calibration"]["nll"]
           for dtype in ("float32", "bfloat16")]  # fmt: skip
    assert nll[0] != nll[1] and nll[0] == pytest.approx(nll[1], rel=0.05)


def test_the_classes_as_a_table(finished, few, tmp_path):
    numbers = found(tmp_path, finished, few, "--teacher=none")
    assert "teacher" not in numbers
    for name in ("t.csv", "t.parquet"):
        evaluate.main([str(finished), few, "--teacher=none", f"--out={tmp_path}/{name}"])
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [float(row["recall"]) for row in rows] == pytest.approx([row["recall"] for row in numbers["classes"]])
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == numbers["classes"]


def test_many_classes_show_their_lowest(finished, few, tmp_path):
    numbers = found(tmp_path, finished, few)
    numbers["classes"] = [row | {"name": f"{k}.{row['name']}"} for k in range(3) for row in numbers["classes"]]
    text = as_text(numbers | {"doubt": "something"})
    assert "20 lowest of 30 classes" in text and "but: something" in text
    lowest = min(row["recall"] for row in numbers["classes"])
    assert f"{100 * lowest:.2f} %" in text.splitlines()[9]


# --- corruptions --------------------------------------------------------------------------------------------------


def test_accuracy_on_corrupted_images_whatever_the_batches(finished, few):
    model = open_model(str(finished), mesh=make_mesh())
    source = open_source(SourceConfig(kind="array", path=few, limit=20), data_of(model), class_names=CLASS_NAMES)
    own = Shown(model, source, few)
    first = corrupted_accuracy(own, batch_size=600)
    assert corrupted_accuracy(own, batch_size=16) == first
    network = load_network(epath.Path(finished / "distill" / "student.safetensors"), dtype=FLOAT32)
    images, _ = source.read(np.arange(20))
    for name in ("gaussian_noise", "contrast"):
        worse = np.stack([corrupt(image, name, 4) for image in images])
        assert first[name][3] == (network(worse).argmax(1) == source.labels).mean()
    assert first["mean"] == pytest.approx(np.mean([first[name] for name in CORRUPTIONS]))


def test_the_command_measures_them_where_asked(finished, tmp_path, capsys):
    arrays = load_embedded("test")
    np.savez(tmp_path / "ten.npz", images=arrays["images"][:10], labels=arrays["labels"][:10])
    numbers = found(tmp_path, finished, tmp_path / "ten.npz", "--corruptions")
    assert set(numbers["corruptions"]) == {*CORRUPTIONS, "mean"}
    assert "gaussian_noise" in capsys.readouterr().out


def test_two_models_read_an_image_once():
    asked = []

    def read(rows):
        asked.append(rows.tolist())
        return rows * 2

    both = remembering(read)
    for rows in (np.arange(0, 3), np.arange(3, 5)):
        for _ in range(2):
            np.testing.assert_array_equal(both(rows), rows * 2)
    assert asked == [[0, 1, 2], [3, 4]]


# --- classes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def nameless(finished, tmp_path):
    """The teacher, which does not know the names of its classes any more."""
    network = load_network(epath.Path(finished / "teacher" / "teacher.safetensors"), dtype=FLOAT32)
    save_network(epath.Path(tmp_path / "nameless.safetensors"), dataclasses.replace(network, class_names=None))
    return str(tmp_path / "nameless.safetensors")


def reordered(few, tmp_path):
    """The same images, with the classes in another order."""
    arrays, order = dict(np.load(few)), np.roll(np.arange(10), 3)
    names = np.array(CLASS_NAMES)[order]
    labels = np.argsort(order)[arrays["labels"]]
    np.savez(tmp_path / "other.npz", images=arrays["images"], labels=labels, class_names=names)
    return str(tmp_path / "other.npz")


def test_classes_are_told_by_their_names(finished, few, tmp_path):
    numbers = found(tmp_path, finished, few)
    other = found(tmp_path, finished, reordered(few, tmp_path))
    assert {name: other[name] for name in ("accuracy", "confusion", "classes")} == {
        name: numbers[name] for name in ("accuracy", "confusion", "classes")
    }


def test_a_wrong_order_is_an_error_and_no_low_accuracy(few, nameless, tmp_path):
    other = reordered(few, tmp_path)
    message = r"seem to be in different orders: with its classes in another order it would be right on \d\d.\d %, and"
    with pytest.raises(UserError, match=message + r" .*nameless.safetensors does not name them"):
        evaluate.main([nameless, other])
    (tmp_path / "names.txt").write_text("\n".join(CLASS_NAMES))
    assert found(tmp_path, nameless, other, f"--class_names={tmp_path}/names.txt")["accuracy"] > 0.85
    assert found(tmp_path, nameless, few)["classes"][1]["name"] == "Trouser"  # the images name them


def test_named_classes_that_are_mixed_up_are_doubted(few, finished, tmp_path, capsys):
    arrays = dict(np.load(few))
    names = np.roll(arrays["class_names"], 3)  # the labels say otherwise
    np.savez(tmp_path / "wrong.npz", images=arrays["images"], labels=arrays["labels"], class_names=names)
    assert "in another order" in found(tmp_path, finished, tmp_path / "wrong.npz")["doubt"]
    assert "but: with its classes in another order" in capsys.readouterr().out


def test_a_teacher_of_another_order_is_refused(finished, few, tmp_path):
    network = load_network(epath.Path(finished / "teacher" / "teacher.safetensors"), dtype=FLOAT32)
    turned = dataclasses.replace(network, class_names=CLASS_NAMES[::-1])
    save_network(epath.Path(tmp_path / "turned.safetensors"), turned)
    with pytest.raises(UserError, match=r"class 0 is 'T-shirt/top' in .* but 'Ankle boot' in .*turned.safetensors"):
        evaluate.main([str(finished), few, f"--teacher={tmp_path}/turned.safetensors"])


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--out=a.txt"], r"--out is 'a.txt'; give a name that ends in .json, .csv, .parquet"),
        (
            ["{run}", "--unit=studnet"],
            r"no network 'studnet' in .*; it has student, teacher, baselines/random, export/",
        ),
        (["{tmp}"], r"there is no network 'student' in .*; it has none yet"),
        (["{tmp}/none"], r"there is nothing at .*none; give a work directory"),
        (["{run}/teacher/teacher.safetensors"], "is no work directory, which would have test images"),
        (
            ["{run}/teacher/teacher.safetensors", "{few}", "--unit=teacher"],
            "--unit names a network of a work",
        ),
        (["{run}/teacher/teacher.safetensors", "{few}", "--network=lenet5"], "says itself what network it holds"),
        (["{tmp}/w.pth", "{few}"], "does not say what network it holds; name it, as in --network resnet18"),
        (["{tmp}/w.pth", "{few}", "--network=resnet81"], r"--network: there is no model 'resnet81'; did you mean"),
        (["{run}/export/student.onnx", "{few}", "--network=lenet5"], "which fixes it; leave it out"),
        (["{run}/export/student.onnx", "{few}", "--compute_dtype=float32"], "which fixes it; leave it out"),
        (["{tmp}/cut.onnx", "{few}"], "cut.onnx cannot be loaded: "),
        (["{tmp}/cut.stablehlo", "{few}"], "cut.stablehlo cannot be loaded: "),
        (["{run}", "{tmp}/three.npz"], r"three.npz has labels 0 to 11, but data.num_classes is 10"),
        (["{run}", "{tmp}/pool.npz"], "has no labels"),
        (["{run}", "{tmp}/strange"], r"has a class 'aardvark', which is none of the 10"),
        (["{run}", "{tmp}/broken"], r"the image Bag/0.png does not decode"),
        (["{run}", "nowhere"], "'nowhere' names nothing that is there"),
        (["{run}", "{few}", "--class_names={tmp}/two.txt"], r"--class_names gives 2 names, but .* has 10 classes"),
        (["{run}", "{few}", "--class_names={tmp}/ten.txt"], r"class 0 is 'T-shirt/top' in .* but 'a' in --class_names"),
        (["{run}", "{few}", "--teacher={tmp}/two.safetensors"], r"has 10 classes, but .*two.safetensors has 2"),
        (["{run}", "{few}", "--batch_size=0"], "argument --batch_size: invalid positive whole number value: '0'"),
        (["{run}", "{few}", "more"], "unrecognized arguments: more"),
        (["{tmp}/nan.safetensors", "{few}"], "nan.safetensors gives logits that are not finite"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value).replace("/", ":"),
)
def test_what_is_wrong_is_named(finished, few, tmp_path, arguments, message):
    make_bad_files(finished, few, tmp_path)
    places = {"run": finished, "tmp": tmp_path, "few": few}
    with pytest.raises(UserError, match=message):
        evaluate.main([argument.format(**places) for argument in arguments])


def make_bad_files(finished, few, folder):
    for suffix in ("onnx", "stablehlo"):
        (folder / f"cut.{suffix}").write_bytes((finished / "export" / f"student.{suffix}").read_bytes()[:4000])
    torch.save({"a.weight": torch.zeros(2)}, folder / "w.pth")
    images = np.load(few)["images"]
    np.savez(folder / "three.npz", images=images[:12], labels=np.arange(12))
    np.savez(folder / "pool.npz", images=images)
    for name, content in (("strange/aardvark/0.png", None), ("broken/Bag/0.png", 40)):
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(images[0]).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:content])
    (folder / "two.txt").write_text("a\nb")
    (folder / "ten.txt").write_text("\n".join("abcdefghij"))
    network = load_network(epath.Path(finished / "teacher" / "teacher.safetensors"), dtype=FLOAT32)
    params = network.variables["params"]
    linear = {"kernel": params["linear"]["kernel"][:, :2], "bias": params["linear"]["bias"][:2]}
    two = dataclasses.replace(network, num_classes=2, class_names=("a", "b"))
    save_network(epath.Path(folder / "two.safetensors"), two.with_variables({"params": params | {"linear": linear}}))
    linear = params["linear"] | {"bias": np.full(10, np.nan, np.float32)}
    nan = network.with_variables({"params": params | {"linear": linear}})
    save_network(epath.Path(folder / "nan.safetensors"), nan)


def test_without_a_test_set_the_images_that_were_kept_out_measure(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("*.npy", "checkpoints", "tensorboard"))
    workdir = Workdir(epath.Path(tmp_path / "run"))
    told = json.loads(workdir.config.read_text())
    told["data"]["test"] = dataclasses.asdict(SourceConfig())
    workdir.config.write_text(json.dumps(told))
    network = load_network(workdir.teacher, dtype=FLOAT32)
    kept_out = test_images(workdir, data_of(network), network.class_names)
    assert len(kept_out) == 20  # of ten a class, a fifth
    assert found(tmp_path, tmp_path / "run")["images"] == 20


def test_a_config_comes_back_from_its_file(finished):
    config = load_config(Workdir(epath.Path(finished)))
    assert resolve(config) == config and config.baselines == ("random",) and config.data.mean == (0.286,)
    assert from_json(json.loads(json.dumps(dataclasses.asdict(Config())))) == Config()
    with pytest.raises(UserError, match="there is no option 'num_stepps'; it was written by another version"):
        from_json({"distill": {"num_stepps": 3}})
