"""How much of a training's time was of use, over all its starts: the rest went into starting and repeated steps."""

import time
from typing import Any

from etils import epath

from pujax.artifacts import load_json, save_json
from pujax.sharding import is_main_process


class Goodput:
    """The starts of one training, in a file beside its checkpoints."""

    def __init__(self, folder: epath.Path, step: int):
        path = folder.parent / "STARTS.json"
        self._starts: list[dict[str, Any]] = load_json(path) if step and path.exists() else []
        self._starts.append({"step": step, "time": time.time()})
        self._step, self._began = step, time.monotonic()
        if is_main_process():
            save_json(path, self._starts)

    def at_end(self, num_steps: int) -> dict[str, float]:
        """Return "restarts", and "goodput": of the seconds since the first start, those that `num_steps` steps take.

        What a step takes is as measured since this start, compiling included; without a step nothing is known.
        """
        taken = num_steps - self._step
        if not taken:
            return {"restarts": len(self._starts) - 1}
        seconds = (time.monotonic() - self._began) / taken * num_steps
        elapsed = max(time.time() - self._starts[0]["time"], seconds if len(self._starts) == 1 else 1e-9)
        return {"restarts": len(self._starts) - 1, "goodput": min(seconds / elapsed, 1.0)}
