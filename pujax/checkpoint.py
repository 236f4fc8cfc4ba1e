"""Resumable training state. Only the state and its step are saved: batches follow from the step.

On a file system, through Orbax. In an object store a state is one object, which appears whole: the first process writes
it, and every process reads it.
"""

import contextlib
import io
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pujax.artifacts import is_remote, write_atomic
from pujax.errors import UserError
from pujax.sharding import is_main_process


class TrainingCheckpoint:
    """The newest training state under a folder; restores to today's shardings.

    Attributes:
        every: steps between saves.
        folder: of the states.
    """

    def __init__(self, folder: epath.Path, *, every: int):
        self._store = _Objects(folder) if is_remote(folder) else _Files(folder)
        self.every, self.folder = every, self._store.folder

    def restore(self, state: Any) -> Any:
        """Return the newest saved state; `state` itself if none is saved.

        Raises:
            UserError: what was saved cannot be read.
        """
        step = self._store.latest_step()
        if step is None:
            return state
        try:
            return self._store.restore(step, state)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            folder = self._store.folder
            raise UserError(
                f"the checkpoint of step {step} in {folder} cannot be restored ({type(error).__name__}); delete "
                f"{folder} to begin this training again"
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Save `state`; returns while the write goes on."""
        self._store.save(step, state)

    def close(self) -> None:
        """Wait for writes under way and release the folder."""
        self._store.close()


class _Files:
    """States in a folder that all processes see."""

    def __init__(self, folder: epath.Path):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(epath.Path(folder).absolute(), options=options)
        self.folder = self._manager.directory

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, step: int, state: Any) -> Any:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return self._manager.restore(step, args=ocp.args.StandardRestore(target))

    def save(self, step: int, state: Any) -> None:
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def close(self) -> None:
        self._manager.close()


class _Objects:
    """States in an object store, `<step>.npz`; one is written at a time, and the one before it goes afterwards."""

    def __init__(self, folder: epath.Path):
        self.folder = folder
        self._writer, self._writing = ThreadPoolExecutor(1), None

    def latest_step(self) -> int | None:
        return max(self._steps(), default=None)

    def restore(self, step: int, state: Any) -> Any:
        with np.load(io.BytesIO(self._path(step).read_bytes()), allow_pickle=False) as saved:
            leaves = {name: saved[name] for name in saved.files}

        def place(path: Any, leaf: jax.Array) -> jax.Array:
            value = leaves[jax.tree_util.keystr(path)]
            if value.shape != leaf.shape or value.dtype != leaf.dtype:
                raise ValueError(f"{jax.tree_util.keystr(path)} is {value.dtype} {value.shape}")
            return jax.make_array_from_process_local_data(leaf.sharding, value)

        return jax.tree_util.tree_map_with_path(place, state)

    def save(self, step: int, state: Any) -> None:
        if not is_main_process():
            return
        self._finish()
        # Copied now: the next step writes over these arrays.
        leaves = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree.leaves_with_path(state)}
        self._writing = self._writer.submit(self._write, step, leaves)

    def close(self) -> None:
        try:
            self._finish()
        finally:
            self._writer.shutdown()

    def _finish(self) -> None:
        """Wait for the write under way; raise what it raised."""
        writing: Future | None = self._writing
        self._writing = None
        if writing:
            writing.result()

    def _write(self, step: int, leaves: dict[str, np.ndarray]) -> None:
        before, content = self._steps(), io.BytesIO()
        np.savez(content, **leaves)
        write_atomic(self._path(step), content.getvalue())
        for old in before:
            if old != step:
                self._path(old).unlink(missing_ok=True)

    def _steps(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            found = (re.fullmatch(r"(\d+)\.npz", path.name) for path in self.folder.iterdir())
            return [int(match[1]) for match in found if match]
        return []

    def _path(self, step: int) -> epath.Path:
        return self.folder / f"{step}.npz"
