"""Image files under a folder, here or in an object store; with one folder a class where labels are wanted."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from pujax.config import SourceConfig
from pujax.data import storage
from pujax.data.decode import ImageSpec
from pujax.data.manifest import Listing, open_manifest
from pujax.data.sources.encoded import EncodedSource, whole
from pujax.data.sources.listed import Listed
from pujax.data.walk import list_files, path_of
from pujax.errors import UserError

_SCHEMA = pa.schema([("key", pa.string()), ("size", pa.int64()), ("modified", pa.int64())])


@dataclass(frozen=True)
class _Files(Listed):
    """JPEG, PNG and other image files under a folder, in the order of its manifest."""

    root: str

    def fetch(self, places: np.ndarray) -> list[bytes | str]:
        """Return paths; of a store, contents."""
        if storage.is_remote(self.root):
            return storage.read_each([storage.join(self.root, path_of(key).decode()) for key in self.keys(places)])
        root = os.fsencode(self.root)
        return [os.fsdecode(os.path.join(root, path_of(key))) for key in self.keys(places)]


def open_folder(
    config: SourceConfig, spec: ImageSpec, labelled: bool, manifest_folder: epath.Path | None
) -> EncodedSource:
    """Open a folder of images; its listing is kept in `manifest_folder`, where one is given."""
    there = storage.is_remote(config.path) or (config.path and Path(config.path).is_dir())
    if not there:  # os.path.isdir would call a stale mount "no folder"
        raise UserError(f"there is no folder {config.path!r}; give the folder of a data source as its path")
    limit = 0 if labelled else config.limit  # every file is listed for the class folders
    listing = folder_listing(config.path)
    manifest = open_manifest(listing, manifest_folder, limit=limit)
    labels, names = class_folders(manifest.column("key")) if labelled and manifest.count else (None, None)
    return whole(_Files(manifest, manifest.fingerprint, config.path), spec, labels, names)


def folder_listing(root: str) -> Listing:
    """Return how the images under a folder are listed: (key, bytes, version)."""
    name = root.rstrip("/") if storage.is_remote(root) else os.path.abspath(root)
    return Listing({"root": name}, _SCHEMA, lambda after, skipped: list_files(root, skipped, after=after and after[0]))


def class_folders(keys: pa.ChunkedArray) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Return (labels int32 [N] by the sorted names of the first folders of keys, these names).

    Both are None if a file lies in no folder.
    """
    folders = pc.extract_regex(keys, r"^(?P<name>[^/]+)/")
    if folders.null_count:
        return None, None
    folders = pc.struct_field(folders, "name")
    names = sorted(pc.unique(folders).to_pylist())
    return pc.index_in(folders, pa.array(names)).to_numpy().astype(np.int32), tuple(names)
