"""A PyTorch state dict as a network of ours."""

from typing import Any

import jax.numpy as jnp
from etils import epath

from pujax.errors import UserError
from pujax.importers.names import namings_of
from pujax.importers.naming import to_flax
from pujax.importers.state_dict import read_state_dict
from pujax.networks import Network, Preprocessing, abstract_network

# How torchvision and most other projects show photographs to their networks. A state dict does not say it.
TORCHVISION = Preprocessing(224, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875, "bilinear")


def import_network(
    path: epath.Path, model: str, *, num_classes: int, preprocessing: Preprocessing, dtype: jnp.dtype
) -> Network:
    """Read a PyTorch state dict as one of our classifiers.

    Args:
        path: `.safetensors`, or what `torch.save` wrote.
        model: the classifier's name.
        num_classes: K; 0 for as many as the state dict has.
        preprocessing: how its images are prepared.
        dtype: to compute in.

    Raises:
        UserError: the file cannot be read, or is not of that network; the message says what differs.
    """
    state = read_state_dict(path)
    try:
        network = abstract_network(
            model,
            num_classes=num_classes or _count_classes(state, model, str(path)),
            class_names=None,
            preprocessing=preprocessing,
            dtype=dtype,
        )
    except ValueError as error:
        raise UserError(f"teacher.model: {error}") from error
    return network.with_variables(to_flax(state, model, network.variables, str(path)))


def _count_classes(state: dict[str, Any], model: str, where: str) -> int:
    for naming in namings_of(model):
        weight = state.get(f"{naming.layers['linear']}.weight")
        if weight is not None:
            return weight.shape[0]
    raise UserError(f"{where} has no last layer by {model}'s names; check teacher.model, or give data.num_classes")
