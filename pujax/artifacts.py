"""The work directory: every path in it, and how its files are written, whole or not at all.

Paths are `etils.epath.Path`: a local folder, or `gs://` and `s3://` through fsspec. Training images, which are mapped
into memory, and the log live in a local scratch folder where the work directory is an object store.
"""

import contextlib
import io
import itertools
import json
import math
import os
import socket
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from pujax.errors import UserError


class Unit:
    """The paths of one stage, or of one baseline: `INPUTS.json` is written first, `DONE.json` last."""

    def __init__(self, folder: epath.Path, scratch: Path):
        self.folder = folder
        self.scratch = scratch  # local: for files that are mapped into memory
        self.inputs = folder / "INPUTS.json"  # what the results depend on
        self.done = folder / "DONE.json"  # the summary block; there when all results are
        self.checkpoints = folder / "checkpoints"
        self.images = scratch / "images.npy"  # training images, uint8 [N, H, W, C], while the training lasts
        self.teacher_logits = folder / "teacher_logits.npy"  # cached, float32 [N, views, K]
        self.student = folder / "student.safetensors"
        self.unreadable = folder / "unreadable.parquet"  # pool images that do not decode, with reasons


class Workdir:
    """The paths of one job."""

    def __init__(self, root: epath.Path):
        if is_remote(root):
            _list_afresh(root)
        self.root = root
        self.config = root / "config.json"  # the resolved config of the last run
        self.summary = root / "summary.json"  # the numbers of the job, for scripts
        self.report = root / "report.html"  # the page that shows them
        self.contact_sheet = root / "contact_sheet.jpg"  # of --dry_run: what the images look like
        self.inputs = root / "inputs"  # arrays and networks that were handed over in Python
        self.lock = root / "LOCK.json"  # who is at work here
        self.pool = root / "pool"  # the manifest of a pool that is a folder or tar files
        self.previous = root / "previous"  # units made from other options, kept in case these come back
        self.teacher = root / "teacher" / "teacher.safetensors"
        self.scorer = root / "scorer" / "scorer.safetensors"
        self.held_out = root / "scorer" / "held_out.npz"  # scores of images that their scorer did not train on
        self.shards = root / "score" / "shards"  # the score table
        self.hosts = root / "hosts"  # where the processes of one job meet
        self.workers = root / "score" / "workers"  # signs of life of those who score
        self.shard_plan = root / "score" / "SHARDS.json"  # how many images and shards it is to have
        self.selected = root / "select" / "selected.parquet"
        self.chosen_images = root / "select" / "images"  # what was chosen, at the size that networks see
        self.writers = root / "select" / "workers"  # signs of life of those who write them

    @property
    def scratch(self) -> Path:
        """A local folder: the work directory itself where it is one, else one that belongs to its name."""
        if not is_remote(self.root):
            return Path(self.root)
        name = str(self.root).replace("://", "-").replace("/", "-")
        return Path(os.environ.get("TMPDIR", tempfile.gettempdir())) / "pujax" / name

    def unit(self, name: str) -> Unit:
        """Return the paths of a stage, "distill", or of a baseline, "baselines/random"."""
        return Unit(self.root / name, self.scratch / name)


def open_workdir(path: str | os.PathLike) -> Workdir:
    """Make a work directory, or open the one that is there.

    Raises:
        UserError: it cannot be made.
    """
    root = epath.Path(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{path} cannot be a work directory: {error.strerror}; choose another --workdir") from error
    except ImportError as error:
        raise UserError(f"{path} needs a package that is not installed: {error}") from error
    return Workdir(root)


def _list_afresh(root: epath.Path) -> None:
    """Keep epath's client of an object store from answering by what it saw before: others write here too."""
    client = epath.backend.fsspec_backend.fs(root)
    client.dircache.use_listings_cache = False
    client.invalidate_cache()  # of a program that has looked at the store before


def is_remote(path: epath.Path | str) -> bool:
    """Whether a path is in an object store."""
    return "://" in str(path)


def write_atomic(path: epath.Path | Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(epath.Path(path)) as target:
        target.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[Any]:
    """Give a path to write to, which takes the place of `path` when the body ends and goes if it fails.

    The folder is made. An object store writes objects whole by itself: there it is `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        yield path
        return
    temporary = temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: epath.Path | Path) -> Any:
    """Return a name beside `path` that no other process on any host writes to."""
    return path.parent / f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"


def save_json(path: epath.Path, value: Any) -> None:
    """Write JSON, readable and whole; numbers that are not finite, which JSON does not know, become null."""
    write_atomic(path, (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_json(path: epath.Path) -> Any:
    """Read what `save_json` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete {path.parent} and run the command again") from error


def write_table(path: epath.Path, table: pa.Table) -> None:
    """Write a Parquet file, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomic(path, buffer.getbuffer())


def write_tables(path: epath.Path, tables: Iterator[pa.Table]) -> None:
    """Write a Parquet file of tables of one schema, at least one, and hold one at a time; whole or not at all."""
    first = next(tables)
    with replacing(path) as target, target.open("wb") as file, pq.ParquetWriter(file, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def read_table(path: epath.Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns.

    Raises:
        pyarrow.ArrowInvalid: it is damaged.
    """
    # Threads of Arrow's that still hold a Python file when the interpreter ends abort the process: for those, none.
    remote = is_remote(path)
    with path.open("rb") if remote else pa.OSFile(str(path)) as file:
        return pq.ParquetFile(file, pre_buffer=not remote).read(columns=columns, use_threads=not remote)


def save_arrays(path: epath.Path, **arrays: np.ndarray) -> None:
    """Write a .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getbuffer())


def load_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged; delete {path.parent} and run the command again") from error


def save_array(path: epath.Path, array: np.ndarray) -> None:
    """Write a .npy, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getbuffer())


def load_array(path: epath.Path) -> np.ndarray:
    """Read what `save_array` wrote."""
    with path.open("rb") as file:
        return np.load(file, allow_pickle=False)
