"""Prepared TensorFlow datasets, read as ArrayRecord without TensorFlow."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pujax.config import SourceConfig
from pujax.data.decode import ImageSpec
from pujax.data.sources.encoded import EncodedSource, whole
from pujax.data.sources.naming import digest
from pujax.errors import UserError


@dataclass(frozen=True)
class _Records:
    """The records of a prepared dataset, read through `tfds.data_source`."""

    name: str
    data: Any  # random access: data.__getitems__([i, ...]) -> list of {"image": ...}
    fingerprint: str
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.data)

    def keys(self, places: np.ndarray) -> list[str]:
        """Return dataset, split and position."""
        return [f"{self.name}/{i}" for i in places]

    def fetch(self, places: np.ndarray) -> list[bytes]:
        """Read many records at a time."""
        return [record["image"] for record in self.data.__getitems__(places.tolist())]


def open_tfds(config: SourceConfig, spec: ImageSpec, labelled: bool) -> EncodedSource:
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
    fingerprint = digest(records.dataset_info.full_name, config.split, len(records))
    files = _Records(f"{config.name}/{config.split}", records, fingerprint)
    return whole(files, spec, labels, tuple(names) if names else None)


def _read_labels(records: Any, batch_size: int = 4096) -> Iterator[np.ndarray]:
    """Yield the labels of all records; the images beside them are read but not decoded."""
    for start in range(0, len(records), batch_size):
        batch = records.__getitems__(list(range(start, min(start + batch_size, len(records)))))
        yield np.array([record["label"] for record in batch], np.int32)
