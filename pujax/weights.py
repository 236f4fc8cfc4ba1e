"""Trees of arrays as safetensors files, with a header of text beside the tensors."""

import json
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from pujax.artifacts import write_atomic
from pujax.errors import UserError

_LARGEST_HEADER = 100 << 20  # bytes; safetensors itself takes no larger one
_DTYPES = {  # of NumPy, by safetensors' names; a bfloat16 is the upper half of a float32
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def save_weights(path: epath.Path, variables: Any, *, metadata: dict[str, str] | None = None) -> None:
    """Write a tree of arrays as safetensors, names joined by "/"; whole or not at all."""
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    tensors = {name: np.require(jax.device_get(value), requirements="C") for name, value in flat.items()}
    write_atomic(path, save(tensors, metadata))


def load_weights(path: epath.Path, template: Any) -> Any:
    """Read safetensors into the structure of `template`.

    Args:
        path: a file written by `save_weights`.
        template: tree of arrays or `jax.ShapeDtypeStruct`s that names what must be there.

    Returns:
        A tree like `template`, of float NumPy arrays.

    Raises:
        UserError: there is no such file, it is unreadable, or a tensor is missing, left over or of another shape.
    """
    flat = load_tensors(path)
    wanted = flax.traverse_util.flatten_dict(template, sep="/")
    for name in sorted(wanted.keys() ^ flat.keys()):
        where = "is missing from" if name in wanted else "does not belong to the model but is in"
        raise UserError(f"tensor {name} {where} {path}; check the model's name")
    for name, leaf in wanted.items():
        if flat[name].shape != leaf.shape:
            raise UserError(f"{path}: {name} has shape {flat[name].shape}, the model needs {leaf.shape}")
    return flax.traverse_util.unflatten_dict({name: flat[name] for name in wanted}, sep="/")


def load_tensors(path: epath.Path) -> dict[str, np.ndarray]:
    """Read all tensors of a safetensors file, by their names; bfloat16, which NumPy does not have, becomes float32.

    Raises:
        UserError: there is no such file, it is unreadable, or a tensor's numbers are of a kind that we do not read.
    """
    try:
        tensors = deserialize(_check_file(path).read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    return {name: _array(tensor, f"{path}: {name}") for name, tensor in tensors}


def _array(tensor: dict[str, Any], where: str) -> np.ndarray:
    """Return what safetensors describes by dtype, shape and bytes."""
    if tensor["dtype"] not in _DTYPES:
        raise UserError(f"{where} has numbers of type {tensor['dtype']}; give it as one of {', '.join(_DTYPES)}")
    numbers = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])
    if tensor["dtype"] == "BF16":
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.reshape(tensor["shape"])


def load_metadata(path: epath.Path) -> dict[str, str]:
    """Return the text beside the tensors of a safetensors file; empty where there is none.

    Raises:
        UserError: there is no such file, or it is unreadable.
    """
    path = _check_file(path)
    try:
        with path.open("rb") as file:  # the header alone: the tensors may be large and far away
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, _LARGEST_HEADER)))
        return dict(header.get("__metadata__", {}))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a readable safetensors file: its header is damaged") from error


def _check_file(path: epath.Path) -> epath.Path:
    """Return the path; raise UserError unless a file is there."""
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"no weights file at {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a .safetensors file; give the file in it")
    return path
