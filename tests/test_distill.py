"""Distillation with the teacher's logits computed once, against the teacher run on the same views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pujax.config import Config, DataConfig, DistillConfig, MiningConfig
from pujax.data.transforms import fixed_views
from pujax.distill import _batches, cache_teacher_logits, make_distill_loss
from pujax.inference import prepare
from pujax.losses import kd_loss, kl_from_logits
from pujax.models import create_classifier
from pujax.sharding import make_mesh, replicate

CONFIG = Config(
    seed=5,
    data=DataConfig(num_classes=4, image_size=32, channels=1),
    mining=MiningConfig(batch_size=32),  # 3 views of 50 images: the last batch is not full
    distill=DistillConfig(temperature=3.0, crop_padding=2, flip=True, cached_views=3),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 1), np.uint8)


@pytest.fixture(scope="module")
def networks():
    pair = create_classifier("lenet5", 4), create_classifier("lenet5_half", 4)
    return [(net, net.init(jax.random.key(i), jnp.zeros((1, 32, 32, 1)), train=False)) for i, net in enumerate(pair)]


def cached(networks, folder, config=CONFIG):
    mesh, (teacher, variables) = make_mesh(jax.devices()[:1]), networks[0]
    return cache_teacher_logits(config, teacher, replicate(mesh, variables), IMAGES, folder, mesh)


def views_of(index, view):
    images = jnp.asarray(IMAGES[index])
    return prepare(CONFIG, fixed_views(jax.random.key(5), images, jnp.asarray(index), view, pad=2, flip=True))


def test_cached_logits_are_the_teachers_on_every_view(networks, tmp_path):
    logits = cached(networks, tmp_path)
    assert logits.shape == (50, 3, 4)
    index = np.array([49, 0, 17], np.int32)
    for view in range(3):
        images = views_of(index, jnp.full(3, view, jnp.int32))
        expected, _ = networks[0][0].apply(networks[0][1], images, train=False)
        np.testing.assert_allclose(logits[index, view], expected, rtol=1e-5, atol=1e-6)


def test_a_step_on_cached_logits_is_a_step_with_the_teacher(networks, tmp_path):
    (teacher, teacher_variables), (student, variables) = networks
    index = np.arange(7, 39, dtype=np.int32)
    batch = {"image": jnp.asarray(IMAGES[index]), "index": jnp.asarray(index), "label": jnp.full(32, -1)}
    frozen = {"teacher_logits": jnp.asarray(cached(networks, tmp_path)), "class_weights": jnp.ones((1, 4))}
    rng = jax.random.key(9)
    view = jax.random.randint(rng, (32,), 0, 3)
    assert len(np.unique(view)) == 3

    def expected(params):
        images = views_of(index, view)
        target, logits = (
            net.apply({"params": p}, images, train=True)[0]
            for net, p in ((teacher, teacher_variables["params"]), (student, params))
        )
        return kd_loss(kl_from_logits(logits, target, 3.0), jnp.argmax(target, -1), weights=jnp.ones(4))

    loss_fn = make_distill_loss(CONFIG, student, teacher)
    ours, grads = jax.value_and_grad(lambda p: loss_fn(p, {}, frozen, batch, rng)[0])(variables["params"])
    theirs, expected_grads = jax.value_and_grad(expected)(variables["params"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_reads_the_logits_back(networks, tmp_path):
    first = cached(networks, tmp_path)
    other_teacher = [(networks[0][0], jax.tree.map(jnp.zeros_like, networks[0][1])), networks[1]]
    np.testing.assert_array_equal(first, cached(other_teacher, tmp_path))


def test_batches_keep_the_share_of_labelled_images():
    config = Config(seed=2, distill=DistillConfig(batch_size=16, labelled_per_batch=6))
    chunk = next(_batches(config, [10, 90])(steps_per_call=12))
    assert chunk["index"].shape == (12, 16)
    assert ((chunk["index"] < 10).sum(1) == 6).all()
    assert len(np.unique(chunk["index"][:, 6:])) == 90  # the mined images take turns
    alone = next(_batches(config, [40])(steps_per_call=1))  # nothing mined: all are labelled
    assert alone["index"].max() < 40
