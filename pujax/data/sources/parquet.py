"""Images in the rows of Parquet files, as img2dataset writes them and Hugging Face keeps them.

Only the footers are read at the start. A row group is decoded as a whole, and kept for its other rows.
"""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pujax.config import SourceConfig
from pujax.data import storage
from pujax.data.decode import ImageSpec
from pujax.data.sources.columns import class_names, image_column, image_of, label_column
from pujax.data.sources.encoded import EncodedSource, whole
from pujax.data.sources.labels import to_labels
from pujax.data.sources.naming import digest
from pujax.data.sources.rows import InRows, locate, rows_of, starts_of
from pujax.errors import UserError

SUFFIX = r"\.parquet"
_KEPT = 512 << 20  # bytes of decoded row groups
_FOOTERS_AT_ONCE = 16


class _Footer(NamedTuple):
    """What the end of a file says of it."""

    groups: list[int]  # rows of each row group
    image: str  # columns
    label: str | None
    class_names: tuple[str, ...] | None


@dataclass(frozen=True)
class _ParquetRows(InRows):
    """The rows of Parquet files."""

    paths: list[str]
    columns: list[str]  # of the images, by file
    groups: list[np.ndarray]  # int64, first row of each row group and the number of all, by file
    cache: "_Cache" = field(default_factory=lambda: _Cache())

    def fetch(self, places: np.ndarray) -> list[bytes | str]:
        """Take the rows out of their row groups."""
        images = []
        for file, row in zip(*self.rows.locate(places)):
            group, at = map(int, locate(self.groups[file], row))
            column = self.cache.get((int(file), group), lambda file=file, group=group: self._read_group(file, group))
            images.append(image_of(column, at))
        return images

    def _read_group(self, file: int, group: int) -> pa.ChunkedArray:
        path, name = self.paths[file], self.columns[file]
        with storage.opened(path) as source:
            try:
                return pq.ParquetFile(source).read_row_group(group, [name])[name]
            except (pa.ArrowException, OSError) as error:
                raise OSError(5, f"row group {group} cannot be read: {error}", path) from error


class _Cache:
    """The row groups that were read last; one that several threads want is read by the first of them."""

    def __init__(self):
        self._lock = threading.Lock()
        self._found: collections.OrderedDict[tuple[int, int], Future] = collections.OrderedDict()

    def get(self, key: tuple[int, int], read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """Return what `read` returns for a key, or returned before."""
        with self._lock:
            found, is_first = self._found.get(key), key not in self._found
            if is_first:
                found = self._found[key] = Future()
            self._found.move_to_end(key)
        if is_first:
            try:
                found.set_result(read())
            except BaseException as error:
                with self._lock:
                    self._found.pop(key, None)
                found.set_exception(error)
            with self._lock:
                self._drop_oldest()
        return found.result()

    def _drop_oldest(self) -> None:
        sizes = {key: found.result().nbytes for key, found in self._found.items() if found.done()}
        total = sum(sizes.values())
        for key in list(sizes)[:-1]:
            if total <= _KEPT:
                break
            total -= sizes[key]
            del self._found[key]


def open_parquet(config: SourceConfig, spec: ImageSpec, labelled: bool) -> EncodedSource:
    """Open Parquet files with a column of encoded images.

    Raises:
        UserError: there are none, one is damaged, or has no such column.
    """
    shards = storage.expand(config.path, SUFFIX)
    paths = [shard.path for shard in shards]
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE if storage.is_remote(paths[0]) else 1) as pool:
        footers = list(pool.map(_read_footer, paths))
    names = storage.relative_names(paths)
    counts = [sum(footer.groups) for footer in footers]
    fingerprint = digest(names, counts, [shard.size for shard in shards], [shard.version for shard in shards])
    groups = [starts_of(footer.groups) for footer in footers]
    columns, rows = [footer.image for footer in footers], rows_of(names, counts)
    files = _ParquetRows(paths, columns, groups, rows=rows, fingerprint=fingerprint)
    labels, classes = None, None
    if labelled and len(files) and all(footer.label for footer in footers):
        chunks = [chunk for path, footer in zip(paths, footers) for chunk in _read_column(path, footer.label)]
        labels, classes = to_labels(pa.chunked_array(chunks), config.path, footers[0].class_names)
    return whole(files, spec, labels, classes)


def _read_footer(path: str) -> _Footer:
    with storage.opened(path) as source:
        try:
            file = pq.ParquetFile(source)
        except (pa.ArrowInvalid, OSError) as error:
            if not isinstance(error, pa.ArrowInvalid) and "thrift" not in str(error):  # the machine's trouble
                raise
            raise UserError(f"{path} is damaged, or no Parquet file: {error}; bring it again") from error
        metadata, schema = file.metadata, file.schema_arrow
        image = image_column(schema, path, "for a list of paths give list:PATH")
        groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        label = label_column(schema)
        return _Footer(groups, image, label, class_names(schema, label))


def _read_column(path: str, name: str) -> list[pa.Array]:
    with storage.opened(path) as source:
        return pq.ParquetFile(source).read([name])[name].chunks
