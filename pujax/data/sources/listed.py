"""What is the same for all images that a manifest lists."""

from dataclasses import dataclass

import numpy as np

from pujax.data.manifest import Manifest


@dataclass(frozen=True)
class Listed:
    """Images in the order of a manifest; each kind says how they are fetched."""

    manifest: Manifest
    fingerprint: str

    @property
    def skipped(self) -> dict[str, int]:
        """What looked like an image and is none, by kind."""
        return self.manifest.skipped

    def __len__(self) -> int:
        return self.manifest.count

    def keys(self, places: np.ndarray) -> list[str]:
        """Return the names in the manifest."""
        return self.manifest.keys(places)
