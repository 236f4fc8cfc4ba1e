"""Styles against SciPy's filters and transforms, and the same pixels in every batch."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from pujax.data.embedded import load_embedded
from pujax.data.styles import STYLES, restyle

NAMES = list(STYLES)


def pictures(count, channels=1):
    images = np.pad(load_embedded("pool")["images"][:count], ((0, 0), (2, 2), (2, 2)))
    return np.stack([np.roll(images, c, axis=2) for c in range(channels)], axis=-1)


def styled(images, name, *, index=None, seed=0):
    index = np.arange(len(images)) if index is None else index
    style = np.full(len(images), NAMES.index(name))
    return np.asarray(jax.jit(restyle)(jax.random.key(seed), images, index, style))


def test_the_plain_style_changes_nothing_and_every_other_does():
    images = pictures(8, channels=3)
    assert np.array_equal(styled(images, "plain"), images)
    for name in NAMES[1:]:
        assert styled(images, name).shape == images.shape
        assert np.mean(styled(images, name) != images) > 0.05, name


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_its_strength_in_every_batch(name):
    images, order = pictures(6), np.array([4, 1, 5])
    alone = styled(images[order], name, index=order)
    assert np.array_equal(alone, styled(images, name)[order])
    if name not in ("plain", "invert", "resample"):
        assert not np.array_equal(alone, styled(images[order], name, index=order, seed=1))


def test_styles_may_differ_within_a_batch():
    images = pictures(len(NAMES))
    mixed = restyle(jax.random.key(0), images, jnp.arange(len(NAMES)), jnp.arange(len(NAMES)))
    for row, name in enumerate(NAMES):
        assert np.array_equal(mixed[row], styled(images, name)[row]), name


def test_blur_is_scipys():
    image = np.random.default_rng(0).uniform(0, 255, (32, 48, 1)).astype(np.float32)
    rng = jax.random.key(3)
    sigma = 32 * float(jax.random.uniform(rng, minval=0.015, maxval=0.05))
    expected = scipy.ndimage.gaussian_filter(image[..., 0], sigma, truncate=8)
    np.testing.assert_allclose(STYLES["blur"](rng, image)[8:-8, 8:-8, 0], expected[8:-8, 8:-8], atol=0.5)


def test_turning_is_scipys_rotation_by_up_to_twenty_degrees():
    image = scipy.ndimage.gaussian_filter(np.random.default_rng(0).uniform(0, 255, (33, 33)), 3).astype(np.float32)
    turned = np.asarray(STYLES["turn"](jax.random.key(1), image[..., None]))[8:-8, 8:-8, 0]
    errors = {}
    for degrees in np.arange(-20, 20.5, 0.5):
        rotated = scipy.ndimage.rotate(image, degrees, reshape=False, order=1)[8:-8, 8:-8]
        errors[degrees] = np.abs(rotated - turned).max()
    best = min(errors, key=errors.get)
    assert errors[best] < 0.5 and errors[0] > 3 and abs(best) > 1


def test_compression_is_about_that_of_a_jpeg():
    image = pictures(1)[0]
    compressed = styled(image[None], "jpeg")[0]
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "jpeg", quality=15)
    jpeg = np.asarray(Image.open(file)).astype(float)
    ours, theirs = (np.abs(x - image[..., 0]).mean() for x in (compressed[..., 0].astype(float), jpeg))
    assert 0.3 * theirs < ours < 3 * theirs
    flat = np.full((1, 20, 28, 3), 128, np.uint8)  # sides that no block divides
    assert np.array_equal(styled(flat, "jpeg"), flat)


def test_noise_and_contrast_keep_to_their_range():
    grey = np.full((64, 32, 32, 1), 128, np.uint8)
    spread = styled(grey, "noise").astype(float).std(axis=(1, 2, 3)) / 255
    assert 0.045 < spread.min() < 0.08 < 0.16 < spread.max() < 0.21
    ramp = np.tile(np.linspace(100, 156, 32).astype(np.uint8)[:, None, None], (64, 1, 32, 1))
    change = (styled(ramp, "contrast").astype(float).std(axis=(1, 2, 3))) / ramp[0].std()
    assert 0.38 < change.min() < 0.6 < 1.3 < change.max() < 1.55
    assert np.array_equal(styled(ramp, "invert"), 255 - ramp)
