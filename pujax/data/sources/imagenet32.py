"""Downsampled ImageNet, 8 to 64 pixels wide, as its authors give it: `.npz` files of planes, labels from 1."""

import contextlib
import itertools
import math
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from pujax.config import SourceConfig
from pujax.data import storage
from pujax.data.decode import ImageSpec
from pujax.data.sources.array import ArraySource, make_array_source
from pujax.data.sources.naming import digest
from pujax.errors import UserError


def open_imagenet32(config: SourceConfig, spec: ImageSpec, labelled: bool) -> ArraySource:
    """Open `{split}_data*.npz` of a folder, or the files that a path or pattern names; all are held in memory, once.

    The fingerprint is of names, sizes and times of modification.

    Raises:
        UserError: there are none, or one is damaged or not of this form.
    """
    files = storage.expand(config.path, rf"{config.split}_data[^/]*\.npz")
    if len(files) == 1 and files[0].path == config.path and config.split != "train":
        raise UserError(f"{config.path} is one file, without splits; leave split {config.split!r} out")
    paths = [file.path for file in files]
    counts, sides = zip(*map(_measure, paths))
    if len(set(sides)) > 1:
        raise UserError(f"the files of {config.path} hold images of several sizes; give those of one")
    images = np.empty((sum(counts), sides[0], sides[0], 3), np.uint8)
    labels = np.empty(sum(counts), np.int32)
    for path, stop, count in zip(paths, itertools.accumulate(counts), counts):
        _fill(path, images[stop - count : stop], labels[stop - count : stop])
    names = storage.relative_names(paths)
    fingerprint = digest(names, [file.size for file in files], [file.version for file in files])
    arrays = {"images": images, "labels": labels}
    return make_array_source(arrays, spec, labelled, config.path, fingerprint=fingerprint, class_names=None)


def _measure(path: str) -> tuple[int, int]:
    """Return (number of images, their side) of a file, from its header."""
    with _named(path), zipfile.ZipFile(path) as archive:
        if "data.npy" not in archive.namelist():
            raise UserError(f"{path} must hold `data`, uint8 [N, 3 x side x side]; for `images` use kind array")
        with archive.open("data.npy") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    side = math.isqrt(shape[1] // 3) if len(shape) == 2 else 0
    if not side or dtype != np.uint8 or shape[1] != 3 * side * side:
        raise UserError(f"{path} holds data {dtype} {list(shape)}; it must be uint8 [N, 3 x side x side]")
    return shape[0], side


def _fill(path: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Read a file's planes into images uint8 [n, side, side, 3], and its labels into int32 [n] from 0."""
    with _named(path), np.load(path, allow_pickle=False) as arrays:
        planes = arrays["data"].reshape(len(images), 3, *images.shape[1:3])
        given = np.asarray(arrays["labels"]) if "labels" in arrays.files else np.zeros(0)
    if given.shape != labels.shape or given.dtype.kind not in "iu" or given.min(initial=1) < 1:
        raise UserError(f"{path} must hold `labels`, whole numbers from 1, one for each of the {len(images)} images")
    images[:] = planes.transpose(0, 2, 3, 1)
    labels[:] = given.astype(np.int64) - 1


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Name the file in what damage raises."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged, or no .npz file: {error}; bring it again") from error
