"""Whether an exported file answers as the network that it was made from: real images, in a process of its own.

That process knows the file and the format's own runtime; it runs on one thread of the CPU, where it is also timed.
"""

import dataclasses
from pathlib import Path

import numpy as np

from pujax.errors import UserError
from pujax.parity import difference, run_apart

# A loader is a few lines that make `run`, images [n, H, W, C] -> logits [n, K], out of `path`; `uint8` says of which
# kind the images are, and `threads` on how many threads of the CPU it may run. Where the file describes itself, the
# lines leave that in `told`: `networks.describe`, and what it "takes", as the model card has it.
_BEGIN = """
import os
import sys
path, inputs, outputs, timed = sys.argv[1:]
if hasattr(os, "sched_setaffinity"):
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})
import time
import numpy as np
images = np.load(inputs, mmap_mode="r")
uint8, threads = images.dtype == np.uint8, 1
"""
_END = """
batch = min(64, len(images))
starts = [*range(0, len(images) - batch, batch), len(images) - batch]  # of one size: the last two may overlap
logits = [np.asarray(run(np.array(images[start : start + batch]))) for start in starts]
logits[-1] = logits[-1][(-len(images)) % batch :]
np.save(outputs, np.concatenate(logits))
if timed == "True":
    image, seconds = np.array(images[:1]), []
    np.asarray(run(image))
    until = time.perf_counter() + 0.3
    while len(seconds) < 5 or (len(seconds) < 100 and time.perf_counter() < until):
        began = time.perf_counter()
        np.asarray(run(image))
        seconds.append(time.perf_counter() - began)
    print(1000 * np.median(seconds))
"""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far an exported network may be from the original."""

    difference: float  # of logits, relative to the largest
    agreement: float  # share of images that must be put into the same class
    ties: bool = False  # whether classes whose logits are within the difference count as the same
    accuracy: float = 0.0  # less agreement will do where no more accuracy than this is lost


@dataclasses.dataclass(frozen=True)
class Parity:
    """How an exported network compares with the original on some labelled images."""

    max_abs_diff: float  # of the logits
    relative_diff: float  # to the largest logit
    top1_agreement: float
    accuracy: float
    original_accuracy: float

    def violation(self, limits: Limits) -> str:
        """Return what is beyond the limits, number and limit; empty if nothing is. What is no number is beyond."""
        if not self.relative_diff <= limits.difference:
            return f"logits differ by {self.relative_diff:.3g} of the largest, the limit is {limits.difference:g}"
        change = self.accuracy - self.original_accuracy
        close = limits.accuracy and change >= -limits.accuracy
        if not (self.top1_agreement >= limits.agreement or close):
            also = f", accuracy changes by {change:+.4f}" if limits.accuracy else ""
            return f"top-1 agreement is {self.top1_agreement:.4f}{also}, the limit is {limits.agreement:g}"
        return ""


def compare(expected: np.ndarray, logits: np.ndarray, labels: np.ndarray, limits: Limits) -> Parity:
    """Compare logits float32 [N, K] with those that are expected.

    Args:
        expected: the original's, float32 [N, K].
        logits: the exported network's.
        labels: int32 [N].
        limits: say whether ties count as agreement.

    Raises:
        UserError: the logits are of another shape.
    """
    if logits.shape != expected.shape:
        raise UserError(f"logits have shape {logits.shape}, the original's {expected.shape}")
    found = difference(expected, logits, ties=limits.difference if limits.ties else 0.0)
    return Parity(
        max_abs_diff=found.largest,
        relative_diff=found.relative,
        top1_agreement=found.top1_agreement,
        accuracy=float((logits.argmax(1) == labels).mean()),
        original_accuracy=float((expected.argmax(1) == labels).mean()),
    )


def replay(loader: str, path: Path, images: np.ndarray, *, timed: bool = True) -> tuple[np.ndarray, float | None]:
    """Run an exported file in a process of its own.

    Args:
        loader: the lines that load it, of the format's module.
        path: of the file.
        images: as the file takes them, [N, H, W, C].
        timed: whether to measure time.

    Returns:
        (logits float32 [N, K], milliseconds that one image takes on one thread, None where that was not measured).

    Raises:
        UserError: it cannot be loaded or run.
    """
    program = _BEGIN + loader + _END
    logits, printed = run_apart(program, path, images, [str(timed)], what=path.name, env={"XLA_FLAGS": ""})
    return logits, float(printed.splitlines()[-1]) if timed else None
