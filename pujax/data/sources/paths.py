"""Images that a table lists, a path a row: CSV or Parquet, with a label where there is one."""

import hashlib
import os
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pujax.config import SourceConfig
from pujax.data import storage
from pujax.data.decode import ImageSpec
from pujax.data.sources.columns import label_column
from pujax.data.sources.encoded import EncodedSource, whole
from pujax.data.sources.labels import to_labels
from pujax.data.sources.naming import digest
from pujax.errors import UserError

_PATHS = ("path", "filename", "file_name", "file", "filepath", "image", "image_path", "key", "url")
_HASHED = 100_000  # paths at a time


@dataclass(frozen=True)
class _Paths:
    """The files that a table lists, in its order."""

    folder: str  # of the table: where relative paths begin
    listed: pa.Array  # text, as the table has them
    fingerprint: str  # of paths alone, not of what lies there
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.listed)

    def keys(self, places: np.ndarray) -> list[str]:
        """Return paths as the table has them."""
        return self.listed.take(pa.array(places)).to_pylist()

    def fetch(self, places: np.ndarray) -> list[bytes | str]:
        """Return paths, and contents of what lies in stores."""
        found: list[bytes | str] = [storage.join(self.folder, key) for key in self.keys(places)]
        remote = [i for i, path in enumerate(found) if storage.is_remote(path)]
        by_store: dict[str, list[int]] = {}
        for i in remote:
            by_store.setdefault(found[i].split("://", 1)[0], []).append(i)
        for own in by_store.values():
            for i, content in zip(own, storage.read_each([found[i] for i in own])):
                found[i] = content
        return found


def open_list(config: SourceConfig, spec: ImageSpec, labelled: bool) -> EncodedSource:
    """Open a CSV or Parquet table of paths; relative ones begin at the table's folder.

    Raises:
        UserError: it is not there, damaged, or has no column of paths; a path is missing, or there twice; the first
            file is not there.
    """
    table = _read_table(config.path)
    column = next((name for name in _PATHS if name in table.schema.names), None)
    if column is None or not pa.types.is_string(table.schema.field(column).type):
        raise UserError(
            f"{config.path} has no column of paths ({', '.join(_PATHS)}), but {', '.join(table.schema.names[:8])}; "
            "give the names of its columns in its first line"
        )
    listed = table[column].cast(pa.large_string()).combine_chunks()  # of many chunks rows are slow to take
    _check_paths(listed, config.path)
    files = _Paths(os.path.dirname(config.path) or ".", listed, digest(_hash_of(listed), len(listed)))
    if len(listed):
        first = storage.join(files.folder, listed[0].as_py())
        try:
            storage.info(first)
        except UserError as error:
            raise UserError(
                f"{config.path}: its first image {first} is not there; relative paths begin at the folder of the list"
            ) from error
    label = label_column(table.schema)
    labels, names = to_labels(table[label], config.path) if labelled and label and len(table) else (None, None)
    return whole(files, spec, labels, names)


def _read_table(path: str) -> pa.Table:
    if not path:
        raise UserError("a list of images has no path; give --config.data.<part>.path")
    if storage.info(path).is_folder:
        raise UserError(f"{path} is a folder; give the CSV or Parquet list in it")
    content = pa.BufferReader(storage.read(path))
    try:
        if path.lower().endswith(".parquet"):
            table = pq.read_table(content)
        else:
            as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(_PATHS, pa.string()))
            table = pa.csv.read_csv(content, convert_options=as_text)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is damaged, or no CSV or Parquet table: {error}; make it again") from error
    texts = [pa.string() if pa.types.is_large_string(field.type) else field.type for field in table.schema]
    return table.cast(pa.schema([field.with_type(kind) for field, kind in zip(table.schema, texts)]))


def _check_paths(listed: pa.Array, path: str) -> None:
    missing = pc.or_kleene(pc.is_null(listed), pc.equal(listed, ""))
    if pc.any(missing).as_py():
        raise UserError(f"{path}: row {pc.index(missing, True).as_py() + 1} has no path; give it one, or leave it out")
    counts = pc.value_counts(listed)
    if len(counts) != len(listed):
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise UserError(f"{path} lists {twice} twice; list every image once")


def _hash_of(listed: pa.Array) -> str:
    out = hashlib.sha256()
    for start in range(0, len(listed), _HASHED):
        out.update("".join(f"{path}\0" for path in listed[start : start + _HASHED].to_pylist()).encode())
    return out.hexdigest()
