"""ConvNeXt, torchvision's and timm's geometry, which are the same."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.models.layers import biased_conv, global_mean, layer_norm, linear, require_size, scaled


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, two linear layers, a scale for every channel, residual."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to the same shape."""
        width = x.shape[-1]
        y = biased_conv(width, 7, width, padding=3, groups=width, dtype=self.dtype, name="depthwise_conv")(x)
        y = layer_norm(self.dtype, "norm")(y)
        y = nn.gelu(linear(4 * width, width, dtype=self.dtype, name="fc1")(y), approximate=False)
        y = linear(width, 4 * width, dtype=self.dtype, name="fc2")(y)
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (width,))
        return x + y * scale.astype(self.dtype).reshape(1, 1, 1, width)


class ConvNeXt(nn.Module):
    """Stem of 4x4 patches, four stages, LayerNorm of the mean, linear head.

    Note: stochastic depth is left out; with a teacher's soft targets it is not needed.
    """

    num_classes: int
    stage_sizes: tuple[int, int, int, int] = (3, 3, 9, 3)
    width: int = 96  # of the first stage; doubles at every stage
    width_multiplier: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits [B, K], features of the four stages), from images [B, H, W, C]; `train` changes nothing."""
        require_size(x, 32, "ConvNeXt")
        features, width = [], scaled(self.width, self.width_multiplier)
        patches = functools.partial(biased_conv, dtype=self.dtype)
        x = layer_norm(self.dtype, "stem_norm")(patches(width, 4, x.shape[-1], stride=4, name="stem_conv")(x))
        for i, size in enumerate(self.stage_sizes, 1):
            if i > 1:
                x = layer_norm(self.dtype, f"downsample{i}_norm")(x)
                x = patches(2 * x.shape[-1], 2, x.shape[-1], stride=2, name=f"downsample{i}_conv")(x)
            for j in range(size):
                x = ConvNeXtBlock(self.dtype, name=f"layer{i}_{j}")(x)
            features.append(global_mean(x))
        x = layer_norm(self.dtype, "norm")(features[-1])
        logits = linear(self.num_classes, x.shape[-1], dtype=self.dtype, name="linear")(x)
        return logits.astype(jnp.float32), tuple(features)
