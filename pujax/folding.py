"""BatchNorm with fixed statistics as part of the layer before it: the same function, without its multiply-adds."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pujax.models.layers import BatchNorm, plain_convolutions

LayerPath = tuple[str, ...]  # names from the network down to a layer


def fold_batch_norms(module: nn.Module, variables: Any, image_shape: tuple[int, ...]) -> Any:
    """Return variables under which a frozen network computes the same, to rounding, in fewer operations.

    Where a BatchNorm takes the output of a convolution or linear layer, its factors go into that layer's weights, and
    only a bias is left of it. Other BatchNorms stay as they are, and so do variables that were folded before. The
    result is for `apply(..., train=False)` alone; what is trained, saved and exported is the network as it was.

    Note: that output must go nowhere else. In `models` it is so, and a test compares every one of them.

    Args:
        module: the network.
        variables: {"params": {...}, "batch_stats": {...}} of arrays that this process can read.
        image_shape: (height, width, channels).
    """
    flat = flatten_dict(variables)
    for layer, norm, epsilon in _pairs(module, image_shape):
        if ("params", *norm, "scale") not in flat:
            continue
        scale = np.asarray(flat.pop(("params", *norm, "scale")), np.float64)
        mean, var = (np.asarray(flat.pop(("batch_stats", *norm, name)), np.float64) for name in ("mean", "var"))
        factor, bias = scale / np.sqrt(var + epsilon), ("params", *norm, "bias")
        weights = [path for name in ("kernel", "bias") if (path := ("params", *layer, name)) in flat]
        flat |= {path: (np.asarray(flat[path], np.float64) * factor).astype(flat[path].dtype) for path in weights}
        flat[bias] = (np.asarray(flat[bias], np.float64) - mean * factor).astype(flat[bias].dtype)
    return unflatten_dict(flat)


@functools.lru_cache(maxsize=32)
def _pairs(module: nn.Module, image_shape: tuple[int, ...]) -> tuple[tuple[LayerPath, LayerPath, float], ...]:
    """Return (layer, BatchNorm that takes its output, that one's epsilon), as a trace of the network shows them."""
    outputs: dict[int, tuple[LayerPath, jax.Array]] = {}  # kept, so that no other array is given the same identity
    called: list[LayerPath] = []
    pairs = []

    def watch(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        result, layer = call(*arguments, **options), context.module
        if context.method_name == "__call__" and isinstance(layer, nn.Conv | nn.Dense | BatchNorm):
            called.append(layer.path)
            if isinstance(layer, BatchNorm):
                before, _ = outputs.get(id(arguments[0]), (None, None))
                pairs.append((before, layer.path, layer.epsilon))
            else:
                outputs[id(result)] = layer.path, result
        return result

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with plain_convolutions(), nn.intercept_methods(watch):
        jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), image)
    # What is called twice, with shared weights, may be taken by something else the other time.
    return tuple(pair for pair in pairs if pair[0] and all(called.count(path) == 1 for path in pair[:2]))
