"""Image files under a folder; with one folder a class where labels are wanted."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from pujax.config import DataConfig, SourceConfig
from pujax.data.decoders import decode_files
from pujax.data.manifest import Manifest, list_now, list_once, path_of
from pujax.data.sources.naming import digest, where
from pujax.errors import UserError


@dataclass(frozen=True)
class FolderSource:
    """JPEG, PNG and other image files under a folder, in the order of its manifest."""

    root: str
    manifest: Manifest
    rows: np.ndarray | None  # int64 [N], places in the manifest; None for all
    size: int
    channels: int
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    truth: None = None

    def __len__(self) -> int:
        return self.manifest.count if self.rows is None else len(self.rows)

    @property
    def skipped(self) -> dict[str, int]:
        """What looked like an image and is none, by kind."""
        return self.manifest.skipped

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return paths relative to the folder."""
        return self.manifest.keys(indices if self.rows is None else self.rows[indices])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read and decode the files, in worker processes."""
        root, keys = os.fsencode(self.root), self.keys(indices)

        def paths(rows: slice) -> list[str]:
            return [os.fsdecode(os.path.join(root, path_of(key))) for key in keys[rows]]

        return decode_files(paths, len(indices), size=self.size, channels=self.channels)

    def take(self, rows: np.ndarray) -> "FolderSource":
        """Return a source of the given sorted rows only."""
        labels = None if self.labels is None else self.labels[rows]
        places = rows if self.rows is None else self.rows[rows]
        return replace(self, rows=places, labels=labels, fingerprint=digest(self.fingerprint, rows))


def open_folder(
    config: SourceConfig, data: DataConfig, labelled: bool, manifest_folder: epath.Path | None
) -> FolderSource:
    """Open a folder of images; its listing is kept in `manifest_folder`, where one is given."""
    if not (config.path and Path(config.path).is_dir()):  # os.path.isdir would call a stale mount "no folder"
        raise UserError(f"there is no folder {config.path!r}; give the folder of a data source as its path")
    limit = 0 if labelled else config.limit  # every file is listed for the class folders
    if manifest_folder is None:
        manifest = list_now(config.path, limit=limit)
    else:
        manifest = list_once(config.path, manifest_folder, limit=limit)
    labels, names = _classes(manifest.all_keys(), config, data) if labelled and manifest.count else (None, None)
    return FolderSource(
        root=config.path,
        manifest=manifest,
        rows=None,
        size=data.image_size,
        channels=data.channels,
        labels=labels,
        class_names=names,
        fingerprint=manifest.fingerprint,
    )


def _classes(keys: pa.ChunkedArray, config: SourceConfig, data: DataConfig) -> tuple:
    """Return (labels int32 [N] by the sorted names of the class folders, these names); nothing if files lie flat."""
    folders = pc.extract_regex(keys, r"^(?P<name>[^/]+)/")
    if folders.null_count:
        return None, None
    folders = pc.struct_field(folders, "name")
    names = sorted(pc.unique(folders).to_pylist())
    if len(names) != data.num_classes:
        raise UserError(
            f"{where(config)} has {len(names)} class folders ({', '.join(names[:5])}, ...), but data.num_classes "
            f"is {data.num_classes}; correct one of them"
        )
    return pc.index_in(folders, pa.array(names)).to_numpy().astype(np.int32), tuple(names)
