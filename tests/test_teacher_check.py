"""A teacher that is shown images wrongly, or whose classes are in another order, is found out by labelled images."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from pujax.data.decode import ImageSpec, fit_arrays
from pujax.data.embedded import embedded_path, load_embedded
from pujax.networks import load_network
from pujax.teacher_check import check_teacher


@pytest.fixture(scope="module")
def teacher():
    return load_network(epath.Path(embedded_path("teacher_lenet5.safetensors")), dtype=np.dtype("float32"))


@pytest.fixture(scope="module")
def labelled():
    columns = load_embedded("test")
    return fit_arrays(columns["images"][:400], ImageSpec(32, 1)), columns["labels"][:400]


def test_a_teacher_that_is_used_rightly_raises_no_doubt(teacher, labelled):
    images, labels = labelled
    accuracy, doubts = check_teacher(teacher, images, labels)
    logits = jax.jit(teacher.logits)(teacher.variables, images)
    assert accuracy == pytest.approx(np.mean(np.argmax(logits, -1) == labels)) and accuracy > 0.8 and doubts == []


def test_a_wrong_normalisation_is_named(teacher, labelled):
    images, labels = labelled
    # The network is made to want pixels in 0..1 by a first layer that does the rest, and is then shown -1..1.
    mean, std = teacher.preprocessing.mean[0], teacher.preprocessing.std[0]
    params = jax.tree.map(np.array, teacher.variables["params"])
    kernel = params["conv1"]["kernel"]
    params["conv1"]["bias"] = params["conv1"]["bias"] - kernel.sum((0, 1, 2)) * mean / std
    params["conv1"]["kernel"] = kernel / std
    wants_01 = dataclasses.replace(
        teacher.with_variables({"params": params}),
        preprocessing=dataclasses.replace(teacher.preprocessing, mean=(0.9,), std=(0.2,)),
    )
    accuracy, doubts = check_teacher(wants_01, images, labels)
    assert accuracy < 0.8
    assert any(
        "pixels in 0..1 it would be right on" in doubt and "data.mean=0 --config.data.std=1" in doubt
        for doubt in doubts
    )


def test_another_order_of_the_classes_is_said(teacher, labelled):
    images, labels = labelled
    accuracy, doubts = check_teacher(teacher, images, (labels + 3) % 10)
    assert accuracy < 0.1 and len(doubts) == 1
    assert (
        doubts[0].startswith("with its classes in another order it would be right on 9") and "class_names" in doubts[0]
    )


def test_noise_is_no_ground_for_doubt(teacher, labelled):
    images, _ = labelled
    for seed in range(3):
        labels = np.random.default_rng(seed).integers(0, 10, len(images)).astype(np.int32)
        assert check_teacher(teacher, images, labels)[1] == []
