"""The images and weights inside the package: see `embedded/LICENSES.md` for where they come from."""

import functools
import hashlib
import io
import json
import lzma
import os
from pathlib import Path

import numpy as np
from etils import epath

from pujax.errors import UserError

FOLDER = Path(__file__).parent / "embedded"
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def embedded_path(name: str) -> Path:
    """Return the path of an embedded file.

    Raises:
        UserError: there is none of that name.
    """
    path = FOLDER / name
    if not path.is_file():
        have = ", ".join(sorted(p.name for p in FOLDER.iterdir() if p.suffix in (".xz", ".safetensors")))
        raise UserError(f"nothing embedded is called {name!r}; there are {have}")
    return path


def weights_file(text: str) -> epath.Path:
    """Return the path that a text names: "embedded:<file>" inside the package, or any other.

    Raises:
        UserError: there is no embedded file of that name.
    """
    inside = text.startswith("embedded:")
    return epath.Path(embedded_path(text.removeprefix("embedded:")) if inside else os.path.expanduser(text))


def load_embedded(part: str) -> dict[str, np.ndarray]:
    """Return the arrays of one embedded set, "labelled", "pool" or "test".

    Returns:
        `images` uint8 [N, 28, 28], and `labels` int32 [N] or, for the pool, `truth` bool [N].

    Raises:
        UserError: there is no such set, or the file is not the one that was shipped.
    """
    return dict(_unpack(embedded_path(f"{part}.npz.xz")))


@functools.lru_cache(maxsize=4)
def _unpack(path: Path) -> dict[str, np.ndarray]:
    """Check and decompress a file, once a process."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != checksum(path.name):
        raise UserError(f"{path} is damaged: its checksum differs; install pujax again")
    with np.load(io.BytesIO(lzma.decompress(data)), allow_pickle=False) as arrays:
        return dict(arrays)


def checksum(name: str) -> str:
    """Return the SHA-256 of an embedded set's file, as it was shipped."""
    return json.loads((FOLDER / "CHECKSUMS.json").read_text())["files"][name]["sha256"]
