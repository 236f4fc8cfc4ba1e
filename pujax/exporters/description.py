"""What a file that cannot describe itself should say of its network."""

import dataclasses
from typing import Any

from pujax.networks import Network


def describe(network: Network) -> dict[str, Any]:
    """Return the model's name, its classes, and what it wants to see, as JSON takes them."""
    return {
        "model": network.model,
        "num_classes": network.num_classes,
        "class_names": list(network.class_names) if network.class_names else None,
        "preprocessing": dataclasses.asdict(network.preprocessing),
    }
