"""What every exporter writes down: the function from images to logits, its weights in it."""

from collections.abc import Callable

import jax

from pujax.networks import Network

PIXELS, NORMALISED = "pixels", "normalised"  # what files take, as the model card says it


def make_function(network: Network, *, preprocessing: bool) -> Callable[[jax.Array], jax.Array]:
    """Return `images [B, H, W, C] -> logits float32 [B, K]`; see `input_dtype` for the images."""
    if preprocessing:
        return lambda images: network.logits(network.variables, images)
    return lambda images: network.module.apply(network.variables, images, train=False)[0]


def input_dtype(preprocessing: bool) -> str:
    """Return what images are given as: pixels, or, where preprocessing is left out, normalised numbers."""
    return "uint8" if preprocessing else "float32"
