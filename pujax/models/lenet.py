"""LeNet-5 and LeNet-5-half, as in the DAFL project: ReLU, max-pooling, 32x32 images or larger."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.models.layers import biased_conv, global_mean, linear, max_pool, require_size, scaled


class LeNet(nn.Module):
    """Three 5x5 convolutions and two linear layers; `widths` of the convolutions and of the hidden layer."""

    num_classes: int
    widths: tuple[int, int, int, int] = (6, 16, 120, 84)
    width_multiplier: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits [B, K], features of the four layers), from images [B, H, W, C]."""
        require_size(x, 32, "LeNet")
        widths, features = [scaled(width, self.width_multiplier) for width in self.widths], []
        for i, width in enumerate(widths[:3]):
            x = nn.relu(biased_conv(width, 5, x.shape[-1], dtype=self.dtype, name=f"conv{i + 1}")(x))
            if i < 2:
                x = max_pool(x)
            features.append(global_mean(x))
        x = nn.relu(linear(widths[3], widths[2], dtype=self.dtype, name="fc1")(features[-1]))
        features.append(x.astype(jnp.float32))
        logits = linear(self.num_classes, widths[3], dtype=self.dtype, name="linear")(x)
        return logits.astype(jnp.float32), tuple(features)
