"""Networks against PyTorch: sizes, forward passes, running statistics and an SGD trajectory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from reference import torch_models

from pujax.config import DistillConfig
from pujax.errors import UserError
from pujax.metrics import num_params
from pujax.models import CLASSIFIERS, PUScorer, create_classifier
from pujax.models.inverted_residual import Dialect, Gate, InvertedResidual
from pujax.models.layers import BatchNorm, cpu_conv, max_pool
from pujax.models.vgg import adaptive_mean
from pujax.optim import make_optimizer
from pujax.pu.losses import nnpu_risk
from pujax.pu.scorer import PUNet
from pujax.train import init_state

SIZES = {
    ("lenet5", 10, 1): 61_706,
    ("lenet5_half", 10, 1): 15_738,
    ("cifar_resnet18", 10, 3): 11_173_962,
    ("cifar_resnet34", 10, 3): 21_282_122,
    ("resnet18", 1000, 3): 11_689_512,
    ("resnet34", 1000, 3): 21_797_672,
    ("resnet50", 1000, 3): 25_557_032,
    ("resnet101", 1000, 3): 44_549_160,
    ("mobilenet_v2", 1000, 3): 3_504_872,
    ("mobilenet_v2_x0.5", 1000, 3): 1_968_680,
    ("mobilenet_v3_small", 1000, 3): 2_542_856,
    ("mobilenet_v3_large", 1000, 3): 5_483_032,
    ("efficientnet_b0", 1000, 3): 5_288_548,
    ("efficientnet_lite0", 1000, 3): 4_652_008,
    ("vgg11", 1000, 3): 132_863_336,
    ("vgg13_bn", 1000, 3): 133_053_736,
    ("vgg16", 1000, 3): 138_357_544,
    ("convnext_tiny", 1000, 3): 28_589_128,
    ("vit_s16", 1000, 3): 22_050_664,
    ("vit_b16", 1000, 3): 86_567_656,
}


def abstract_variables(name, classes=10, channels=3, size=32):
    module = create_classifier(name, classes)
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return module, jax.eval_shape(lambda rng, x: module.init(rng, x, train=False), jax.random.key(0), image)


@pytest.mark.parametrize(("name", "classes", "channels"), SIZES)
def test_parameter_counts(name, classes, channels):
    size = 224 if name.startswith("vit") else 32
    assert num_params(abstract_variables(name, classes, channels, size)[1]) == SIZES[name, classes, channels]


def test_the_released_scorer_has_21_393_153_parameters():
    _, backbone = abstract_variables("cifar_resnet34")
    features = tuple(jnp.zeros((1, width)) for width in (64, 128, 256, 512))
    head = PUScorer(gate=True).init(jax.random.key(0), features)
    assert num_params(backbone) - (512 * 10 + 10) + num_params(head) == 21_393_153


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if not name.startswith(("timm_", "tf_"))])
def test_every_classifier_returns_logits_and_pooled_features(name):
    channels = 1 if "lenet" in name else 3
    module, variables = abstract_variables(name, 7, channels, 64)
    image = jax.ShapeDtypeStruct((2, 64, 64, channels), jnp.float32)
    logits, features = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, image)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert len(features) >= 4
    assert all(f.shape[0] == 2 and f.ndim == 2 and f.dtype == jnp.float32 for f in features)


REFERENCES = [name for name in torch_models.NETWORKS if not name.endswith("_w16")]


def close(actual, expected, tolerance=1e-4):
    """Relative to the largest entry, so that entries near zero do not decide."""
    expected = np.asarray(expected)
    assert np.abs(np.asarray(actual) - expected).max() <= tolerance * np.abs(expected).max()


def pair(name, seed=0):
    size, channels = 64 if name.startswith(("resnet", "mobilenet")) else 32, 1 if name.startswith("lenet") else 3
    torch.manual_seed(seed)
    reference = torch_models.randomize(torch_models.NETWORKS[name](10), seed)
    images = np.random.default_rng(seed).normal(size=(8, size, size, channels)).astype(np.float32)
    return reference, create_classifier(name, 10), torch_models.flax_variables(reference), images


def nchw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("name", REFERENCES)
def test_forward_pass_equals_pytorch(name):
    reference, module, variables, images = pair(name)
    with torch.no_grad():
        expected, expected_features = reference.eval()(nchw(images))
    logits, features = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images)
    close(logits, expected)
    for feature, other in zip(features, expected_features, strict=True):
        close(feature, other)


def test_scorer_head_equals_pytorch():
    torch.manual_seed(0)
    reference = torch_models.PUHead(96)
    features = [np.random.default_rng(i).normal(size=(5, width)).astype(np.float32) for i, width in enumerate((32, 64))]
    with torch.no_grad():
        expected = reference([torch.from_numpy(f) for f in features])
    variables = torch_models.flax_variables(reference)
    close(PUScorer(gate=True).apply(variables, tuple(features)), expected, 1e-5)


def three_steps(reference, apply, variables, images, losses, *, learning_rate):
    """Take three SGD steps with both frameworks; compare losses, then parameters and running statistics.

    Args:
        reference: PyTorch module.
        apply: Flax `apply` of the same network.
        variables: its Flax variables.
        images: [B, H, W, C].
        losses: PyTorch's and JAX's functions of what the networks return.
        learning_rate: small, for float32 rounding differs between the frameworks and grows along the trajectory.
    """
    optimizer = torch.optim.SGD(reference.parameters(), learning_rate, momentum=0.9, weight_decay=5e-3)
    tx = make_optimizer(
        DistillConfig(learning_rate=learning_rate, momentum=0.9, weight_decay=5e-3, schedule="constant")
    )
    state = init_state(variables, tx)

    @jax.jit
    def step(state):
        def loss_fn(params):
            inputs = {"params": params, "batch_stats": state.batch_stats}
            outputs, mutated = apply(inputs, images, train=True, mutable=["batch_stats"])
            return losses[1](outputs), mutated["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return state.replace(
            params=optax.apply_updates(state.params, updates), batch_stats=stats, opt_state=opt_state
        ), loss

    reference.train()
    for _ in range(3):
        optimizer.zero_grad()
        expected = losses[0](reference(nchw(images)))
        expected.backward()
        optimizer.step()
        state, loss = step(state)
        assert float(loss) == pytest.approx(expected.item(), rel=1e-4)
    after = torch_models.flax_variables(reference)
    jax.tree.map(close, state.batch_stats, after["batch_stats"])
    jax.tree.map(close, state.params, after["params"])
    return state.params


@pytest.mark.parametrize(
    ("name", "learning_rate"), [("cifar_resnet18", 1e-4), pytest.param("cifar_resnet34", 3e-5, marks=pytest.mark.slow)]
)
def test_three_sgd_steps_and_running_statistics_equal_pytorch(name, learning_rate):
    reference, module, variables, images = pair(name)
    labels = np.arange(8) % 10
    losses = (
        lambda outputs: torch.nn.functional.cross_entropy(outputs[0], torch.from_numpy(labels)),
        lambda outputs: optax.softmax_cross_entropy_with_integer_labels(outputs[0], labels).mean(),
    )
    params = three_steps(reference, module.apply, variables, images, losses, learning_rate=learning_rate)
    moved = np.abs(params["conv1"]["kernel"] - variables["params"]["conv1"]["kernel"]).max()
    assert moved > 5e-4 * np.abs(variables["params"]["conv1"]["kernel"]).max()  # five times the tolerance


def test_the_scorer_and_three_steps_on_its_clipped_risk_equal_pytorch():
    backbone, module, _, images = pair("cifar_resnet10_w8")
    reference = torch_models.Scorer(backbone, torch_models.PUHead(120))
    reference.head.linear.weight.data *= 20  # fresh heads give logits near zero, and the negative risk is clipped late
    variables = torch_models.flax_variables(reference)
    net = PUNet(module, PUScorer(gate=True))
    with torch.no_grad():
        pu_logits = reference.eval()(nchw(images)).numpy()
        close(jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, images), pu_logits)
        pu_logits = reference.train()(nchw(images)).numpy()
    labelled = pu_logits > np.median(pu_logits)
    variables = torch_models.flax_variables(reference)  # the pass above moved the running statistics
    options = {"class_prior": 0.9, "beta": 0.0, "gamma": 1.0, "surrogate": "sigmoid"}
    losses = (
        lambda z: torch_models.nnpu(z, torch.from_numpy(labelled), 0.9),
        lambda z: nnpu_risk(z, labelled, **options)[0],
    )
    assert nnpu_risk(jnp.asarray(pu_logits), labelled, **options)[1]["negative_risk"] < -0.1
    three_steps(reference, net.apply, variables, images, losses, learning_rate=2e-2)


@pytest.mark.parametrize("shape", [(6, 5, 7, 3), (9, 4)])
def test_batch_norm_gradients_equal_pytorch(shape):
    rng = np.random.default_rng(0)
    x, out_gradient = (rng.normal(2, 3, size=shape).astype(np.float32) for _ in range(2))
    scale, bias = (rng.normal(size=shape[-1]).astype(np.float32) for _ in range(2))
    layer = BatchNorm()
    stats = {"mean": jnp.zeros(shape[-1]), "var": jnp.ones(shape[-1])}

    def apply(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])

    y, pullback, updated = jax.vjp(apply, x, scale, bias, has_aux=True)
    inputs = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (x, scale, bias)]
    mean, var = torch.zeros(shape[-1]).double(), torch.ones(shape[-1]).double()
    flat = inputs[0].reshape(-1, shape[-1])
    expected = torch.nn.functional.batch_norm(flat, mean, var, *inputs[1:], training=True).reshape(shape)
    gradients = torch.autograd.grad(expected, inputs, torch.tensor(out_gradient).double())
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], var, rtol=1e-5)
    for ours, theirs in zip(pullback(jnp.asarray(out_gradient)), gradients):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "size", "pad", "height", "width", "channels"),
    [
        (2, 3, 1, 9, 8, 3),  # by phases
        (2, 3, 1, 8, 8, 3),
        (2, 1, 0, 8, 7, 3),
        (2, 7, 3, 12, 11, 3),
        (1, 3, 1, 7, 8, 3),  # columns taken together
        (1, 3, 1, 5, 6, 8),
        (1, 5, 0, 9, 14, 1),
        (1, 3, 0, 6, 12, 4),
        (1, 3, 1, 2, 1, 9),  # as one matrix product
        (1, 3, 0, 4, 3, 2),
        (1, 3, 1, 6, 7, 8),  # as they are
        (1, 3, 1, 6, 8, 9),
        (1, 1, 0, 4, 4, 2),
    ],
)
def test_recast_convolutions_equal_the_plain_one(stride, size, pad, height, width, channels):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, height, width, channels)), rng.normal(size=(size, size, channels, 4))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 1}
    with jax.enable_x64():
        results = []
        for convolve in (cpu_conv, jax.lax.conv_general_dilated):

            def loss(x, kernel, convolve=convolve):
                out = convolve(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), **options)
                return jnp.sum(out * jnp.sin(jnp.arange(out.size)).reshape(out.shape)), out

            results.append(jax.grad(loss, argnums=(0, 1), has_aux=True)(jnp.asarray(x), jnp.asarray(kernel)))
    for ours, theirs in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("stride", "size", "pads", "height", "width"),
    [
        (1, 3, ((1, 1), (1, 1)), 5, 6),
        (2, 3, ((1, 1), (1, 1)), 8, 7),
        (2, 5, "SAME", 8, 9),
        (3, 3, ((0, 1), (2, 0)), 9, 8),
        (1, 7, ((3, 3), (3, 3)), 4, 5),
    ],
)
def test_depthwise_convolutions_equal_the_plain_one(stride, size, pads, height, width):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, height, width, 6)), rng.normal(size=(size, size, 1, 6))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 6}
    with jax.enable_x64():
        results = []
        for convolve in (cpu_conv, jax.lax.conv_general_dilated):

            def loss(x, kernel, convolve=convolve):
                out = convolve(x, kernel, (stride, stride), pads, **options)
                return jnp.sum(out * jnp.sin(jnp.arange(out.size)).reshape(out.shape)), out

            gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
            unoptimised = jax.jit(gradient, compiler_options={"xla_backend_optimization_level": 0})
            results.append(unoptimised(jnp.asarray(x), jnp.asarray(kernel)))
    for ours, theirs in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("height", "width"), [(5, 9), (7, 7), (16, 8)])
def test_adaptive_pooling_equals_pytorch(height, width):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(nchw(x), 7).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(adaptive_mean(jnp.asarray(x), [7, 7]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [8, 9])
def test_tensorflows_padding_puts_the_odd_pixel_behind(size):
    block = InvertedResidual(3, 6, jnp.float32, stride=2, dialect=Dialect(1e-3, same_padding=True))
    x = np.random.default_rng(0).normal(size=(2, size, size, 6)).astype(np.float32)
    variables = block.init(jax.random.key(0), x, train=False)
    kernels = [variables["params"][name]["kernel"] for name in ("depthwise_conv", "project_conv")]
    depthwise, project = (torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1)) for kernel in kernels)
    before = (size - 1) // 2 * 2 + 3 - size >> 1
    padded = torch.nn.functional.pad(nchw(x), (before, 1, before, 1))
    hidden = torch.nn.functional.conv2d(padded, depthwise, stride=2, groups=6) / np.sqrt(1 + 1e-3)
    expected = torch.nn.functional.conv2d(torch.nn.functional.relu6(hidden), project) / np.sqrt(1 + 1e-3)
    close(block.apply(variables, x, train=False), expected.numpy().transpose(0, 2, 3, 1), 1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v3_small_x0.25", "vgg11_bn_x0.0625", "vit_s16"])
def test_a_student_has_a_gradient_for_every_parameter_and_new_statistics(name):
    module, variables = abstract_variables(name)

    def loss(params, x):
        inputs = {**variables, "params": params}
        (logits, _), mutated = module.apply(inputs, x, train=True, mutable=["batch_stats"])
        return jnp.sum(logits[:, 0]), mutated

    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    gradients, mutated = jax.eval_shape(jax.grad(loss, has_aux=True), variables["params"], images)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, variables["params"])
    assert jax.tree.structure(mutated.get("batch_stats", {})) == jax.tree.structure(variables.get("batch_stats", {}))


def test_a_block_learns_and_its_statistics_move():
    gate = Gate(8, jax.nn.relu, jax.nn.hard_sigmoid)
    block = InvertedResidual(4, 16, jnp.float32, 3, 1, jax.nn.hard_swish, gate)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 4)).astype(np.float32)
    unoptimised = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

    @unoptimised
    def step(variables):
        def loss(params):
            y, mutated = block.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.square(y - 2 * x)), mutated

        (value, mutated), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, {"params": jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradient), **mutated}

    first = variables = unoptimised(functools.partial(block.init, train=False))(jax.random.key(0), x)
    values = []
    for _ in range(10):
        value, variables = step(variables)
        values.append(float(value))
    assert values[-1] < 0.9 * values[0]
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first["batch_stats"], variables["batch_stats"])
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_a_symbolic_batch_goes_through_max_pooling():
    (batch,) = jax.export.symbolic_shape("b")
    pooled = jax.eval_shape(max_pool, jax.ShapeDtypeStruct((batch, 6, 6, 3), jnp.float32))
    assert pooled.shape == (batch, 3, 3, 3)


def test_a_width_multiplier_scales_a_network():
    assert create_classifier("mobilenet_v2_x1.0", 10) == create_classifier("mobilenet_v2", 10)
    half = abstract_variables("cifar_resnet18_x0.25")[1]
    assert jax.tree.map(jnp.shape, half) == jax.tree.map(jnp.shape, abstract_variables("cifar_resnet18_w16")[1])
    half = abstract_variables("lenet5_x0.5", channels=1)[1]
    assert jax.tree.map(jnp.shape, half) == jax.tree.map(jnp.shape, abstract_variables("lenet5_half", channels=1)[1])
    with pytest.raises(ValueError, match=r"vit_s16 has no width multiplier, so there is no 'vit_s16_x0\.5'"):
        create_classifier("vit_s16_x0.5", 10)
    with pytest.raises(ValueError, match="must be above 0"):
        create_classifier("mobilenet_v2_x0.0", 10)


def test_what_a_model_cannot_take_is_refused():
    with pytest.raises(ValueError, match="did you mean 'cifar_resnet18'"):
        create_classifier("cifar_resnet_18", 10)
    with pytest.raises(ValueError, match=r"did you mean 'mobilenet_v2_x0\.5'"):
        create_classifier("mobilenet_2_x0.5", 10)
    with pytest.raises(UserError, match=r"a multiple of 16 pixels, .*; set data\.image_size to one"):
        abstract_variables("vit_s16", size=40)
    with pytest.raises(UserError, match=r"at least 32x32 pixels, .*; raise data\.image_size"):
        abstract_variables("lenet5", channels=1, size=28)


def test_bfloat16_computes_narrow_and_keeps_wide():
    module = create_classifier("cifar_resnet10_w8", 10, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    variables = module.init(jax.random.key(0), images, train=False)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    (logits, _), mutated = module.apply(variables, images, train=True, mutable=["batch_stats"])
    wide, _ = create_classifier("cifar_resnet10_w8", 10).apply(variables, images, train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(mutated))
    assert 0 < np.abs(logits - wide[0]).max() < 0.1
