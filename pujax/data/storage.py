"""Files on this machine and in object stores: read whole or in part, listed, and named by patterns.

A path with "://" goes to fsspec, whatever store it names; any other is a local file. `{000..999}` and `{a,b}` and the
wildcards `*`, `?` and `**` name several files. What a store raises becomes an error that names the address.
"""

import contextlib
import errno
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pujax.artifacts import is_remote
from pujax.errors import UserError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> extra of pujax
_TAGS = ("ETag", "etag", "generation", "LastModified", "mtime", "updated", "created")  # what stores say of a version
_FEW = 8  # as many objects are asked for one by one; of more, their folder is listed
_AHEAD = 1 << 20  # bytes that are read beyond what is asked for
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")


class Info(NamedTuple):
    """A file or a folder."""

    path: str  # as a user would write it
    is_folder: bool
    size: int  # bytes
    version: int  # nanoseconds of its modification or, in a store, a number made of its tag; differs when the file does


def join(folder: str, name: str) -> str:
    """Return the path of a name in a folder; a name that is a path of its own stays."""
    if is_remote(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def info(path: str) -> Info:
    """Return what there is at a path.

    Raises:
        UserError: nothing is there.
        OSError: the store does not answer.
    """
    if not is_remote(path):
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"there is nothing at {path!r}; correct the path") from error
        return Info(path, os.path.isdir(path), status.st_size, status.st_mtime_ns)
    with _naming(path):
        store, inner = _store(path)
        return _info_of(path, store.info(inner))


def read(path: str) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: nothing is there.
        OSError: it cannot be read.
    """
    if not is_remote(path):
        return Path(path).read_bytes()
    with _naming(path):
        store, inner = _store(path)
        return store.cat_file(inner)


def upload(source: Path, url: str) -> None:
    """Put a file of this machine into a store, whole or not at all.

    Raises:
        OSError: the store does not take it.
    """
    with _naming(url):
        store, inner = _store(url)
        store.put_file(str(source), inner)


def download(url: str, target: Path) -> None:
    """Bring an object of a store to this machine.

    Raises:
        UserError: nothing is there.
        OSError: it cannot be read.
    """
    with _naming(url):
        store, inner = _store(url)
        store.get_file(inner, str(target))


def read_each(paths: Sequence[str]) -> list[bytes | str]:
    """Return the contents of many files of one store, read at once; for one that is gone, its path.

    Raises:
        OSError: one cannot be read though it is there.
    """
    whole = [None] * len(paths)
    return [path if content is None else content for path, content in zip(paths, _cat(paths, whole, whole))]


def read_ranges(paths: Sequence[str], starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """Return one part of each of the paths, by its first byte and its number of bytes.

    Raises:
        UserError: a file is gone, or has become shorter.
        OSError: one cannot be read.
    """
    if paths and is_remote(paths[0]):
        parts = _cat(paths, starts, [start + size for start, size in zip(starts, sizes)])
    else:
        parts = _pread(paths, starts, sizes)
    for path, part, size in zip(paths, parts, sizes):
        if part is None or len(part) != size:
            raise UserError(f"{path} is gone or was cut short since it was listed; bring it back, or list it anew")
    return parts


@contextlib.contextmanager
def ranges(path: str) -> Iterator[Callable[[int, int], bytes]]:
    """Give a function (first byte, number of bytes) -> bytes, fewer at the end of the file."""
    if is_remote(path):
        store, inner = _store(path)

        def read_range(start: int, size: int) -> bytes:
            with _naming(path):
                return store.cat_file(inner, start=start, end=start + size)

        yield read_range
    else:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield lambda start, size: os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Give a file to seek and read in."""
    if is_remote(path):
        with _naming(path):
            store, inner = _store(path)
            with store.open(inner, "rb", block_size=_AHEAD, cache_type="readahead") as file:
                yield file
    else:
        with open(path, "rb") as file:
            yield file


def list_folder(folder: str) -> list[Info]:
    """Return what lies in a folder of a store, unsorted; nothing is remembered of it.

    Raises:
        UserError: there is no such folder.
        OSError: the store does not answer.
    """
    with _naming(folder):
        store, inner = _store(folder)
        entries = store.ls(inner, detail=True)
        own = inner.strip("/")  # some stores have an object of a folder's own name
        inside = [entry for entry in entries if entry["name"].strip("/") != own]
        return [_info_of(join(folder, entry["name"].strip("/").rsplit("/", 1)[-1]), entry) for entry in inside]


def expand(text: str, suffix: str = "") -> list[Info]:
    """Return the files that a path or pattern names, sorted by their paths as bytes.

    Args:
        text: a path, local or of a store, with braces and wildcards where there are many.
        suffix: regular expression at the end of the names that are taken from a folder.

    Raises:
        UserError: nothing is there, or one of the files that braces name is missing.
    """
    if not text:
        raise UserError("a data source has no path; give --config.data.<part>.path")
    found: dict[str, Info] = {}
    plain = []
    for path in expand_braces(text):
        if "*" in path or "?" in path:
            found |= {entry.path: entry for entry in _glob(path) if not entry.is_folder}
        else:
            plain.append(path)
    for entry in _infos(plain, text):
        inside = _inside(entry.path, suffix) if entry.is_folder else [entry]
        found |= {file.path: file for file in inside}
    if not found:
        what = "is a folder without files of this kind" if plain else "matches no file"
        raise UserError(f"{text} {what}; correct the path, or the kind of the source")
    return [found[path] for path in sorted(found, key=os.fsencode)]


