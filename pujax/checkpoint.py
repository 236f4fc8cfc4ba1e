"""Resumable training state, through Orbax. Only the state and its step are saved: batches follow from the step.

The first process writes it and tells the others what it has read: they need not see its disk.
"""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from pujax.errors import UserError
from pujax.sharding import barrier, is_main_process


class TrainingCheckpoint:
    """The newest training state under a folder; restores to today's shardings.

    Attributes:
        every: steps between saves.
    """

    def __init__(self, folder: epath.Path, *, every: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            create=False,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
        )
        self._manager = None
        if is_main_process():
            folder = epath.Path(folder).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(folder, options=options)
        self.every = every

    def restore(self, state: Any) -> Any:
        """Return the newest saved state; `state` itself if none is saved.

        Args:
            state: one of the same form, with copies of it on every device.

        Raises:
            UserError: what was saved cannot be read.
        """
        step = self._manager.latest_step() if self._manager else None
        found = step is not None
        if jax.process_count() > 1:
            found = bool(multihost_utils.broadcast_one_to_all(found))
        if not found:
            return state
        saved = jax.device_get(state)
        if self._manager:
            saved = self._read(step, saved)
        if jax.process_count() > 1:
            saved = multihost_utils.broadcast_one_to_all(saved)
        return jax.tree.map(lambda new, old: jax.make_array_from_process_local_data(old.sharding, new), saved, state)

    def _read(self, step: int, form: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(form))
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            folder = self._manager.directory
            raise UserError(
                f"the checkpoint of step {step} in {folder} cannot be restored ({type(error).__name__}); delete "
                f"{folder} to begin this training again"
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Save `state`; returns while the write goes on."""
        if self._manager:
            self._manager.save(step, args=ocp.args.StandardSave(jax.device_get(state)))

    def wait(self) -> None:
        """Wait, on all processes, until what was saved is written."""
        if self._manager:
            self._manager.wait_until_finished()
        barrier("checkpoint written")

    def close(self) -> None:
        """Wait for writes under way and release the folder."""
        if self._manager:
            self._manager.close()
