"""The manifest of many images, listed once: key, size, version of each, and where it lies, if not in a file of its own.

A pool's manifest is kept in the work directory, in Parquet parts of 100,000 images and `MANIFEST.json` last: a listing
that was cut short goes on after its last whole part, and no later start lists the images again.
"""

import collections
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from pujax.artifacts import load_json, read_table, save_json, write_table
from pujax.errors import UserError

PART = 100_000  # images
Entry = tuple  # values of a listing's schema


@dataclass(frozen=True)
class Listing:
    """How images are listed, in an order that is always the same."""

    asked: dict[str, Any]  # what tells this listing from others, by the name that a message gives it
    schema: pa.Schema  # of the entries; strings and whole numbers, "key" first
    entries: Callable[
        [Entry | None, collections.Counter], Iterator[Entry]
    ]  # (begin after this one, counts what it skips)


@dataclass(frozen=True)
class Manifest:
    """A listing that is done; its entries are read part by part, as they are asked for."""

    count: int
    fingerprint: str
    skipped: dict[str, int]  # what looked like an image and is none
    load_part: Callable[[int], pa.Table]  # number of a part -> its entries

    def rows(self, places: np.ndarray, columns: list[str]) -> pa.Table:
        """Return columns of entries, by their place in the listing, int [n]."""
        parts, within = places // PART, places % PART
        if len(places) and parts[0] == parts[-1] and (parts == parts[0]).all():
            return self.load_part(int(parts[0])).select(columns).take(pa.array(within))
        wanted = np.unique(parts)
        order = np.concatenate([np.flatnonzero(parts == part) for part in wanted] or [np.arange(0)])
        tables = [self.load_part(int(p)).select(columns).take(pa.array(within[parts == p])) for p in wanted]
        empty = pa.table({name: pa.array([], pa.string()) for name in columns})
        return pa.concat_tables(tables).take(pa.array(np.argsort(order))) if tables else empty

    def keys(self, places: np.ndarray) -> list[str]:
        """Return the keys of entries, by their place in the listing, int [n]."""
        return self.rows(places, ["key"])["key"].to_pylist()

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column of every entry; of a listing that is not empty."""
        parts = range(-(-self.count // PART))
        return pa.chunked_array([chunk for part in parts for chunk in self.load_part(part)[name].chunks])


def open_manifest(listing: Listing, folder: epath.Path | None, *, limit: int = 0) -> Manifest:
    """Return `list_once` in a folder, or `list_now` where none is given."""
    return list_now(listing, limit=limit) if folder is None else list_once(listing, folder, limit=limit)


def list_once(listing: Listing, folder: epath.Path, *, limit: int = 0) -> Manifest:
    """Return the manifest that is kept in `folder`; list the images where it is not there yet.

    Args:
        listing: of the images.
        folder: of the manifest.
        limit: list no more than the first so many images; 0 lists all.

    Raises:
        UserError: the manifest is of other images.
        OSError: the images cannot be listed.
    """
    index = folder / "MANIFEST.json"
    asked = listing.asked | {"limit": limit}
    if not index.exists():
        made = asked | _write_parts(listing, folder, asked)
        if made["count"] == 0:  # not kept: the files may come yet
            return list_now(listing, limit=limit)
        save_json(index, made)
    found = load_json(index)
    for name, value in asked.items():
        if found.get(name) != value:
            raise UserError(
                f"{folder} lists the pool with {name} {found.get(name)}, this run has {value}; choose another "
                "--workdir, or delete that folder and those of the stages after teacher"
            )

    @functools.lru_cache(maxsize=8)
    def load_part(part: int) -> pa.Table:
        try:
            return read_table(_part_path(folder, part)).combine_chunks()
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{_part_path(folder, part)} is missing or damaged; delete {folder} and run the command again, which "
                "lists the pool anew"
            ) from error

    return Manifest(found["count"], found["fingerprint"], found["skipped"], load_part)


def list_now(listing: Listing, *, limit: int = 0) -> Manifest:
    """Return the manifest of the images, in memory.

    Raises:
        OSError: the images cannot be listed.
    """
    skipped: collections.Counter[str] = collections.Counter()
    parts = [_table(listing, entries) for entries in _in_parts(listing.entries(None, skipped), limit)]
    count = sum(map(len, parts))
    return Manifest(count, _join(map(_fingerprint, parts)), dict(skipped), parts.__getitem__)


def _write_parts(listing: Listing, folder: epath.Path, asked: dict) -> dict:
    """Write the parts that are not there yet; return count, fingerprint and what was skipped."""
    skipped: collections.Counter[str] = collections.Counter()
    limit, prints, count, last = asked["limit"], [], 0, None
    while (path := _part_path(folder, len(prints))).exists():
        table = read_table(path)
        note = json.loads(table.schema.metadata[b"note"])
        if note["asked"] != asked or len(table) < PART:  # of another listing; or its last part, which may have grown
            break
        prints.append(note["fingerprint"])
        skipped = collections.Counter(note["skipped"])
        count, last = count + len(table), tuple(column[-1].as_py() for column in table.columns)
    if not limit or count < limit:
        for entries in _in_parts(listing.entries(last, skipped), limit and limit - count):
            table = _table(listing, entries)
            prints.append(_fingerprint(table))
            count += len(table)
            note = {"asked": asked, "fingerprint": prints[-1], "skipped": skipped}
            path = _part_path(folder, len(prints) - 1)
            write_table(path, table.replace_schema_metadata({"note": json.dumps(note)}))
    return {"count": count, "fingerprint": _join(prints), "skipped": dict(skipped)}


def _part_path(folder: epath.Path, part: int) -> epath.Path:
    return folder / f"part-{part:05d}.parquet"


def _in_parts(entries: Iterator[Entry], limit: int) -> Iterator[list[Entry]]:
    part: list[Entry] = []
    for count, entry in enumerate(entries, start=1):
        part.append(entry)
        if len(part) == PART:
            yield part
            part = []
        if count == limit:
            break
    if part:
        yield part


def _table(listing: Listing, entries: list[Entry]) -> pa.Table:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*entries), listing.schema)]
    return pa.Table.from_arrays(columns, schema=listing.schema)


def _fingerprint(part: pa.Table) -> str:
    digest = hashlib.sha256()
    for column in part.columns:
        if pa.types.is_string(column.type):
            digest.update("\0".join(text or "" for text in column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def _join(prints: Iterator[str] | list[str]) -> str:
    return hashlib.sha256("".join(prints).encode()).hexdigest()[:16]
