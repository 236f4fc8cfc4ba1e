"""PyTorch networks by name, and their weights from files."""

import difflib
import importlib
import inspect
from typing import Any

import numpy as np
from etils import epath

from pujax.errors import UserError
from pujax.importers.state_dict import read_state_dict


def require(library: str, remedy: str) -> Any:
    """Import and return a library that only importing needs.

    Raises:
        UserError: it is not installed; the message gives the command that installs it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        if getattr(error, "name", library) not in (library, None):
            raise UserError(f"{library} cannot be imported: {error}") from error
        raise UserError(f"{library} is not installed; {remedy}") from error


def make_module(network: str, *, num_classes: int | None, channels: int) -> Any:
    """Return a PyTorch network.

    Args:
        network: "timm:NAME", "torchvision:NAME", or "package.module:function", which is called, with those of
            `num_classes` and `channels` that it takes.
        num_classes: given to the network where it is not None.
        channels: of its images.

    Raises:
        UserError: there is no such network, or it cannot be made.
    """
    source, colon, name = network.partition(":")
    if not (source and colon and name):
        raise UserError(f"--network is {network!r}; give timm:NAME, torchvision:NAME or package.module:function")
    count = {} if num_classes is None else {"num_classes": num_classes}
    if source == "timm":
        timm = require("timm", "pip install timm")
        _check_listed(name, timm.list_models(), "timm")
        return timm.create_model(name, pretrained=False, in_chans=channels, **count)
    if source == "torchvision":
        models = require("torchvision", "pip install torchvision").models
        _check_listed(name, models.list_models(), "torchvision")
        return models.get_model(name, weights=None, **count)
    return _called(source, name, count | {"channels": channels})


def _check_listed(name: str, known: list[str], library: str) -> None:
    if name.partition(".")[0] not in known:
        close = difflib.get_close_matches(name, known, 1)
        raise UserError(f"{library} has no model {name!r}" + (f"; did you mean {close[0]}?" if close else ""))


def _called(module_name: str, name: str, options: dict[str, Any]) -> Any:
    """Return what a user's function makes."""
    import torch

    where = f"--network {module_name}:{name}"
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # whatever a user's file raises
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise UserError(f"{where}: there is no function {name} in {module_name}")
    taken = inspect.signature(function).parameters
    try:
        module = function(**{key: value for key, value in options.items() if key in taken})
    except Exception as error:
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"{where} returns a {type(module).__name__}, not a torch.nn.Module")
    return module


def load_into(module: Any, path: epath.Path) -> None:
    """Give a PyTorch network the weights in a file, all of them and no others.

    Args:
        module: a `torch.nn.Module`.
        path: .safetensors, or a state dict that `torch.save` wrote, plain or under a usual name.

    Raises:
        UserError: there is no such file, it is unreadable, or tensors are missing, left over or of other shapes.
    """
    import torch

    state = {name: torch.from_numpy(np.array(value)) for name, value in read_state_dict(path).items()}
    own = module.state_dict()
    for name in [name for name in own if name.endswith("num_batches_tracked")]:
        state.setdefault(name, own[name])  # a counter of training steps, which older files do not have
    unmatched = {
        "not in the file": [name for name in own if name not in state],
        "not in the network": [name for name in state if name not in own],
    }
    if any(unmatched.values()):
        told = [
            f"{what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for what, names in unmatched.items()
            if names
        ]
        raise UserError(f"{path} does not fit the network; {'; '.join(told)}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise UserError(
                f"{path}: {name} has shape {list(state[name].shape)}, the network needs {list(tensor.shape)}"
            )
    module.load_state_dict(state)
