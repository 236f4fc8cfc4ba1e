"""EfficientNet-B0 and EfficientNet-Lite0, with PyTorch's or TensorFlow's numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.models.inverted_residual import Dialect, Gate, InvertedResidual
from pujax.models.layers import global_mean, linear, make_divisible, require_size

# (expansion, kernel, width, blocks, stride of the first block): Table 1 of the paper.
_STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


class EfficientNet(nn.Module):
    """Stem, seven stages of inverted residuals, a last convolution of 1280 features, linear head.

    The Lite variant has no gates, ReLU6 for SiLU, and a stem and a last layer that keep their widths.

    Note: dropout and stochastic depth are left out; with a teacher's soft targets they are not needed.
    """

    num_classes: int
    lite: bool = False
    width_multiplier: float = 1.0
    dialect: Dialect = Dialect()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits [B, K], features of the seven stages and the last layer), from images [B, H, W, C]."""
        require_size(x, 32, "EfficientNet")
        activation = nn.relu6 if self.lite else nn.silu
        x = self.dialect.conv(32 if self.lite else self._wide(32), 3, stride=2, dtype=self.dtype, name="conv1")(x)
        x = activation(self.dialect.batch_norm(self.dtype, "bn1")(x, train=train))
        features = []
        for i, (expansion, kernel, width, blocks, stride) in enumerate(_STAGES):
            for j in range(blocks):
                block = InvertedResidual(
                    self._wide(width),
                    expansion * x.shape[-1],
                    self.dtype,
                    kernel,
                    1 if j else stride,
                    activation,
                    None if self.lite else Gate(max(1, x.shape[-1] // 4), nn.silu, nn.sigmoid),
                    self.dialect,
                    name=f"layer{i + 1}_{j}",
                )
                x = block(x, train=train)
            features.append(global_mean(x))
        x = self.dialect.conv(1280 if self.lite else 4 * x.shape[-1], 1, dtype=self.dtype, name="conv2")(x)
        features.append(global_mean(activation(self.dialect.batch_norm(self.dtype, "bn2")(x, train=train))))
        logits = linear(self.num_classes, x.shape[-1], dtype=self.dtype, name="linear")(features[-1])
        return logits.astype(jnp.float32), tuple(features)

    def _wide(self, channels: int) -> int:
        return make_divisible(channels * self.width_multiplier)
