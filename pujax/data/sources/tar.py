"""Images in tar files, as WebDataset shards are: `0001.jpg` and, where there are labels, `0001.cls` or `0001.json`.

The headers are read once, into the manifest: where in which shard each image begins, and how long it is. Reading an
image is then one read of a part of a file. A shard that is cut short or damaged is refused as a whole: a run that
leaves out what it cannot find would lose images without a word.
"""

import collections
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from etils import epath

from pujax.config import SourceConfig
from pujax.data import storage
from pujax.data.decode import ImageSpec
from pujax.data.manifest import Entry, Listing, open_manifest
from pujax.data.sources.encoded import EncodedSource, whole
from pujax.data.sources.labels import to_labels
from pujax.data.sources.listed import Listed
from pujax.data.sources.naming import digest
from pujax.data.walk import key_of, looks_like_image
from pujax.errors import UserError

SUFFIX = r"\.tar"
_SCHEMA = pa.schema([("key", pa.string()), ("size", pa.int64()), ("modified", pa.int64()),
                     ("shard", pa.int32()), ("offset", pa.int64()), ("label", pa.string())])  # fmt: skip
_SHARDS_AT_ONCE = 16  # of a store, while their headers are read
_BLOCK, _REMOTE_BLOCK = 4096, 1 << 20  # bytes read at a time for headers; a store's answer takes as long as a megabyte
_LABELS = (b".cls", b".json")
_LARGEST = (1 << 63) - 1
_LINKS = "links named like images"
_REGULAR, _WITHOUT_CONTENT = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class Member(NamedTuple):
    """A file in a tar."""

    name: bytes
    size: int
    modified: int  # seconds
    offset: int  # of its first byte
    is_link: bool


@dataclass(frozen=True)
class _Members(Listed):
    """The images of some tar files, in the order of these and in theirs."""

    shards: list[str]

    def fetch(self, places: np.ndarray) -> list[bytes]:
        """Read one part of a shard for each image."""
        rows = self.manifest.rows(places, ["shard", "offset", "size"])
        shards = [self.shards[shard] for shard in rows["shard"].to_pylist()]
        return storage.read_ranges(shards, rows["offset"].to_pylist(), rows["size"].to_pylist())


def open_tar(
    config: SourceConfig, spec: ImageSpec, labelled: bool, manifest_folder: epath.Path | None
) -> EncodedSource:
    """Open tar files; where their images are is kept in `manifest_folder`, where one is given.

    Raises:
        UserError: there are no tar files, or one is compressed, cut short or damaged.
    """
    shards = storage.expand(config.path, SUFFIX)
    names = storage.relative_names([shard.path for shard in shards])
    contents = digest(names, [shard.size for shard in shards], [shard.version for shard in shards])
    listing = Listing(
        {
            "root": config.path if storage.is_remote(config.path) else os.path.abspath(config.path),
            "contents of the shards": contents,
        },
        _SCHEMA,
        lambda after, skipped: _list_shards(shards, names, labelled, after, skipped),
    )
    limit = 0 if labelled and config.per_class else config.limit
    manifest = open_manifest(listing, manifest_folder, limit=limit)
    labels, classes = None, None
    if labelled and manifest.count:
        labels, classes = to_labels(manifest.column("label"), config.path)
    files = _Members(manifest, digest(contents, manifest.fingerprint), [shard.path for shard in shards])
    return whole(files, spec, labels, classes)


def _list_shards(
    shards: list[storage.Info], names: list[str], labelled: bool, after: Entry | None, skipped: collections.Counter
) -> Iterator[Entry]:
    """Yield the entries of all shards that come after the given one, several shards of a store at a time."""
    first, last_offset = (after[3], after[4]) if after else (0, -1)
    at_once = _SHARDS_AT_ONCE if storage.is_remote(shards[0].path) else 1
    with ThreadPoolExecutor(at_once) as pool:
        numbers = iter(range(first, len(shards)))
        while group := list(itertools.islice(numbers, at_once)):
            tables = pool.map(lambda number: _entries_of(shards[number], names[number], number, labelled), group)
            for number, (entries, links) in zip(group, tables):
                fresh = [entry for entry in entries if number > first or entry[4] > last_offset]
                if links and len(fresh) == len(entries):
                    skipped[_LINKS] += links
                yield from fresh


def _entries_of(shard: storage.Info, name: str, number: int, labelled: bool) -> tuple[list[Entry], int]:
    """Return the entries of one shard, and how many links in it are named like images."""
    block = _REMOTE_BLOCK if storage.is_remote(shard.path) else _BLOCK
    entries, links, seen = [], 0, set()
    with storage.ranges(shard.path) as read:
        window = _Window(read, block)
        members = read_members(window, shard.size, shard.path)
        for _, sample in (
            itertools.groupby(members, lambda member: _stem(member.name)) if labelled else _singly(members)
        ):
            sample = list(sample)
            label = _label_of(sample, window, shard.path) if labelled else None
            for member in sample:
                if not looks_like_image(member.name):
                    continue
                if member.is_link:
                    links += 1
                    continue
                key = f"{name}/{key_of(member.name.removeprefix(b'./'))}"
                if key in seen:
                    raise UserError(f"{shard.path} holds {key} twice; unpack it and pack it again")
                seen.add(key)
                entries.append((key, member.size, member.modified, number, member.offset, label))
    return entries, links


