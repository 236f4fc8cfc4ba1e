"""How messages name a source, and how its content is hashed."""

import hashlib
import json
from typing import Any

import numpy as np

from pujax.config import SourceConfig


def where(config: SourceConfig) -> str:
    """Return what a message calls a source."""
    return " ".join(part for part in (config.kind, config.name, config.path) if part)


def digest(*parts: Any) -> str:
    """Return a short hash of arrays, hashed whole, and of what JSON can hold."""
    out = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            out.update(f"{part.dtype} {part.shape}".encode())
            out.update(np.ascontiguousarray(part).data)
        else:
            out.update(json.dumps(part).encode())
    return out.hexdigest()[:16]
