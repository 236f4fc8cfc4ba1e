"""What is written to disk and read back: resumable training state (Orbax), weights (safetensors), JSON.

Every file appears whole or not at all: it is written under a temporary name and renamed.
"""

import json
import os
from pathlib import Path
from typing import Any

import flax.traverse_util
import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


class TrainingCheckpoint:
    """The newest training state and data iterator under a folder; restores to today's shardings.

    Attributes:
        every: steps between saves.
    """

    def __init__(self, folder: str | Path, *, every: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)
        self.every = every

    def restore(self, state: Any, batches: grain.DatasetIterator) -> Any:
        """Return the newest saved state, and move `batches` to where it was; `state` itself if none is saved.

        Raises:
            ValueError: what was saved cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), data=grain.checkpoint.CheckpointRestore(batches)
        )
        try:
            return self._manager.restore(step, args=args)["state"]
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            folder = self._manager.directory
            raise ValueError(
                f"the checkpoint of step {step} in {folder} cannot be restored ({type(error).__name__}); delete "
                f"{folder} to begin this training again"
            ) from error

    def save(self, step: int, state: Any, batches: grain.DatasetIterator) -> None:
        """Save `state` and the position of `batches`; returns while the write goes on."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(batches))
        self._manager.save(step, args=args)

    def close(self) -> None:
        """Wait for writes under way and release the folder."""
        self._manager.close()


def save_weights(path: Path, variables: Any) -> None:
    """Write a tree of arrays as safetensors, names joined by "/"."""
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    temporary = path.with_suffix(".tmp")
    save_file({name: np.ascontiguousarray(jax.device_get(value)) for name, value in flat.items()}, temporary)
    os.replace(temporary, path)


def load_weights(path: str | Path, template: Any) -> Any:
    """Read safetensors into the structure of `template`.

    Args:
        path: a file written by `save_weights`.
        template: tree of arrays or `jax.ShapeDtypeStruct`s that names what must be there.

    Returns:
        A tree like `template`, of float NumPy arrays.

    Raises:
        ValueError: the file is unreadable, or a tensor is missing, left over or of another shape.
        FileNotFoundError: there is no such file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no weights file at {path}")
    try:
        flat = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    wanted = flax.traverse_util.flatten_dict(template, sep="/")
    for name in sorted(wanted.keys() ^ flat.keys()):
        where = "is missing from" if name in wanted else "does not belong to the model but is in"
        raise ValueError(f"tensor {name} {where} {path}; check the model's name")
    for name, leaf in wanted.items():
        if flat[name].shape != leaf.shape:
            raise ValueError(f"{path}: {name} has shape {flat[name].shape}, the model needs {leaf.shape}")
    return flax.traverse_util.unflatten_dict({name: flat[name] for name in wanted}, sep="/")


def load_json(path: Path) -> Any:
    """Read what `save_json` wrote.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged; delete {path.parent} and run the command again") from error


def save_json(path: Path, value: Any) -> None:
    """Write JSON, readable and whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two jobs may share a teacher's folder
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)
