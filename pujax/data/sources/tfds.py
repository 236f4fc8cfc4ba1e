"""Prepared TensorFlow datasets, read as ArrayRecord without TensorFlow."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pujax.config import DataConfig, SourceConfig
from pujax.data.decoders import decode_files
from pujax.data.sources.naming import digest
from pujax.errors import UserError


@dataclass(frozen=True)
class TFDSSource:
    """A prepared TensorFlow dataset, read through `tfds.data_source`."""

    name: str
    data: Any  # random access: data.__getitems__([i, ...]) -> list of {"image": ...}
    rows: np.ndarray  # positions in `data`
    size: int
    channels: int
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    truth: None = None
    skipped: dict[str, int] = field(default_factory=dict)

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

    def take(self, rows: np.ndarray) -> "TFDSSource":
        """Return a source of the given sorted rows only."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, rows=self.rows[rows], labels=labels, fingerprint=digest(self.fingerprint, rows))


def open_tfds(config: SourceConfig, data: DataConfig, labelled: bool) -> TFDSSource:
    """Open a dataset that is prepared on this machine."""
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
        raise UserError(
            f"{where} is not prepared as ArrayRecord; on a machine with network and TensorFlow run "
            f"`tfds build {config.name} --file_format=array_record`, then give its data_dir as the source's path "
            f"({type(error).__name__})"
        ) from error
    features = records.dataset_info.features
    missing = {"image", *(["label"] if labelled else [])} - set(features)
    if missing:
        raise UserError(f"{where} has no feature {sorted(missing)[0]!r}; use another dataset")
    names = getattr(features["label"], "names", None) if labelled else None
    labels = np.concatenate(list(_read_labels(records))) if labelled else None
    return TFDSSource(
        name=f"{config.name}/{config.split}",
        data=records,
        rows=np.arange(len(records)),
        size=data.image_size,
        channels=data.channels,
        labels=labels,
        class_names=tuple(names) if names else None,
        fingerprint=digest(records.dataset_info.full_name, config.split, len(records)),
    )


def _read_labels(records: Any, batch_size: int = 4096) -> Iterator[np.ndarray]:
    """Yield the labels of all records; the images beside them are read but not decoded."""
    for start in range(0, len(records), batch_size):
        batch = records.__getitems__(list(range(start, min(start + batch_size, len(records)))))
        yield np.array([record["label"] for record in batch], np.int32)
