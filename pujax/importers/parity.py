"""Whether a converted network gives the logits of the one that it was made from: real images, no PyTorch.

The converted file is read and run in a process of its own in which PyTorch cannot be imported, as a job will.
"""

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from pujax.errors import UserError
from pujax.importers.features import first_tensor
from pujax.networks import Preprocessing
from pujax.parity import difference, run_apart

BATCH_SIZES = (32, 7, 1)  # each image is in one of them
NUM_IMAGES = sum(BATCH_SIZES)
TOLERANCE = 1e-4  # of the largest logit

_REPLAY = """
import sys
sys.modules["torch"] = None  # importing it fails
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from pujax.networks import load_network
_, weights, images, logits, *sizes = sys.argv
network = load_network(epath.Path(weights), dtype=jnp.dtype(jnp.float32))
parts = np.split(np.load(images), np.cumsum([int(size) for size in sizes])[:-1])
run = jax.jit(network.logits)
np.save(logits, np.concatenate([run(network.variables, part) for part in parts]))
"""


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far the logits of two networks are apart."""

    images: int
    largest_difference: float
    relative_difference: float  # to the largest logit
    top1_agreement: float  # share of images put into the same class; classes within the tolerance are the same

    def holds(self) -> bool:
        """Whether the two are one network, to rounding."""
        return self.relative_difference <= TOLERANCE and self.top1_agreement == 1  # false where it is not a number

    def __str__(self) -> str:
        return (
            f"{self.images} images, batches of {', '.join(map(str, BATCH_SIZES))}: logits differ by at most "
            f"{self.largest_difference:.2g}, {self.relative_difference:.2g} of the largest; "
            f"top-1 agreement {100 * self.top1_agreement:.4g} %"
        )


def compare(expected: np.ndarray, logits: np.ndarray) -> Parity:
    """Compare logits float32 [N, K] with those that are expected."""
    return Parity(len(expected), *difference(expected, logits, ties=TOLERANCE))


def torch_logits(module: Any, preprocessing: Preprocessing, images: np.ndarray) -> np.ndarray:
    """Return PyTorch's logits, float32 [N, K], of uint8 images [N, H, W, C].

    Raises:
        UserError: the network does not take such images.
    """
    import torch

    mean, std = (np.asarray(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    prepared = (images.astype(np.float32) / 255 - mean) / std
    try:
        with torch.no_grad():
            return first_tensor(module(torch.from_numpy(prepared.transpose(0, 3, 1, 2).copy()))).numpy()
    except Exception as error:  # of any kind
        raise UserError(f"PyTorch's network does not run on images {images.shape[1:]}: {error}") from error


def logits_without_torch(path: epath.Path, images: np.ndarray) -> np.ndarray:
    """Return the logits float32 [NUM_IMAGES, K] that a network's file gives where there is no PyTorch.

    Args:
        path: of the network.
        images: uint8 [NUM_IMAGES, H, W, C].

    Raises:
        UserError: the file cannot be read or run.
    """
    sizes = list(map(str, BATCH_SIZES))
    return run_apart(_REPLAY, path, images, sizes, what="the converted network", env={})[0]
