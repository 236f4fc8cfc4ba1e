"""A frozen network computes the same without BatchNorm."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax.errors import ScopeCollectionNotFound, ScopeParamNotFoundError
from flax.traverse_util import flatten_dict, unflatten_dict

from pujax import student
from pujax.artifacts import Workdir
from pujax.config import DataConfig, DistillConfig, FrozenScorerConfig, RunConfig, SourceConfig
from pujax.data.sources import open_source
from pujax.folding import fold_batch_norms
from pujax.metrics import MetricsLog
from pujax.models import CLASSIFIERS
from pujax.models.layers import BatchNorm, conv, plain_convolutions
from pujax.models.resnet import Bottleneck, ResNet
from pujax.networks import Preprocessing, abstract_network
from pujax.pu.scorer import frozen_inputs
from pujax.sharding import make_mesh

# Compared by default; the other classifiers are of the same blocks.
FAST = ("lenet5", "cifar_resnet10_w8", "tf_mobilenet_v3_small", "vgg11_bn")


def randomized(shapes, seed=0):
    """Return variables for shapes, none of them as a fresh network has them; activations keep their size."""
    rng, flat = np.random.default_rng(seed), {}
    for path, leaf in flatten_dict(shapes).items():
        if path[-1] == "var":
            value = rng.uniform(0.3, 3, leaf.shape)
        elif path[-1] == "scale":
            value = rng.uniform(0.5, 2, leaf.shape) * rng.choice([-1, 1], leaf.shape)
        elif path[-1] == "kernel":
            value = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            value = rng.normal(size=leaf.shape) * 0.3
        flat[path] = value.astype(leaf.dtype)
    return unflatten_dict(flat)


def network_of(model, channels=3, size=32):
    seen = Preprocessing(size, channels, (0.4,), (0.3,))
    options = {"num_classes": 10, "class_names": None, "preprocessing": seen, "dtype": jnp.dtype(jnp.float32)}
    network = abstract_network(model, **options)
    return network.with_variables(randomized(network.variables))


def close(actual, expected, tolerance=1e-4):
    assert np.abs(np.asarray(actual) - expected).max() <= tolerance * np.abs(expected).max()


def outputs(module, variables, images):
    with plain_convolutions():
        options = {"xla_backend_optimization_level": 0}
        return jax.jit(lambda v, x: module.apply(v, x, train=False), compiler_options=options)(variables, images)


def check_same(module, variables, image_shape):
    """Compare logits and features, which must differ between images; return the variables without BatchNorm."""
    folded = fold_batch_norms(module, variables, image_shape)
    images = np.random.default_rng(1).normal(size=(3, *image_shape)).astype(np.float32)
    logits, features = outputs(module, folded, images)
    expected, expected_features = outputs(module, variables, images)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()
    close(logits, expected)
    for ours, theirs in zip(features, expected_features, strict=True):
        close(ours, theirs)
    return folded


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CLASSIFIERS])
def test_every_classifier_computes_the_same(name):
    small = name if name.startswith("cifar") else f"{name}_x0.125"
    size = 224 if name.startswith("vit") else 32
    try:
        network = network_of(small, 1 if name.startswith("lenet") else 3, size)
    except ValueError:  # it has no width to multiply
        network = network_of(name, size=size)
    folded = check_same(network.module, network.variables, network.preprocessing.image_shape)
    left = flatten_dict(folded)
    assert not {"mean", "var"} & {path[-1] for path in left}  # every BatchNorm has gone
    assert "batch_stats" in network.variables or all(left[k] is v for k, v in flatten_dict(network.variables).items())
    assert all(left[path].dtype == leaf.dtype for path, leaf in flatten_dict(network.variables).items() if path in left)


def abstract(module, shape):
    return jax.eval_shape(lambda rng, x: module.init(rng, x, train=False), jax.random.key(0), jnp.zeros((1, *shape)))


def test_a_bottleneck_computes_the_same():
    module, shape = ResNet(5, (1, 1, 1, 1), width=8, block=Bottleneck, imagenet_stem=True), (32, 32, 3)
    assert "batch_stats" not in check_same(module, randomized(abstract(module, shape)), shape)


class Odd(nn.Module):
    """BatchNorms before a convolution, after a linear layer, and after a convolution that is used twice."""

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(name="first")(x, train=train)
        shared = conv(3, 1, dtype=jnp.float32, name="shared")
        x = BatchNorm(name="again")(shared(nn.relu(shared(x))), train=train)
        features = jnp.mean(x, axis=(1, 2))
        return BatchNorm(name="last")(nn.Dense(4, name="linear")(features), train=train), (features,)


def test_only_what_takes_a_layers_output_is_folded_and_only_once():
    module, shape = Odd(), (4, 4, 3)
    variables = randomized(abstract(module, shape))
    folded = check_same(module, variables, shape)
    assert set(folded["batch_stats"]) == {"first", "again"} and set(folded["params"]["last"]) == {"bias"}
    again = fold_batch_norms(module, folded, shape)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, again, folded))


def test_what_is_folded_is_not_trained_and_what_is_incomplete_is_not_taken_for_folded():
    network = network_of("cifar_resnet10_w8")
    images = np.zeros((2, 32, 32, 3), np.float32)
    with pytest.raises(ScopeParamNotFoundError):
        network.module.apply(network.folded, images, train=True, mutable=["batch_stats"])
    with pytest.raises(ScopeCollectionNotFound):
        network.module.apply({"params": network.variables["params"]}, images, train=False)


def count(operation, program):
    return len(re.findall(rf"stablehlo\.{operation}\b", program))


def test_a_scoring_program_has_none_of_batch_norms_operations():
    network, images = network_of("cifar_resnet10_w8"), jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8)
    config = FrozenScorerConfig(flip=False, quarter_turn=False)

    def score(variables, images):
        logits, seen = frozen_inputs(config, network, variables, images)
        return logits, seen["features"]

    before, after = (jax.jit(score).lower(v, images).as_text() for v in (network.variables, network.folded))
    prepared = jax.jit(network.preprocessing.prepare).lower(images).as_text()
    assert count("rsqrt", before) >= 12 and count("rsqrt", after) == 0
    assert count("multiply", before) >= 12 and count("multiply", after) == count("multiply", prepared)
    assert count("convolution", before) == count("convolution", after) >= 12


def test_the_teacher_of_a_distillation_step_has_no_batch_norm(tmp_path, monkeypatch):
    teacher, pupil, mesh = network_of("cifar_resnet10_w8"), network_of("lenet5"), make_mesh(jax.devices()[:1])
    images, config = np.zeros((4, 32, 32, 3), np.uint8), DistillConfig(batch_size=4)
    np.save(tmp_path / "x.npy", images)
    where, data = SourceConfig(kind="array", path=str(tmp_path / "x.npy")), DataConfig(image_size=32, channels=3)
    source = open_source(where, data, labelled=False)
    unit, given = Workdir(epath.Path(tmp_path)).unit("distill"), {}
    monkeypatch.setattr(student, "fit", lambda *_, **options: given.update(options) or pupil.variables)
    options = {"seed": 0, "mesh": mesh, "run": RunConfig(), "log": MetricsLog(tmp_path, enabled=False), "name": "x"}
    student.train_student(config, teacher, [(source, np.arange(4))], unit=unit, begin=pupil, **options)
    frozen = jax.tree.map(jnp.asarray, given["frozen"])
    batch = {"image": jnp.asarray(images), "index": jnp.arange(4), "label": jnp.zeros(4, jnp.int32)}
    loss_fn = student.make_distill_loss(config, pupil, teacher)

    def gradient(params, frozen):
        return jax.grad(lambda p: loss_fn(p, {}, frozen, batch, jax.random.key(0)), has_aux=True)(params)

    def lowered(frozen):
        return jax.jit(gradient).lower(pupil.variables["params"], frozen).as_text()

    assert count("rsqrt", lowered(frozen)) == 0
    assert count("rsqrt", lowered(frozen | {"teacher": teacher.variables})) >= 12
