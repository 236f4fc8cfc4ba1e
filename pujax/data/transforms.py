"""What happens to images inside the jitted step: they cross the wire as uint8 and become floats on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Return (images / 255 - mean) / std, float32, for uint8 [..., C]; one number or one per channel."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (mean, std))
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
    offsets = jax.random.randint(crop_rng, (len(images), 2), 0, 2 * pad + 1) if pad else None
    return _view(images, pad, offsets, jax.random.bernoulli(flip_rng, shape=(len(images),)) if flip else None)


def fixed_views(
    rng: jax.Array, images: jax.Array, index: jax.Array, view: jax.Array, *, pad: int, flip: bool
) -> jax.Array:
    """Augment as `augment` does, to one of each image's numbered views: the same pixels whenever they are asked for.

    Args:
        rng: key of all views.
        images: uint8 [B, H, W, C].
        index: int32 [B], what tells an image from the others.
        view: int32 [B], which of its views.
        pad: as for `augment`.
        flip: as for `augment`.

    Returns:
        uint8 [B, H, W, C].
    """
    keys = jax.vmap(lambda i, v: jax.random.split(jax.random.fold_in(jax.random.fold_in(rng, i), v)))(index, view)
    offsets = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * pad + 1))(keys[:, 0]) if pad else None
    return _view(images, pad, offsets, jax.vmap(jax.random.bernoulli)(keys[:, 1]) if flip else None)


def _view(images: jax.Array, pad: int, offsets: jax.Array | None, mirrored: jax.Array | None) -> jax.Array:
    """Return the crops at `offsets` [B, 2] of the padded images, and mirrored where `mirrored` [B] says so."""
    if offsets is not None:
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        images = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:]))(
            padded, offsets
        )
    if mirrored is not None:
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    return images
