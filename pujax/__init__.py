"""pujax: compress image classifiers with a few labelled images and a large unlabelled pool."""

import importlib
from typing import Any

__version__ = "0.1.0"
_FROM_API = ("Result", "compress", "own_data_config")


def __getattr__(name: str) -> Any:
    """Load the Python API with its first use: the command line and the benchmarks do without."""
    if name in _FROM_API:
        return getattr(importlib.import_module("pujax.api"), name)
    raise AttributeError(f"module 'pujax' has no attribute {name!r}")
