"""MobileNetV2, torchvision's geometry: a student for phones."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.models.layers import BatchNorm, conv, global_mean, linear, require_size

# (expansion, width, blocks, stride of the first block); the third entry of each line of the paper's Table 2.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; residual where the shape stays."""

    width: int
    stride: int
    expansion: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H/stride, W/stride, width]."""
        y, hidden = x, x.shape[-1] * self.expansion
        if self.expansion != 1:
            y = conv(hidden, 1, dtype=self.dtype, name="expand_conv")(y)
            y = nn.relu6(BatchNorm(self.dtype, name="expand_bn")(y, train=train))
        y = conv(hidden, 3, stride=self.stride, padding=1, groups=hidden, dtype=self.dtype, name="depthwise_conv")(y)
        y = nn.relu6(BatchNorm(self.dtype, name="depthwise_bn")(y, train=train))
        y = conv(self.width, 1, dtype=self.dtype, name="project_conv")(y)
        y = BatchNorm(self.dtype, name="project_bn")(y, train=train)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, 1280 features, dropout-free linear head.

    Note: torchvision's dropout before the head is left out; with a teacher's soft targets it is not needed.
    """

    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits [B, K], features of the seven stages and the last layer), from images [B, H, W, C]."""
        require_size(x, 32, "MobileNetV2")
        x = conv(32, 3, stride=2, padding=1, dtype=self.dtype, name="conv1")(x)
        x = nn.relu6(BatchNorm(self.dtype, name="bn1")(x, train=train))
        features = []
        for i, (expansion, width, blocks, stride) in enumerate(_STAGES):
            for j in range(blocks):
                block = InvertedResidual(
                    width, stride if j == 0 else 1, expansion, self.dtype, name=f"layer{i + 1}_{j}"
                )
                x = block(x, train=train)
            features.append(global_mean(x))
        x = conv(1280, 1, dtype=self.dtype, name="conv2")(x)
        features.append(global_mean(nn.relu6(BatchNorm(self.dtype, name="bn2")(x, train=train))))
        logits = linear(self.num_classes, 1280, dtype=self.dtype, name="linear")(features[-1])
        return logits.astype(jnp.float32), tuple(features)
