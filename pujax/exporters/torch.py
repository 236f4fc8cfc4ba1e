"""A state dict for PyTorch: safetensors under the names of torchvision's, or the family's own, module."""

import json
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from etils import epath

from pujax.errors import UserError
from pujax.exporters.function import NORMALISED
from pujax.importers.names import namings_of, torch_names
from pujax.models.exported import EXPORTED
from pujax.networks import Network, describe
from pujax.weights import save_weights

# Read back by the importer, since PyTorch may not be there.
LOADER = """
import json
import jax
import jax.numpy as jnp
from etils import epath
from pujax.importers.network import import_network
from pujax.networks import preprocessing_said
from pujax.weights import load_metadata
told = json.loads(load_metadata(epath.Path(path))["network"])
network = import_network(epath.Path(path), told["model"], num_classes=told["num_classes"],
                         preprocessing=preprocessing_said(told), dtype=jnp.dtype(jnp.float32))
classify = network.logits if uint8 else lambda v, images: network.module.apply(v, images, train=False)[0]
compiled = jax.jit(classify)
run = lambda images: compiled(network.variables, images)
"""


def export_torch(network: Network, path: Path, *, preprocessing: bool = True) -> None:
    """Write a network's weights as PyTorch names and lays them out; `load_state_dict(strict=True)` takes them.

    What the images are to be like, and the classes, is in the file's metadata: a state dict has no preprocessing.

    Args:
        network: what is written; one of `models.CLASSIFIERS`.
        path: of the file.
        preprocessing: changes nothing here.

    Raises:
        UserError: the network is a fixed graph, whose weights have no names in PyTorch.
    """
    if network.model == EXPORTED:
        raise UserError("a fixed graph cannot be written for PyTorch; it came from there: use its own weights")
    metadata = {"format": "pt", "network": json.dumps(describe(network) | {"takes": NORMALISED})}
    save_weights(epath.Path(path), to_torch(network.variables, network.model), metadata=metadata)


def to_torch(variables: Any, model: str) -> dict[str, np.ndarray]:
    """Return the state dict, float32 but for `num_batches_tracked`, of a model's variables."""
    naming = namings_of(model)[0]
    leaves = flax.traverse_util.flatten_dict(variables)
    state = {}
    for leaf, name in torch_names(naming, leaves).items():
        state[name] = _to_torch(np.asarray(leaves[leaf], np.float32), leaf, naming.title)
        if leaf[-1] == "var":
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state


def _to_torch(value: np.ndarray, leaf: tuple[str, ...], project: str) -> np.ndarray:
    """Return a leaf as PyTorch lays it out; where a project has a layer of another kind, as that layer."""
    _, *layer, kind = leaf
    if kind == "layer_scale" and project == "torchvision":
        return value[:, None, None]
    if kind != "kernel":
        return value
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    if layer == ["fc1"] and value.ndim == 4 and project == "torchvision":
        return value.reshape(len(value), -1)  # VGG's, over a map that was flattened
    if layer in (["fc1"], ["fc2"]) and value.ndim == 2 and project == "timm":
        return value[:, :, None, None]  # VGG's and MobileNetV3's, convolutions of pooled features
    return value
