"""The chosen images on disk: ArrayRecord files of so many images each, at the size that networks see.

A record is a line of JSON and, behind its end, the pixels: uint8, row by row, of the `shape` that the line tells. The
line also has `version` of this format, `key`, `index` in the pool, `score`, `teacher_class`, `teacher_confidence`.
`IMAGES.json` beside the files says which choice they are of. They are raw pixels, which Snappy packs as it goes: PNG
takes a third less of photographs, and is slower to write and to read than a JPEG of the pool is to decode.
"""

import contextlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from pujax.artifacts import is_remote, load_json, replacing, save_json
from pujax.data import storage
from pujax.data.records import DAMAGE, open_records, writing
from pujax.data.sources.naming import digest
from pujax.errors import UserError

VERSION = 1
_GROUP = 1 << 20  # bytes of images that are compressed together: what is read for one image
_RUN = 4 << 20  # bytes of images that are read at a time


def pack(image: np.ndarray, **about: Any) -> bytes:
    """Return a record of an image, uint8 [H, W, C], and of what is known about it."""
    line = json.dumps({"version": VERSION, **about, "shape": image.shape})
    return b"".join((line.encode(), b"\n", np.ascontiguousarray(image).data))


def unpack(record: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """Return what is known about an image, and its pixels, uint8 [H, W, C].

    Raises:
        ValueError: this is no such record.
    """
    line, _, pixels = record.partition(b"\n")
    about = json.loads(line)
    return about, np.frombuffer(pixels, np.uint8).reshape(about["shape"])


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """The images that were chosen from a pool, in its order; files may be missing while they are written.

    It is an `ImageSource`, and what `share_shards` shares out.
    """

    folder: epath.Path
    selected: pa.Table  # key, index, score, teacher_class and teacher_confidence of each
    shape: tuple[int, int, int]  # of an image
    pool: str  # fingerprint of the source that they are from
    scratch: Path  # local: where files of an object store are brought
    shard_size: int = 4096  # images a file; 600 MB of 224x224 pixels
    rows: np.ndarray | None = None  # int64, those of the images that this source has; None for all
    labels: None = None
    truth: None = None
    class_names: None = None
    skipped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "_open", _OpenFile(self.scratch))

    def __len__(self) -> int:
        return self.num_images if self.rows is None else len(self.rows)

    @property
    def num_images(self) -> int:
        """How many were chosen."""
        return len(self.selected)

    @property
    def fingerprint(self) -> str:
        """A digest of the pool's fingerprint, and of which of its images these are."""
        choice = digest(self.pool, self.selected["index"].to_numpy())
        return choice if self.rows is None else digest(choice, self.rows)

    # --- files ---

    @property
    def shards(self) -> list[tuple[int, int]]:
        """The [start, stop) of the images of every file."""
        starts = range(0, self.num_images, self.shard_size)
        return [(start, min(start + self.shard_size, self.num_images)) for start in starts]

    def path(self, start: int, stop: int) -> epath.Path:
        """Return the file of some images."""
        count = math.ceil(self.num_images / self.shard_size)
        return self.folder / f"chosen-{start // self.shard_size:05d}-of-{count:05d}.array_record"

    def absent(self) -> set[tuple[int, int]]:
        """Return the [start, stop) whose file is not there, by one listing of the folder."""
        names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        return {shard for shard in self.shards if self.path(*shard).name not in names}

    def missing(self, shards: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those whose file is not there or, on this machine, does not end as it should."""
        absent = self.absent()
        return [shard for shard in shards if shard in absent or not self._is_whole(*shard)]

    def _is_whole(self, start: int, stop: int) -> bool:
        if is_remote(self.folder):  # uploaded whole
            return True
        try:
            reader = open_records(str(self.path(start, stop)))
            count = reader.num_records()
            reader.close()
            return count == stop - start
        except DAMAGE:
            return False

    def begun(self) -> bool:
        """Whether the files are written, or being written, of this choice and no other."""
        path = self.folder / "IMAGES.json"
        return path.exists() and load_json(path) == self._about()

    def begin(self) -> None:
        """Say which choice the files are of, and remove those of another one, and what a killed process has left."""
        if not self.begun():
            if self.folder.exists():
                self.folder.rmtree()
            save_json(self.folder / "IMAGES.json", self._about())
        for path in [] if is_remote(self.folder) else self.folder.glob("*.tmp"):
            path.unlink()

    def _about(self) -> dict[str, Any]:
        return {"version": VERSION, "images": self.num_images, "images_per_file": self.shard_size,
                "shape": list(self.shape), "choice": self.fingerprint}  # fmt: skip

    def write(self, start: int, stop: int, batches: Iterator[np.ndarray]) -> None:
        """Write the file of images start..stop-1, given one after the other as uint8 [n, H, W, C]; whole or not at all.

        Raises:
            RuntimeError: there is no room for it.
        """
        rows = iter(self.selected.slice(start, stop - start).to_pylist())
        with self._becoming(self.path(start, stop)) as target:
            with writing(str(target), group_size=max(_GROUP // math.prod(self.shape), 1)) as add:
                for images in batches:
                    for image in images:
                        add(pack(image, **next(rows)))
            assert next(rows, None) is None
            with open(target, "rb") as written:
                os.fsync(written.fileno())

    @contextlib.contextmanager
    def _becoming(self, path: epath.Path) -> Iterator[Path]:
        """Give a local path to write to, which becomes the file when the body ends."""
        if not is_remote(path):
            with replacing(path) as target:
                yield target
            return
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            target = Path(folder) / path.name
            yield target
            storage.upload(target, str(path))

    # --- images ---

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return the keys that images have in the pool."""
        return self.selected["key"].take(pa.array(self._rows(indices))).to_pylist()

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the images, all of them readable.

        Raises:
            UserError: a file is damaged, or not there.
        """
        rows = self._rows(indices)
        images = np.empty((len(rows), *self.shape), np.uint8)
        run = max(_RUN // math.prod(self.shape), 1)
        for number in np.unique(rows // self.shard_size):
            own = np.flatnonzero(rows // self.shard_size == number)
            for some in np.split(own, range(run, len(own), run)):
                images[some] = self._read(int(number), rows[some])
        return images, np.full(len(rows), "", object)

    def take(self, rows: np.ndarray) -> "ChosenImages":
        """Return a source of the given sorted rows only."""
        return replace(self, rows=self._rows(rows))

    def _rows(self, indices: np.ndarray) -> np.ndarray:
        return indices if self.rows is None else self.rows[indices]

    def _read(self, number: int, rows: np.ndarray) -> np.ndarray:
        path = self.path(*self.shards[number])
        try:
            found = [unpack(record) for record in self._open.read(path, (rows - number * self.shard_size).tolist())]
            wanted = self.selected["index"].take(pa.array(rows)).to_pylist()
            if [about["index"] for about, _ in found] != wanted:
                raise ValueError("it holds other images")
            return np.stack([image for _, image in found])
        except (*DAMAGE, KeyError, UserError) as error:
            done = self.folder.parent / "DONE.json"
            raise UserError(
                f"{path} is damaged, or not there ({str(error).splitlines()[0][:200]}); delete it and {done}, and run "
                "the command again"
            ) from error


class _OpenFile:
    """The file that was read last, which stays open; one of an object store is on this machine's disk meanwhile."""

    def __init__(self, scratch: Path):
        self._scratch, self._turn = scratch, threading.Lock()
        self._path: epath.Path | None = None

    def read(self, path: epath.Path, rows: list[int]) -> list[bytes]:
        """Return records of a file."""
        with self._turn:
            if self._path != path:
                if self._path is not None:
                    self._path = None
                    self._reader.close()
                self._reader = self._bring(path) if is_remote(path) else open_records(str(path))
                self._path = path
            return self._reader.read(rows)

    def _bring(self, path: epath.Path) -> Any:
        self._scratch.mkdir(parents=True, exist_ok=True)
        descriptor, local = tempfile.mkstemp(dir=self._scratch)
        os.close(descriptor)
        try:
            storage.download(str(path), Path(local))
            return open_records(local)
        finally:
            os.unlink(local)  # its content goes when it is closed, or with this process, however it ends
