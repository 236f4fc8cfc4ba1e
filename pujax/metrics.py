"""Numbers about models and runs: accuracy, AUC, cost, progress lines and the metrics log."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from pujax.models.layers import plain_convolutions


def auc(positive_scores: np.ndarray, other_scores: np.ndarray) -> float:
    """Return the area under the ROC curve: the chance that a positive scores above another; ties count half.

    Args:
        positive_scores: [P] floats.
        other_scores: [N] floats.
    """
    others = np.sort(np.asarray(other_scores))
    below = np.searchsorted(others, positive_scores, "left")
    not_above = np.searchsorted(others, positive_scores, "right")
    return float(np.mean(below + not_above) / (2 * len(others)))


def num_params(variables: Any) -> int:
    """Count trainable parameters."""
    return int(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])))


def flops_per_image(module: Any, variables: Any, image_shape: tuple[int, ...]) -> float:
    """Return the floating-point operations of one forward pass, as XLA counts them before optimisation."""
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    with plain_convolutions():
        lowered = jax.jit(lambda v, x: module.apply(v, x, train=False)[0]).lower(variables, image)
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


class MetricsLog:
    """Appends scalars to `metrics.jsonl` and TensorBoard; silent on all but the main process."""

    def __init__(self, folder: Path, *, enabled: bool):
        self._file = (folder / "metrics.jsonl").open("a") if enabled else None
        self._tensorboard, self._folder = None, folder / "tensorboard"

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Record scalars named like "distill/loss"."""
        if self._file:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            if self._tensorboard is None:
                from tensorboardX import SummaryWriter  # imports PyTorch where there is one: not before it is needed

                self._tensorboard = SummaryWriter(str(self._folder))
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Close both logs."""
        if self._file:
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


class Progress:
    """A bar with rate and time left on a terminal; elsewhere a plain line every ten seconds."""

    def __init__(self, name: str, total: int, unit: str, *, initial: int = 0, enabled: bool = True):
        self._name, self._total, self._unit, self._done = name, total, unit, initial
        self._started, self._initial, self._next_line = time.monotonic(), initial, time.monotonic() + 10
        on_terminal = sys.stderr.isatty()
        self._lines = enabled and not on_terminal
        self._bar = tqdm(
            desc=name, total=total, unit=unit, initial=initial, disable=not (enabled and on_terminal), leave=False
        )

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more units as done; `note` is shown beside them."""
        self._done += count
        self._bar.update(count)
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        if self._lines and time.monotonic() >= self._next_line:
            rate = self.rate()
            left = (self._total - self._done) / rate if rate else float("inf")
            line = f"{self._name}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s, {left:.0f} s left {note}"
            print(line, file=sys.stderr, flush=True)
            self._next_line = time.monotonic() + 10

    def rate(self) -> float:
        """Return units per second so far."""
        return (self._done - self._initial) / max(time.monotonic() - self._started, 1e-9)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
