"""Each part of the augmentation alone, and that it draws from all that it may."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pujax.data.transforms import augment, fixed_views, normalize

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 8, 8, 1), np.uint8)  # no zeros: padding can be told apart


@pytest.mark.parametrize("seed", [0, 1])
def test_flips_alone_mirror_about_half(seed):
    out = np.asarray(augment(jax.random.key(seed), jnp.asarray(IMAGES), pad=0, flip=True))
    mirrored = (out == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (out == IMAGES).all(axis=(1, 2, 3))).all()
    assert 16 < mirrored.sum() < 48 and out.dtype == np.uint8


def test_crops_alone_reach_every_offset_and_nothing_else():
    out = np.asarray(augment(jax.random.key(0), jnp.asarray(IMAGES), pad=1, flip=False))
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = [
        next((y, x) for y in range(3) for x in range(3) if (padded[i, y : y + 8, x : x + 8] == out[i]).all())
        for i in range(64)
    ]
    assert set(found) == {(y, x) for y in range(3) for x in range(3)}


def test_views_depend_on_the_key_alone(meshes):
    from pujax.sharding import shard_batch

    view = jax.jit(lambda rng, images: augment(rng, images, pad=2, flip=True))
    one, eight = (np.asarray(view(jax.random.key(3), shard_batch(mesh, IMAGES))) for mesh in meshes)
    assert (one == eight).all()
    assert (one != np.asarray(view(jax.random.key(4), jnp.asarray(IMAGES)))).any()


def test_one_mean_serves_every_channel():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    expected = (images.astype(np.float64) / 255 - 0.5) / 0.25
    out = normalize(jnp.asarray(images), (0.5,), (0.25,))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_fixed_views_depend_on_image_and_number_alone():
    index = np.arange(64, dtype=np.int32) + 7

    def views(rows, view, seed=0):
        numbers = jnp.full(len(rows), view, jnp.int32)
        images = jnp.asarray(IMAGES[rows])
        return np.asarray(
            fixed_views(jax.random.key(seed), images, jnp.asarray(index[rows]), numbers, pad=2, flip=True)
        )

    rows = np.arange(64)
    assert (views(rows, 3)[::-1] == views(rows[::-1], 3)).all()  # whatever stands beside it in a batch
    assert (views(rows, 3)[5:6] == views(rows[5:6], 3)).all()
    for other in (views(rows, 4), views(rows, 3, seed=1)):
        assert (other != views(rows, 3)).any(axis=(1, 2, 3)).mean() > 0.9
    alone = np.asarray(fixed_views(jax.random.key(0), IMAGES, index, index * 0, pad=0, flip=True))
    mirrored = (alone == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (alone == IMAGES).all(axis=(1, 2, 3))).all()
    assert 16 < mirrored.sum() < 48
