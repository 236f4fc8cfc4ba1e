"""What was measured of a classifier, as lines for a terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pujax.measures import confusions
from pujax.report.quantities import count, percent

_ROWS = 20  # classes of the table, and most mistakes that are named
_MISTAKES = 3


def as_text(found: dict[str, Any]) -> str:
    """Return the numbers of `evaluation.evaluate`, with "model" and "source", as people read them."""
    low, high = (f"{100 * end:.2f}" for end in found["accuracy_interval"])
    calibration, bins = found["calibration"], len(found["calibration"]["bins"])
    lines = [
        f"{found['model']} on {found['source']}, {count(found['images'])} images",
        "",
        f"accuracy     {percent(found['accuracy'], 2)}, 95 % interval {low} to {high} %",
    ]
    if "top5_accuracy" in found:
        lines.append(f"top-5        {percent(found['top5_accuracy'], 2)}")
    lines.append(
        f"calibration  ECE {calibration['ece']:.4f} ({bins} bins), NLL {calibration['nll']:.4f}, "
        f"Brier {calibration['brier']:.4f}"
    )
    if teacher := found.get("teacher"):
        lines.append(
            f"teacher      {percent(teacher['accuracy'], 2)}; the same class for "
            f"{percent(teacher['top1_agreement'], 2)} of the images, KL {teacher['kl']:.4f}"
        )
    if doubt := found.get("doubt"):
        lines.append(f"but: {doubt}")
    lines += ["", *_classes(found)]
    if corruptions := found.get("corruptions"):
        lines += ["", *_corruptions(corruptions)]
    return "\n".join(lines)


def _classes(found: dict[str, Any]) -> list[str]:
    rows = [row for row in found["classes"] if row["images"]]
    title = "class"
    if len(rows) > _ROWS:
        title = f"{_ROWS} lowest of {len(rows)} classes"
        rows = sorted(rows, key=lambda row: row["recall"])[:_ROWS]
    names = [_name(row) for row in found["classes"]]
    table = [[title, "images", "recall", "precision"]]
    table += [[_name(row), count(row["images"]), _share(row["recall"]), _share(row["precision"])] for row in rows]
    mistakes = [f"{names[k]} as {names[j]}, {n}" for k, j, n in confusions(np.array(found["confusion"]), _MISTAKES)]
    return _columns(table) + (["", f"most often mistaken: {'; '.join(mistakes)}"] if mistakes else [])


def _corruptions(found: dict[str, Any]) -> list[str]:
    kinds = {name: values for name, values in found.items() if name != "mean"}
    severities = range(1, 1 + max(map(len, kinds.values())))
    table = [["severity", *map(str, severities)]]
    table += [[name, *map(_share, values)] for name, values in kinds.items()]
    return [*_columns(table), f"mean of all: {percent(found['mean'], 2)}"]


def _columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]


def _name(row: dict[str, Any]) -> str:
    return row["name"] or str(row["class"])


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value, 2)
