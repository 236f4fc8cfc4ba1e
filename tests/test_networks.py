"""A weights file makes the network by itself, and one that does not fit is refused by what differs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pujax.config import DataConfig
from pujax.errors import UserError
from pujax.networks import (
    Preprocessing,
    abstract_network,
    check_class_names,
    check_fits,
    init_network,
    load_network,
    save_network,
)
from pujax.weights import save_weights

FLOAT32 = jnp.dtype(jnp.float32)
DATA = DataConfig(num_classes=3, image_size=32, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2,))


@pytest.fixture
def network():
    preprocessing = Preprocessing(32, 3, (0.4, 0.5, 0.6), (0.2,))
    shapes = abstract_network(
        "cifar_resnet10_w8", num_classes=3, class_names=("a", "b", "c"), preprocessing=preprocessing, dtype=FLOAT32
    )
    return init_network(shapes, jax.random.key(0))


def test_a_file_is_enough_to_make_the_network(network, tmp_path):
    path = epath.Path(tmp_path / "teacher.safetensors")
    save_network(path, network)
    again = load_network(path, dtype=FLOAT32)
    described = [dataclasses.replace(own, variables=None) for own in (network, again)]
    assert described[0] == described[1]
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    expected, _ = network.module.apply(network.variables, (images / 255.0 - [0.4, 0.5, 0.6]) / 0.2, train=False)
    np.testing.assert_allclose(again.logits(again.variables, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 5}, "a network of num_classes 3, but data.num_classes is 5"),
        ({"image_size": 64}, "a network of image_size 32, but data.image_size is 64"),
        ({"mean": (0.5,)}, r"a network of mean \(0.4, 0.5, 0.6\), but data.mean is \(0.5,\)"),
        ({"std": (0.3,)}, r"a network of std \(0.2,\), but data.std is"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_by_what_differs(network, changes, message):
    with pytest.raises(UserError, match=message):
        check_fits(network, "a.safetensors", model="", data=dataclasses.replace(DATA, **changes))


def test_the_model_is_checked_only_where_it_is_given(network):
    check_fits(network, "a.safetensors", model="", data=DATA)
    with pytest.raises(UserError, match=r"holds a cifar_resnet10_w8, but teacher.model is lenet5; leave teacher.model"):
        check_fits(network, "a.safetensors", model="lenet5", data=DATA)


def test_weights_without_a_description_are_refused(network, tmp_path):
    path = epath.Path(tmp_path / "w.safetensors")
    save_weights(path, network.variables)
    with pytest.raises(UserError, match=r"does not say what network it holds"):
        load_network(path, dtype=FLOAT32)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match=r"w.safetensors is not a readable safetensors file"):
        load_network(path, dtype=FLOAT32)
    with pytest.raises(UserError, match=r"no weights file at"):
        load_network(epath.Path(tmp_path / "none"), dtype=FLOAT32)


def test_scalars_keep_their_shape(tmp_path):
    from pujax.weights import load_weights

    path, tree = (
        epath.Path(tmp_path / "w.safetensors"),
        {"a": {"scale": np.float32(2.5)}, "b": np.arange(6.0).reshape(2, 3).T},
    )
    save_weights(path, tree)
    again = load_weights(path, tree)
    assert again["a"]["scale"].shape == () and again["a"]["scale"] == 2.5
    assert (again["b"] == tree["b"]).all()


def test_class_names_are_compared_in_their_order():
    check_class_names([("the teacher", ("a", "b")), ("data.test", None), ("data.labelled", ("a", "b"))])
    with pytest.raises(UserError, match=r"class 0 is 'a' in data.labelled but 'b' in data.test; they must be the same"):
        check_class_names([("the teacher", None), ("data.labelled", ("a", "b", "c")), ("data.test", ("b", "c", "d"))])
    with pytest.raises(UserError, match=r"class 2 is none in the teacher but 'c' in data.test"):
        check_class_names([("the teacher", ("a", "b")), ("data.test", ("a", "b", "c"))])
