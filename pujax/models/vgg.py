"""VGG, with and without BatchNorm: torchvision's geometry, and timm's head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pujax.models.layers import BatchNorm, biased_conv, global_mean, linear, max_pool, require_size, scaled

_WIDTHS = (64, 128, 256, 512, 512)
_HEAD = 7  # height and width of what the head takes


class VGG(nn.Module):
    """Five stages of 3x3 convolutions and a pooling, three linear layers over a map of 7x7.

    Layers bear the numbers that they have in PyTorch's list, which counts activations and poolings too.

    Note: dropout in the head is left out; with a teacher's soft targets it is not needed.
    """

    num_classes: int
    stage_sizes: tuple[int, int, int, int, int]
    batch_norm: bool = False
    sliding_head: bool = False  # timm's, which slides over a map larger than 7x7; torchvision's averages it down
    width_multiplier: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits [B, K], features of the five stages), from images [B, H, W, C]."""
        require_size(x, 32, "VGG")
        features, number = [], 0
        for width, size in zip(_WIDTHS, self.stage_sizes):
            width = scaled(width, self.width_multiplier)
            for _ in range(size):
                x = biased_conv(width, 3, x.shape[-1], padding=1, dtype=self.dtype, name=f"layer{number}")(x)
                if self.batch_norm:
                    x = BatchNorm(self.dtype, name=f"layer{number + 1}")(x, train=train)
                x = nn.relu(x)
                number += 3 if self.batch_norm else 2
            x = max_pool(x)
            number += 1
            features.append(global_mean(x))
        hidden = scaled(4096, self.width_multiplier)
        x = adaptive_mean(x, [max(n, _HEAD) if self.sliding_head else _HEAD for n in x.shape[1:3]])
        x = nn.relu(biased_conv(hidden, _HEAD, x.shape[-1], dtype=self.dtype, name="fc1")(x))
        x = global_mean(nn.relu(linear(hidden, hidden, dtype=self.dtype, name="fc2")(x)))
        logits = linear(self.num_classes, hidden, dtype=self.dtype, name="linear")(x)
        return logits.astype(jnp.float32), tuple(features)


def adaptive_mean(x: jax.Array, shape: list[int]) -> jax.Array:
    """Return [B, *shape, C] means over windows, which may overlap, of [B, H, W, C]: PyTorch's adaptive pooling."""
    if list(x.shape[1:3]) == shape:
        return x
    rows, columns = (_windows(n, windows) for n, windows in zip(x.shape[1:3], shape))
    means = jnp.einsum("bhwc,ih,jw->bijc", x.astype(jnp.float32), rows, columns, precision=lax.Precision.HIGHEST)
    return means.astype(x.dtype)


def _windows(n: int, windows: int) -> np.ndarray:
    """Return the weights float32 [windows, n] of n pixels in every window's mean."""
    first, last = (np.arange(windows) * n // windows, -(-np.arange(1, windows + 1) * n // windows))
    pixels = np.arange(n)[None]
    inside = (pixels >= first[:, None]) & (pixels < last[:, None])
    return (inside / np.sum(inside, axis=1, keepdims=True)).astype(np.float32)
