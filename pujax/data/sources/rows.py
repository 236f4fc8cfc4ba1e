"""Images in the rows of several files: which row of which file each one is."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Rows:
    """The rows of files, one file after the other."""

    names: list[str]  # of the files, as keys have them
    starts: np.ndarray  # int64 [files + 1], the first row of each, and the number of all

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (number of the file, row in it), int [n] each."""
        return locate(self.starts, places)

    def keys(self, places: np.ndarray) -> list[str]:
        """Return file and row."""
        return [f"{self.names[file]}/{row}" for file, row in zip(*self.locate(places))]


def rows_of(names: list[str], counts: list[int]) -> Rows:
    """Return the rows of files that hold so many each."""
    return Rows(names, starts_of(counts))


def starts_of(counts: list[int]) -> np.ndarray:
    """Return the first row of each of several runs of rows, and the number of all, int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def locate(starts: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (number of the run, row in it) of rows, int [n] each; `starts` as from `starts_of`."""
    runs = np.searchsorted(starts, places, side="right") - 1
    return runs, places - starts[runs]


@dataclass(frozen=True, kw_only=True)
class InRows:
    """Images in the rows of files; each kind says how they are fetched."""

    rows: Rows
    fingerprint: str
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self, places: np.ndarray) -> list[str]:
        """Return file and row."""
        return self.rows.keys(places)