def _singly(members: Iterator[Member]) -> Iterator[tuple[None, list[Member]]]:
    return ((None, [member]) for member in members)


def _stem(name: bytes) -> bytes:
    """Return what the files of one sample share: the name up to the first dot after its folder."""
    folder, _, last = name.rpartition(b"/")
    return folder + b"/" + last.split(b".", 1)[0]


def _label_of(sample: list[Member], window: "_Window", path: str) -> str | None:
    """Return the label in a sample's `.cls` or `.json`, if it has one."""
    for member in sample:
        suffix = os.path.splitext(member.name)[1].lower()
        if suffix not in _LABELS:
            continue
        text = window.read(member.offset, member.size)
        try:
            if suffix == b".cls":
                return text.decode().strip() or None
            found = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}: the label {key_of(member.name)} is no text, or no JSON: {error}") from error
        if isinstance(found, dict):
            found = found.get("label", found.get("cls"))
        if isinstance(found, int | str):
            return str(found)
    return None


class _Window:
    """Reads small parts of a file that lie close to each other with few reads."""

    def __init__(self, read: Callable[[int, int], bytes], block: int):
        self._read, self._block, self._start, self._data = read, block, 0, b""

    def read(self, start: int, size: int) -> bytes:
        """Return bytes of the file, fewer at its end."""
        at = start - self._start
        if at < 0 or at + size > len(self._data):
            self._start, self._data, at = start, self._read(start, max(size, self._block)), 0
        return self._data[at : at + size]


def read_members(window: _Window, length: int, path: str) -> Iterator[Member]:
    """Yield the files and links of a tar: POSIX (ustar and pax) and GNU forms, several tars one after the other too.

    Args:
        window: reads parts of it.
        length: of it, in bytes.
        path: what messages call it.

    Raises:
        UserError: it is compressed, no tar, cut short or damaged.
    """
    at, ended, name, size = 0, False, None, None  # the last two where a header before says them
    while at < length:
        header = window.read(at, 512)
        if not at:
            _check_plain(header, path)
        if len(header) < 512:
            raise _damaged(path, at, "it is cut short")
        if header.count(0) == 512:
            at, ended = at + 512, True
            continue
        ended = False
        try:
            if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 256:
                raise ValueError("the checksum of a header differs")
            own_size = _number(header[124:136]) if size is None else size
            modified = _number(header[136:148]) & _LARGEST
        except ValueError as error:
            raise _damaged(path, at, str(error)) from error
        kind, start = header[156:157], at + 512
        content = 0 if kind in _WITHOUT_CONTENT else own_size
        if content < 0 or start + content > length:
            raise _damaged(path, at, "it is cut short" if content > 0 else "a size is negative")
        at = start + -(-content // 512) * 512
        if kind == b"L":
            name = window.read(start, content).rstrip(b"\0")
        elif kind in (b"x", b"X"):
            records = _pax_records(window.read(start, content), path, start)
            name, size = records.get(b"path", name), records.get(b"size", size)
        elif kind == b"S":
            raise UserError(f"{path} has a sparse file at byte {start - 512}; pack it again without --sparse")
        elif kind not in (b"K", b"g"):
            own_name = _name(header) if name is None else name
            if kind in _REGULAR and not own_name.endswith(b"/"):
                yield Member(own_name, own_size, modified, start, False)
            elif kind in (b"1", b"2"):
                yield Member(own_name, 0, modified, start, True)
            name = size = None
    if not ended:
        raise _damaged(path, at, "it has no end")


def _check_plain(header: bytes, path: str) -> None:
    for magic, command in _COMPRESSED.items():
        if header.startswith(magic):
            raise UserError(
                f"{path} is compressed, so that no image can be read by itself; unpack it with `{command}` (images do "
                "not become smaller by it)"
            )


def _damaged(path: str, at: int, why: str) -> UserError:
    return UserError(f"{path} is no whole tar file, at byte {at}: {why}; bring it again, or make it again")


def _number(field: bytes) -> int:
    """Return a number of a header, octal digits or, where they do not suffice, binary."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (field[0] == 0xFF) * 256 ** (len(field) - 1)
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(text: bytes, path: str, at: int) -> dict[bytes, bytes | int]:
    """Return the records "length name=value" of an extended header; the size is a number."""
    records = {}
    while text.strip(b"\0"):
        try:
            length = int(text.split(b" ", 1)[0])
            name, value = text[:length].split(b" ", 1)[1].rstrip(b"\n").split(b"=", 1)
            records[name] = int(value) if name == b"size" else value
        except (ValueError, IndexError) as error:
            raise _damaged(path, at, "an extended header is damaged") from error
        text = text[length:]
    return records
