"""What happens to images inside the jitted step: they cross the wire as uint8 and become floats on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Return (images / 255 - mean) / std, float32, for uint8 [..., C]; one number or one per channel."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std


def augment(rng: jax.Array, images: jax.Array, *, pad: int, flip: bool) -> jax.Array:
    """Crop at random after zero padding, then mirror at random, each image on its own.

    Args:
        rng: key; the same key gives the same views, however the batch is split over devices.
        images: uint8 [B, H, W, C].
        pad: zeros on every side before the crop back to HxW; 0 for no crop.
        flip: whether to mirror left-right with probability 1/2.

    Returns:
        uint8 [B, H, W, C].
    """
    crop_rng, flip_rng = jax.random.split(rng)
    if pad:
        offsets = jax.random.randint(crop_rng, (len(images), 2), 0, 2 * pad + 1)
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        images = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:]))(
            padded, offsets
        )
    if flip:
        mirrored = jax.random.bernoulli(flip_rng, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
