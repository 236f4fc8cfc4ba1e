"""Learning curves out of the log of metrics."""

import json
import math
from collections.abc import Iterable

Curve = list[tuple[int, float]]  # (step, value), by step


def read_curves(lines: Iterable[str], *, points: int = 120) -> dict[str, Curve]:
    """Return the curve of the loss by what was trained: "distill/loss" is that of "distill".

    A step that comes again, since training was resumed or begun anew, takes the place of all that came at it or later:
    of several students by the same name the curve is that of the one trained last. A line that is cut short, as by a
    killed run, counts as not there.

    Args:
        lines: of `metrics.jsonl`.
        points: that are kept of a curve, evenly, the last one among them.
    """
    curves: dict[str, Curve] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            step = entry.pop("step")
        except (ValueError, KeyError, AttributeError):
            continue
        for name, value in entry.items():
            trained, _, what = name.rpartition("/")
            if what == "loss" and math.isfinite(value):
                curve = curves.setdefault(trained, [])
                while curve and curve[-1][0] >= step:
                    curve.pop()
                curve.append((step, value))
    return {name: _thin(curve, points) for name, curve in curves.items()}


def _thin(curve: Curve, points: int) -> Curve:
    every = -(-len(curve) // points)
    return curve[::-every][::-1]
