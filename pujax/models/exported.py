"""A classifier that is a graph: StableHLO, made from another framework's network, with its weights as arguments."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.export

EXPORTED = "exported"  # stands for a key of `models.CLASSIFIERS` in the description of such a network


@dataclass(frozen=True)
class Graph:
    """A compiled-to-be function `(variables, x) -> (logits, features)` for every batch size, and what it costs."""

    artifact: bytes  # as `jax.export.Exported.serialize` writes it
    flops_per_image: float  # counted before it became a graph

    @functools.cached_property
    def exported(self) -> jax.export.Exported:
        """The function, ready to be called."""
        return jax.export.deserialize(bytearray(self.artifact))

    def abstract_variables(self) -> Any:
        """Return the weights that it takes: `jax.ShapeDtypeStruct`s by collection and name."""
        (variables, _), _ = jax.tree.unflatten(self.exported.in_tree, self.exported.in_avals)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)


@dataclass(frozen=True)
class ExportedClassifier:
    """A classifier that can be run and not trained; it is called as the Flax modules are.

    It computes in the precision that it was exported in, float32.
    """

    graph: Graph

    def apply(
        self, variables: Any, x: jax.Array, *, train: bool = False, mutable: Any = False
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits float32 [B, K], features: tuple of float32 [B, C_i]) of normalised images [B, H, W, C].

        Args:
            variables: {"params": {...}}, and where the network has any, "constants".
            x: float32 [B, H, W, C], of the height, width and channels that it was exported for.
            train: must be False.
            mutable: must be empty.

        Raises:
            ValueError: it is to be trained.
        """
        if train or mutable:
            raise ValueError("an exported network is a fixed graph: it cannot be trained, nor can its statistics move")
        return self.graph.exported.call(variables, x)
