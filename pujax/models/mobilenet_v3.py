"""MobileNetV3, small and large, with torchvision's, timm's or TensorFlow's numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.models.inverted_residual import Dialect, Gate, InvertedResidual
from pujax.models.layers import global_mean, linear, make_divisible, require_size

# Stages: stride of the first block, then blocks (kernel, hidden, width, gated, hard swish). The paper's Tables 1 and 2.
SMALL = (
    (2, ((3, 16, 16, True, False),)),
    (2, ((3, 72, 24, False, False), (3, 88, 24, False, False))),
    (2, ((5, 96, 40, True, True), (5, 240, 40, True, True), (5, 240, 40, True, True))),
    (1, ((5, 120, 48, True, True), (5, 144, 48, True, True))),
    (2, ((5, 288, 96, True, True), (5, 576, 96, True, True), (5, 576, 96, True, True))),
)
LARGE = (
    (1, ((3, 16, 16, False, False),)),
    (2, ((3, 64, 24, False, False), (3, 72, 24, False, False))),
    (2, ((5, 72, 40, True, False), (5, 120, 40, True, False), (5, 120, 40, True, False))),
    (2, ((3, 240, 80, False, True), (3, 200, 80, False, True), (3, 184, 80, False, True), (3, 184, 80, False, True))),
    (1, ((3, 480, 112, True, True), (3, 672, 112, True, True))),
    (2, ((5, 672, 160, True, True), (5, 960, 160, True, True), (5, 960, 160, True, True))),
)


class MobileNetV3(nn.Module):
    """Stem, stages of gated inverted residuals, a last convolution, two linear layers.

    Note: torchvision's dropout before the head is left out; with a teacher's soft targets it is not needed.
    """

    num_classes: int
    stages: tuple
    hidden: int  # features before the head
    width_multiplier: float = 1.0
    dialect: Dialect = Dialect(epsilon=1e-3)  # torchvision's
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits [B, K], features of the stages and the last convolution), from images [B, H, W, C]."""
        require_size(x, 32, "MobileNetV3")
        x = self.dialect.conv(self._wide(16), 3, stride=2, dtype=self.dtype, name="conv1")(x)
        x = nn.hard_swish(self.dialect.batch_norm(self.dtype, "bn1")(x, train=train))
        features = []
        for i, (stride, blocks) in enumerate(self.stages):
            for j, block in enumerate(blocks):
                x = self._block(block, 1 if j else stride, name=f"layer{i + 1}_{j}")(x, train=train)
            features.append(global_mean(x))
        x = self.dialect.conv(6 * x.shape[-1], 1, dtype=self.dtype, name="conv2")(x)
        features.append(global_mean(nn.hard_swish(self.dialect.batch_norm(self.dtype, "bn2")(x, train=train))))
        hidden = self._wide(self.hidden)
        x = nn.hard_swish(linear(hidden, x.shape[-1], dtype=self.dtype, name="fc1")(features[-1]))
        logits = linear(self.num_classes, hidden, dtype=self.dtype, name="linear")(x)
        return logits.astype(jnp.float32), tuple(features)

    def _wide(self, channels: int) -> int:
        return make_divisible(channels * self.width_multiplier)

    def _block(self, block: tuple[int, int, int, bool, bool], stride: int, *, name: str) -> InvertedResidual:
        kernel, hidden, width, gated, hard_swish = block
        hidden = self._wide(hidden)
        return InvertedResidual(
            self._wide(width),
            hidden,
            self.dtype,
            kernel,
            stride,
            nn.hard_swish if hard_swish else nn.relu,
            Gate(make_divisible(hidden // 4), nn.relu, nn.hard_sigmoid) if gated else None,
            self.dialect,
            name=name,
        )
