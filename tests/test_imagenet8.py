"""The recipe for ImageNet at the size of a test: its own choices, on small images in a folder and in tars."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CACHE
from formats import samples, write_tar
from PIL import Image

from configs import imagenet8
from pujax.data.embedded import load_embedded
from pujax.networks import Preprocessing, abstract_network, init_network, save_network

ROOT = Path(__file__).parent.parent


def jpeg(image):
    out = io.BytesIO()
    Image.fromarray(np.pad(image, 2)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """What brings the recipe down to ten classes of clothes and a network of a few thousand weights."""
    root = tmp_path_factory.mktemp("imagenet8")
    clothes, pool = load_embedded("test"), load_embedded("pool")["images"]
    for label in range(10):
        (root / "labelled" / f"n{label}").mkdir(parents=True)
        for i in np.flatnonzero(clothes["labels"] == label)[:12]:
            (root / "labelled" / f"n{label}" / f"{i}.jpg").write_bytes(jpeg(clothes["images"][i]))
    for shard in range(2):
        files = [jpeg(image) for image in pool[300 * shard : 300 * (shard + 1)]]
        write_tar(root / f"{shard:05d}.tar", samples(files, [0] * len(files), label=None))
    data = imagenet8.get_config().data
    seen = Preprocessing(image_size=32, channels=3, mean=data.mean, std=data.std, crop=data.crop)
    network = abstract_network(
        "lenet5", num_classes=10, class_names=None, preprocessing=seen, dtype=np.dtype("float32")
    )
    save_network(root / "teacher.safetensors", init_network(network, jax.random.key(0)))
    given = {
        "data.labelled": root / "labelled", "data.pool": root / "{00000..00001}.tar", "data.test": "",
        "teacher.weights": root / "teacher.safetensors", "teacher.model": "", "data.num_classes": 10,
        "data.image_size": 32, "distill.model": "lenet5_half", "distill.batch_size": 16,
        "distill.num_steps": 4, "distill.warmup_steps": 1, "distill.crop_padding": 2,
        "scorer.frozen.num_steps": 20, "scorer.frozen.batch_size": 64, "scorer.frozen.positives_per_batch": 16,
        "select.budget": 50, "score.shard_size": 250, "run.inference_batch_size": 64,
    }  # fmt: skip
    return [f"--config.{name}={value}" for name, value in given.items()]


def execute(*options):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "pujax.launch", "--config", "configs/imagenet8.py", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def test_the_dry_run_of_the_recipe_reads_a_sample_and_tells_the_time(options, tmp_path):
    done = execute(*options, f"--workdir={tmp_path / 'run'}", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert (
        "data.labelled: 100 images, 10 classes of 10 to 10 images" in done.stdout
    )  # a fifth is kept out, and measures
    assert "data.pool: 600 images" in done.stdout and "score: 3 shards" in done.stdout
    assert "distill: lenet5 -> lenet5_half" in done.stdout
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["contact_sheet.jpg"]


@pytest.mark.slow
def test_the_recipe_runs_with_its_own_scorer_and_rule(options, tmp_path):
    stages = "--stages=teacher,scorer,score,select,distill"
    done = execute(*options, f"--workdir={tmp_path / 'run'}", stages, "--config.scorer.min_in_range=0")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["mining"]["pool_images"], summary["mining"]["selected"]) == (600, 50)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["select"]["rule"] == "mean_rank" and config["scorer"]["frozen"]["distance"] == 1.5
