"""The block of the MobileNets and EfficientNets: expansion, depthwise convolution, gate, projection."""

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.models.layers import BatchNorm, biased_conv, conv


@dataclass(frozen=True)
class Dialect:
    """How one project computes these networks: PyTorch's way, or as they were trained in TensorFlow."""

    epsilon: float = 1e-5  # of BatchNorm
    same_padding: bool = False  # TensorFlow's, which pads an even image at its far sides alone

    def conv(
        self, features: int, size: int, *, dtype: jnp.dtype, name: str, stride: int = 1, groups: int = 1
    ) -> nn.Conv:
        """Return a convolution without bias that keeps the size of the image, divided by the stride."""
        padding = "SAME" if self.same_padding else size // 2
        return conv(features, size, stride=stride, padding=padding, groups=groups, dtype=dtype, name=name)

    def batch_norm(self, dtype: jnp.dtype, name: str) -> BatchNorm:
        """Return a batch normalisation."""
        return BatchNorm(dtype, epsilon=self.epsilon, name=name)


@dataclass(frozen=True)
class Gate:
    """Squeeze-and-excitation: width of its hidden layer, and its two functions."""

    width: int
    activation: Callable[[jax.Array], jax.Array]
    function: Callable[[jax.Array], jax.Array]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, gate, linear 1x1 projection; residual where the shape stays."""

    width: int
    hidden: int  # channels in between; no expansion where the input has as many
    dtype: jnp.dtype
    kernel: int = 3
    stride: int = 1
    activation: Callable[[jax.Array], jax.Array] = nn.relu6
    gate: Gate | None = None
    dialect: Dialect = Dialect()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H/stride, W/stride, width]."""
        y = x
        if self.hidden != x.shape[-1]:
            y = self.dialect.conv(self.hidden, 1, dtype=self.dtype, name="expand_conv")(y)
            y = self.activation(self.dialect.batch_norm(self.dtype, "expand_bn")(y, train=train))
        depthwise = {"stride": self.stride, "groups": self.hidden, "name": "depthwise_conv"}
        y = self.dialect.conv(self.hidden, self.kernel, dtype=self.dtype, **depthwise)(y)
        y = self.activation(self.dialect.batch_norm(self.dtype, "depthwise_bn")(y, train=train))
        if self.gate:
            y = y * self._weights_of_channels(y)
        y = self.dialect.conv(self.width, 1, dtype=self.dtype, name="project_conv")(y)
        y = self.dialect.batch_norm(self.dtype, "project_bn")(y, train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.width else y

    def _weights_of_channels(self, x: jax.Array) -> jax.Array:
        """Return the gate, [B, 1, 1, hidden], of [B, H, W, hidden]."""
        mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
        squeeze = biased_conv(self.gate.width, 1, self.hidden, dtype=self.dtype, name="squeeze_conv")
        excite = biased_conv(self.hidden, 1, self.gate.width, dtype=self.dtype, name="excite_conv")
        return self.gate.function(excite(self.gate.activation(squeeze(mean))))
