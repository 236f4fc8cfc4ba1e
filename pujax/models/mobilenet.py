"""MobileNetV2, torchvision's geometry: a student for phones."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.models.inverted_residual import InvertedResidual
from pujax.models.layers import BatchNorm, conv, global_mean, linear, make_divisible, require_size

# (expansion, width, blocks, stride of the first block); the third entry of each line of the paper's Table 2.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, 1280 features, dropout-free linear head.

    Note: torchvision's dropout before the head is left out; with a teacher's soft targets it is not needed.
    """

    num_classes: int
    width_multiplier: float = 1.0  # of all layers, but the last never has fewer than 1280 features
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits [B, K], features of the seven stages and the last layer), from images [B, H, W, C]."""
        require_size(x, 32, "MobileNetV2")
        x = conv(make_divisible(32 * self.width_multiplier), 3, stride=2, padding=1, dtype=self.dtype, name="conv1")(x)
        x = nn.relu6(BatchNorm(self.dtype, name="bn1")(x, train=train))
        features = []
        for i, (expansion, width, blocks, stride) in enumerate(_STAGES):
            width = make_divisible(width * self.width_multiplier)
            for j in range(blocks):
                hidden, name = x.shape[-1] * expansion, f"layer{i + 1}_{j}"
                block = InvertedResidual(width, hidden, self.dtype, stride=1 if j else stride, name=name)
                x = block(x, train=train)
            features.append(global_mean(x))
        last = make_divisible(1280 * max(1.0, self.width_multiplier))
        x = conv(last, 1, dtype=self.dtype, name="conv2")(x)
        features.append(global_mean(nn.relu6(BatchNorm(self.dtype, name="bn2")(x, train=train))))
        logits = linear(self.num_classes, last, dtype=self.dtype, name="linear")(features[-1])
        return logits.astype(jnp.float32), tuple(features)
