"""Convolution, linear and BatchNorm layers that initialise and compute as PyTorch's do, in NHWC."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for weights, has variance 1/(3 fan_in).
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int) -> Callable[..., jax.Array]:
    return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)


def conv(
    features: int, size: int, *, stride: int = 1, padding: int = 0, groups: int = 1, dtype: jnp.dtype, name: str
) -> nn.Conv:
    """Return a square convolution without bias and with explicit symmetric padding."""
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=KERNEL_INIT,
        dtype=dtype,
        name=name,
    )


def biased_conv(features: int, size: int, in_features: int, *, dtype: jnp.dtype, name: str) -> nn.Conv:
    """Return a square VALID convolution with bias."""
    bias_init = _bias_init(size * size * in_features)
    return nn.Conv(
        features, (size, size), padding=0, kernel_init=KERNEL_INIT, bias_init=bias_init, dtype=dtype, name=name
    )


def linear(features: int, in_features: int, *, dtype: jnp.dtype, name: str) -> nn.Dense:
    """Return a linear layer with bias."""
    bias_init = _bias_init(in_features)
    return nn.Dense(features, kernel_init=KERNEL_INIT, bias_init=bias_init, dtype=dtype, name=name)


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis, with PyTorch's constants.

    Note: the running variance takes the unbiased batch variance, as in PyTorch; Flax's own layer takes the
    biased one. Statistics are of the global batch and always float32.
    """

    dtype: jnp.dtype = jnp.float32
    epsilon: float = 1e-5
    momentum: float = 0.1  # share of the new batch in the running statistics

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalise [..., C]; with `train` by the batch's statistics, which also move the running ones."""
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        if train:
            wide = x.astype(jnp.float32)
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(wide, axes)
            var = jnp.mean(jnp.square(wide - mean), axes)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x * factor.astype(self.dtype) + (bias - mean * factor).astype(self.dtype)).astype(self.dtype)


def global_mean(x: jax.Array) -> jax.Array:
    """Return the float32 spatial mean [B, C] of [B, H, W, C]."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def require_size(x: jax.Array, smallest: int, model: str) -> None:
    """Raise ValueError unless x [B, H, W, C] is at least `smallest` high and wide."""
    if x.ndim != 4 or min(x.shape[1:3]) < smallest:
        raise ValueError(
            f"{model} takes images [batch, height, width, channels] of at least {smallest}x{smallest} pixels, "
            f"not {x.shape}; raise data.image_size"
        )
