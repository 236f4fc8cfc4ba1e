"""Styles: the same picture taken otherwise, so that a scorer can learn what is in it and not how it was taken.

Each style is a function of one image, float32 [H, W, C] in 0..255, and a key that sets its strength. They run inside
the jitted forward pass.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

Style = Callable[[jax.Array, jax.Array], jax.Array]


def _uniform(rng: jax.Array, low: float, high: float) -> jax.Array:
    return jax.random.uniform(rng, minval=low, maxval=high)


def _blur(rng: jax.Array, image: jax.Array) -> jax.Array:
    """Blur with a Gaussian of 1.5 to 5 % of the height."""
    height, width, _ = image.shape
    sigma = height * _uniform(rng, 0.015, 0.05)

    def smoothing(size: int) -> jax.Array:
        at = jnp.arange(size)
        weights = jnp.exp(-0.5 * jnp.square((at[:, None] - at[None]) / sigma))
        return weights / weights.sum(1, keepdims=True)

    return jnp.einsum("yh,hwc,xw->yxc", smoothing(height), image, smoothing(width))


def _noise(rng: jax.Array, image: jax.Array) -> jax.Array:
    """Add Gaussian noise of 5 to 20 % of the range."""
    strength, noise = jax.random.split(rng)
    return image + 255 * _uniform(strength, 0.05, 0.2) * jax.random.normal(noise, image.shape)


def _contrast(rng: jax.Array, image: jax.Array) -> jax.Array:
    """Flatten or raise the contrast by a factor of 0.4 to 1.5, about a grey level of its own."""
    factor, grey = jax.random.split(rng)
    grey = _uniform(grey, 0.0, 255.0)
    return grey + _uniform(factor, 0.4, 1.5) * (image - grey)


def _invert(rng: jax.Array, image: jax.Array) -> jax.Array:
    """Return the negative."""
    return 255 - image


def _warp(rng: jax.Array, image: jax.Array, *, degrees: float, scale: float, shift: float) -> jax.Array:
    """Turn, resize and shift by up to so many degrees, this share of the size, and this share of the height."""
    height, width, _ = image.shape
    turn, size, move = jax.random.split(rng, 3)
    angle = jnp.deg2rad(_uniform(turn, -degrees, degrees))
    zoom = jnp.exp(_uniform(size, -scale, scale))
    offset = height * jax.random.uniform(move, (2,), minval=-shift, maxval=shift)
    y, x = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")
    y, x = y - offset[0], x - offset[1]
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    at = [cos * y - sin * x + (height - 1) / 2, sin * y + cos * x + (width - 1) / 2]
    return jax.vmap(lambda plane: map_coordinates(plane, at, order=1, mode="nearest"), in_axes=2, out_axes=2)(image)


def _resample(rng: jax.Array, image: jax.Array) -> jax.Array:
    """Shrink to half the size and back."""
    height, width, channels = image.shape
    small = jax.image.resize(image, (height // 2, width // 2, channels), "linear")
    return jax.image.resize(small, image.shape, "linear")


def _jpeg(rng: jax.Array, image: jax.Array) -> jax.Array:
    """Round the cosine transform of every 8x8 block, coarsely for high frequencies, as JPEG of low quality does."""
    height, width, channels = image.shape
    padded = jnp.pad(image, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge") - 128
    frequency = jnp.arange(8)
    basis = jnp.cos(jnp.pi / 8 * (jnp.arange(8)[None] + 0.5) * frequency[:, None])
    basis *= jnp.sqrt(jnp.where(frequency == 0, 0.125, 0.25))[:, None]
    steps = _uniform(rng, 1.0, 4.0) * (12 + 8 * (frequency[:, None] + frequency[None]))
    blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8, channels)
    waves = jnp.einsum("uy,byaxc,vx->buavc", basis, blocks, basis)
    waves = steps[None, :, None, :, None] * jnp.round(waves / steps[None, :, None, :, None])
    blocks = jnp.einsum("uy,buavc,vx->byaxc", basis, waves, basis)
    return blocks.reshape(padded.shape)[:height, :width] + 128


def _mixed(rng: jax.Array, image: jax.Array) -> jax.Array:
    """Turn, resize and shift; then blur or flatten or both; a little noise."""
    warp, blur, contrast, noise, coin = jax.random.split(rng, 5)
    coins = jax.random.bernoulli(coin, 0.5, (3,))
    image = _warp(warp, image, degrees=15, scale=0.15, shift=0.1)
    image = jnp.where(coins[0], _blur(blur, image), image)
    image = jnp.where(coins[1], _contrast(contrast, image), image)
    return jnp.where(coins[2], _noise(noise, image), image)


STYLES: dict[str, Style] = {
    "plain": lambda rng, image: image,
    "blur": _blur,
    "noise": _noise,
    "contrast": _contrast,
    "invert": _invert,
    "turn": functools.partial(_warp, degrees=20, scale=0.0, shift=0.0),
    "scale": functools.partial(_warp, degrees=0, scale=0.25, shift=0.1),
    "resample": _resample,
    "jpeg": _jpeg,
    "mixed": _mixed,
}


def restyle(rng: jax.Array, images: jax.Array, index: jax.Array, style: jax.Array) -> jax.Array:
    """Return each image in one of the styles, of a strength of its own.

    Args:
        rng: key of all strengths.
        images: uint8 [B, H, W, C].
        index: int32 [B], what tells an image from the others: an image has the same strengths in every batch.
        style: int32 [B], the place in `STYLES`.

    Returns:
        uint8 [B, H, W, C].
    """
    rngs = jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)
    pixels = images.astype(jnp.float32)
    styled = pixels
    for number, name in enumerate(STYLES):
        chosen = (style == number)[:, None, None, None]
        styled = jnp.where(chosen, jax.vmap(STYLES[name])(rngs, pixels), styled)
    return jnp.clip(jnp.round(styled), 0, 255).astype(jnp.uint8)
