"""Images that lie somewhere as encoded files, in whatever container: each format says where, this decodes them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pujax.data.decode import ImageSpec
from pujax.data.decoders import decode_files
from pujax.data.sources.naming import digest


class Files(Protocol):
    """Encoded images, by their place in a fixed order."""

    fingerprint: str  # changes when the files do: see each format for how that is told
    skipped: dict[str, int]  # what looked like an image and is none, by kind

    def __len__(self) -> int:
        """Return the number of files."""

    def keys(self, places: np.ndarray) -> list[str]:
        """Return stable names."""

    def fetch(self, places: np.ndarray) -> Sequence[bytes | str]:
        """Return contents, or paths on this machine; called in several threads."""


@dataclass(frozen=True)
class EncodedSource:
    """Some of the images of a container, decoded as they are asked for."""

    files: Files
    rows: np.ndarray | None  # int64 [N], places in `files`; None for all
    spec: ImageSpec
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    truth: None = None

    def __len__(self) -> int:
        return len(self.files) if self.rows is None else len(self.rows)

    @property
    def skipped(self) -> dict[str, int]:
        """What looked like an image and is none, by kind."""
        return self.files.skipped

    def keys(self, indices: np.ndarray) -> list[str]:
        """Return the names of images."""
        return self.files.keys(self._places(indices))

    def encoded(self, indices: np.ndarray) -> Sequence[bytes | str]:
        """Return the contents of files, or their paths on this machine."""
        return self.files.fetch(self._places(indices))

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fetch many files at a time, and decode them in worker processes."""
        places = self._places(indices)
        return decode_files(lambda part: self.files.fetch(places[part]), len(places), self.spec)

    def take(self, rows: np.ndarray) -> "EncodedSource":
        """Return a source of the given sorted rows only."""
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(
            self, rows=self._places(rows), labels=labels, fingerprint=digest(self.fingerprint, rows)
        )

    def _places(self, indices: np.ndarray) -> np.ndarray:
        return indices if self.rows is None else self.rows[indices]


def whole(
    files: Files, spec: ImageSpec, labels: np.ndarray | None = None, class_names: tuple[str, ...] | None = None
) -> EncodedSource:
    """Return a source of all images of a container; `labels` int32 [N] where they are wanted and there."""
    return EncodedSource(files, None, spec, labels, class_names, files.fingerprint)
