"""Datasets that Hugging Face's `datasets` has saved with `save_to_disk`: mapped into memory, read with Arrow alone."""

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pujax.config import SourceConfig
from pujax.data.decode import ImageSpec
from pujax.data.sources.columns import holds_images, image_column, image_of, label_column
from pujax.data.sources.encoded import EncodedSource, whole
from pujax.data.sources.labels import to_labels
from pujax.data.sources.naming import digest
from pujax.data.sources.rows import InRows, locate, rows_of, starts_of
from pujax.errors import UserError

INDEX = "state.json"  # of a dataset
SPLITS = "dataset_dict.json"  # of several
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream


@dataclass(frozen=True)
class _ArrowRows(InRows):
    """The rows of Arrow files; the operating system reads what is asked for."""

    batches: list[pa.Array]  # images, in batches as the files have them
    starts: np.ndarray  # int64 [batches + 1]

    def fetch(self, places: np.ndarray) -> list[bytes | str]:
        """Return contents, or paths of files that the dataset only names."""
        return [image_of(self.batches[batch], int(row)) for batch, row in zip(*locate(self.starts, places))]


def open_hf(config: SourceConfig, spec: ImageSpec, labelled: bool) -> EncodedSource:
    """Open a saved dataset, or one split of a saved `DatasetDict`.

    Raises:
        UserError: there is none, it has no such split, no column of images, or is damaged.
    """
    folder = _split_folder(config)
    state, dataset_info = _load(folder / INDEX), _load(folder / "dataset_info.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} is a view of other files; call flatten_indices() on the dataset, and save it again")
    paths = [folder / entry["filename"] for entry in state["_data_files"]]
    files = [_map(path) for path in paths]
    schema, features = files[0].schema, dataset_info.get("features") or {}
    image = _image_of(features, schema, str(folder))
    label = _label_of(features, schema)
    columns = [file[image].chunks for file in files]
    batches = list(itertools.chain.from_iterable(columns))
    starts = starts_of([len(batch) for batch in batches])
    statuses = [os.stat(path) for path in paths]
    fingerprint = digest(state.get("_fingerprint"), [[status.st_size, status.st_mtime_ns] for status in statuses])
    rows = rows_of([path.name for path in paths], [len(file) for file in files])
    labels, names = None, None
    if labelled and label:
        names = (features.get(label) or {}).get("names")
        column = pa.chunked_array([chunk for file in files for chunk in file[label].chunks])
        labels, names = to_labels(column, str(folder), tuple(names) if names else None)
    return whole(_ArrowRows(batches, starts, rows=rows, fingerprint=fingerprint), spec, labels, names)


def _split_folder(config: SourceConfig) -> Path:
    """Return the folder of a dataset, or of the split of several."""
    folder = Path(config.path)
    if (folder / SPLITS).is_file():
        splits = _load(folder / SPLITS)["splits"]
        if config.split not in splits:
            raise UserError(f"{folder} has no split {config.split!r}; set split to {' or '.join(splits)}")
        return folder / config.split
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{config.path!r} is no dataset that Hugging Face's `datasets` has saved (it has no {INDEX}); call "
            "save_to_disk on it, or give its Parquet files"
        )
    if config.split != "train":
        raise UserError(f"{folder} is one dataset, without splits; leave split {config.split!r} out")
    return folder


def _load(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{path} is missing or damaged; save the dataset again") from error


def _map(path: Path) -> pa.Table:
    try:
        with path.open("rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            if file.read() != _END:  # Arrow takes a stream that breaks off between two batches for a whole one
                raise pa.ArrowInvalid("it is cut short")
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is missing or damaged: {error}; save the dataset again") from error


def _image_of(features: dict[str, Any], schema: pa.Schema, where: str) -> str:
    named = [name for name, feature in features.items() if isinstance(feature, dict) and feature["_type"] == "Image"]
    if named and named[0] in schema.names and holds_images(schema.field(named[0]).type):
        return named[0]
    return image_column(schema, where, "cast one to datasets.Image(), and save the dataset again")


def _label_of(features: dict[str, Any], schema: pa.Schema) -> str | None:
    named = (
        name for name, feature in features.items() if isinstance(feature, dict) and feature["_type"] == "ClassLabel"
    )
    return next(named, None) or label_column(schema)
