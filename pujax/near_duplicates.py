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
    source: ImageSource, indices: np.ndarray, others: dict[str, ImageSource], *, mesh: Mesh, batch_size: int
) -> dict[str, np.ndarray]:
    """Return, bool [n] for each of the others, which images of a source are also in it; unreadable ones are in none.

    Args:
        source: where to look; its images are read once.
        indices: int64 [n], at which images.
        others: what to look for, by name.
        mesh: devices.
        batch_size: of a pass.
    """
    forward = {"mesh": mesh, "batch_size": batch_size}

    def reference(_: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"thumbnail": thumbnails(images)}

    def compare(references: dict[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        own = thumbnails(images)
        return {name: jnp.max(own @ wanted.T, axis=-1) for name, wanted in references.items()}

    references = {
        name: map_images(reference, (), lambda rows, other=other: other.read(rows)[0], len(other), **forward)[
            "thumbnail"
        ]
        for name, other in others.items()
    }
    likeness = map_images(
        compare, replicate(mesh, references), lambda rows: source.read(indices[rows])[0], len(indices), **forward
    )
    return {name: values >= SAME for name, values in likeness.items()}
