"""The score table on disk: one Parquet file a shard, read in pool order, shard by shard.

Columns: key text, index int64, score float32 (larger is more likely in-domain), teacher_class int32 (the teacher's
argmax), teacher_confidence float32 (its largest probability), readable bool, reason text (why it does not decode).
"""

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from pujax.artifacts import is_remote, read_table, write_table, write_tables
from pujax.errors import UserError

_AT_ONCE = 32  # requests to an object store
_CHOSEN = ["key", "index", "score", "teacher_class", "teacher_confidence"]
_SCHEMA = pa.schema([
    ("key", pa.string()),
    ("index", pa.int64()),
    ("score", pa.float32()),
    ("teacher_class", pa.int32()),
    ("teacher_confidence", pa.float32()),
    ("readable", pa.bool_()),
    ("reason", pa.string()),
])  # fmt: skip


@dataclass(frozen=True)
class ScoreTable:
    """The scores of a pool; shards may be missing while it is written."""

    folder: epath.Path
    num_images: int
    shard_size: int

    @property
    def shards(self) -> list[tuple[int, int]]:
        """The [start, stop) of every shard."""
        starts = range(0, self.num_images, self.shard_size)
        return [(start, min(start + self.shard_size, self.num_images)) for start in starts]

    def path(self, start: int, stop: int) -> epath.Path:
        """Return the file of a shard; its name says which images it holds."""
        return self.folder / f"scores-{start:010d}-{stop:010d}.parquet"

    def absent(self) -> set[tuple[int, int]]:
        """Return the shards whose file is not there, by one listing of the folder."""
        names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        return {shard for shard in self.shards if self.path(*shard).name not in names}

    def missing(self, shards: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of the shards whose file is not there, or does not end as it should."""
        absent = self.absent()

        def is_whole(shard: tuple[int, int]) -> bool:
            try:
                with self.path(*shard).open("rb") as file:
                    return pq.read_metadata(file).num_rows == shard[1] - shard[0]
            except (FileNotFoundError, pa.ArrowInvalid):
                return False

        there = [shard for shard in shards if shard not in absent]
        with ThreadPoolExecutor(_AT_ONCE if is_remote(self.folder) else 1) as pool:
            whole = {shard for shard, is_so in zip(there, pool.map(is_whole, there)) if is_so}
        return [shard for shard in shards if shard not in whole]

    def write(self, start: int, stop: int, columns: dict[str, Any]) -> None:
        """Write the shard of images start..stop-1, whole or not at all.

        Raises:
            FloatingPointError: the score of a readable image is not finite; the message has its key.
        """
        broken = np.flatnonzero(columns["readable"] & ~np.isfinite(columns["score"]))
        if len(broken):
            key = columns["key"][broken[0]]
            raise FloatingPointError(f"the score of pool image {key} is not finite; look at it and at the scorer")
        table = pa.table({name: pa.array(columns[name], _SCHEMA.field(name).type) for name in _SCHEMA.names})
        write_table(self.path(start, stop), table)

    def check(self) -> None:
        """Raise RuntimeError if shards are missing, or do not hold every pool image exactly once."""
        missing = self.missing(self.shards)
        if missing:
            first = self.path(*missing[0]).name
            raise RuntimeError(f"{len(missing)} score shards are missing, the first is {first}; run the command again")
        for start, stop in self.shards:
            index = self._read(start, stop, ["index"])["index"].to_numpy()
            if not np.array_equal(index, np.arange(start, stop)):
                raise RuntimeError(f"{self.path(start, stop)} does not hold images {start} to {stop - 1} once each")

    def batches(self, *columns: str) -> Iterator[dict[str, np.ndarray]]:
        """Yield some columns of the readable images, and their "index", in pool order, a shard at a time."""
        wanted = sorted({"index", "readable", *columns})
        for start, stop in self.shards:
            table = self._read(start, stop, wanted)
            readable = table["readable"].to_numpy()
            yield {name: table[name].to_numpy()[readable] for name in wanted if name != "readable"}

    def counts(self) -> tuple[int, int]:
        """Return how many images are readable, and how many are not."""
        readable = sum(pc.sum(self._read(start, stop, ["readable"])["readable"]).as_py() for start, stop in self.shards)
        return readable, self.num_images - readable

    def unreadable(self) -> Iterator[pa.Table]:
        """Yield key, index and reason of the images that do not decode, a shard at a time."""
        for start, stop in self.shards:
            table = self._read(start, stop, ["key", "index", "reason", "readable"])
            yield table.filter(pc.invert(table["readable"])).select(["key", "index", "reason"])

    def first_unreadable(self) -> tuple[str, str]:
        """Return key and reason of the first image that does not decode; there must be one."""
        table = next(table for table in self.unreadable() if len(table))
        return table["key"][0].as_py(), table["reason"][0].as_py()

    def write_unreadable(self, path: epath.Path) -> None:
        """Write the list of the images that do not decode."""
        write_tables(path, self.unreadable())

    def rows(self, indices: np.ndarray) -> Iterator[pa.Table]:
        """Yield the rows of the given sorted pool indices, int64 [n], a shard at a time."""
        for start, stop in self.shards:
            own = indices[np.searchsorted(indices, start) : np.searchsorted(indices, stop)]
            yield self._read(start, stop, _CHOSEN).take(own - start)

    def _read(self, start: int, stop: int, columns: list[str]) -> pa.Table:
        return _read_or_name(self.path(start, stop), columns, stage=self.folder.parent)


def write_selection(path: epath.Path, table: ScoreTable, indices: np.ndarray) -> None:
    """Write key, index and scores of the chosen images, given by their sorted pool indices, int64 [n]."""
    write_tables(path, table.rows(indices))


def read_selection(path: epath.Path, columns: list[str] | None = None) -> pa.Table:
    """Read what `write_selection` wrote, or some of its columns.

    Raises:
        UserError: the file is damaged, or gone.
    """
    return _read_or_name(path, columns, stage=path.parent)


def _read_or_name(path: epath.Path, columns: list[str] | None, *, stage: epath.Path) -> pa.Table:
    """Read a file of a stage, whose folder is given; where it is damaged or gone, say that this is to be done again."""
    try:
        return read_table(path, columns)
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise  # the file system's own trouble
        done = stage / "DONE.json"
        text = f"{path} is damaged, or gone; delete what is left of it and {done}, and run the command again"
        raise UserError(text) from error
