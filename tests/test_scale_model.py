"""The model of cost: cases worked out by hand, its inputs, and the page that shows it."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale_model
from benchmarks.scale_model import Fleet, Pool, bytes_read, limits, listing_bytes, scoring
from configs import imagenet8
from pujax.data import decoders
from pujax.metrics import flops_per_image
from pujax.networks import Preprocessing, abstract_network

FLEET = Fleet("two machines", hosts=2, chips=4, vcpus=16, processes=1, forward=100.0, dollars=3.0)


def test_chips_or_decoders_are_the_limit_on_a_machine_s_own_disks():
    pool = Pool(28_800, "disk")
    assert limits(FLEET, pool, decode=50.0) == {"chips": 800, "decoding": 1600}
    found = scoring(FLEET, pool, decode=50.0)  # 28,800 at 800 a second: 36 s of 8 chips at 3 dollars
    assert found.bottleneck == "chips" and found.hours == pytest.approx(0.01) and found.dollars == pytest.approx(0.24)
    assert limits(FLEET, pool, decode=50.0, passes=4)["chips"] == 200
    found = scoring(FLEET, pool, decode=12.5)
    assert found.bottleneck == "decoding" and found.hours == pytest.approx(0.02)
    many = dataclasses.replace(FLEET, vcpus=1000)  # of which one process uses 64, two use 128
    assert limits(many, pool, decode=50.0)["decoding"] == 6400
    assert limits(dataclasses.replace(many, processes=2), pool, decode=50.0)["decoding"] == 12_800


def test_a_bucket_has_a_rate_that_grows_and_a_price(monkeypatch):
    monkeypatch.setattr(scale_model, "BUCKET_REQUESTS", 100)
    monkeypatch.setattr(scale_model, "BUCKET_DOUBLES", 60.0)
    grown = 700 * 60 / math.log(2)  # images while the rate grows from 100 to 800 a second, which takes three minutes
    found = scoring(FLEET, Pool(grown + 8000), decode=1e9)
    seconds = 180 + 10
    assert found.bottleneck == "the bucket" and found.hours == pytest.approx(seconds / 3600)
    assert found.dollars == pytest.approx(seconds / 3600 * 24 + (grown + 8000) * 0.4e-6)
    assert scoring(FLEET, Pool(grown + 800_000), decode=1e9).bottleneck == "chips"
    early = scoring(FLEET, Pool(100 * 60 / math.log(2)), decode=1e9)  # done after one doubling
    assert early.hours == pytest.approx(60 / 3600)
    parquet = scoring(FLEET, Pool(8000, "parquet", group=24), decode=1e9)  # eight images a request: 800 from the start
    assert parquet.bottleneck == "chips" and parquet.hours == pytest.approx(10 / 3600)


def test_parquet_is_read_a_row_group_at_a_time():
    pool = Pool(1e6, "parquet", group=100, image_bytes=10)
    assert bytes_read(pool, 1) == pytest.approx(1000, rel=1e-3)
    assert bytes_read(pool, 1e9) == pytest.approx(1e7)
    drawn = np.random.default_rng(0).integers(0, 1_000_000, 5000)
    assert bytes_read(pool, 5000) == pytest.approx(1000 * len(np.unique(drawn // 100)), rel=0.01)
    assert listing_bytes(pool) == 0
    tar = Pool(1e6, "tar", image_bytes=10)
    assert bytes_read(tar, 5000) == 50_000 and listing_bytes(tar) == 1e7


@pytest.mark.parametrize("model", scale_model.FLOPS)
def test_the_counts_of_operations_are_pujax_s_own(model):
    size, classes = (32, 10) if model.startswith("cifar") else (224, 1000)
    seen = Preprocessing(image_size=size, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    network = abstract_network(
        model, num_classes=classes, class_names=None, preprocessing=seen, dtype=np.dtype("float32")
    )
    assert flops_per_image(network.module, network.variables, seen.image_shape) == scale_model.FLOPS[model]


def test_inputs_are_those_of_the_code_and_of_the_recipe():
    most = re.search(r"^_WORKERS = min\(CORES, (\d+)\)", Path(decoders.__file__).read_text(), re.M)[1]
    assert int(most) == scale_model.DECODERS
    config = imagenet8.get_config()
    assert (config.scorer.pool_sample, config.select.budget) == (scale_model.SAMPLE, scale_model.CHOSEN)
    assert (config.distill.num_steps, config.distill.batch_size) == (200_000, 512)
    assert scale_model.distillation_hours(200_000 * 512, 1) == pytest.approx(2.36, abs=0.005)
    assert 100 < scale_model.decode_rate() < 2000


def test_the_page_shows_what_the_model_says():
    text = scale_model.PAGE.read_text()
    assert all(f"<!-- model:{name} -->\n" in text for name in scale_model.TABLES)
    assert scale_model.fill(text) == text, "run python -m benchmarks.scale_model --write"
