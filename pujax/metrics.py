"""Numbers about models and runs: AUC, size, cost, and the log of metrics."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pujax.models.exported import ExportedClassifier
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


def precision_and_recall(truth: np.ndarray | None, chosen: np.ndarray) -> dict[str, float]:
    """Return precision and recall of the chosen indices [n]; nothing without truth, bool [N], for evaluation."""
    if truth is None:
        return {}
    hits, positives = int(truth[chosen].sum()), int(truth.sum())
    return {"precision": hits / len(chosen), **({"recall": hits / positives} if positives else {})}


def num_params(variables: Any) -> int:
    """Count trainable parameters."""
    return int(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])))


def flops_per_image(module: Any, variables: Any, image_shape: tuple[int, ...]) -> float:
    """Return the floating-point operations of one forward pass: those of convolutions and matrix products, two a
    multiply-add. They are counted in the traced program, so every backend gives the same number.

    Args:
        module: `apply(variables, images, train=False)`.
        variables: arrays or their shapes.
        image_shape: (height, width, channels).
    """
    if isinstance(module, ExportedClassifier):  # a graph, in which the size of the batch is not known
        return module.graph.flops_per_image
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    with plain_convolutions():
        program = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False)[0])(variables, image)
    return float(_count_flops(program.jaxpr))


def _count_flops(program: Any) -> int:
    """Count the operations of a jaxpr and of those inside it."""
    total = 0
    for equation in program.eqns:
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        branches = equation.params.get("branches", ())  # of which one is taken: for this backend, or that
        total += max((_count_flops(branch.jaxpr) for branch in branches), default=0)
        total += sum(_count_flops(value) for value in inner if hasattr(value, "eqns"))
        name, size = equation.primitive.name, math.prod(equation.outvars[0].aval.shape)
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * size * math.prod(kernel) // features
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return total


class MetricsLog:
    """Appends scalars to `metrics.jsonl` and TensorBoard; silent on all but the main process."""

    def __init__(self, folder: Path, *, enabled: bool):
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("a") if enabled else None
        self._tensorboard, self._folder = None, folder / "tensorboard"

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Record scalars named like "distill/loss"."""
        if self._file:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            if self._tensorboard is None:
                self._tensorboard = _summary_writer()(str(self._folder))
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Close both logs."""
        if self._file:
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


def _summary_writer() -> type:
    """Return tensorboardX's writer, imported without PyTorch: where there is one, that takes seconds of a start."""
    has_torch = "torch" in sys.modules
    if not has_torch:
        sys.modules["torch"] = None  # its import fails, and tensorboardX does without
    try:
        from tensorboardX import SummaryWriter
    finally:
        if not has_torch:
            del sys.modules["torch"]
    return SummaryWriter
