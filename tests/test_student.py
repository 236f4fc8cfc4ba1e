"""Distillation with the teacher's logits computed once, against the teacher run on the same views."""

import dataclasses
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from etils import epath
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from reference.torchvision_models import mobilenet_v2

from pujax.artifacts import Workdir
from pujax.config import DataConfig, DistillConfig, RunConfig, SourceConfig
from pujax.data.batches import make_batches
from pujax.data.sources import open_source
from pujax.data.transforms import fixed_views
from pujax.errors import UserError
from pujax.kd_losses import kd_loss, kl_from_logits
from pujax.metrics import MetricsLog
from pujax.networks import Preprocessing, abstract_network, init_network, save_network
from pujax.sharding import make_mesh, replicate
from pujax.student import ExtraTerm, begin_with, cache_teacher_logits, make_distill_loss, train_student

DISTILL = DistillConfig(temperature=3.0, crop_padding=2, flip=True, cached_views=3)
SEED = 5
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 1), np.uint8)


@pytest.fixture(scope="module")
def networks():
    options = {"num_classes": 4, "class_names": None, "dtype": jnp.dtype(jnp.float32)}
    options["preprocessing"] = Preprocessing(32, 1, (0.4,), (0.3,))
    shapes = (abstract_network(model, **options) for model in ("lenet5", "lenet5_half"))
    return [init_network(network, jax.random.key(i)) for i, network in enumerate(shapes)]


def cached(teacher, folder):
    mesh = make_mesh(jax.devices()[:1])
    teacher = teacher.with_variables(replicate(mesh, teacher.variables))
    unit = Workdir(epath.Path(folder)).unit("distill")
    # 3 views of 50 images: the last batch is not full
    return cache_teacher_logits(DISTILL, teacher, IMAGES, unit, seed=SEED, mesh=mesh, batch_size=32)


def views_of(index, view):
    images = jnp.asarray(IMAGES[index])
    return fixed_views(jax.random.key(SEED), images, jnp.asarray(index), view, pad=2, flip=True)


def test_cached_logits_are_the_teachers_on_every_view(networks, tmp_path):
    logits = cached(networks[0], tmp_path)
    assert logits.shape == (50, 3, 4)
    index = np.array([49, 0, 17], np.int32)
    for view in range(3):
        images = views_of(index, jnp.full(3, view, jnp.int32))
        expected = networks[0].logits(networks[0].variables, images)
        np.testing.assert_allclose(logits[index, view], expected, rtol=1e-5, atol=1e-6)


def step_inputs(networks, folder):
    index = np.arange(7, 39, dtype=np.int32)
    batch = {"image": jnp.asarray(IMAGES[index]), "index": jnp.asarray(index), "label": jnp.full(32, -1)}
    batch["teacher_logits"] = jnp.asarray(cached(networks[0], folder)[index])
    return batch, {"class_weights": jnp.ones((1, 4)), "views": jax.random.key(SEED)}