def expand_braces(text: str) -> list[str]:
    """Return what a text with `{a,b}` and `{08..11}` stands for; numbers keep the width of the longer end."""
    match = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", text)
    if not match:
        return [text]
    before, inside, after = text[: match.start()], match[1], text[match.end() :]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise UserError(f"{text} counts down from {span[1]} to {span[2]}; write the smaller number first")
        padded = any(end.startswith("0") and len(end) > 1 for end in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = inside.split(",")
    return [text for choice in choices for text in expand_braces(f"{before}{choice}{after}")]


def relative_names(paths: list[str]) -> list[str]:
    """Return the paths without the folder that holds them all."""
    folders, common = [path.split("/")[:-1] for path in paths], 0
    while len({tuple(folder[: common + 1]) for folder in folders}) == 1 and common < min(map(len, folders)):
        common += 1
    return ["/".join(path.split("/")[common:]) for path in paths]


def _inside(folder: str, suffix: str) -> list[Info]:
    found = list_folder(folder) if is_remote(folder) else [info(entry.path) for entry in os.scandir(folder)]
    return [entry for entry in found if not entry.is_folder and re.search(f"(?:{suffix})$", entry.path, re.IGNORECASE)]


def _infos(paths: list[str], text: str) -> list[Info]:
    """Return what is at every one of the paths that a text names."""
    found, missing = [], []
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(path.rsplit("/", 1)[0], []).append(path)
    for folder, own in by_folder.items():
        if is_remote(own[0]) and len(own) > _FEW:
            there = {entry.path: entry for entry in list_folder(folder)}
            found += [there[path] for path in own if path in there]
            missing += [path for path in own if path not in there]
            continue
        for path in own:
            try:
                found.append(info(path))
            except UserError:
                if len(paths) == 1:
                    raise
                missing.append(path)
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} files that {text} names are missing, the first is {missing[0]}; "
            "bring them, or correct the pattern"
        )
    return found


def _glob(pattern: str) -> list[Info]:
    if not is_remote(pattern):
        return [info(path) for path in glob.glob(pattern.replace("[", "[[]"), recursive=True)]
    with _naming(pattern):
        store, inner = _store(pattern)
        start = pattern.removesuffix(inner.strip("/"))
        found = store.glob(inner, detail=True)
        return [_info_of(start + name.strip("/"), entry) for name, entry in found.items()]


def _pread(paths: Sequence[str], starts: Sequence[int], sizes: Sequence[int]) -> list[bytes | None]:
    parts, path, file = [], None, io.BytesIO()
    for own, start, size in zip(paths, starts, sizes):
        if own != path:
            file.close()
            try:
                path, file = own, open(own, "rb", buffering=0)  # noqa: SIM115 - closed at the next path
            except FileNotFoundError:
                path, file = own, io.BytesIO()
        file.seek(start)
        parts.append(file.read(size))
    file.close()
    return parts


def _cat(paths: Sequence[str], starts: Sequence[int | None], ends: Sequence[int | None]) -> list[bytes | None]:
    """Return parts of objects, read at once; None where an object is gone."""
    if not paths:
        return []
    with _naming(paths[0]):
        store, _ = _store(paths[0])
        found = store.cat_ranges([store._strip_protocol(path) for path in paths], starts, ends, on_error="return")
    for path, content in zip(paths, found):
        if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
            with _naming(path):
                raise content
    return [None if isinstance(content, FileNotFoundError) else bytes(content) for content in found]


def _info_of(path: str, entry: dict[str, Any]) -> Info:
    tag = next((entry[name] for name in _TAGS if entry.get(name)), 0)
    if isinstance(tag, datetime):
        tag = tag.isoformat()
    version = int.from_bytes(hashlib.sha256(str(tag).encode()).digest()[:8], "big") >> 1
    return Info(path, entry["type"] == "directory", int(entry.get("size") or 0), version)


def _store(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the address in it."""
    import fsspec  # what it needs for a store is imported with it

    protocol = url.split("://", 1)[0]
    try:
        return fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f'pip install "pujax[{extra}]"' if extra else str(error)
        raise UserError(f"{url} needs a package that is not installed: {remedy}") from error
    except ValueError as error:
        raise UserError(f"{url}: {error}; use s3://, gs:// or a local path") from error


@contextlib.contextmanager
def _naming(url: str) -> Iterator[None]:
    """Turn whatever a store raises into an error that names the address."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is nothing at {url}; correct the address") from error
    except Exception as error:  # stores raise errors of their own libraries
        if isinstance(error, PermissionError):
            raise UserError(f"{url} may not be read: {error}; correct its permissions or the credentials") from error
        if type(error).__name__ in _NO_CREDENTIALS:
            raise UserError(
                f"{url} needs credentials ({error}); set those of the store, or FSSPEC_S3_ANON=true for a public bucket"
            ) from error
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", url) from error
