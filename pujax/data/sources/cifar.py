"""CIFAR-10 and CIFAR-100 as their authors give them: folders of Python pickles, which are read as data only."""

from pathlib import Path
from typing import Any

import numpy as np

from pujax.config import SourceConfig
from pujax.data.decode import ImageSpec
from pujax.data.sources.array import ArraySource, make_array_source
from pujax.data.sources.naming import digest
from pujax.data.sources.plain_pickle import load_plain_pickle
from pujax.errors import UserError

_SPLITS = {"train": ("data_batch_*", "train"), "test": ("test_batch", "test")}  # of CIFAR-10, of CIFAR-100
_LABELS = ("labels", "fine_labels")
_NAMES = (("batches.meta", "label_names"), ("meta", "fine_label_names"))


def open_cifar(config: SourceConfig, spec: ImageSpec, labelled: bool) -> ArraySource:
    """Open the split "train" or "test" of a folder of CIFAR-10 or CIFAR-100; of the latter with its fine labels.

    Raises:
        UserError: there is no such folder or split, or a file is damaged or no plain data.
    """
    folder = Path(config.path)
    if config.split not in _SPLITS:
        raise UserError(f"CIFAR has no split {config.split!r}; set split to {' or '.join(_SPLITS)}")
    paths = [path for pattern in _SPLITS[config.split] for path in sorted(folder.glob(pattern)) if path.is_file()]
    if not config.path or not paths:
        raise UserError(
            f"{config.path!r} holds no {' or '.join(_SPLITS[config.split])} of CIFAR; unpack its archive for Python, "
            "and give the folder in it"
        )
    batches = [_load(path) for path in paths]
    arrays = {"images": np.concatenate([_images(batch, path) for batch, path in zip(batches, paths)])}
    columns = [next((batch[name] for name in _LABELS if name in batch), None) for batch in batches]
    if all(column is not None for column in columns):
        arrays["labels"] = np.concatenate([np.asarray(column) for column in columns])
    fingerprint = digest(*(arrays[name] for name in sorted(arrays)))
    names = _class_names(folder)
    return make_array_source(arrays, spec, labelled, str(folder), fingerprint=fingerprint, class_names=names)


def _load(path: Path) -> dict[str, Any]:
    found = load_plain_pickle(path.read_bytes(), str(path))
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no dict; it is no batch of CIFAR")
    return {_text(key): value for key, value in found.items()}


def _images(batch: dict[str, Any], path: Path) -> np.ndarray:
    """Return uint8 [N, 32, 32, 3] of a batch's planes."""
    data = batch.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise UserError(f"{path} must hold `data`, uint8 [N, 3072]; it is no batch of CIFAR")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _class_names(folder: Path) -> tuple[str, ...] | None:
    for file, key in _NAMES:
        if (folder / file).is_file():
            return tuple(map(_text, _load(folder / file).get(key, ()))) or None
    return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
