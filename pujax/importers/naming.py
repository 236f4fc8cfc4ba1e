"""A PyTorch state dict as the variables of one of our models, completely or not at all."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from pujax.errors import UserError
from pujax.importers.names import Path, namings_of, torch_names
from pujax.models import CLASSIFIERS, create_classifier, parse_name

_SHOWN = 3  # names of each side in a message


def to_flax(state: Mapping[str, np.ndarray], model: str, template: Any, where: str) -> Any:
    """Return a PyTorch state dict as the variables of a model.

    Args:
        state: arrays by name, in PyTorch's layout, as `read_state_dict` gives them.
        model: a name that `create_classifier` takes.
        template: the model's variables, arrays or `jax.ShapeDtypeStruct`s.
        where: the file, for messages.

    Returns:
        A tree like `template`, of float32 NumPy arrays; but for `num_batches_tracked`, every tensor is in it.

    Raises:
        UserError: a tensor is missing, left over or of another shape; the message names the first few of each side.
    """
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    leaves = flax.traverse_util.flatten_dict(template)
    names = _best_names(state, model, leaves)
    if state.keys() != set(names.values()):
        wanted = {names[path]: _torch_shapes(path, leaf.shape)[0] for path, leaf in leaves.items()}
        raise UserError(_difference(state, wanted, model, where))
    wrong = [path for path, leaf in leaves.items() if state[names[path]].shape not in _torch_shapes(path, leaf.shape)]
    if wrong:
        raise UserError(_wrong_shapes(state, names, leaves, wrong, model, where))
    variables = {path: _from_torch(state[names[path]], path, leaf.shape) for path, leaf in leaves.items()}
    return flax.traverse_util.unflatten_dict(variables)


def _best_names(state: Mapping[str, Any], model: str, leaves: Mapping[Path, Any]) -> dict[Path, str]:
    """Return PyTorch's names of a model's leaves in the naming that shares most with a state dict."""
    candidates = [torch_names(naming, leaves) for naming in namings_of(model)]
    return max(candidates, key=lambda names: len(state.keys() & set(names.values())))


def _torch_shapes(path: Path, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes that a leaf may have in PyTorch; the first is the usual one."""
    if path[-1] == "kernel" and len(shape) == 4:
        height, width, inside, outside = shape
        return [(outside, inside, height, width), (outside, inside * height * width)]  # over a map that was flattened
    if path[-1] == "kernel":
        return [shape[::-1], (*shape[::-1], 1, 1)]  # a 1x1 convolution of pooled features
    return [shape, (*shape, 1, 1)] if path[-1] == "layer_scale" else [shape]


def _from_torch(value: np.ndarray, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    value = value.reshape(_torch_shapes(path, shape)[0])
    if path[-1] == "kernel":
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return np.array(value, np.float32, order="C")


def _difference(state: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], model: str, where: str) -> str:
    """Return what to say where names differ."""
    left = [f"{name} {list(state[name].shape)}" for name in state if name not in wanted]
    missing = [f"{name} {list(wanted[name])}" for name in wanted if name not in state]
    parts = []
    if left:
        parts.append(f"{len(left)} of its {len(state)} tensors have no place ({_few(left)})")
    if missing:
        parts.append(f"{len(missing)} of the model's {len(wanted)} are missing ({_few(missing)})")
    advice = _advice(state, model, (len(left) + len(missing)) / len(wanted))
    return f"{where} does not fit {model}: {', and '.join(parts)}; {advice}"


def _wrong_shapes(
    state: Mapping[str, np.ndarray],
    names: Mapping[Path, str],
    leaves: Mapping[Path, Any],
    wrong: list[Path],
    model: str,
    where: str,
) -> str:
    """Return what to say where names fit, but shapes do not."""
    path = wrong[0]
    name, found, expected = names[path], state[names[path]].shape, _torch_shapes(path, leaves[path].shape)[0]
    if all(path[1] == "linear" for path in wrong):
        path = next((path for path in wrong if path[-1] == "kernel"), path)
        rows, classes = state[names[path]].shape[0], leaves[path].shape[-1]
        return f"{where}: {names[path]} has {rows} rows, data.num_classes is {classes}; set data.num_classes to {rows}"
    if wrong == [("params", "positions")]:
        patch = leaves["params", "patch_conv", "kernel"].shape[0]
        size = patch * math.isqrt(max(found[1] - 1, 1))
        return f"{where}: {name} is of images of {size}x{size} pixels; set data.image_size to {size}"
    more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    advice = _advice(state, model, len(wrong) / len(leaves))
    return f"{where}: {name} has shape {found}, {model} needs {expected}{more}; {advice}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _advice(state: Mapping[str, np.ndarray], model: str, share: float) -> str:
    """Return a remedy where a share of the tensors differs; other models are tried only if it is not small."""
    if share < 0.05:
        return "check that it is that network, whole and unchanged"
    fitting = [name for name in CLASSIFIERS if name != model and _fits(state, name)]
    return f"it fits {' and '.join(fitting)}, take that model" if fitting else "check the model's name"


def _fits(state: Mapping[str, np.ndarray], model: str) -> bool:
    """Whether a state dict is one of a model, of whatever number of classes and size of images."""
    fixed = [{f"{name}.weight" for name in naming.layers.values() if "{" not in name} for naming in namings_of(model)]
    if not any(len(names & state.keys()) > len(names) / 2 for names in fixed):
        return False  # to make a model's shapes takes a second
    leaves = _abstract_leaves(model)
    names = _best_names(state, model, leaves)
    return state.keys() == set(names.values()) and all(
        state[names[path]].shape in _torch_shapes(path, leaf.shape) for path, leaf in _inner(leaves.items())
    )


def _inner(leaves: Iterable[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    return [(path, leaf) for path, leaf in leaves if path[1] not in ("linear", "positions")]


def _abstract_leaves(model: str) -> dict[Path, Any]:
    module = create_classifier(model, 1)
    channels = 1 if parse_name(model)[0].startswith("lenet") else 3
    image = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    variables = jax.eval_shape(lambda rng, x: module.init(rng, x, train=False), jax.random.key(0), image)
    return flax.traverse_util.flatten_dict(variables)
