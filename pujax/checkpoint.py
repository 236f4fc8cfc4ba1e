"""Resumable training state, through Orbax. Only the state and its step are saved: batches follow from the step."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from pujax.errors import UserError


class TrainingCheckpoint:
    """The newest training state under a folder; restores to today's shardings.

    Attributes:
        every: steps between saves.
    """

    def __init__(self, folder: epath.Path, *, every: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(epath.Path(folder).absolute(), options=options)
        self.every = every

    def restore(self, state: Any) -> Any:
        """Return the newest saved state; `state` itself if none is saved.

        Raises:
            UserError: what was saved cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            folder = self._manager.directory
            raise UserError(
                f"the checkpoint of step {step} in {folder} cannot be restored ({type(error).__name__}); delete "
                f"{folder} to begin this training again"
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Save `state`; returns while the write goes on."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def close(self) -> None:
        """Wait for writes under way and release the folder."""
        self._manager.close()
