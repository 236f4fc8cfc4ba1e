"""Convolution, linear and BatchNorm layers that initialise and compute as PyTorch's do, in NHWC."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from pujax.errors import UserError

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for weights, has variance 1/(3 fan_in).
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int) -> Callable[..., jax.Array]:
    return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)


def conv(
    features: int, size: int, *, stride: int = 1, padding: int | str = 0, groups: int = 1, dtype: jnp.dtype, name: str
) -> nn.Conv:
    """Return a square convolution without bias; padding is a number for all sides, or TensorFlow's "SAME"."""
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=KERNEL_INIT,
        conv_general_dilated=_convolution(),
        dtype=dtype,
        name=name,
    )


_CONV_OPTIONS = ("strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
                 "precision", "preferred_element_type")  # fmt: skip
# Part of what jax.jit's caches look at, so that a function traced for one platform is traced again for another.
_platform = jax.make_user_context()


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Trace networks in the forms that are fast on a platform, as `jax.Device.platform` names it; also a decorator.

    Without it they are traced for JAX's default backend. `sharding.traced_on` takes the platform from a mesh.

    Note: these forms are chosen by the one who traces, and not by `jax.lax.platform_dependent`: that would trace and
    differentiate both forms of every layer, and keep for the backward pass what either of them needs.
    """
    with _platform(platform):
        yield


def plain_convolutions() -> contextlib.AbstractContextManager[None]:
    """Trace networks with XLA's own convolutions and pooling on every backend: to count, to compare, to export."""
    return traced_for("any")


def _for_cpu() -> bool:
    return (_platform.value or jax.default_backend()) == "cpu"


def _convolution() -> Callable[..., jax.Array] | None:
    """Return what computes a convolution; None is Flax's own choice."""
    return cpu_conv if _for_cpu() else None


def cpu_conv(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Convolve as `lax.conv_general_dilated` does, in a form that XLA:CPU computes faster.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C / groups, features].
        strides: two numbers.
        padding: ((before, after), (before, after)), or "SAME" or "VALID".
        **options: further arguments of `lax.conv_general_dilated`.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _cpu_conv(x, kernel, strides=tuple(strides), padding=tuple(map(tuple, padding)), **options)


# Compiled apart for its name alone: whoever reads a traced network sees one operation, not its pieces.
@functools.partial(jax.jit, static_argnames=_CONV_OPTIONS)
def _cpu_conv(x: jax.Array, kernel: jax.Array, *, strides: Any, padding: Any, **options: Any) -> jax.Array:
    if options["feature_group_count"] > 1:
        if kernel.shape[2] == 1 and kernel.shape[3] == x.shape[-1]:
            return depthwise_conv(x, kernel, strides, padding)
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if strides == (2, 2):
        return phase_conv(x, kernel, padding, **options)
    if strides == (1, 1):
        rows, columns = (n + sum(pad) - size + 1 for n, pad, size in zip(x.shape[1:3], padding, kernel.shape))
        if max(rows, columns) <= _TINY:
            return patch_conv(x, kernel, padding)
        return narrow_conv(x, kernel, padding)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


_TINY = 2  # pixels; XLA:CPU takes up to 70 times as long for outputs of 2x2 as for 3x3 with as many channels
CPU_CONV = _cpu_conv.__name__  # of the operation in a traced network


