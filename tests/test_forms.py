"""The forms of layers on each platform: which is traced, that they agree, and what devices tell each other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pujax.inference import compile_map
from pujax.models import create_classifier
from pujax.models.layers import CPU_CONV, BatchNorm, conv, max_pool, traced_for
from pujax.sharding import make_mesh, shard_batch
from pujax.train import init_state, make_train_step

PLATFORMS = ("cpu", "tpu")
NAMED = {"dtype": jnp.float32, "name": "conv"}


def apply_batch_norm(platform, layer, statistics):
    """Return `(x, scale, bias) -> y, updated statistics` in a platform's form."""

    @traced_for(platform)
    def apply(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])

    return apply


def reference(x, scale, bias, out_gradient, epsilon=1e-5):
    """Return y, mean, variance, and the gradients of sum(y * out_gradient), in float64."""
    x, scale, bias, out_gradient = (np.asarray(value, np.float64) for value in (x, scale, bias, out_gradient))
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    inverse = 1 / np.sqrt(var + epsilon)
    centred = (x - mean) * inverse
    projection, total = (out_gradient * centred).sum(axes), out_gradient.sum(axes)
    count = x.size // x.shape[-1]
    dx = scale * inverse * (out_gradient - total / count - centred * projection / count)
    return centred * scale + bias, mean, var, (dx, projection, total)


def problem(shape, mean, deviation):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) + mean) * deviation
    return x.astype(np.float32), *(rng.normal(size=size).astype(np.float32) for size in (shape[-1:], shape[-1:], shape))


@pytest.mark.parametrize(("shape", "deviation"), [((16, 9, 9, 3), 1.0), ((16, 9, 9, 3), 0.01), ((64, 4), 30.0)])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_mean_of_a_thousand_deviations_costs_no_digits(platform, shape, deviation):
    """The running mean is some deviations away, as in training; what it moves by tells of the batch's."""
    x, scale, bias, out_gradient = problem(shape, 1000, deviation)
    near = np.float32(deviation * np.linspace(994, 1005, shape[-1]))
    statistics = {"mean": jnp.asarray(near), "var": jnp.full(shape[-1], deviation**2, jnp.float32)}
    apply = apply_batch_norm(platform, BatchNorm(epsilon=1e-5 * deviation**2, momentum=0.5), statistics)
    y, pullback, updated = jax.vjp(apply, x, scale, bias, has_aux=True)
    expected, mean, var, gradients = reference(x, scale, bias, out_gradient, 1e-5 * deviation**2)
    count = x.size // x.shape[-1]
    np.testing.assert_allclose(y, expected, atol=1e-3)  # of which float32 makes 2e-4: numbers of 1,000 times 1e-7
    np.testing.assert_allclose(2 * updated["batch_stats"]["mean"] - near, mean, rtol=1e-6)
    found = 2 * updated["batch_stats"]["var"] - deviation**2
    np.testing.assert_allclose(found, var * count / (count - 1), rtol=2e-5)
    for ours, theirs in zip(pullback(jnp.asarray(out_gradient)), gradients):
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("distance", [10, 100, 1000])
def test_a_fresh_layer_loses_digits_by_the_square_of_the_distance_and_finds_them_again(distance):
    x, scale, bias, out_gradient = problem((16, 9, 9, 3), distance, 1.0)
    statistics = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    expected, errors = reference(x, scale, bias, out_gradient)[0], []
    for _ in range(12):
        y, updated = apply_batch_norm("tpu", BatchNorm(momentum=0.5), statistics)(x, scale, bias)
        statistics = updated["batch_stats"]
        errors.append(float(np.abs(y - expected).max()))
    assert errors[0] <= 1e-6 * distance**2 and errors[-1] <= 1e-6 * distance


def zeros(module, shape):
    """Return variables for x of a shape."""
    shapes = jax.eval_shape(lambda rng: module.init(rng, jnp.zeros(shape), train=False), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def collectives(function, out_shardings, *arguments):
    """Return the kinds of what devices tell each other in a compiled function, one by one."""
    program = jax.jit(function, out_shardings=out_shardings).lower(*arguments).compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
    return re.findall(rf" ({kinds})(?:-start)?\(", program)


def split_over_devices(module, shape):
    """Return a module's variables, whole, and x of a shape, split over all devices; and both shardings."""
    mesh = make_mesh()
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    variables = zeros(module, (1, *shape[1:]))
    variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), variables)
    return variables, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split), split, whole


