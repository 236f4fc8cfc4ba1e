"""Images in ArrayRecord files: records that are encoded images, or `tf.train.Example`s that hold them.

An Example is a protocol buffer of a fixed form; the few lines that it takes to read one are here, so that TensorFlow is
not needed.
"""

import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pujax.config import SourceConfig
from pujax.data import storage
from pujax.data.decode import ImageSpec
from pujax.data.records import DAMAGE, open_records
from pujax.data.sources.encoded import EncodedSource, whole
from pujax.data.sources.labels import to_labels
from pujax.data.sources.naming import digest
from pujax.data.sources.rows import InRows, rows_of
from pujax.errors import UserError

SUFFIX = r"\.array_?record(-[\d*?]+-of-[\d*?]+|\*)?"
_IMAGES, _LABELS = ("image/encoded", "image"), ("image/class/label", "label", "image/class/text")
_BATCH = 1024  # records read at a time for their labels
_OPEN = 16  # files


@dataclass(frozen=True)
class _Records(InRows):
    """The records of ArrayRecord files."""

    paths: list[str]

    def fetch(self, places: np.ndarray) -> list[bytes]:
        """Read the records of each file at once."""
        return [_image_in(record) for record in self.records(places)]

    def records(self, places: np.ndarray) -> list[bytes]:
        """Return whole records."""
        files, rows = self.rows.locate(places)
        out: list[bytes] = [b""] * len(places)
        for file in np.unique(files):
            own = np.flatnonzero(files == file)
            for place, record in zip(own, _read(self.paths[file], rows[own].tolist())):
                out[place] = record
        return out


def open_array_record(config: SourceConfig, spec: ImageSpec, labelled: bool) -> EncodedSource:
    """Open ArrayRecord files.

    Raises:
        UserError: there are none, one is damaged, or its records are neither images nor Examples with one.
    """
    shards = storage.expand(config.path, SUFFIX)
    paths = [shard.path for shard in shards]
    names, counts = storage.relative_names(paths), [_count(path) for path in paths]
    fingerprint = digest(names, counts, [shard.size for shard in shards], [shard.version for shard in shards])
    files = _Records(paths, rows=rows_of(names, counts), fingerprint=fingerprint)
    if len(files):
        _check_record(files.records(np.arange(1))[0], files.keys(np.arange(1))[0])
    labels, classes = None, None
    if labelled and len(files):
        labels, classes = to_labels(pa.array(list(_read_labels(files))), config.path)
    return whole(files, spec, labels, classes)


@functools.lru_cache(maxsize=_OPEN)
def _reader(path: str) -> tuple[Any, threading.Lock]:
    return open_records(path), threading.Lock()


def _count(path: str) -> int:
    try:
        reader = open_records(path)
        count = reader.num_records()
        reader.close()
        return count
    except DAMAGE as error:
        raise UserError(f"{path} is damaged, or no ArrayRecord file: {_line(error)}; bring it again") from error


def _read(path: str, rows: list[int]) -> list[bytes]:
    reader, lock = _reader(path)
    with lock:
        try:
            return reader.read(rows)
        except DAMAGE as error:
            raise UserError(f"{path} is damaged near record {rows[0]}: {_line(error)}; bring it again") from error


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def _read_labels(files: _Records) -> Iterator[int | str | None]:
    for start in range(0, len(files), _BATCH):
        for record in files.records(np.arange(start, min(start + _BATCH, len(files)))):
            found = parse_example(record) if _is_example(record) else {}
            label = next((found[name] for name in _LABELS if found.get(name)), [None])[0]
            yield label.decode() if isinstance(label, bytes) else label


def _is_example(record: bytes) -> bool:
    return record[:1] == b"\x0a"  # the first field of a message; no image that Pillow reads here begins so


def _image_in(record: bytes) -> bytes:
    if not _is_example(record):
        return record
    try:
        found = parse_example(record)
    except (ValueError, IndexError):
        return record  # the decoder says that this is no image
    return next((found[name][0] for name in _IMAGES if found.get(name)), b"")


def _check_record(record: bytes, key: str) -> None:
    """Raise UserError unless a record may be an image."""
    if not _is_example(record):
        return
    try:
        found = parse_example(record)
    except (ValueError, IndexError) as error:
        raise UserError(f"{key} is neither an image nor a tf.train.Example; write encoded images") from error
    if not any(found.get(name) for name in _IMAGES):
        raise UserError(f"{key} is an Example with {', '.join(sorted(found))}, and without {' or '.join(_IMAGES)}")


def parse_example(record: bytes) -> dict[str, list]:
    """Return the features of a serialised `tf.train.Example`: bytes or whole numbers by name; others are left empty.

    Raises:
        ValueError: it is none.
        IndexError: it ends too early.
    """
    found: dict[str, list] = {}
    for _, features in _fields(record):  # Example.features
        for _, entry in _fields(features):  # Features.feature, a map
            parts = {number: part for number, part in _fields(entry) if isinstance(part, bytes)}
            values: list = []
            for kind, content in _fields(parts.get(2, b"")):  # bytes_list 1, float_list 2, int64_list 3
                for _, value in _fields(content):
                    if kind == 3:
                        values += [value] if isinstance(value, int) else _varints(value)
                    elif kind == 1 and isinstance(value, bytes):
                        values.append(value)
            found[str(parts.get(1, b""), "utf-8")] = values
    return found


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the fields of a protocol buffer: whole numbers and bytes, of fixed width too."""
    if not isinstance(message, bytes):
        raise ValueError("a number stands where a message should")
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind in (1, 2, 5):
            size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = message[at : at + size], at + size
            if at > len(message):
                raise ValueError("a field ends after its message")
        else:
            raise ValueError(f"there is no field of kind {kind}")
        yield tag >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, as a signed one of 64, and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value - (1 << 64) if value >> 63 else value, at
        if shift > 63:
            raise ValueError("a number is too long")


def _varints(packed: bytes) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return values
