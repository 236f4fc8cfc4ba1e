"""MNIST's own format, IDX: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and the like, gzipped or not."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from pujax.config import SourceConfig
from pujax.data.decode import ImageSpec
from pujax.data.sources.array import ArraySource, make_array_source
from pujax.data.sources.naming import digest
from pujax.errors import UserError

_SPLITS = {"train": ("train",), "test": ("t10k", "test")}


def open_idx(config: SourceConfig, spec: ImageSpec, labelled: bool) -> ArraySource:
    """Open the split "train" or "test" of a folder of IDX files.

    Raises:
        UserError: there is no such folder or split, there are several, or a file is damaged.
    """
    folder = Path(config.path)
    if config.split not in _SPLITS:
        raise UserError(f"IDX files have no split {config.split!r}; set split to {' or '.join(_SPLITS)}")
    wanted = [f"*{prefix}-images-idx3-ubyte*" for prefix in _SPLITS[config.split]]
    found = sorted({path for pattern in wanted for path in folder.glob(pattern)}) if config.path else []
    if len(found) != 1:
        listed = f" ({', '.join(path.name for path in found)})" if found else ""
        raise UserError(
            f"{config.path!r} holds {len(found)} files {' or '.join(wanted)}{listed}; give a folder with one of them, "
            "and with its labels beside it"
        )
    images = read_idx(found[0])
    if images.ndim != 3:
        raise UserError(f"{found[0]} holds an array of {images.ndim} axes; images have 3")
    arrays = {"images": images}
    labels = [path for suffix in ("", ".gz") if (path := _labels_path(found[0], suffix)).is_file()]
    if labels:
        arrays["labels"] = read_idx(labels[0])
    fingerprint = digest(*(arrays[name] for name in sorted(arrays)))
    return make_array_source(arrays, spec, labelled, str(folder), fingerprint=fingerprint, class_names=None)


def _labels_path(images: Path, suffix: str) -> Path:
    return images.with_name(images.name.removesuffix(".gz").replace("images-idx3", "labels-idx1") + suffix)


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file of bytes, uint8.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}; bring it again") from error
    axes = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    start = 4 + 4 * axes
    if not axes or len(data) - start != math.prod(shape):
        raise UserError(f"{path} is damaged, or no IDX file of bytes; bring it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
