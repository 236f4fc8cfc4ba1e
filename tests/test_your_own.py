"""A new user, by command and in Python: a PyTorch state dict, a few images in folders, a tar of unlabelled ones."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from formats import samples, write_tar
from PIL import Image
from reference.torchvision_models import BasicBlock, ResNet

import pujax
from pujax.config import Config, DataConfig, SourceConfig, resolve
from pujax.data.embedded import embedded_path, load_embedded
from pujax.errors import UserError

ROOT = Path(__file__).parent.parent
NAMES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
PIXELS = [
    "--config.data.image_size=32",
    "--config.data.mean=0.3",
    "--config.data.std=0.35",
    "--config.data.crop=1",
]


def jpeg(image):
    out = io.BytesIO()
    Image.fromarray(np.pad(image, 2)).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A folder with what such a user has: resnet18.pth, names.txt, labelled/<class>/*.jpg and heap.tar."""
    root = tmp_path_factory.mktemp("story")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    clothes, rng = load_embedded("test"), np.random.default_rng(0)
    network = ResNet(10, (2, 2, 2, 2), width=16, block=BasicBlock)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    images = np.pad(clothes["images"], ((0, 0), (2, 2), (2, 2)))[:, None].repeat(3, 1)
    for _ in range(120):
        rows = rng.integers(200, len(images), 64)
        x = torch.from_numpy((images[rows] / np.float32(255) - np.float32(0.3)) / np.float32(0.35))
        loss = torch.nn.functional.cross_entropy(network(x), torch.from_numpy(clothes["labels"][rows]).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, root / "resnet18.pth")
    (root / "names.txt").write_text("\n".join(NAMES))
    for label, name in enumerate(NAMES):
        (root / "labelled" / name).mkdir(parents=True)
        for i in np.flatnonzero(clothes["labels"] == label)[:20]:
            (root / "labelled" / name / f"{i}.jpg").write_bytes(jpeg(clothes["images"][i]))
    files = [jpeg(image) for image in load_embedded("pool")["images"][:1200]]
    files[7], files[400] = files[7][:200], b"<html>"  # what a crawl has
    write_tar(root / "heap.tar", samples(files, [0] * len(files), label=None))
    return root


def command(story, workdir, *options):
    return [
        sys.executable, "-m", "pujax.launch", "--config", "configs/your_own.py", "--workdir", str(workdir),
        f"--config.teacher.weights={story / 'resnet18.pth'}", "--config.teacher.model=resnet18_x0.25",
        f"--config.data.labelled={story / 'labelled'}", f"--config.data.pool={story / 'heap.tar'}",
        f"--config.data.class_names={story / 'names.txt'}", *PIXELS, *options,
    ]  # fmt: skip


def execute(arguments):
    from conftest import CACHE

    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize("student", ["lenet5_half", pytest.param("mobilenet_v2_x0.5", marks=pytest.mark.slow)])
def test_a_state_dict_a_few_folders_and_a_tar_give_a_student(story, tmp_path, student):
    short = ["--config.distill.num_steps=12", "--config.distill.batch_size=32", "--config.distill.warmup_steps=0"]
    short += ["--config.distill.crop_padding=2", f"--config.distill.model={student}", "--config.baselines="]
    done = execute(command(story, tmp_path / "run", *short))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["teacher"]["accuracy"] >= 0.6 and "doubt" not in summary["teacher"]  # the classes are in order
    assert summary["teacher"]["test_images"] == 40 and "but: measured on 40 images" in done.stdout
    assert (summary["mining"]["pool_images"], summary["mining"]["unreadable"]) == (1200, 2)
    assert summary["student"]["num_params"] < summary["teacher"]["num_params"]
    assert (tmp_path / "run" / "distill" / "student.safetensors").is_file()
    assert summary["export"]["stablehlo"]["top1_agreement"] == summary["export"]["torch"]["top1_agreement"] == 1
    assert (tmp_path / "run" / summary["export"]["torch"]["path"]).is_file()
    again = execute(command(story, tmp_path / "run", *short))
    assert again.returncode == 0 and again.stdout.count("done before, skipped") == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.teacher.model="], "resnet18.pth does not say what network it holds; name it, as in"),
        (["--config.teacher.model=resnet34_x0.25"], "does not fit resnet34_x0.25: "),
        (["--config.teacher.model=resnet18_x0.5"], "has shape"),
        (["--config.teacher.model=resnet19"], "did you mean 'resnet18'?"),
        (["--config.data.num_classes=7"], "fc.weight has 10 rows, data.num_classes is 7"),
        (["--config.data.class_names=another"], "data.class_names gives 2 names, but data.num_classes is 10"),
        (["--config.distill.model=mobilenet_v9"], "distill.model"),
    ],
)
def test_a_users_mistakes_are_one_line(story, tmp_path, options, message):
    done = execute(command(story, tmp_path / "run", *options, "--dry_run"))
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr


def small_config():
    config = pujax.own_data_config()
    config.scorer.frozen.num_steps, config.scorer.frozen.hidden = 50, 0
    config.distill.num_steps, config.distill.warmup_steps, config.baselines = 4, 0, ()
    config.distill.crop_padding, config.distill.model = 0, "lenet5_half"
    config.export.formats = ()
    return config


def test_the_job_from_python(tmp_path):
    clothes = load_embedded("test")
    arguments = {
        "teacher": str(embedded_path("teacher_lenet5.safetensors")),
        "labelled": SourceConfig(kind="embedded", name="labelled"),
        "pool": load_embedded("pool")["images"][:1500],
        "test": (clothes["images"][:200], clothes["labels"][:200]),
        "workdir": tmp_path / "run",
        "config": small_config(),
    }
    result = pujax.compress(**arguments, options={"distill.learning_rate": 0.01})
    assert result.summary["mining"]["pool_images"] == 1500
    assert result.student.class_names[0] == "T-shirt/top" and result.student.preprocessing.image_size == 32
    predicted = result.predict(clothes["images"][:200])
    assert predicted.dtype == np.int32 and (predicted == clothes["labels"][:200]).mean() == pytest.approx(
        result.accuracy
    )
    files = [jpeg(image) for image in clothes["images"][:40]]
    (tmp_path / "a.jpg").write_bytes(files[0])
    assert (result.predict(files) == predicted[:40]).mean() > 0.8
    assert result.predict([tmp_path / "a.jpg"]) == result.predict(files[:1])
    assert result.predict([]).shape == (0,)
    with pytest.raises(UserError, match=r"an image does not decode \("):
        result.predict([b"no image"])
    again = pujax.compress(**arguments, options={"distill.learning_rate": 0.01})
    assert again.summary["student"] == result.summary["student"]
    handed_over = pujax.compress(**arguments | {"teacher": result.student, "workdir": tmp_path / "other"})
    assert handed_over.summary["teacher"]["accuracy"] == pytest.approx(result.accuracy)


def test_what_no_teacher_says_must_be_given():
    from pujax.stages.teacher import settle

    config = resolve(Config(data=DataConfig(num_classes=0)))
    with pytest.raises(UserError, match=r"data.num_classes is not set, and no weights are given that say it"):
        settle(config, None)
