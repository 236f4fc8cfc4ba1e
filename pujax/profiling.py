"""A profiler's trace of some steps of a training, on request."""

import jax
from etils import epath

from pujax.sharding import is_main_process

_SETTLED = 20  # steps before a trace: what compiles, and what the first steps wait for, is of no interest


class Tracer:
    """Traces so many steps after the first twenty of this start; read them with XProf or TensorBoard."""

    def __init__(self, folder: epath.Path, steps: int):
        self._folder, self._steps = folder, steps if is_main_process() else 0
        self._first: int | None = None
        self._running = False

    def look(self, step: int) -> None:
        """Begin or end the trace where `step`, the next one, asks for it."""
        if not self._steps:
            return
        if self._first is None:
            self._first = step + _SETTLED
        if not self._running and step >= self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step >= self._first + self._steps:
            self.close()

    def close(self) -> None:
        """Write the trace, where one is under way; no other follows."""
        if self._running:
            jax.profiler.stop_trace()
            self._running, self._steps = False, 0
