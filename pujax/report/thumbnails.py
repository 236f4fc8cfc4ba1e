"""Small pictures that lie in the page itself."""

import base64
import io
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from pujax.selection import Batch

LARGEST = 96  # side in pixels; smaller images stay as they are
Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def data_uri(image: np.ndarray) -> str:
    """Return an image uint8 [H, W, 1 or 3] as a JPEG in a data: address."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def thumbnails(
    rows: Iterable[Batch], read: Read, keys: Callable[[np.ndarray], list[str]]
) -> dict[int, tuple[str, str]]:
    """Return (key, data: address) by pool index of the images of some rows; those that do not decode are left out.

    Args:
        rows: each with an "index" int64 [n].
        read: sorted indices [n] -> (uint8 [n, H, W, C], text [n]: why an image does not decode, or "").
        keys: sorted indices [n] -> their names.
    """
    index = np.unique(np.concatenate([np.zeros(0, np.int64), *(own["index"] for own in rows)]))
    if not len(index):
        return {}
    images, reasons = read(index)
    sound = np.flatnonzero(reasons == "")
    return {int(i): (key, data_uri(images[row])) for row, i, key in zip(sound, index[sound], keys(index[sound]))}
