"""Copies of images in another set: found after compression and resizing, and told from images that are only alike."""

import io

import numpy as np
import pytest
from PIL import Image

from pujax.data.decode import ImageSpec
from pujax.data.embedded import load_embedded
from pujax.data.sources.array import ArraySource
from pujax.near_duplicates import find_copies, thumbnails


def source(images):
    images = np.asarray(images, np.uint8)
    spec = ImageSpec(images.shape[1], images.shape[-1])
    return ArraySource(images, np.arange(len(images)), spec, None, None, None, "")


def photographs(count, seed=0):
    """Smooth colour images with edges, 48x48, all different."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(x).resize((48, 48), Image.Resampling.BICUBIC)) for x in coarse]


def compressed(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=75)
    return np.asarray(Image.open(file))


def resized(image):
    return np.asarray(Image.fromarray(image).resize((37, 37)).resize((48, 48)))


@pytest.mark.parametrize("change", [np.asarray, compressed, resized, lambda x: (x * 0.8 + 20).astype(np.uint8)])
def test_copies_are_found_where_they_are(change, mesh):
    own, others = photographs(90), photographs(40, seed=1)
    places = [3, 31, 77]
    for place, other in zip(places, (0, 20, 39)):
        own[place] = change(others[other])
    found = find_copies(source(own), np.arange(1, 90), {"others": source(others)}, mesh=mesh, batch_size=16)["others"]
    assert (np.flatnonzero(found) + 1).tolist() == places


def test_a_thumbnail_is_pillows_grey_and_small_centred_and_of_length_one():
    images = np.stack(photographs(3))
    grey = [Image.fromarray(x.astype(np.float32).mean(-1)) for x in images]
    small = np.stack([np.asarray(x.resize((16, 16), Image.Resampling.BILINEAR)).ravel() for x in grey])
    small = small - small.mean(1, keepdims=True)
    expected = small / np.linalg.norm(small, axis=1, keepdims=True)
    np.testing.assert_allclose(thumbnails(images), expected, atol=1e-3)
    assert np.abs(thumbnails(np.full((1, 32, 32, 3), 7, np.uint8))).max() < 1e-3  # flat: like nothing


def test_few_fashion_images_are_taken_for_others(meshes):
    pool, test = load_embedded("pool"), load_embedded("test")
    positives = source(pool["images"][pool["truth"]][..., None])
    others = {"test": source(test["images"][:2000, ..., None])}
    found = find_copies(positives, np.arange(500), others, mesh=meshes[0], batch_size=500)["test"]
    assert found.mean() < 0.005