def patch_conv(x: jax.Array, kernel: jax.Array, padding: Any) -> jax.Array:
    """Convolve with stride 1 as one matrix product over all patches; arguments as for `narrow_conv`."""
    patches = jnp.concatenate(_shifted_images(x, kernel, (1, 1), padding), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


@functools.partial(jax.jit, static_argnums=(2, 3))  # traced once for all blocks of one shape
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    """Convolve every channel with its own kernel: a sum of shifted images, each times one number a channel.

    XLA:CPU takes 5 to 20 times as long for its own grouped convolution, with the gradients 4 to 9 times. The gradient
    here is in closed form: another depthwise convolution, and k * k means of products.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, 1, C].
        strides: two numbers.
        padding: ((before, after), (before, after)).
    """
    terms = [
        shifted.astype(jnp.promote_types(x.dtype, jnp.float32)) * _per_channel(weight[0], x)
        for shifted, weight in zip(_shifted_images(x, kernel, strides, padding), kernel.reshape(-1, *kernel.shape[2:]))
    ]
    return sum(terms[1:], terms[0]).astype(x.dtype)


def _shifted_images(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> list[jax.Array]:
    """Return, for every entry of the kernel, the pixels of x [B, H, W, C] that it meets, [B, H', W', C]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = ((n - size) // stride * stride + 1 for n, size, stride in zip(x.shape[1:3], kernel.shape, strides))
    return [
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]


def _depthwise_forward(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> tuple[jax.Array, Any]:
    return depthwise_conv(x, kernel, strides, padding), (x, kernel)


def _depthwise_backward(strides: Any, padding: Any, residuals: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    kernel_gradient = _depthwise_kernel_gradient(x, kernel, strides, padding, gradient)
    # Back to the pixels of x: zeros between the outputs where the stride is larger than one.
    spread = []
    for size, n, width, stride, (before, _) in zip(kernel.shape, x.shape[1:3], gradient.shape[1:3], strides, padding):
        low = size - 1 - before
        spread.append((low, n + size - 1 - low - ((width - 1) * stride + 1), stride - 1))
    edges = (0, 0, 0)
    gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), (edges, *spread, edges))
    none = ((0, 0), (0, 0))
    return depthwise_conv(gradient, jnp.flip(kernel, (0, 1)), (1, 1), none), kernel_gradient


def _depthwise_kernel_gradient(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, gradient: jax.Array
) -> jax.Array:
    """Return the gradient of a depthwise kernel, by sums over one row of the outputs after the other.

    What a row reads is in the cache for all entries of the kernel: 3 to 7 times as fast as entry after entry.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def add_row(row: jax.Array, total: jax.Array) -> jax.Array:
        own = lax.dynamic_slice_in_dim(gradient, row, 1, axis=1)
        reached = lax.dynamic_slice_in_dim(x, row * strides[0], kernel.shape[0], axis=1)
        products = [shifted * own for shifted in _shifted_images(reached, kernel, strides, ((0, 0), (0, 0)))]
        return total + jnp.stack([jnp.sum(product.astype(total.dtype), axis=(1, 2)) for product in products])

    entries = kernel.shape[0] * kernel.shape[1]
    zeros = jnp.zeros((entries, x.shape[0], x.shape[-1]), jnp.promote_types(x.dtype, jnp.float32))
    total = lax.fori_loop(0, gradient.shape[1], add_row, zeros)  # of every image by itself, for they are on devices
    return jnp.sum(total, axis=1).reshape(kernel.shape).astype(kernel.dtype)


depthwise_conv.__wrapped__.defvjp(_depthwise_forward, _depthwise_backward)


def phase_conv(x: jax.Array, kernel: jax.Array, padding: Any, **options: Any) -> jax.Array:
    """Convolve with stride 2, in stride-1 convolutions; arguments as for `cpu_conv`.

    Each of the four phases of the image, its even or odd rows and columns, meets the part of the kernel that falls on
    it. XLA:CPU takes the gradient of a strided convolution over an image stuffed with zeros, at four times the work.
    """
    size = kernel.shape[0]
    height, width = ((n + sum(pad) - size) // 2 + 1 for n, pad in zip(x.shape[1:3], padding))  # of the output
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    phases = [
        lax.conv_general_dilated(
            x[:, i::2, j::2][:, : height + (size - 1 - i) // 2, : width + (size - 1 - j) // 2],
            kernel[i::2, j::2],
            (1, 1),
            "VALID",
            **options,
        )
        for i in range(min(2, size))
        for j in range(min(2, size))
    ]
    return sum(phases[1:], phases[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def narrow_conv(x: jax.Array, kernel: jax.Array, padding: Any) -> jax.Array:
    """Convolve with stride 1; where the image has few channels, several neighbouring columns are taken for one.

    XLA:CPU copies every patch of the image, pixel by pixel of the output, before it multiplies. Of g columns taken
    together, which is a reshape, it makes g outputs from two neighbours: fewer and longer copies for some
    multiplications by zero. With up to eight channels that is 1.7 to 4 times as fast. The kernel's gradient keeps to
    the plain form, which is faster there.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C, features].
        padding: ((before, after), (before, after)).
    """
    size, _, channels, features = kernel.shape
    width = x.shape[2] + sum(padding[1]) - size + 1  # of the output
    groups = range(max(size - 1, 4 if channels <= 4 else 2), 9)  # a group must hold the reach of the kernel
    group = next((group for group in groups if width % group == 0), None)
    if size == 1 or channels > 8 or group is None:
        return _plain_conv(x, kernel, padding)
    left = padding[1][0]
    x = jnp.pad(x, ((0, 0), (0, 0), (left, width + group - x.shape[2] - left), (0, 0)))
    x = x.reshape(*x.shape[:2], -1, group * channels)
    shifted = [jnp.pad(kernel, ((0, 0), (i, 2 * group - size - i), (0, 0), (0, 0))) for i in range(group)]
    wide = jnp.stack(shifted, axis=-2).reshape(size, 2, group * channels, group * features)
    y = _plain_conv(x, wide, (padding[0], (0, 0)))
    return y.reshape(*y.shape[:2], width, features)


def _plain_conv(x: jax.Array, kernel: jax.Array, padding: Any) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _narrow_forward(x: jax.Array, kernel: jax.Array, padding: Any) -> tuple[jax.Array, Any]:
    return narrow_conv(x, kernel, padding), (x, kernel)


def _narrow_backward(padding: Any, residuals: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    _, kernel_gradient = jax.vjp(lambda k: _plain_conv(x, k, padding), kernel)
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    reach = tuple((kernel.shape[0] - 1 - before, kernel.shape[0] - 1 - after) for before, after in padding)
    return narrow_conv(gradient, turned, reach), *kernel_gradient(gradient)


narrow_conv.defvjp(_narrow_forward, _narrow_backward)


def biased_conv(
    features: int,
    size: int,
    in_features: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    dtype: jnp.dtype,
    name: str,
) -> nn.Conv:
    """Return a square convolution with bias, over `in_features` channels."""
    bias_init = _bias_init(size * size * in_features // groups)
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding,
        feature_group_count=groups,
        kernel_init=KERNEL_INIT,
        bias_init=bias_init,
        conv_general_dilated=_convolution(),
        dtype=dtype,
        name=name,
    )


def linear(features: int, in_features: int, *, dtype: jnp.dtype, name: str) -> nn.Dense:
    """Return a linear layer with bias."""
    bias_init = _bias_init(in_features)
    return nn.Dense(features, kernel_init=KERNEL_INIT, bias_init=bias_init, dtype=dtype, name=name)


def layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """Return a layer normalisation over the last axis, with the constants of the PyTorch vision networks."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


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
        """Normalise [..., C]; with `train` by the batch's statistics, which also move the running ones.

        Where `folding` has left no more of it than a bias, only that is added.
        """
        x, features = x.astype(self.dtype), x.shape[-1:]
        if not train and self.has_variable("params", "bias") and not self.has_variable("params", "scale"):
            return x + _per_channel(self.get_variable("params", "bias"), x).astype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        if not train:
            return _scale_and_shift(x, scale, bias, running_mean.value, running_var.value, self.epsilon)
        y, mean, var = _normalize_by_batch(x, scale, bias, running_mean.value, self.epsilon, _for_cpu())
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            mean, var = jax.lax.stop_gradient((mean, var))
            running_mean.value += self.momentum * (mean - running_mean.value)
            running_var.value += self.momentum * (var * (count / max(count - 1, 1)) - running_var.value)
        return y


def _scale_and_shift(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> jax.Array:
    factor = scale * jax.lax.rsqrt(var + epsilon)
    factor, shift = _per_channel(factor, x), _per_channel(bias - mean * factor, x)
    return (x * factor.astype(x.dtype) + shift.astype(x.dtype)).astype(x.dtype)


def _per_channel(values: jax.Array, x: jax.Array) -> jax.Array:
    """Return values [C] in a shape, [1, ..., C], that broadcasts to x [..., C]."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _normalize_by_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, near: jax.Array, epsilon: float, for_cpu: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (normalised x [..., C], batch mean [C], biased batch variance [C]).

    Gradients are those of the first output alone, in closed form: two passes over x where differentiation of the
    definition makes four.

    Args:
        x: [..., C].
        scale: [C].
        bias: [C].
        near: [C], what is subtracted for rounding's sake, the same on all devices: something near the batch's mean.
        epsilon: added to the variance.
        for_cpu: which form of the sums is taken.
    """
    mean, var = _two_pass_statistics(x) if for_cpu else _one_pass_statistics(x, near)
    return _scale_and_shift(x, scale, bias, mean, var, epsilon), mean, var


def _two_pass_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean [C] and biased variance [C] of x [..., C]; with `_channel_mean` three times as fast on a CPU."""
    wide = x.astype(jnp.float32)
    mean = _channel_mean(wide)
    return mean, _channel_mean(jnp.square(wide - _per_channel(mean, x)))


def _one_pass_statistics(x: jax.Array, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean [C] and biased variance [C] of x [..., C], by reading x once and one all-reduce.

    Note: the variance is as exact as float32 allows while the mean is some standard deviations away from `near`. With
    the running mean there that holds from the first steps on; at a distance of d deviations the relative error is about
    1e-7 d^2, and it goes as the running mean comes near.
    """
    centred = x.astype(jnp.float32) - _per_channel(near, x)
    mean, square = _channel_means(centred, jnp.square(centred))
    return near + mean, jnp.maximum(square - jnp.square(mean), 0)


def _normalize_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, near: jax.Array, epsilon: float, for_cpu: bool
) -> tuple[Any, Any]:
    outputs = _normalize_by_batch(x, scale, bias, near, epsilon, for_cpu)
    _, mean, var = outputs
    return outputs, (x, scale, mean, jax.lax.rsqrt(var + epsilon))


def _normalize_backward(epsilon: float, for_cpu: bool, residuals: Any, gradients: Any) -> tuple[Any, ...]:
    x, scale, mean, inverse = residuals
    gradient, count = gradients[0].astype(jnp.float32), x.size // x.shape[-1]
    centred = (x.astype(jnp.float32) - _per_channel(mean, x)) * _per_channel(inverse, x)
    if for_cpu:
        gradient_mean, projection = _channel_mean(gradient), _channel_mean(gradient * centred)
    else:
        gradient_mean, projection = _channel_means(gradient, gradient * centred)
    along = gradient - _per_channel(gradient_mean, x) - centred * _per_channel(projection, x)
    dx = _per_channel(scale * inverse, x) * along
    return dx.astype(x.dtype), projection * count, gradient_mean * count, None


_normalize_by_batch.defvjp(_normalize_forward, _normalize_backward)


def _channel_mean(x: jax.Array) -> jax.Array:
    """Return the mean [C] of [..., C]; a row of the image is summed as one long vector, for C may be short."""
    rows = x.reshape(-1, *x.shape[-2:]) if x.ndim > 2 else x[:, None]
    summed = jnp.sum(rows.reshape(len(rows), -1), axis=0).reshape(rows.shape[1:])
    return jnp.sum(summed, axis=0) / (x.size // x.shape[-1])


def _channel_means(*arrays: jax.Array) -> jax.Array:
    """Return the means [n, C] of n arrays [B, ..., C].

    First over each image, which no other device has a part in, and then over the batch, of all of them as one array:
    so there is one all-reduce.
    """
    of_images = jnp.stack([jnp.mean(x, axis=tuple(range(1, x.ndim - 1))) for x in arrays])
    return jnp.mean(of_images, axis=1)


def max_pool(x: jax.Array) -> jax.Array:
    """Return the largest of every 2x2 pixels, [B, H // 2, W // 2, C] of [B, H, W, C].

    A tie shares its gradient, where PyTorch gives it to the first; after a ReLU ties are zeros, and get none. The
    gradient is ten times as fast as that of `nn.max_pool` on a CPU.
    """
    if not _for_cpu():
        return nn.max_pool(x, (2, 2), (2, 2))
    height, width = (n // 2 for n in x.shape[1:3])
    blocks = x[:, : 2 * height, : 2 * width].reshape(x.shape[0], height, 2, width, 2, x.shape[-1])
    return jnp.max(blocks, axis=(2, 4))


def global_mean(x: jax.Array) -> jax.Array:
    """Return the float32 spatial mean [B, C] of [B, H, W, C]."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def make_divisible(channels: float) -> int:
    """Return the multiple of eight next to a number of channels, never more than a tenth below it.

    Reference: torchvision's rule for the MobileNets and EfficientNets, after TensorFlow's.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def scaled(channels: int, multiplier: float) -> int:
    """Return the whole number of channels next to `channels * multiplier`, at least one."""
    return max(1, int(channels * multiplier + 0.5))


def require_size(x: jax.Array, smallest: int, model: str) -> None:
    """Raise UserError unless x [B, H, W, C] is at least `smallest` high and wide."""
    if x.ndim != 4 or min(x.shape[1:3]) < smallest:
        raise UserError(
            f"{model} takes images [batch, height, width, channels] of at least {smallest}x{smallest} pixels, "
            f"not {x.shape}; raise data.image_size"
        )
