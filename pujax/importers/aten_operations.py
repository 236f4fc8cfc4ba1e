"""The ATen operations that image classifiers are made of, in JAX: `operation(name)` gives the function for one.

Each takes what PyTorch's operation takes, arrays for tensors, in PyTorch's layouts (images [B, C, H, W], kernels
[O, I / groups, k, k]). Memory layout and device say nothing here and are left out by the caller. 64-bit numbers are
32-bit ones. The first axis may be of symbolic size.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_HIGHEST = lax.Precision.HIGHEST  # for sums that stand for means and interpolations, on every backend


def operation(name: str) -> Callable[..., Any] | None:
    """Return the function for "aten.add.Tensor" or "_operator.mul", or None where there is none.

    What differs between overloads is found under the full name, all else under the name without the overload.
    """
    return OPERATIONS.get(name) or OPERATIONS.get(name.rpartition(".")[0])


# --- elementwise ----------------------------------------------------------------------------------------------


def _aligned(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` of operands that are given leading axes until they have one rank, as PyTorch broadcasts."""

    @functools.wraps(fn)
    def aligned(*operands: Any, **options: Any) -> Any:
        rank = max((x.ndim for x in operands if isinstance(x, jax.Array)), default=0)
        return fn(*(_with_rank(x, rank) for x in operands), **options)

    return aligned


def _with_rank(x: Any, rank: int) -> Any:
    if not isinstance(x, jax.Array) or x.ndim in (0, rank):
        return x
    return lax.expand_dims(x, range(rank - x.ndim))


@_aligned
def _add(x: Any, y: Any, *, alpha: Any = 1) -> jax.Array:
    return jnp.add(x, y if alpha == 1 else alpha * y)


@_aligned
def _sub(x: Any, y: Any, *, alpha: Any = 1) -> jax.Array:
    return jnp.subtract(x, y if alpha == 1 else alpha * y)


def _rsub(x: Any, y: Any, alpha: Any = 1) -> jax.Array:
    return _sub(y, x, alpha=alpha)


@_aligned
def _div(x: Any, y: Any, *, rounding_mode: str | None = None) -> jax.Array:
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    quotient = jnp.true_divide(x, y)
    return jnp.trunc(quotient).astype(jnp.result_type(x, y)) if rounding_mode == "trunc" else quotient


def _clamp(x: jax.Array, low: Any = None, high: Any = None) -> jax.Array:
    x = x if low is None else _aligned(jnp.maximum)(x, low)
    return x if high is None else _aligned(jnp.minimum)(x, high)


def _hardtanh(x: jax.Array, low: float = -1.0, high: float = 1.0) -> jax.Array:
    return jnp.clip(x, low, high)


def _hardsigmoid(x: jax.Array) -> jax.Array:
    return jnp.clip(x + 3, 0, 6) / 6


def _gelu(x: jax.Array, *, approximate: str = "none") -> jax.Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _elu(x: jax.Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> jax.Array:
    return scale * jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0) * input_scale))


def _leaky_relu(x: jax.Array, negative_slope: float = 0.01) -> jax.Array:
    return jnp.where(x > 0, x, negative_slope * x)


def _prelu(x: jax.Array, weight: jax.Array) -> jax.Array:
    if weight.ndim == 1 and x.ndim > 1:
        weight = weight.reshape(1, -1, *(1,) * (x.ndim - 2))
    return _aligned(jnp.where)(x > 0, x, _aligned(jnp.multiply)(weight, x))


def _softplus(x: jax.Array, beta: float = 1.0, threshold: float = 20.0) -> jax.Array:
    return jnp.where(x * beta > threshold, x, jax.nn.softplus(x * beta) / beta)


def _glu(x: jax.Array, dim: int = -1) -> jax.Array:
    value, gate = jnp.split(x, 2, dim)
    return value * jax.nn.sigmoid(gate)


def _masked_fill(x: jax.Array, mask: jax.Array, value: Any) -> jax.Array:
    return _aligned(jnp.where)(mask, value, x)


def _softmax(x: jax.Array, dim: int, dtype: Any = None) -> jax.Array:
    return jax.nn.softmax(_of_dtype(x, dtype), axis=dim)


def _log_softmax(x: jax.Array, dim: int, dtype: Any = None) -> jax.Array:
    return jax.nn.log_softmax(_of_dtype(x, dtype), axis=dim)


def _safe_softmax(x: jax.Array, dim: int, dtype: Any = None) -> jax.Array:
    """Softmax that is zero where everything is masked out by minus infinity."""
    x = _of_dtype(x, dtype)
    return jnp.where(jnp.all(x == -jnp.inf, axis=dim, keepdims=True), 0, jax.nn.softmax(x, axis=dim))


def _of_dtype(x: jax.Array, dtype: Any) -> jax.Array:
    return x if dtype is None or isinstance(dtype, bool) else x.astype(dtype)  # _softmax has a bool in its place


