"""Vision transformers with a class token, as in torchvision and timm; DeiT without its distillation token is one."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pujax.errors import UserError
from pujax.models.layers import biased_conv, layer_norm, linear, require_size


class EncoderBlock(nn.Module):
    """Attention and two linear layers, each after a LayerNorm and with a residual."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map tokens [B, N, D] to the same shape."""
        width = x.shape[-1]
        y = layer_norm(self.dtype, "norm1")(x)
        y = attention(linear(3 * width, width, dtype=self.dtype, name="qkv")(y), self.heads)
        x = x + linear(width, width, dtype=self.dtype, name="proj")(y)
        y = layer_norm(self.dtype, "norm2")(x)
        y = nn.gelu(linear(4 * width, width, dtype=self.dtype, name="fc1")(y), approximate=False)
        return x + linear(width, 4 * width, dtype=self.dtype, name="fc2")(y)


def attention(qkv: jax.Array, heads: int) -> jax.Array:
    """Return softmax(q k^T / sqrt(d)) v, heads joined, [B, N, D] of queries, keys and values side by side [B, N, 3 D].

    The softmax is float32.
    """
    query, key, value = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, heads, -1), 2, 0)  # [B, N, heads, d] each
    scores = jnp.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key)
    weights = nn.softmax(scores.astype(jnp.float32)).astype(qkv.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(*qkv.shape[:2], -1)


class VisionTransformer(nn.Module):
    """Patches, class token, learned positions, encoder, LayerNorm, linear head on the class token.

    The positions are those of one image size, the size of the images at initialisation.

    Note: dropout and stochastic depth are left out; with a teacher's soft targets they are not needed.
    """

    num_classes: int
    width: int
    heads: int
    depth: int = 12
    patch: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits [B, K], mean tokens after each quarter of the blocks), from images [B, H, W, C].

        Height and width are multiples of the patch; `train` changes nothing.
        """
        require_size(x, self.patch, "a vision transformer")
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise UserError(
                f"a vision transformer takes images of a multiple of {self.patch} pixels, not {x.shape}; set "
                "data.image_size to one"
            )
        x = biased_conv(self.width, self.patch, x.shape[-1], stride=self.patch, dtype=self.dtype, name="patch_conv")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        positions = self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        x = x + positions.astype(self.dtype)
        features = []
        for i in range(1, self.depth + 1):
            x = EncoderBlock(self.heads, self.dtype, name=f"layer{i}")(x)
            if i * 4 % self.depth < 4:
                features.append(jnp.mean(x.astype(jnp.float32), axis=1))
        token = jax.lax.index_in_dim(x, 0, axis=1, keepdims=False)  # a plain slice, where the batch is a symbol too
        x = layer_norm(self.dtype, "norm")(token)
        logits = linear(self.num_classes, self.width, dtype=self.dtype, name="linear")(x)
        return logits.astype(jnp.float32), tuple(features)
