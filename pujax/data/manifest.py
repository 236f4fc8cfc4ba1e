"""The manifest of a folder of images: key, size and modification time of every file, listed once.

The order is depth first, names sorted as bytes. A pool's manifest is kept in the work directory, in Parquet parts of
100,000 files and `MANIFEST.json` last: a listing that was cut short goes on after its last whole part, and no later
start lists the folder again. Keys are paths relative to the folder, with "/"; names that are not UTF-8, and
backslashes, are escaped, reversibly.
"""

import collections
import errno
import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from etils import epath

from pujax.artifacts import load_json, read_table, save_json, write_table
from pujax.data.decode import EXTENSIONS
from pujax.errors import UserError

PART = 100_000  # files
_SUFFIXES = frozenset(suffix.encode() for suffix in EXTENSIONS)
_DANGLING, _FOLDERS = "dangling links", "folders named like images"
Entry = tuple[str, int, int]  # key, bytes, nanoseconds


@dataclass(frozen=True)
class Manifest:
    """The files of a folder; their keys are read part by part, as they are asked for."""

    count: int
    fingerprint: str
    skipped: dict[str, int]  # what looked like an image and is none
    load_part: Callable[[int], pa.Array]  # number of a part -> keys

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return the keys of files, by their place in the listing, int [n]."""
        parts = indices // PART
        if len(indices) and parts[0] == parts[-1] and (parts == parts[0]).all():
            return self.load_part(int(parts[0])).take(pa.array(indices % PART)).to_pylist()
        out = np.empty(len(indices), object)
        for part in np.unique(parts):
            own = parts == part
            out[own] = self.load_part(int(part)).take(pa.array(indices[own] % PART)).to_pylist()
        return out.tolist()

    def all_keys(self) -> pa.ChunkedArray:
        """Return every key."""
        parts = range(-(-self.count // PART))
        return pa.chunked_array([self.load_part(part) for part in parts], pa.string())


def list_once(root: str, folder: epath.Path, *, limit: int = 0) -> Manifest:
    """Return the manifest that is kept in `folder`; list the images under `root` where it is not there yet.

    Args:
        root: of the images.
        folder: of the manifest.
        limit: list no more than the first so many files; 0 lists all.

    Raises:
        UserError: the manifest is of another folder.
        OSError: the folder cannot be listed.
    """
    index = folder / "MANIFEST.json"
    asked = {"root": os.path.abspath(root), "limit": limit}
    if not index.exists():
        made = asked | _write_parts(root, folder, asked)
        if made["count"] == 0:  # not kept: the files may come yet
            return list_now(root, limit=limit)
        save_json(index, made)
    found = load_json(index)
    for name, value in asked.items():
        if found[name] != value:
            raise UserError(
                f"{folder} lists the pool with {name} {found[name]}, this run has {value}; choose another --workdir, "
                "or delete that folder and those of the stages after teacher"
            )

    @functools.lru_cache(maxsize=8)
    def load_part(part: int) -> pa.Array:
        try:
            return read_table(_part_path(folder, part), ["key"])["key"].combine_chunks()
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{_part_path(folder, part)} is missing or damaged; delete {folder} and run the command again, which "
                "lists the pool anew"
            ) from error

    return Manifest(found["count"], found["fingerprint"], found["skipped"], load_part)


def list_now(root: str, *, limit: int = 0) -> Manifest:
    """Return the manifest of the images under `root`, in memory.

    Raises:
        OSError: the folder cannot be listed.
    """
    skipped: collections.Counter[str] = collections.Counter()
    parts = [_table(entries) for entries in _in_parts(list_files(root, skipped), limit)]
    count = sum(map(len, parts))
    keys = [part["key"].combine_chunks() for part in parts]
    return Manifest(count, _join(map(_fingerprint, parts)), dict(skipped), keys.__getitem__)


def _write_parts(root: str, folder: epath.Path, asked: dict) -> dict:
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
        count, last = count + len(table), table["key"][-1].as_py()
    if not limit or count < limit:
        for entries in _in_parts(list_files(root, skipped, after=last), limit and limit - count):
            table = _table(entries)
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


def _table(entries: list[Entry]) -> pa.Table:
    keys, sizes, modified = zip(*entries)
    return pa.table({"key": pa.array(keys, pa.string()), "size": sizes, "modified": modified})


def _fingerprint(part: pa.Table) -> str:
    digest = hashlib.sha256("\0".join(part["key"].to_pylist()).encode())
    for name in ("size", "modified"):
        digest.update(part[name].to_numpy().astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def _join(prints: Iterator[str] | list[str]) -> str:
    return hashlib.sha256("".join(prints).encode()).hexdigest()[:16]


def list_files(root: str, skipped: collections.Counter, *, after: str | None = None) -> Iterator[Entry]:
    """Yield the image files under a folder; links to files are followed, links to folders are not.

    Args:
        root: the folder.
        skipped: counts what looked like an image and is none.
        after: begin after the file of this key.
    """
    boundary = path_of(after).split(b"/") if after is not None else []
    return _walk(os.fsencode(root), b"", boundary, skipped)


def _walk(root: bytes, prefix: bytes, boundary: list[bytes], skipped: collections.Counter) -> Iterator[Entry]:
    for name, is_folder in _names(os.path.join(root, prefix)):
        if boundary and name < boundary[0]:
            continue
        inside = boundary[1:] if boundary and name == boundary[0] else []
        if is_folder:
            if _looks_like_image(name) and not inside:
                skipped[_FOLDERS] += 1
            yield from _walk(root, prefix + name + b"/", inside, skipped)
        elif not (boundary and name == boundary[0]):
            try:
                status = os.stat(os.path.join(root, prefix + name))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                skipped[_DANGLING] += 1
                continue
            if stat.S_ISREG(status.st_mode):
                yield key_of(prefix + name), status.st_size, status.st_mtime_ns
            else:
                skipped[_FOLDERS] += 1


def _names(folder: bytes) -> list[tuple[bytes, bool]]:
    """Return (name, whether it is a folder) of the folders and of what is named like an image in a folder, sorted."""
    with os.scandir(folder) as entries:
        found = [
            (entry.name, folder_)
            for entry in entries
            if (folder_ := entry.is_dir(follow_symlinks=False)) or _looks_like_image(entry.name)
        ]
    return sorted(found)


def _looks_like_image(name: bytes) -> bool:
    return os.path.splitext(name)[1].lower() in _SUFFIXES


def key_of(path: bytes) -> str:
    """Return the key of a path: itself where it is UTF-8 without backslashes; else escaped, reversibly."""
    return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def path_of(key: str) -> bytes:
    """Return the path of a key."""
    if "\\" not in key:
        return key.encode()
    found = {b"\\": b"\\"}
    return re.sub(
        rb"\\(\\|x[0-9a-f]{2})", lambda match: found.get(match[1]) or bytes([int(match[1][1:], 16)]), key.encode()
    )
