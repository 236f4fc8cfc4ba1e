"""int8 simulated in training rounds what an int8 file rounds, and lets gradients through."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pujax.models.layers import plain_convolutions
from pujax.networks import Preprocessing, abstract_network, init_network
from pujax.quantization import int8_forward, round_tensor, round_weights, simulate_int8


def by_steps(x, low, high):
    """x rounded to 256 numbers of which zero is one; in float64, by looking for the nearest."""
    step = (high - low) / 255
    numbers = (np.arange(256) + np.round(low / step)) * step
    return numbers[np.abs(np.asarray(x, np.float64)[..., None] - numbers).argmin(-1)]


@pytest.mark.parametrize("shift", [0.0, 1.7, -1.7])
def test_a_tensor_is_rounded_between_its_ends_and_zero(shift):
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) + np.float32(shift)
    np.testing.assert_allclose(round_tensor(x), by_steps(x, min(x.min(), 0), max(x.max(), 0)), rtol=1e-5, atol=1e-6)
    assert not np.asarray(round_tensor(jnp.zeros(3))).any()


def test_weights_have_a_step_a_channel():
    weights = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32) * np.float32([1, 10, 0.1, 5, 0])
    rounded = np.asarray(round_weights(weights, (3,)))
    for k in range(4):
        numbers = np.round(rounded[..., k] / np.abs(weights[..., k]).max() * 127, 3)
        assert np.array_equal(numbers, np.round(numbers)) and np.abs(numbers).max() == 127
        assert np.abs(rounded[..., k] - weights[..., k]).max() <= 0.5001 * np.abs(weights[..., k]).max() / 127
    assert not rounded[..., 4].any()


class Block(nn.Module):
    """A residual block with a gate, and a layer behind it."""

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(6, (3, 3), use_bias=False)(x)
        y = nn.relu(
            y * self.param("factor", nn.initializers.ones, (6,)).reshape(1, 1, 1, 6) + 0.3
        )  # a BatchNorm with fixed statistics
        z = nn.relu6(x + y)
        z = z * nn.sigmoid(jnp.mean(z, axis=(1, 2), keepdims=True))
        return nn.Dense(4)(jnp.mean(z, axis=(1, 2)))


def test_what_an_int8_file_rounds_is_rounded_and_nothing_else():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 5, 6)).astype(np.float32)
    block = Block()
    variables = block.init(jax.random.key(0), x)
    variables["params"]["factor"] = jnp.asarray(rng.uniform(0.5, 2, 6), jnp.float32)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])

    def rounded(value):
        return by_steps(value, min(value.min(), 0), max(value.max(), 0))

    def weights(kernel):
        step = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(0) / 127
        return np.round(kernel / step) * step

    def convolve(value, kernel):
        padded = np.pad(value, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return sum(padded[:, i : i + 5, j : j + 5] @ kernel[i, j] for i in range(3) for j in range(3))

    y = np.maximum(convolve(rounded(x), weights(params["Conv_0"]["kernel"])) * params["factor"] + 0.3, 0)
    z = np.clip(rounded(x) + rounded(y), 0, 6)
    z = rounded(z) * rounded(1 / (1 + np.exp(-z.mean((1, 2), keepdims=True))))
    expected = rounded(rounded(z.mean((1, 2))) @ weights(params["Dense_0"]["kernel"]) + params["Dense_0"]["bias"])
    found = simulate_int8(block.apply)(variables, x)
    # float32 against float64 may fall on either side of a step of the logits
    step = (max(expected.max(), 0) - min(expected.min(), 0)) / 255
    assert np.abs(found - expected).max() <= 1.01 * step
    assert np.abs(found - block.apply(variables, x)).max() > 0


def test_gradients_are_those_at_the_rounded_values():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    weights = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)), jnp.float32)}
    simulated = simulate_int8(lambda variables, x: x @ variables["w"])
    gradient = jax.grad(lambda weights: jnp.sum(jnp.sin(simulated(weights, x))))(weights)
    expected = round_tensor(x).T @ jnp.cos(simulated(weights, x))
    np.testing.assert_allclose(gradient["w"], expected, rtol=1e-5)


@pytest.mark.parametrize("model", ["cifar_resnet10_w8", "lenet5_half"])
def test_both_forms_of_convolutions_are_rounded_alike(model):
    """The forms that a CPU computes are one operation to the rounding, not the pieces they are made of."""
    seen = Preprocessing(image_size=32, channels=3, mean=(0.5,), std=(0.25,))
    network = init_network(
        abstract_network(model, num_classes=5, class_names=None, preprocessing=seen, dtype=jnp.dtype(jnp.float32)),
        jax.random.key(0),
    )
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    ours, statistics = jax.jit(lambda v: int8_forward(network, v, images))(network.variables)
    with plain_convolutions():
        plain, _ = jax.jit(lambda v: int8_forward(network, v, images))(network.variables)
    exact = jax.jit(lambda v: network.module.apply(v, images, train=False)[0])(network.variables)
    step = float(jnp.ptp(exact)) / 255
    assert float(jnp.abs(ours - plain).max()) <= 4 * step < float(jnp.ptp(exact))
    assert 0 < float(jnp.abs(ours - exact).max()) < 0.2 * float(jnp.ptp(exact))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), statistics, network.variables.get("batch_stats", {}))
    )
