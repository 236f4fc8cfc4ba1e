"""The images under a folder, here or in an object store, in one order: depth first, names sorted as bytes.

Keys are paths relative to the folder, with "/"; names that are not UTF-8, and backslashes, are escaped, reversibly.
No more than the names of one folder are in memory, with those of the folders above it.
"""

import collections
import errno
import functools
import os
import re
import stat
from collections.abc import Callable, Iterator

from pujax.data import storage
from pujax.data.decode import EXTENSIONS

_SUFFIXES = frozenset(suffix.encode() for suffix in EXTENSIONS)
_DANGLING, _FOLDERS = "dangling links", "folders named like images"
Scan = Callable[[bytes], list[tuple[bytes, bool, tuple[int, int] | None]]]


def list_files(root: str, skipped: collections.Counter, *, after: str | None = None) -> Iterator[tuple[str, int, int]]:
    """Yield (key, bytes, version) of the image files under a folder.

    On this machine links to files are followed, links to folders are not. A version is the nanoseconds of the
    modification, or a number made of the store's tag.

    Args:
        root: the folder, or the address of one.
        skipped: counts what looked like an image and is none.
        after: begin after the file of this key.

    Raises:
        UserError: the store has no such folder.
        OSError: a folder cannot be listed.
    """
    boundary = path_of(after).split(b"/") if after is not None else []
    scan: Scan = functools.partial(_scan_store, root) if storage.is_remote(root) else functools.partial(_scan, root)
    return _walk(scan, os.fsencode(root), b"", boundary, skipped)


def _walk(
    scan: Scan, root: bytes, prefix: bytes, boundary: list[bytes], skipped: collections.Counter
) -> Iterator[tuple[str, int, int]]:
    for name, is_folder, known in scan(prefix):
        if boundary and name < boundary[0]:
            continue
        inside = boundary[1:] if boundary and name == boundary[0] else []
        if is_folder:
            if looks_like_image(name) and not inside:
                skipped[_FOLDERS] += 1
            yield from _walk(scan, root, prefix + name + b"/", inside, skipped)
        elif not (boundary and name == boundary[0]):
            found = known or _measure(os.path.join(root, prefix + name), skipped)
            if found:
                yield key_of(prefix + name), *found


def _measure(path: bytes, skipped: collections.Counter) -> tuple[int, int] | None:
    """Return size and time of modification of a file; None, and count it, if it is none."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        skipped[_DANGLING] += 1
        return None
    if stat.S_ISREG(status.st_mode):
        return status.st_size, status.st_mtime_ns
    skipped[_FOLDERS] += 1
    return None


def _scan(root: str, prefix: bytes) -> list[tuple[bytes, bool, None]]:
    """Return (name, whether it is a folder, None) of folders and of what is named like an image, sorted."""
    with os.scandir(os.path.join(os.fsencode(root), prefix)) as entries:
        found = [
            (entry.name, folder, None)
            for entry in entries
            if (folder := entry.is_dir(follow_symlinks=False)) or looks_like_image(entry.name)
        ]
    return sorted(found)


def _scan_store(root: str, prefix: bytes) -> list[tuple[bytes, bool, tuple[int, int] | None]]:
    """Return (name, whether it is a folder, size and version) of folders and of what is named like an image, sorted."""
    found = storage.list_folder(storage.join(root, prefix.decode()) if prefix else root)
    entries = [(os.path.basename(entry.path).encode(), entry) for entry in found]
    kept = [
        (name, entry.is_folder, None if entry.is_folder else (entry.size, entry.version))
        for name, entry in entries
        if entry.is_folder or looks_like_image(name)
    ]
    return sorted(kept, key=lambda entry: entry[0])


def looks_like_image(name: bytes) -> bool:
    """Whether a file of this name is taken for an image."""
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
