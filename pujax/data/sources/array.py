"""Images in arrays: .npz and .npy files, and the sets inside the package."""

import os
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pujax.config import SourceConfig
from pujax.data.decode import ImageSpec, fit_arrays
from pujax.data.embedded import CLASS_NAMES, checksum, load_embedded
from pujax.data.sources.naming import digest
from pujax.errors import UserError


@dataclass(frozen=True)
class ArraySource:
    """Images in memory, or mapped from a .npy file."""

    images: np.ndarray  # uint8 [N, H, W] or [N, H, W, C]
    positions: np.ndarray  # int64 [N], in the file
    spec: ImageSpec
    labels: np.ndarray | None
    truth: np.ndarray | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return positions in the file, as text."""
        return [str(i) for i in self.positions[indices]]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the images, all of them readable."""
        images = fit_arrays(self.images[indices], self.spec)
        return images, np.full(len(indices), "", object)

    def take(self, rows: np.ndarray) -> "ArraySource":
        """Return a source of the given sorted rows only."""
        part = slice(len(rows)) if rows[-1] == len(rows) - 1 else rows  # a view: a mapped file is not read
        kept = {name: getattr(self, name)[part] for name in ("labels", "truth") if getattr(self, name) is not None}
        fingerprint = digest(self.fingerprint, rows)
        return replace(self, images=self.images[part], positions=self.positions[part], fingerprint=fingerprint, **kept)


def open_embedded(config: SourceConfig, spec: ImageSpec, labelled: bool) -> ArraySource:
    """Open "labelled", "pool" or "test" of the package."""
    arrays, fingerprint = load_embedded(config.name), checksum(f"{config.name}.npz.xz")
    names = CLASS_NAMES if "labels" in arrays else None
    return make_array_source(
        arrays, spec, labelled, f"embedded {config.name}", fingerprint=fingerprint, class_names=names
    )


def open_array(config: SourceConfig, spec: ImageSpec, labelled: bool) -> ArraySource:
    """Open a .npz with `images`, and `labels`, `truth`, `class_names` where it has them, or a .npy of images."""
    path = Path(config.path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the .npz or .npy of a data source as its path")
    try:
        arrays = _load_arrays(path)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged, or no .npz or .npy file: {error}") from error
    names = tuple(map(str, np.atleast_1d(arrays.pop("class_names")))) if "class_names" in arrays else None
    if isinstance(arrays.get("images"), np.memmap):
        status = os.stat(path)
        fingerprint = digest(list(arrays["images"].shape), status.st_size, status.st_mtime_ns)
    else:
        fingerprint = digest(*(part for name in sorted(arrays) for part in (name, arrays[name])), names)
    return make_array_source(arrays, spec, labelled, str(path), fingerprint=fingerprint, class_names=names)


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz, or the one of a .npy, mapped; what counts is the content, not the suffix."""
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            return {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
        file.seek(0)
        loaded = np.load(file, allow_pickle=False)
        return {name: loaded[name] for name in ("images", "labels", "truth", "class_names") if name in loaded.files}


def make_array_source(
    arrays: dict[str, np.ndarray],
    spec: ImageSpec,
    labelled: bool,
    where: str,
    *,
    fingerprint: str,
    class_names: tuple[str, ...] | None,
) -> ArraySource:
    """Return a source of arrays `images` and, where they are there, `labels` and `truth`.

    Raises:
        UserError: they are of other shapes or types than they must be.
    """
    images = arrays.get("images")
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise UserError(f"{where} must hold `images`, uint8 [N, H, W] or [N, H, W, C]")
    if images.ndim == 4 and images.shape[3] > 4:
        raise UserError(f"{where} holds images of shape {images.shape}; channels come last, and there are at most 4")
    for name in ("labels", "truth"):
        column = arrays.get(name)
        if column is not None and (column.shape != images.shape[:1] or column.dtype.kind not in "iub"):
            raise UserError(
                f"{where} holds {name} {column.dtype} {list(column.shape)}; they must be whole numbers, one for each "
                f"of the {len(images)} images"
            )
    return ArraySource(
        images=images,
        positions=np.arange(len(images)),
        spec=spec,
        labels=arrays["labels"].astype(np.int32) if labelled and "labels" in arrays else None,
        truth=arrays["truth"].astype(bool) if "truth" in arrays else None,
        class_names=class_names,
        fingerprint=fingerprint,
    )