def _to_copy(x: jax.Array, *, dtype: Any = None) -> jax.Array:
    return _of_dtype(x, dtype)


def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


# --- reductions -----------------------------------------------------------------------------------------------


def _axes(dim: Any) -> Any:
    """Return PyTorch's `dim` for `axis`: nothing and an empty list both mean all axes."""
    return None if dim is None or dim == [] else tuple(dim) if isinstance(dim, list | tuple) else dim


def _reduction(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def reduced(x: jax.Array, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> jax.Array:
        return fn(_of_dtype(x, dtype), axis=_axes(dim), keepdims=keepdim)

    return reduced


def _sum(x: jax.Array, **options: Any) -> jax.Array:
    return jnp.sum(x.astype(jnp.int32) if x.dtype == jnp.bool_ else x, **options)


def _var(x: jax.Array, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None) -> Any:
    correction = (1 if unbiased else 0) if correction is None else correction
    return jnp.var(x, axis=_axes(dim), ddof=correction, keepdims=keepdim)


def _std(x: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    return jnp.sqrt(_var(x, *arguments, **options))


def _var_mean(x: jax.Array, dim: Any = None, *arguments: Any, keepdim: bool = False, **options: Any) -> Any:
    mean = jnp.mean(x, axis=_axes(dim), keepdims=keepdim)
    return _var(x, dim, *arguments, keepdim=keepdim, **options), mean


def _argmax(x: jax.Array, dim: int | None = None, keepdim: bool = False) -> jax.Array:
    return jnp.argmax(x, axis=dim, keepdims=keepdim)


def _max_dim(x: jax.Array, dim: int, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
    return jnp.max(x, axis=dim, keepdims=keepdim), jnp.argmax(x, axis=dim, keepdims=keepdim)


def _vector_norm(x: jax.Array, order: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    x, axes = jnp.abs(_of_dtype(x, dtype)), _axes(dim)
    if math.isinf(order):
        return (jnp.max if order > 0 else jnp.min)(x, axis=axes, keepdims=keepdim)
    if order == 2:
        return jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=keepdim))
    return jnp.sum(x**order, axis=axes, keepdims=keepdim) ** (1 / order)


def _cumsum(x: jax.Array, dim: int, *, dtype: Any = None) -> jax.Array:
    return jnp.cumsum(_of_dtype(x, dtype), axis=dim)


def _topk(x: jax.Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    values, index = lax.top_k(jnp.moveaxis(x if largest else -x, dim, -1), k)
    return jnp.moveaxis(values if largest else -values, -1, dim), jnp.moveaxis(index, -1, dim)


# --- shapes ---------------------------------------------------------------------------------------------------


def _view(x: jax.Array, shape: Sequence[Any]) -> jax.Array:
    return jnp.reshape(x, tuple(shape))


def _flatten(x: jax.Array, start: int = 0, end: int = -1) -> jax.Array:
    start, end = start % x.ndim, end % x.ndim
    return jnp.reshape(x, (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


def _unflatten(x: jax.Array, dim: int, sizes: Sequence[Any]) -> jax.Array:
    dim %= x.ndim
    return jnp.reshape(x, (*x.shape[:dim], *sizes, *x.shape[dim + 1 :]))


def _as_strided(x: jax.Array, size: Sequence[Any], stride: Sequence[Any], offset: Any = None) -> jax.Array:
    """Return x, where the strides are those of a plain array of its shape; nothing else has a meaning in JAX."""
    expected: Any = 1
    for length, step in list(zip(size, stride))[::-1]:
        if length != 1 and step != expected:
            raise NotImplementedError("a view of memory that is not laid out plainly")
        expected *= length
    if tuple(size) != x.shape or offset:
        raise NotImplementedError("a view of memory in another shape")
    return x


def _transpose(x: jax.Array, first: int, second: int) -> jax.Array:
    return jnp.swapaxes(x, first, second)


def _t(x: jax.Array) -> jax.Array:
    return jnp.transpose(x)


def _permute(x: jax.Array, dims: Sequence[int]) -> jax.Array:
    return jnp.transpose(x, tuple(dims))


def _unsqueeze(x: jax.Array, dim: int) -> jax.Array:
    return jnp.expand_dims(x, dim)


def _squeeze(x: jax.Array, dim: Any = None) -> jax.Array:
    dims = range(x.ndim) if dim is None else dim if isinstance(dim, list | tuple) else [dim]
    return lax.squeeze(x, [d for d in dims if isinstance(x.shape[d], int) and x.shape[d] == 1])


def _expand(x: jax.Array, sizes: Sequence[Any], *, implicit: bool = False) -> jax.Array:
    x = _with_rank(x, len(sizes)) if x.ndim else x
    kept = [1] * (len(sizes) - x.ndim) + list(x.shape)
    return jnp.broadcast_to(x, tuple(own if isinstance(n, int) and n == -1 else n for n, own in zip(sizes, kept)))


def _repeat(x: jax.Array, repeats: Sequence[Any]) -> jax.Array:
    return jnp.tile(x, tuple(repeats))


def _cat(xs: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    return jnp.concatenate([x for x in xs if x.shape != (0,)], axis=dim)


def _stack(xs: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    return jnp.stack(xs, axis=dim)


def _split(x: jax.Array, size: Any, dim: int = 0) -> list[jax.Array]:
    """Split into parts of one size, the last of which may be smaller, or of the sizes in a list."""
    if not isinstance(size, list | tuple):
        size = [min(size, x.shape[dim] - start) for start in range(0, x.shape[dim], size)]
    ends = np.cumsum(size).tolist()
    return [lax.slice_in_dim(x, end - n, end, axis=dim) for n, end in zip(size, ends)]


def _chunk(x: jax.Array, count: int, dim: int = 0) -> list[jax.Array]:
    return _split(x, -(-x.shape[dim] // count), dim)


def _slice(x: jax.Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> jax.Array:
    size = x.shape[dim]
    if isinstance(size, int):
        start, end, step = slice(start, end, step).indices(size)
        return lax.slice_in_dim(x, start, max(start, end), step, axis=dim)
    end = None if isinstance(end, int) and end >= 2**31 else end  # up to the end, as PyTorch writes it
    return lax.slice_in_dim(x, start or 0, end, step, axis=dim)


def _slice_scatter(
    x: jax.Array, values: jax.Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> jax.Array:
    where = slice(*slice(start, end, step).indices(x.shape[dim]))
    return x.at[(*(slice(None),) * (dim % x.ndim), where)].set(values)


def _select(x: jax.Array, dim: int, index: int) -> jax.Array:
    return lax.index_in_dim(x, index, dim, keepdims=False)


def _select_scatter(x: jax.Array, values: jax.Array, dim: int, index: int) -> jax.Array:
    return x.at[(*(slice(None),) * (dim % x.ndim), index)].set(values)


def _unbind(x: jax.Array, dim: int = 0) -> list[jax.Array]:
    return [_select(x, dim, i) for i in range(x.shape[dim])]


def _index(x: jax.Array, indices: Sequence[jax.Array | None]) -> jax.Array:
    rank = max(index.ndim for index in indices if index is not None)
    return x[tuple(slice(None) if index is None else _with_rank(index, rank) for index in indices)]


def _index_select(x: jax.Array, dim: int, index: jax.Array) -> jax.Array:
    return jnp.take(x, index, axis=dim, mode="clip")


def _embedding(weight: jax.Array, index: jax.Array, *_: Any) -> jax.Array:
    return jnp.take(weight, index, axis=0, mode="clip")


def _gather(x: jax.Array, dim: int, index: jax.Array, *, sparse_grad: bool = False) -> jax.Array:
    dim %= x.ndim
    for axis, length in enumerate(index.shape):
        if axis != dim and length != x.shape[axis]:
            x = lax.slice_in_dim(x, 0, length, axis=axis)
    return jnp.take_along_axis(x, index, axis=dim)


def _roll(x: jax.Array, shifts: Any, dims: Any = ()) -> jax.Array:
    return jnp.roll(x, tuple(shifts), tuple(dims)) if dims else jnp.roll(x, shifts[0])


def _flip(x: jax.Array, dims: Sequence[int]) -> jax.Array:
    return jnp.flip(x, tuple(dims))


def _triangle(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda x, diagonal=0: fn(x, k=diagonal)


def _pad_widths(x: jax.Array, pad: Sequence[int]) -> list[tuple[int, int]]:
    """Return (before, after) of every axis; PyTorch lists them from the last axis on."""
    pairs = list(zip(pad[::2], pad[1::2]))[::-1]
    return [(0, 0)] * (x.ndim - len(pairs)) + pairs


def _constant_pad(x: jax.Array, pad: Sequence[int], value: Any = 0) -> jax.Array:
    widths = [(before, after, 0) for before, after in _pad_widths(x, pad)]  # may be negative: cuts
    return lax.pad(x, jnp.asarray(value, x.dtype), widths)


def _reflection_pad(x: jax.Array, pad: Sequence[int]) -> jax.Array:
    return jnp.pad(x, _pad_widths(x, pad), mode="reflect")


def _replication_pad(x: jax.Array, pad: Sequence[int]) -> jax.Array:
    return jnp.pad(x, _pad_widths(x, pad), mode="edge")


def _pad(x: jax.Array, pad: Sequence[int], mode: str = "constant", value: Any = None) -> jax.Array:
    if mode == "circular":
        return jnp.pad(x, _pad_widths(x, pad), mode="wrap")
    other = {"reflect": _reflection_pad, "replicate": _replication_pad}
    return other[mode](x, pad) if mode in other else _constant_pad(x, pad, value or 0)


def _pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    channels, height, width = x.shape[1] // factor**2, *x.shape[2:]
    x = x.reshape(x.shape[0], channels, factor, factor, height, width).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(x.shape[0], channels, height * factor, width * factor)


def _pixel_unshuffle(x: jax.Array, factor: int) -> jax.Array:
    channels, height, width = x.shape[1], x.shape[2] // factor, x.shape[3] // factor
    x = x.reshape(x.shape[0], channels, height, factor, width, factor).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(x.shape[0], channels * factor**2, height, width)


# --- new arrays -----------------------------------------------------------------------------------------------


def _full(shape: Sequence[Any], value: Any, *, dtype: Any = None) -> jax.Array:
    return jnp.full(tuple(shape), value, dtype or _default_dtype(value))


def _default_dtype(*values: Any) -> Any:
    """Return the dtype that PyTorch gives to Python numbers; sizes, symbolic or not, are whole ones."""
    if any(isinstance(value, float) for value in values):
        return jnp.float32
    return jnp.bool_ if any(isinstance(value, bool) for value in values) else jnp.int32


def _filled(value: Any) -> Callable[..., jax.Array]:
    return lambda shape, *, dtype=None: jnp.full(tuple(shape), value, dtype or jnp.float32)


def _filled_like(value: Any) -> Callable[..., jax.Array]:
    return lambda x, *, dtype=None: jnp.full(x.shape, value, dtype or x.dtype)


def _full_like(x: jax.Array, value: Any, *, dtype: Any = None) -> jax.Array:
    return jnp.full(x.shape, value, dtype or x.dtype)


def _new_filled(value: Any) -> Callable[..., jax.Array]:
    return lambda x, shape, *, dtype=None: jnp.full(tuple(shape), value, dtype or x.dtype)


def _new_full(x: jax.Array, shape: Sequence[Any], value: Any, *, dtype: Any = None) -> jax.Array:
    return jnp.full(tuple(shape), value, dtype or x.dtype)


def _scalar_tensor(value: Any, *, dtype: Any = None) -> jax.Array:
    return jnp.asarray(value, dtype or _default_dtype(value))


def _arange(*bounds: Any, dtype: Any = None) -> jax.Array:
    return jnp.arange(*bounds, dtype=dtype or _default_dtype(*bounds))


# --- matrix products ------------------------------------------------------------------------------------------


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return (_aligned(jnp.matmul) if min(x.ndim, y.ndim) > 1 else jnp.matmul)(x, y)


def _addmm(bias: jax.Array, x: jax.Array, y: jax.Array, *, beta: float = 1, alpha: float = 1) -> jax.Array:
    product = jnp.matmul(x, y)
    return _add(bias if beta == 1 else beta * bias, product, alpha=alpha)


def _linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    y = jnp.matmul(x, weight.T)
    return y if bias is None else _add(y, bias)


def _attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> jax.Array:
    """Attend: q [..., T, D], k [..., S, D], v [..., S, E] give [..., T, E]."""
    if enable_gqa:
        k, v = (jnp.repeat(x, q.shape[-3] // x.shape[-3], axis=-3) for x in (k, v))
    weights = _matmul(q, jnp.swapaxes(k, -1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = jnp.tri(*weights.shape[-2:], dtype=bool)
    if mask is not None:
        masked = mask.dtype == jnp.bool_
        weights = _aligned(jnp.where)(mask, weights, -jnp.inf) if masked else _add(weights, mask)
        return _matmul(_safe_softmax(weights, -1), v)
    return _matmul(jax.nn.softmax(weights, axis=-1), v)


# --- convolution and normalisation ----------------------------------------------------------------------------


def _each(values: Any, rank: int) -> list[int]:
    """Return one number for each spatial axis; PyTorch lets one stand for all."""
    values = list(values) if isinstance(values, list | tuple) else [values]
    return values * rank if len(values) == 1 else values


def _convolution(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> jax.Array:
    rank = weight.ndim - 2
    if transposed:
        raise NotImplementedError("a transposed convolution")
    stride, padding, dilation = (_each(values, rank) for values in (stride, padding, dilation))
    convolve = functools.partial(_plain_convolution, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if rank == 2 and groups == x.shape[1] == weight.shape[0] and groups > 1:
        shifted = functools.partial(_depthwise, stride=stride, padding=padding, dilation=dilation)
        y = lax.platform_dependent(x, weight, cpu=shifted, default=convolve)
    else:
        y = convolve(x, weight)
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * rank)


def _plain_convolution(
    x: jax.Array, weight: jax.Array, *, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> jax.Array:
    letters = "DHW"[3 - len(stride) :]
    return lax.conv_general_dilated(
        x,
        weight,
        stride,
        [(n, n) for n in padding],
        rhs_dilation=dilation,
        dimension_numbers=(f"NC{letters}", f"OI{letters}", f"NC{letters}"),
        feature_group_count=groups,
    )


def _depthwise(
    x: jax.Array, weight: jax.Array, *, stride: list[int], padding: list[int], dilation: list[int]
) -> jax.Array:
    """Convolve each channel by itself as shifted multiply-adds: XLA:CPU's own grouped convolution takes ten times as
    long.
    """
    height, width = (
        (n + 2 * pad - space * (size - 1) - 1) // step + 1
        for n, pad, space, size, step in zip(x.shape[2:], padding, dilation, weight.shape[2:], stride)
    )
    x = jnp.pad(x, ((0, 0), (0, 0), *((n, n) for n in padding)))
    reach = (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1  # of what one tap of the kernel sees
    terms = [
        x[:, :, top : top + reach[0] : stride[0], left : left + reach[1] : stride[1]]
        * weight[:, 0, i, j].reshape(1, -1, 1, 1)
        for i, top in enumerate(range(0, weight.shape[2] * dilation[0], dilation[0]))
        for j, left in enumerate(range(0, weight.shape[3] * dilation[1], dilation[1]))
    ]
    return sum(terms[1:], terms[0])


def _affine(x: jax.Array, weight: jax.Array | None, bias: jax.Array | None, shape: Sequence[int]) -> jax.Array:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _batch_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    mean: jax.Array,
    var: jax.Array,
    momentum: float,
    eps: float,
) -> tuple[jax.Array, None, None]:
    shape = (1, -1, *(1,) * (x.ndim - 2))
    factor = lax.rsqrt(var + eps) * (1 if weight is None else weight)
    shift = -mean * factor + (0 if bias is None else bias)
    return x * factor.reshape(shape) + shift.reshape(shape), None, None


def _batch_norm_of_batch(
    x: jax.Array, weight: jax.Array | None, bias: jax.Array | None, training: bool, momentum: float, eps: float
) -> tuple[jax.Array, None, None]:
    """Normalise by the statistics of x itself: how PyTorch writes InstanceNorm and weight standardisation."""
    axes = (0, *range(2, x.ndim))
    y = _normalized(x, axes, eps)
    return _affine(y, weight, bias, (1, -1, *(1,) * (x.ndim - 2))), None, None


def _normalized(x: jax.Array, axes: tuple[int, ...], eps: float) -> jax.Array:
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred * centred, axis=axes, keepdims=True) + eps)


def _layer_norm(
    x: jax.Array, shape: Sequence[int], weight: jax.Array | None, bias: jax.Array | None, eps: float
) -> tuple[jax.Array, None, None]:
    y = _normalized(x, tuple(range(x.ndim - len(shape), x.ndim)), eps)
    return _affine(y, weight, bias, (*(1,) * (x.ndim - len(shape)), *shape)), None, None


def _group_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    batch: Any,
    channels: int,
    positions: int,
    groups: int,
    eps: float,
) -> tuple[jax.Array, None, None]:
    y = _normalized(x.reshape(x.shape[0], groups, -1), (2,), eps).reshape(x.shape)
    return _affine(y, weight, bias, (1, -1, *(1,) * (x.ndim - 2))), None, None


# --- pooling and resizing -------------------------------------------------------------------------------------


def _windows(n: int, size: int, stride: int, pad: int, space: int, ceil_mode: bool) -> tuple[int, int]:
    """Return (number of windows along an axis of n pixels, zeros to add after it)."""
    reach = space * (size - 1) + 1
    spare = n + 2 * pad - reach
    count = (-(-spare // stride) if ceil_mode else spare // stride) + 1
    if ceil_mode and (count - 1) * stride >= n + pad:  # no window begins in the padding behind
        count -= 1
    return count, max(0, (count - 1) * stride + reach - n - pad)


def _max_pool(
    x: jax.Array, size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> jax.Array:
    rank = len(size) if isinstance(size, list | tuple) and len(size) > 1 else x.ndim - 2
    size, padding, dilation = (_each(values, rank) for values in (size, padding, dilation))
    stride = _each(stride, rank) if stride not in ([], (), None) else size
    pads = [
        (pad, _windows(n, k, step, pad, space, ceil_mode)[1])
        for n, k, step, pad, space in zip(x.shape[-rank:], size, stride, padding, dilation)
    ]
    whole = (1,) * (x.ndim - rank)
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (*whole, *size),
        (*whole, *stride),
        ((0, 0),) * (x.ndim - rank) + tuple(pads),
        window_dilation=(*whole, *dilation),
    )


def _max_pool_with_indices(*arguments: Any, **options: Any) -> tuple[jax.Array, None]:
    return _max_pool(*arguments, **options), None


def _avg_pool(
    x: jax.Array,
    size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> jax.Array:
    rank = len(size) if isinstance(size, list | tuple) and len(size) > 1 else x.ndim - 2
    size, padding = _each(size, rank), _each(padding, rank)
    stride = _each(stride, rank) if stride not in ([], (), None) else size
    pads, counts = [], []
    for n, k, step, pad in zip(x.shape[-rank:], size, stride, padding):
        count, after = _windows(n, k, step, pad, 1, ceil_mode)
        start = np.arange(count) * step - pad
        end = np.minimum(start + k, n + pad)
        counts.append(end - start if count_include_pad else np.minimum(end, n) - np.maximum(start, 0))
        pads.append((pad, after))
    whole = (1,) * (x.ndim - rank)
    pads = ((0, 0),) * (x.ndim - rank) + tuple(pads)
    total = lax.reduce_window(x, 0.0, lax.add, (*whole, *size), (*whole, *stride), pads)
    divisor = functools.reduce(np.multiply.outer, counts) if divisor_override is None else np.asarray(divisor_override)
    return total / jnp.asarray(divisor.reshape((1,) * (x.ndim - divisor.ndim) + divisor.shape), x.dtype)


def _bins(n: int, count: int) -> list[tuple[int, int]]:
    """Return where each of `count` bins over n pixels begins and ends, as adaptive pooling cuts them."""
    return [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]


def _adaptive_avg_pool(x: jax.Array, size: Any) -> jax.Array:
    size = list(size) if isinstance(size, list | tuple) else [size]
    if all(count == 1 for count in size):
        return jnp.mean(x, axis=tuple(range(x.ndim - len(size), x.ndim)), keepdims=True)
    for axis, count in zip(range(x.ndim - len(size), x.ndim), size):
        n = x.shape[axis]
        weights = np.zeros((count, n), np.float32)
        for row, (start, end) in zip(weights, _bins(n, count)):
            row[start:end] = 1 / (end - start)
        x = x if count == n else _along(x, weights, axis)
    return x


def _along(x: jax.Array, weights: np.ndarray, axis: int) -> jax.Array:
    """Replace an axis of n entries by m weighted sums of them, with weights [m, n]."""
    product = lax.dot_general(x, jnp.asarray(weights, x.dtype), (((axis,), (1,)), ((), ())), precision=_HIGHEST)
    return jnp.moveaxis(product, -1, axis)


def _adaptive_max_pool(x: jax.Array, size: Any) -> tuple[jax.Array, None]:
    size = list(size) if isinstance(size, list | tuple) else [size]
    for axis, count in zip(range(x.ndim - len(size), x.ndim), size):
        parts = [lax.slice_in_dim(x, *ends, axis=axis) for ends in _bins(x.shape[axis], count)]
        x = jnp.concatenate([jnp.max(part, axis=axis, keepdims=True) for part in parts], axis=axis)
    return x, None


def _sources(n: int, count: int, scale: float | None, *, corners: bool) -> np.ndarray:
    """Return which place of n pixels each of `count` pixels is taken from, float64."""
    if corners:
        return np.arange(count) * ((n - 1) / (count - 1) if count > 1 else 0.0)
    return (np.arange(count) + 0.5) * (1 / scale if scale else n / count) - 0.5


def _linear_weights(n: int, count: int, scale: float | None, corners: bool) -> np.ndarray:
    place = np.maximum(_sources(n, count, scale, corners=corners), 0)
    return _spread(n, place, [lambda t: 1 - t, lambda t: t], first=0)


def _cubic_weights(n: int, count: int, scale: float | None, corners: bool) -> np.ndarray:
    a = -0.75

    def near(t: np.ndarray) -> np.ndarray:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: np.ndarray) -> np.ndarray:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    taps = [lambda t: far(t + 1), near, lambda t: near(1 - t), lambda t: far(2 - t)]
    return _spread(n, _sources(n, count, scale, corners=corners), taps, first=-1)


def _spread(n: int, place: np.ndarray, taps: list[Callable[[np.ndarray], np.ndarray]], *, first: int) -> np.ndarray:
    """Return weights [m, n] that read at m places; taps beyond the edge fall on the edge."""
    floor = np.floor(place)
    weights = np.zeros((len(place), n), np.float32)
    for i, tap in enumerate(taps):
        index = np.clip(floor + first + i, 0, n - 1).astype(int)
        np.add.at(weights, (np.arange(len(place)), index), tap(place - floor))
    return weights


def _resize(make_weights: Callable[..., np.ndarray]) -> Callable[..., jax.Array]:
    def resized(x: jax.Array, size: Any, align_corners: bool, *scales: Any) -> jax.Array:
        size, scales = _target(x, size, scales)
        for axis, count, scale in zip((2, 3), size, scales):
            x = _along(x, make_weights(x.shape[axis], count, scale, align_corners), axis)
        return x

    return resized


def _target(x: jax.Array, size: Any, scales: Sequence[Any]) -> tuple[list[int], list[float | None]]:
    """Return the size to resize to and the scales, None for those that follow from the size."""
    if len(scales) == 1 and isinstance(scales[0], list | tuple):
        scales = scales[0]
    scales = [*scales, None, None][:2] if scales and scales[0] is not None else [None, None]
    if size is None:
        size = [math.floor(n * scale) for n, scale in zip(x.shape[2:], scales)]
    return list(size), scales


def _nearest(x: jax.Array, size: Any, *scales: Any) -> jax.Array:
    size, scales = _target(x, size, scales)
    for axis, count, scale in zip((2, 3), size, scales):
        n = x.shape[axis]
        index = np.floor(np.arange(count) * np.float32(1 / scale if scale else n / count)).astype(int)
        x = jnp.take(x, np.minimum(index, n - 1), axis=axis, mode="clip")
    return x


def _nothing(*_: Any, **__: Any) -> None:
    """Stand for PyTorch's checks of its own shapes."""


def _sym_size(x: jax.Array, dim: int) -> Any:
    return x.shape[dim]


OPERATIONS: dict[str, Callable[..., Any]] = {
    # elementwise
    "aten.add": _add,
    "aten.sub": _sub,
    "aten.rsub": _rsub,
    "aten.mul": _aligned(jnp.multiply),
    "aten.div": _div,
    "aten.floor_divide": _aligned(jnp.floor_divide),
    "aten.fmod": _aligned(jnp.fmod),
    "aten.remainder": _aligned(jnp.remainder),
    "aten.pow": _aligned(jnp.power),
    "aten.maximum": _aligned(jnp.maximum),
    "aten.minimum": _aligned(jnp.minimum),
    "aten.eq": _aligned(jnp.equal),
    "aten.ne": _aligned(jnp.not_equal),
    "aten.lt": _aligned(jnp.less),
    "aten.le": _aligned(jnp.less_equal),
    "aten.gt": _aligned(jnp.greater),
    "aten.ge": _aligned(jnp.greater_equal),
    "aten.logical_and": _aligned(jnp.logical_and),
    "aten.logical_or": _aligned(jnp.logical_or),
    "aten.logical_xor": _aligned(jnp.logical_xor),
    "aten.bitwise_and": _aligned(jnp.bitwise_and),
    "aten.bitwise_or": _aligned(jnp.bitwise_or),
    "aten.where": _aligned(jnp.where),
    "aten.masked_fill": _masked_fill,
    "aten.logical_not": jnp.logical_not,
    "aten.bitwise_not": jnp.bitwise_not,
    "aten.abs": jnp.abs,
    "aten.neg": jnp.negative,
    "aten.sign": jnp.sign,
    "aten.exp": jnp.exp,
    "aten.expm1": jnp.expm1,
    "aten.log": jnp.log,
    "aten.log1p": jnp.log1p,
    "aten.sqrt": jnp.sqrt,
    "aten.rsqrt": lax.rsqrt,
    "aten.square": jnp.square,
    "aten.reciprocal": jnp.reciprocal,
    "aten.sin": jnp.sin,
    "aten.cos": jnp.cos,
    "aten.erf": lax.erf,
    "aten.floor": jnp.floor,
    "aten.ceil": jnp.ceil,
    "aten.round": jnp.round,
    "aten.trunc": jnp.trunc,
    "aten.isnan": jnp.isnan,
    "aten.isinf": jnp.isinf,
    "aten.clamp": _clamp,
    "aten.clamp_min": _clamp,
    "aten.clamp_max": lambda x, high: _clamp(x, None, high),
    "aten.relu": jax.nn.relu,
    "aten.relu6": jax.nn.relu6,
    "aten.hardtanh": _hardtanh,
    "aten.hardsigmoid": _hardsigmoid,
    "aten.hardswish": lambda x: x * _hardsigmoid(x),
    "aten.sigmoid": jax.nn.sigmoid,
    "aten.silu": jax.nn.silu,
    "aten.mish": jax.nn.mish,
    "aten.tanh": jnp.tanh,
    "aten.gelu": _gelu,
    "aten.elu": _elu,
    "aten.leaky_relu": _leaky_relu,
    "aten.prelu": _prelu,
    "aten._prelu_kernel": _prelu,
    "aten.softplus": _softplus,
    "aten.glu": _glu,
    "aten.softmax": _softmax,
    "aten._softmax": _softmax,
    "aten._safe_softmax": _safe_softmax,
    "aten.log_softmax": _log_softmax,
    "aten._log_softmax": _log_softmax,
    "aten._to_copy": _to_copy,
    "aten.clone": _same,
    "aten.contiguous": _same,
    "aten.alias": _same,
    "aten.detach": _same,
    "aten.dropout": _same,
    "aten.lift_fresh_copy": _same,
    # reductions
    "aten.sum": _reduction(_sum),
    "aten.mean": _reduction(jnp.mean),
    "aten.amax": _reduction(jnp.max),
    "aten.amin": _reduction(jnp.min),
    "aten.any": _reduction(jnp.any),
    "aten.all": _reduction(jnp.all),
    "aten.var": _var,
    "aten.std": _std,
    "aten.var_mean": _var_mean,
    "aten.argmax": _argmax,
    "aten.max.dim": _max_dim,
    "aten.max.default": jnp.max,
    "aten.linalg_vector_norm": _vector_norm,
    "aten.cumsum": _cumsum,
    "aten.topk": _topk,
    # shapes
    "aten.view": _view,
    "aten._unsafe_view": _view,
    "aten.reshape": _view,
    "aten.flatten": _flatten,
    "aten.unflatten": _unflatten,
    "aten.as_strided": _as_strided,
    "aten.permute": _permute,
    "aten.transpose": _transpose,
    "aten.t": _t,
    "aten.unsqueeze": _unsqueeze,
    "aten.squeeze": _squeeze,
    "aten.expand": _expand,
    "aten.repeat": _repeat,
    "aten.cat": _cat,
    "aten.stack": _stack,
    "aten.split": _split,
    "aten.split_with_sizes": _split,
    "aten.chunk": _chunk,
    "aten.unbind": _unbind,
    "aten.slice": _slice,
    "aten.slice_scatter": _slice_scatter,
    "aten.select": _select,
    "aten.select_scatter": _select_scatter,
    "aten.index": _index,
    "aten.index_select": _index_select,
    "aten.embedding": _embedding,
    "aten.gather": _gather,
    "aten.roll": _roll,
    "aten.flip": _flip,
    "aten.tril": _triangle(jnp.tril),
    "aten.triu": _triangle(jnp.triu),
    "aten.pad": _pad,
    "aten.constant_pad_nd": _constant_pad,
    "aten.reflection_pad1d": _reflection_pad,
    "aten.reflection_pad2d": _reflection_pad,
    "aten.replication_pad2d": _replication_pad,
    "aten.pixel_shuffle": _pixel_shuffle,
    "aten.pixel_unshuffle": _pixel_unshuffle,
    # new arrays
    "aten.full": _full,
    "aten.full_like": _full_like,
    "aten.new_full": _new_full,
    "aten.zeros": _filled(0),
    "aten.ones": _filled(1),
    "aten.empty": _filled(0),
    "aten.zeros_like": _filled_like(0),
    "aten.ones_like": _filled_like(1),
    "aten.new_zeros": _new_filled(0),
    "aten.new_ones": _new_filled(1),
    "aten.scalar_tensor": _scalar_tensor,
    "aten.arange": _arange,
    # matrix products
    "aten.mm": jnp.matmul,
    "aten.bmm": jnp.matmul,
    "aten.matmul": _matmul,
    "aten.addmm": _addmm,
    "aten.baddbmm": _addmm,
    "aten.linear": _linear,
    "aten.scaled_dot_product_attention": _attention,
    # convolution, normalisation, pooling, resizing
    "aten.convolution": _convolution,
    "aten._native_batch_norm_legit_no_training": _batch_norm,
    "aten._native_batch_norm_legit.no_stats": _batch_norm_of_batch,
    "aten.native_layer_norm": _layer_norm,
    "aten.native_group_norm": _group_norm,
    "aten.max_pool2d": _max_pool,
    "aten.max_pool2d_with_indices": _max_pool_with_indices,
    "aten.avg_pool1d": _avg_pool,
    "aten.avg_pool2d": _avg_pool,
    "aten.adaptive_avg_pool1d": _adaptive_avg_pool,
    "aten.adaptive_avg_pool2d": _adaptive_avg_pool,
    "aten._adaptive_avg_pool2d": _adaptive_avg_pool,
    "aten.adaptive_max_pool2d": _adaptive_max_pool,
    "aten.upsample_bilinear2d": _resize(_linear_weights),
    "aten.upsample_bicubic2d": _resize(_cubic_weights),
    "aten.upsample_nearest2d": _nearest,
    # sizes, and arithmetic with them
    "aten.sym_size": _sym_size,
    "aten._assert_scalar": _nothing,
    "aten._assert_tensor_metadata": _nothing,
    "_operator.getitem": operator.getitem,
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.floordiv": operator.floordiv,
    "_operator.mod": operator.mod,
    "_operator.neg": operator.neg,
    "_operator.eq": operator.eq,
    "_operator.ge": operator.ge,
    "_operator.le": operator.le,
}
