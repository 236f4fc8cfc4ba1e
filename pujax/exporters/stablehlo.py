"""StableHLO: the network as one function with its weights inside, for JAX on any backend, without pujax."""

from pathlib import Path

import jax
import numpy as np
from jax import export

from pujax.exporters.function import input_dtype, make_function
from pujax.models.layers import plain_convolutions
from pujax.networks import Network

PLATFORMS = ("cpu", "cuda", "tpu")
LOADER = """
import jax
from jax import export
with open(path, "rb") as file:
    exported = export.deserialize(bytearray(file.read()))
run = jax.jit(exported.call)  # images -> logits
"""


def export_stablehlo(network: Network, path: Path, *, preprocessing: bool = True) -> None:
    """Write a network as `jax.export` serialises it: for every batch size, for CPUs, NVIDIA GPUs and TPUs.

    Args:
        network: what is written; its weights are arrays.
        path: of the file.
        preprocessing: True takes images uint8 [B, H, W, C], False takes them float32 and normalised.
    """
    function = jax.jit(make_function(network, preprocessing=preprocessing))
    (batch,) = export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, *network.preprocessing.image_shape), np.dtype(input_dtype(preprocessing)))
    with plain_convolutions():
        path.write_bytes(export.export(function, platforms=PLATFORMS)(image).serialize())
