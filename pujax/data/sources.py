"""Image sources: one small contract over arrays, image folders and TFDS.

A source says how many images there are and reads any of them, as uint8 at the size that the job works in.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pujax.config import DataConfig, SourceConfig
from pujax.data.decode import EXTENSIONS, fit_arrays
from pujax.data.decoders import decode_files
from pujax.data.embedded import load_embedded


class ImageSource(Protocol):
    """What every stage knows of images."""

    labels: np.ndarray | None  # int32 [N]; None when unlabelled
    truth: np.ndarray | None  # bool [N], whether in-domain: for evaluation only, never seen by training
    fingerprint: str  # changes when the images do, as far as can be told without reading them all

    def __len__(self) -> int:
        """Return the number of images."""

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return stable names of images."""

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (uint8 [n, H, W, C], readable bool [n]); what is not readable is zero."""


@dataclass(frozen=True)
class ArraySource:
    """Images in memory, or mapped from a .npy file."""

    images: np.ndarray  # uint8 [N, H, W] or [N, H, W, C]
    size: int
    channels: int
    labels: np.ndarray | None
    truth: np.ndarray | None
    fingerprint: str

    def __len__(self) -> int:
        return len(self.images)

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return positions as text."""
        return [str(i) for i in indices]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the images, all of them readable."""
        return fit_arrays(self.images[indices], size=self.size, channels=self.channels), np.ones(len(indices), bool)


@dataclass(frozen=True)
class FolderSource:
    """JPEG, PNG and other image files under a folder, in sorted order."""

    root: Path
    names: list[str]  # relative to root
    size: int
    channels: int
    labels: np.ndarray | None
    fingerprint: str
    truth: None = None

    def __len__(self) -> int:
        return len(self.names)

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return paths relative to the folder."""
        return [self.names[i] for i in indices]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read and decode the files, in worker processes."""

        def paths(rows: slice) -> list[str]:
            return [str(self.root / self.names[i]) for i in indices[rows]]

        return decode_files(paths, len(indices), size=self.size, channels=self.channels)


@dataclass(frozen=True)
class TFDSSource:
    """A prepared TensorFlow dataset, read through `tfds.data_source` (ArrayRecord) without TensorFlow."""

    name: str
    data: Any  # random access: data.__getitems__([i, ...]) -> list of {"image": ...}
    rows: np.ndarray  # positions in `data`
    size: int
    channels: int
    labels: np.ndarray | None
    fingerprint: str
    truth: None = None

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return dataset, split and position."""
        return [f"{self.name}/{self.rows[i]}" for i in indices]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read many records at a time, and decode them in worker processes."""

        def files(rows: slice) -> list[bytes]:
            return [record["image"] for record in self.data.__getitems__(self.rows[indices[rows]].tolist())]

        return decode_files(files, len(indices), size=self.size, channels=self.channels)


def open_source(config: SourceConfig, data: DataConfig, *, labelled: bool = True) -> ImageSource:
    """Open what a `SourceConfig` describes, at the job's image size.

    Args:
        config: where the images are.
        data: image size, channels and number of classes.
        labelled: whether labels are needed; a pool is opened with False, and then has none.

    Raises:
        ValueError: labels are missing, or do not fit `data.num_classes`; the dataset is not prepared; the file is not
            what it should be; `per_class` is set where there are no labels.
        FileNotFoundError: there is no such file or folder.
    """
    opened = {"embedded": _open_embedded, "array": _open_array, "folder": _open_folder, "tfds": _open_tfds}
    if config.kind not in opened:
        raise ValueError("a data source that this stage needs is not set; give --config.data.<part>.kind and .path")
    if config.per_class and not labelled:
        raise ValueError(
            f"per_class is {config.per_class} for {_where(config)}, which is read without labels; use limit"
        )
    source = opened[config.kind](config, data, labelled)
    rows = np.arange(len(source))
    if labelled:
        _check_labels(source, config, data)
        if config.per_class:
            rows = _first_of_each_class(source.labels, config.per_class)
    if config.limit:
        rows = rows[: config.limit]
    if len(rows) == 0:
        raise ValueError(f"there are no images in {_where(config)}")
    return source if len(rows) == len(source) else _take(source, rows)


def _where(config: SourceConfig) -> str:
    return " ".join(part for part in (config.kind, config.name, config.path) if part)


def _take(source: Any, rows: np.ndarray) -> Any:
    """Return a source of the given sorted rows only."""
    fingerprint = _digest(source.fingerprint, rows)
    if rows[-1] == len(rows) - 1:
        rows = slice(len(rows))  # the first rows stay a view: a mapped file is not read
    kept = {name: getattr(source, name)[rows] for name in ("labels", "truth") if getattr(source, name) is not None}
    kept["fingerprint"] = fingerprint
    if isinstance(source, FolderSource):
        return replace(source, names=np.array(source.names, object)[rows].tolist(), **kept)
    if isinstance(source, TFDSSource):
        return replace(source, rows=source.rows[rows], **kept)
    return replace(source, images=source.images[rows], **kept)


def _check_labels(source: ImageSource, config: SourceConfig, data: DataConfig) -> None:
    if source.labels is None:
        raise ValueError(
            f"{_where(config)} has no labels; a labelled source needs one folder a class, or an array `labels`"
        )
    if len(source.labels) and not 0 <= source.labels.min() <= source.labels.max() < data.num_classes:
        raise ValueError(
            f"{_where(config)} has labels {source.labels.min()} to {source.labels.max()}, but data.num_classes is "
            f"{data.num_classes}; correct one of them"
        )


def _first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the sorted rows of the first `count` images of every class."""
    rows = [np.flatnonzero(labels == k)[:count] for k in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
    return digest.hexdigest()[:16]


def _open_embedded(config: SourceConfig, data: DataConfig, labelled: bool) -> ArraySource:
    return _make_array_source(load_embedded(config.name), data, labelled, f"embedded {config.name}")


def _open_array(config: SourceConfig, data: DataConfig, labelled: bool) -> ArraySource:
    path = Path(config.path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the .npz or .npy of a data source as its path")
    try:
        arrays = _load_arrays(path)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged, or no .npz or .npy file: {error}") from error
    return _make_array_source(arrays, data, labelled, str(path))


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz, or the one of a .npy, mapped; what counts is the content, not the suffix."""
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"images": loaded}
    with loaded:
        return {name: loaded[name] for name in ("images", "labels", "truth") if name in loaded.files}


def _make_array_source(arrays: dict[str, np.ndarray], data: DataConfig, labelled: bool, where: str) -> ArraySource:
    images = arrays.get("images")
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise ValueError(f"{where} must hold `images`, uint8 [N, H, W] or [N, H, W, C]")
    if images.ndim == 4 and images.shape[3] > 4:
        raise ValueError(f"{where} holds images of shape {images.shape}; channels come last, and there are at most 4")
    for name in ("labels", "truth"):
        column = arrays.get(name)
        if column is not None and (column.shape != images.shape[:1] or column.dtype.kind not in "iub"):
            raise ValueError(
                f"{where} holds {name} {column.dtype} {list(column.shape)}; they must be whole numbers, one for each "
                f"of the {len(images)} images"
            )
    return ArraySource(
        images=images,
        size=data.image_size,
        channels=data.channels,
        labels=arrays["labels"].astype(np.int32) if labelled and "labels" in arrays else None,
        truth=arrays["truth"].astype(bool) if "truth" in arrays else None,
        fingerprint=_digest(
            list(images.shape), images[:: max(len(images) // 64, 1)], arrays.get("labels", np.zeros(0))
        ),
    )


def _open_folder(config: SourceConfig, data: DataConfig, labelled: bool) -> FolderSource:
    root = Path(config.path)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; give the folder of a data source as its path")
    names = sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()
    )
    return FolderSource(
        root=root,
        names=names,
        size=data.image_size,
        channels=data.channels,
        labels=_labels_of_folders(names, config, data) if labelled else None,
        fingerprint=_digest(names, [(root / name).stat().st_size for name in names[:: max(len(names) // 1000, 1)]]),
    )


def _labels_of_folders(names: list[str], config: SourceConfig, data: DataConfig) -> np.ndarray | None:
    """Return labels by the sorted names of the class folders, or None if files lie flat."""
    if any(len(Path(name).parts) < 2 for name in names):
        return None
    classes = sorted({Path(name).parts[0] for name in names})
    if len(classes) != data.num_classes:
        raise ValueError(
            f"{_where(config)} has {len(classes)} class folders ({', '.join(classes[:5])}, ...), but data.num_classes "
            f"is {data.num_classes}; correct one of them"
        )
    return np.array([classes.index(Path(name).parts[0]) for name in names], np.int32)


def _open_tfds(config: SourceConfig, data: DataConfig, labelled: bool) -> TFDSSource:
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it

    where = f"TFDS {config.name!r}, split {config.split!r}"
    builder_options = {"file_format": "array_record"}
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        records = tfds.data_source(
            config.name,
            split=config.split,
            data_dir=config.path or None,
            download=False,
            decoders=decoders,
            builder_kwargs=builder_options,
        )
    except (AssertionError, FileNotFoundError, KeyError, NotImplementedError, tfds.core.DatasetNotFoundError) as error:
        raise ValueError(
            f"{where} is not prepared as ArrayRecord; on a machine with network and TensorFlow run "
            f"`tfds build {config.name} --file_format=array_record`, then give its data_dir as the source's path "
            f"({type(error).__name__})"
        ) from error
    missing = {"image", *(["label"] if labelled else [])} - set(records.dataset_info.features)
    if missing:
        raise ValueError(f"{where} has no feature {sorted(missing)[0]!r}; use another dataset")
    labels = np.concatenate(list(_read_labels(records))) if labelled else None
    return TFDSSource(
        name=f"{config.name}/{config.split}",
        data=records,
        rows=np.arange(len(records)),
        size=data.image_size,
        channels=data.channels,
        labels=labels,
        fingerprint=_digest(records.dataset_info.full_name, config.split, len(records)),
    )


def _read_labels(records: Any, batch_size: int = 4096) -> Iterator[np.ndarray]:
    """Yield the labels of all records; the images beside them are read but not decoded."""
    for start in range(0, len(records), batch_size):
        batch = records.__getitems__(list(range(start, min(start + batch_size, len(records)))))
        yield np.array([record["label"] for record in batch], np.int32)


def read_or_fail(source: ImageSource, indices: np.ndarray, what: str) -> np.ndarray:
    """Return images uint8 [n, H, W, C].

    Raises:
        ValueError: one does not decode; the message has its key.
    """
    images, readable = source.read(indices)
    if not readable.all():
        key = source.keys(indices[~readable][:1])[0]
        raise ValueError(f"{what}: the image {key} does not decode; repair or remove it")
    return images


def drop_unreadable(source: ImageSource, indices: np.ndarray, *, batch_size: int = 4096) -> np.ndarray:
    """Return those of `indices` [n] whose images decode; every one of them is read for it."""
    starts = range(0, len(indices), batch_size)
    readable = [source.read(indices[start : start + batch_size])[1] for start in starts]
    return indices[np.concatenate(readable)]


def read_all(source: ImageSource, *, what: str) -> np.ndarray:
    """Return every image, uint8 [N, H, W, C]; raises as `read_or_fail`."""
    return read_or_fail(source, np.arange(len(source)), what)


def write_images(path: Path, parts: list[tuple[ImageSource, np.ndarray]], *, batch_size: int = 4096) -> None:
    """Write the given images of several sources to one .npy file, whole or not at all; kept if it is there.

    Args:
        path: of the uint8 [sum n, H, W, C] array.
        parts: (source, indices [n]) pairs, written one after the other.
        batch_size: images held in memory at a time.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    first = read_or_fail(parts[0][0], parts[0][1][:1], str(path.name))
    total = sum(len(indices) for _, indices in parts)
    temporary = path.with_suffix(".tmp")
    out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(total, *first.shape[1:]))
    row = 0
    for source, indices in parts:
        for start in range(0, len(indices), batch_size):
            batch = read_or_fail(source, indices[start : start + batch_size], "training set")
            out[row : row + len(batch)] = batch
            row += len(batch)
    out.flush()
    os.replace(temporary, path)