@pytest.mark.parametrize("shape", [(16, 8, 8, 4), (16, 4)])
def test_a_layer_has_one_all_reduce_forward_and_one_backward(shape):
    layer = BatchNorm()
    variables, x, split, whole = split_over_devices(layer, shape)

    @traced_for("tpu")
    def forward(variables, x):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])

    def both(variables, x, gradient):
        def of_params(params, x):
            return forward({**variables, "params": params}, x)

        y, pullback, statistics = jax.vjp(of_params, variables["params"], x, has_aux=True)
        return y, statistics, pullback(gradient)

    assert collectives(forward, (split, whole), variables, x) == ["all-reduce"]
    assert collectives(both, (split, whole, (whole, split)), variables, x, x) == ["all-reduce"] * 2


def test_a_network_has_no_more():
    module = create_classifier("cifar_resnet10_w8", 10)
    variables, x, split, _ = split_over_devices(module, (16, 32, 32, 3))

    @traced_for("tpu")
    def sensitivity(variables, x):
        def total(x):
            (logits, _), _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
            return jnp.sum(logits)

        return jax.grad(total)(x)

    layers = sum(path[-1].key == "var" for path, _ in jax.tree.leaves_with_path(variables))
    found = collectives(sensitivity, split, variables, x)
    assert set(found) == {"all-reduce"} and len(found) <= 2 * layers == 24  # those of layers side by side may be one


@pytest.mark.parametrize("platform", PLATFORMS)
def test_one_device_equals_eight(platform, meshes):
    x, scale, bias, out_gradient = problem((16, 9, 9, 3), 3, 2.0)
    apply = apply_batch_norm(platform, BatchNorm(), {"mean": jnp.full(3, 5.0), "var": jnp.ones(3)})

    @jax.jit
    def run(x, out_gradient):
        y, pullback, updated = jax.vjp(apply, x, scale, bias, has_aux=True)
        return y, updated, pullback(out_gradient)

    results = [run(*shard_batch(mesh, (x, out_gradient))) for mesh in meshes]
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-5)


def text(function, platform, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_program_for_another_platform_has_plain_operations(platform):
    """Four convolutions that a CPU computes otherwise: few channels, stride 2, tiny images, depthwise; and pooling."""

    def layers(x, kernels):
        for i, kernel in enumerate(kernels):
            groups = x.shape[-1] if kernel.shape[2] == 1 else 1
            layer = conv(kernel.shape[3], 3, stride=2 if i == 1 else 1, padding=1, groups=groups, **NAMED)
            x = layer.apply({"params": {"kernel": kernel}}, x)
        return jax.nn.relu(max_pool(x))

    sizes = [(3, 4), (4, 16), (1, 16), (16, 16)]
    kernels = [jax.ShapeDtypeStruct((3, 3, *size), jnp.float32) for size in sizes]
    for images in (jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32) for size in (4, 32)):
        with traced_for("gpu" if platform == "cuda" else platform):
            program = text(layers, platform, images, kernels)
        found = re.findall(r"stablehlo.convolution.*: \(tensor<\S+>, tensor<(\S+)xf32>\)", program)
        assert found == [f"3x3x{a}x{b}" for a, b in sizes]
        assert program.count("stablehlo.reduce_window") == 1 and CPU_CONV not in program
        own = text(layers, "cpu", images, kernels)  # the same function, after that
        assert CPU_CONV in own and "stablehlo.reduce_window" not in own


def test_the_mesh_says_the_platform_and_not_the_default_backend(monkeypatch):
    module = create_classifier("lenet5", 10)
    variables, images = zeros(module, (1, 32, 32, 1)), jnp.zeros((2, 32, 32, 1))
    mesh, plain = make_mesh(jax.devices()[:1]), "reduce_window"

    def logits(variables, x):
        return {"logits": module.apply(variables, x, train=False)[0]}

    def loss(params, batch_stats, frozen, batch, rng):
        return jnp.sum(module.apply({"params": params}, batch["image"], train=True)[0]), (batch_stats, {})

    tx = optax.sgd(0.1)
    state, rows = init_state(variables, tx), {"image": images, "index": jnp.arange(2)}
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert plain in text(logits, "cpu", variables, images)
    assert plain not in compile_map(logits, mesh).lower(variables, jnp.arange(2), images).as_text()
    step = jax.jit(make_train_step(loss, tx, mesh))
    assert plain not in step.lower({}, jax.random.key(0), state, rows).as_text()