@pytest.fixture
def compile_cache(tmp_path):
    """A compile cache of this test's own, that every program goes to."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path / "cache"), 0.0)):
        jax.config.update(name, value)
    reset_cache()
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


@pytest.mark.parametrize("views", [0, 3])
def test_students_of_training_sets_of_any_size_share_one_compiled_step(networks, tmp_path, compile_cache, views):
    distill = dataclasses.replace(DISTILL, cached_views=views, batch_size=16, num_steps=2, model="lenet5_half")
    np.save(tmp_path / "images.npy", IMAGES)
    data = DataConfig(num_classes=4, image_size=32, channels=1)
    source = open_source(SourceConfig(kind="array", path=str(tmp_path / "images.npy")), data, labelled=False)
    options = {"mesh": make_mesh(jax.devices()[:1]), "run": RunConfig(inference_batch_size=16), "name": "distill"}
    for seed, size in enumerate((32, 50)):
        options |= {"unit": Workdir(epath.Path(tmp_path / str(size))).unit("distill"), "seed": seed}
        with closing(MetricsLog(tmp_path / str(size), enabled=False)) as log:
            train_student(distill, networks[0], [(source, np.arange(size))], log=log, **options)
    programs = [path.name.split("-")[0] for path in compile_cache.glob("*-cache")]
    assert programs.count("jit_step_of_chunk") == 1 and programs.count("jit_look_up") == 2


def test_a_step_on_cached_logits_is_a_step_with_the_teacher(networks, tmp_path):
    teacher, student = networks
    batch, frozen = step_inputs(networks, tmp_path)
    rng = jax.random.key(9)
    view = jax.random.randint(rng, (32,), 0, 3)
    assert len(np.unique(view)) == 3

    def expected(params):
        images = views_of(np.asarray(batch["index"]), view)
        target, logits = teacher.logits(teacher.variables, images), student.logits({"params": params}, images)
        return kd_loss(kl_from_logits(logits, target, 3.0), jnp.argmax(target, -1), weights=jnp.ones(4))

    loss_fn = make_distill_loss(DISTILL, student, teacher)
    params = student.variables["params"]
    ours, grads = jax.value_and_grad(lambda p: loss_fn(p, {}, frozen, batch, rng)[0])(params)
    theirs, expected_grads = jax.value_and_grad(expected)(params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_another_methods_term_is_added_and_its_parameters_get_gradients(networks, tmp_path):
    teacher, student = networks
    batch, frozen = step_inputs(networks, tmp_path)
    term = ExtraTerm(
        {"bias": jnp.array(2.0)}, lambda params, logits, target: params["bias"] * jnp.mean(logits * target)
    )
    params = student.variables["params"] | term.params
    losses = [make_distill_loss(DISTILL, student, teacher, extra=extra) for extra in (None, term)]
    plain, joined = (loss(params, {}, frozen, batch, jax.random.key(9))[0] for loss in losses)
    grads = jax.grad(lambda p: losses[1](p, {}, frozen, batch, jax.random.key(9))[0])(params)
    np.testing.assert_allclose(joined - plain, 2 * grads["bias"], rtol=1e-4)
    assert abs(joined - plain) > 1e-4


def test_a_resumed_run_reads_the_logits_back(networks, tmp_path):
    first = cached(networks[0], tmp_path)
    other = networks[0].with_variables(jax.tree.map(jnp.zeros_like, networks[0].variables))
    np.testing.assert_array_equal(first, cached(other, tmp_path))


def test_batches_keep_the_share_of_labelled_images():
    chunk = next(make_batches([10, 90], 16, share=6, seed=2)(steps_per_call=12))
    assert chunk["index"].shape == (12, 16)
    assert ((chunk["index"] < 10).sum(1) == 6).all()
    assert len(np.unique(chunk["index"][:, 6:])) == 90  # the mined images take turns
    alone = next(make_batches([40], 16, share=6, seed=2)(steps_per_call=1))  # nothing mined: all are labelled
    assert alone["index"].max() < 40


# --- weights to begin with ---


def test_a_student_begins_with_the_weights_of_a_file(networks, tmp_path):
    _, fresh = networks
    given = init_network(fresh, jax.random.key(7))
    save_network(epath.Path(tmp_path / "given.safetensors"), given)
    distill = DistillConfig(model="lenet5_half", weights=str(tmp_path / "given.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, begin_with(distill, fresh).variables, given.variables)
    more = dataclasses.replace(fresh, num_classes=7)
    more = init_network(more, jax.random.key(8))
    begun = begin_with(distill, more).variables["params"]
    np.testing.assert_array_equal(begun["conv1"]["kernel"], given.variables["params"]["conv1"]["kernel"])
    np.testing.assert_array_equal(begun["linear"]["kernel"], more.variables["params"]["linear"]["kernel"])
    assert begin_with(DistillConfig(model="lenet5_half"), fresh) is fresh
    with pytest.raises(UserError, match=r"holds a lenet5_half, but distill.model is lenet5"):
        begin_with(distill, networks[0])


def test_a_student_begins_with_a_state_dict_of_other_classes(tmp_path):
    torch.manual_seed(0)
    theirs = mobilenet_v2(5, multiplier=0.25)
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    options = {"class_names": None, "dtype": jnp.dtype(jnp.float32), "preprocessing": Preprocessing(32, 3, (0,), (1,))}
    fresh = init_network(abstract_network("mobilenet_v2_x0.25", num_classes=3, **options), jax.random.key(0))
    begun = begin_with(DistillConfig(model="mobilenet_v2_x0.25", weights=str(tmp_path / "m.pth")), fresh)
    kernel = theirs.state_dict()["features.0.0.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(begun.variables["params"]["conv1"]["kernel"], kernel)
    assert begun.variables["params"]["linear"]["kernel"].shape[-1] == 3
    assert jax.tree.structure(begun.variables) == jax.tree.structure(fresh.variables)
