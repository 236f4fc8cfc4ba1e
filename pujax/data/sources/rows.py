"""Images in the rows of several files: which row of which file each one is."""

from dataclasses import dataclass

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
        files = np.searchsorted(self.starts, places, side="right") - 1
        return files, places - self.starts[files]

    def keys(self, places: np.ndarray) -> list[str]:
        """Return file and row."""
        return [f"{self.names[file]}/{row}" for file, row in zip(*self.locate(places))]


def rows_of(names: list[str], counts: list[int]) -> Rows:
    """Return the rows of files that hold so many each."""
    return Rows(names, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
