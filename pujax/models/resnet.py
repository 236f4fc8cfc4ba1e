"""ResNets: CIFAR's (3x3 stem, no pooling, after kuangliu/pytorch-cifar) and ImageNet's (torchvision's geometry)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.models.layers import BatchNorm, conv, global_mean, linear, require_size, scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 convolution where the shape changes)."""

    width: int
    stride: int
    dtype: jnp.dtype
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H/stride, W/stride, width]."""
        y = conv(self.width, 3, stride=self.stride, padding=1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(self.dtype, name="bn1")(y, train=train))
        y = conv(self.width, 3, padding=1, dtype=self.dtype, name="conv2")(y)
        y = BatchNorm(self.dtype, name="bn2")(y, train=train)
        return nn.relu(y + _shortcut(x, self.width, self.stride, self.dtype, train))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, four times as wide at the end; the stride is on the 3x3."""

    width: int
    stride: int
    dtype: jnp.dtype
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H/stride, W/stride, 4 width]."""
        y = conv(self.width, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(self.dtype, name="bn1")(y, train=train))
        y = conv(self.width, 3, stride=self.stride, padding=1, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(BatchNorm(self.dtype, name="bn2")(y, train=train))
        y = conv(4 * self.width, 1, dtype=self.dtype, name="conv3")(y)
        y = BatchNorm(self.dtype, name="bn3")(y, train=train)
        return nn.relu(y + _shortcut(x, 4 * self.width, self.stride, self.dtype, train))


def _shortcut(x: jax.Array, features: int, stride: int, dtype: jnp.dtype, train: bool) -> jax.Array:
    """Identity, or 1x1 convolution and BatchNorm where stride or width change; called inside a block's scope."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = conv(features, 1, stride=stride, dtype=dtype, name="shortcut_conv")(x)
    return BatchNorm(dtype, name="shortcut_bn")(x, train=train)


class ResNet(nn.Module):
    """Stem, four stages, global mean, linear layer."""

    num_classes: int
    stage_sizes: tuple[int, int, int, int]
    width: int = 64  # of the first stage; doubles at every stage
    block: type[nn.Module] = BasicBlock
    imagenet_stem: bool = False
    width_multiplier: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits [B, K], features of the four stages), from images [B, H, W, C]."""
        require_size(x, 32 if self.imagenet_stem else 8, "ResNet")
        width = scaled(self.width, self.width_multiplier)
        if self.imagenet_stem:
            x = conv(width, 7, stride=2, padding=3, dtype=self.dtype, name="conv1")(x)
            x = nn.relu(BatchNorm(self.dtype, name="bn1")(x, train=train))
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        else:
            x = conv(width, 3, padding=1, dtype=self.dtype, name="conv1")(x)
            x = nn.relu(BatchNorm(self.dtype, name="bn1")(x, train=train))
        features = []
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                stride = 2 if i > 0 and j == 0 else 1
                block = self.block(width * 2**i, stride, self.dtype, name=f"layer{i + 1}_{j}")
                x = block(x, train=train)
            features.append(global_mean(x))
        in_features = features[-1].shape[-1]
        logits = linear(self.num_classes, in_features, dtype=self.dtype, name="linear")(features[-1])
        return logits.astype(jnp.float32), tuple(features)
