"""Downsampled ImageNet, 8 to 64 pixels wide, as its authors give it: `.npz` files of planes, labels from 1."""

import itertools
import math
import zipfile
import zlib

import numpy as np

from pujax.config import SourceConfig
from pujax.data import storage
from pujax.data.decode import ImageSpec
from pujax.data.sources.array import ArraySource, make_array_source
from pujax.data.sources.naming import digest
from pujax.errors import UserError


def open_imagenet32(config: SourceConfig, spec: ImageSpec, labelled: bool) -> ArraySource:
    """Open `{split}_data*.npz` of a folder, or the files that a path or pattern names; all are held in memory.

    The fingerprint is of names, sizes and times of modification.

    Raises:
        UserError: there are none, or one is damaged or not of this form.
    """
    files = storage.expand(config.path, rf"{config.split}_data[^/]*\.npz")
    if len(files) == 1 and files[0].path == config.path and config.split != "train":
        raise UserError(f"{config.path} is one file, without splits; leave split {config.split!r} out")
    parts = [_load(file.path) for file in files]
    if len({part["images"].shape[1:] for part in parts}) > 1:
        raise UserError(f"the files of {config.path} hold images of several sizes; give those of one")
    arrays = {name: np.concatenate([part.pop(name) for part in parts]) for name in ("images", "labels")}
    names = storage.relative_names([file.path for file in files])
    fingerprint = digest(names, list(itertools.chain.from_iterable((file.size, file.version) for file in files)))
    return make_array_source(arrays, spec, labelled, config.path, fingerprint=fingerprint, class_names=None)


def _load(path: str) -> dict[str, np.ndarray]:
    """Return images uint8 [N, s, s, 3] and labels from 0, int32 [N], of one file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            data, labels = (arrays[name] if name in arrays.files else None for name in ("data", "labels"))
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged, or no .npz file: {error}") from error
    side = math.isqrt(data.shape[1] // 3) if data is not None and data.ndim == 2 else 0
    if not side or data.dtype != np.uint8 or data.shape[1] != 3 * side * side:
        raise UserError(f"{path} must hold `data`, uint8 [N, 3 x side x side]; for `images` use kind array")
    labels = None if labels is None else np.asarray(labels)
    if labels is None or labels.shape != data.shape[:1] or labels.dtype.kind not in "iu" or labels.min(initial=1) < 1:
        raise UserError(f"{path} must hold `labels`, whole numbers from 1, one for each of the {len(data)} images")
    images = data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    return {"images": images, "labels": (labels.astype(np.int64) - 1).astype(np.int32)}
