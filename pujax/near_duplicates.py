"""Images that are in two sets, though resized or compressed again: told by thumbnails that agree.

The thumbnail is grey, 16x16, of mean 0 and length 1, or shorter where it has no contrast; two that agree to `SAME` are
taken for one image. See docs/results.md for how often copies are found, and others taken for them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pujax.data.sources import ImageSource
from pujax.inference import map_images
from pujax.sharding import replicate

SAME = 0.998  # correlation of two thumbnails
_SIDE = 16


def thumbnails(images: jax.Array) -> jax.Array:
    """Return, float32 [B, 256], what is compared of uint8 images [B, H, W, C]."""
    grey = jnp.mean(images.astype(jnp.float32), axis=-1)
    small = jax.image.resize(grey, (len(grey), _SIDE, _SIDE), "linear", antialias=True).reshape(len(grey), -1)
    centred = small - small.mean(1, keepdims=True)
    return centred / jnp.maximum(jnp.linalg.norm(centred, axis=1, keepdims=True), _SIDE)


def find_copies(
    source: ImageSource, indices: np.ndarray, others: ImageSource, *, mesh: Mesh, batch_size: int
) -> np.ndarray:
    """Return, bool [n], which images of a source are also in another one; unreadable ones are in none.

    Args:
        source: where to look.
        indices: int64 [n], at which images.
        others: what to look for.
        mesh: devices.
        batch_size: of a pass.
    """
    forward = {"mesh": mesh, "batch_size": batch_size}

    def reference(_: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"thumbnail": thumbnails(images)}

    def compare(references: jax.Array, images: jax.Array) -> dict[str, jax.Array]:
        return {"likeness": jnp.max(thumbnails(images) @ references.T, axis=-1)}

    wanted = map_images(reference, (), lambda rows: others.read(rows)[0], len(others), **forward)["thumbnail"]
    found = map_images(
        compare, replicate(mesh, wanted), lambda rows: source.read(indices[rows])[0], len(indices), **forward
    )
    return found["likeness"] >= SAME
