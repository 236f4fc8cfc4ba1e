"""Reading images of a source where every one of them must be readable, and writing them down once."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pujax.artifacts import Unit, is_remote, replacing
from pujax.data.sources import ImageSource
from pujax.errors import UserError
from pujax.lock import turn
from pujax.sharding import barrier, is_main_process

_BATCH = 4096  # images held in memory at a time


def spread(size: int, count: int) -> np.ndarray:
    """Return up to `count` of the rows 0..size-1, int64 [n], sorted and evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))


def read_or_fail(source: ImageSource, indices: np.ndarray, what: str) -> np.ndarray:
    """Return images uint8 [n, H, W, C].

    Raises:
        UserError: one does not decode; the message has its key and the reason.
    """
    images, reasons = source.read(indices)
    broken = np.flatnonzero(reasons != "")
    if len(broken):
        key = source.keys(indices[broken[:1]])[0]
        raise UserError(f"{what}: the image {key} does not decode ({reasons[broken[0]]}); repair or remove it")
    return images


def noting_reader(
    source: ImageSource, reasons: dict[int, str], *, first: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """Return `rows [n] -> uint8 [n, H, W, C]`, the source's images from `first` on; those that do not decode are zero.

    Why they do not is left in `reasons`, by their row.
    """

    def read(rows: np.ndarray) -> np.ndarray:
        images, why = source.read(first + rows)
        broken = np.flatnonzero(why != "")
        reasons.update(zip(rows[broken].tolist(), why[broken].tolist()))
        return images

    return read


def reasons_of(source: ImageSource, indices: np.ndarray) -> np.ndarray:
    """Return why each of the images [n] does not decode, text [n]; every one of them is read for it."""
    starts = range(0, len(indices), _BATCH)
    return np.concatenate([source.read(indices[start : start + _BATCH])[1] for start in starts])


def write_images(path: Path, parts: list[tuple[ImageSource, np.ndarray]]) -> None:
    """Write the given images of several sources to one .npy file, whole or not at all; kept if it is there.

    Args:
        path: of the uint8 [sum n, H, W, C] array; a local file.
        parts: (source, indices [n]) pairs, written one after the other.
    """
    if path.exists():
        return
    first = read_or_fail(parts[0][0], parts[0][1][:1], path.name)
    shape = (sum(len(indices) for _, indices in parts), *first.shape[1:])
    with replacing(path) as target, target.open("wb") as out:  # not mapped: a full disk would end it by a signal
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for source, indices in parts:
            for start in range(0, len(indices), _BATCH):
                batch = read_or_fail(source, indices[start : start + _BATCH], "training set")
                out.write(np.ascontiguousarray(batch).data)
        out.flush()
        os.fsync(out.fileno())


def training_images(unit: Unit, parts: list[tuple[ImageSource, np.ndarray]]) -> np.ndarray:
    """Return the images of a training, mapped from a file that is written once, at training resolution.

    The main process writes it; every host its own where the unit's files are in an object store.

    Args:
        unit: whose training it is.
        parts: as for `write_images`.
    """
    if is_remote(unit.folder):
        with turn(unit.images.with_suffix(".turn")):  # of several processes on this host
            write_images(unit.images, parts)
    elif is_main_process():
        write_images(unit.images, parts)
    barrier(f"images of {unit.folder.name}")
    return np.load(unit.images, mmap_mode="r")


def remove_training_images(unit: Unit) -> None:
    """Remove the images of a training that is over; if it is to go on after all, they are written again."""
    barrier(f"{unit.folder.name} trained")
    if is_main_process() or is_remote(unit.folder):
        unit.images.unlink(missing_ok=True)
