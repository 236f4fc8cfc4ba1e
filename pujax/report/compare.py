"""The page of several runs: those that differ only in their seed are one line, with mean and spread."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pujax.report import charts
from pujax.report.findings import Summary
from pujax.report.page import cut, environment
from pujax.report.quantities import amount, count, duration, percent

_NO_DIFFERENCE = ("seed", "run", "baselines")  # options that do not tell one student from another


@dataclass(frozen=True)
class Run:
    """A run as its files tell it."""

    name: str
    options: dict[str, Any]  # "a.b" -> value, of config.json
    summary: Summary  # summary.json


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The names of its runs."""
        return cut(", ".join(run.name for run in self.runs), 80)

    def each(self, value: Callable[[Summary], float]) -> list[float]:
        """Return a number of each run's summary; runs that do not have it are left out."""
        found = []
        for run in self.runs:
            try:
                found.append(value(run.summary))
            except KeyError:  # that stage has not run
                continue
        return found


def flatten_json(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} of a tree of dicts."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten_json(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Return the runs in groups of equal options, in the order in which their first ones come."""
    groups: list[list[Run]] = []
    for run in runs:
        same = next((own for own in groups if _telling(own[0]) == _telling(run)), None)
        if same is None:
            groups.append(same := [])
        same.append(run)
    return [Group(tuple(own)) for own in groups]


def _telling(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.options.items() if name.split(".")[0] not in _NO_DIFFERENCE}


def compare_page(runs: Sequence[Run]) -> str:
    """Return the page that compares some runs, at least one."""
    groups = group_runs(runs)
    return environment().get_template("compare.html").render(
        headline=_headline(groups),
        rows=[_row(group) for group in groups],
        accuracies=[(group.name, rows) for group in groups if (rows := _accuracies(group))],
        spread=any(len(group.runs) > 1 for group in groups),
        names=[group.name for group in groups],
        differences=differences(groups),
    )  # fmt: skip


def _headline(groups: list[Group]) -> str:
    scored = [(float(np.mean(own)), group) for group in groups if (own := group.each(_student))]
    number = sum(len(group.runs) for group in groups)
    begin = (
        f"{count(number)} runs of {count(len(groups))} kinds"
        if len(groups) > 1
        else f"{count(number)} run{'s' * (number > 1)}"
    )
    if not scored:
        return f"{begin}; none has a student yet."
    accuracy, best = max(scored, key=lambda entry: entry[0])
    if len(groups) == 1:
        return f"{begin}; the student is right on {percent(accuracy)} of the test images."
    return f"{begin}; the best student is right on {percent(accuracy)} of the test images ({best.name})."


def _student(summary: Summary) -> float:
    return summary["student"]["accuracy"]


def _row(group: Group) -> dict[str, str]:
    """Return what the table says of a group."""
    return {
        "name": group.name,
        "seeds": ", ".join(str(run.options["seed"]) for run in group.runs),
        "student": mean_and_spread(group.each(_student)),
        "teacher": mean_and_spread(group.each(lambda summary: summary["teacher"]["accuracy"])),
        "gain": mean_and_spread(group.each(lambda s: _student(s) - s["baselines"]["random"]["accuracy"]), sign="+"),
        "chosen": _mean(group.each(lambda summary: summary["mining"]["selected"]), count),
        "useful": _useful(group),
        "params": _mean(group.each(lambda summary: summary["student"]["num_params"]), amount),
        "flops": _mean(group.each(lambda summary: summary["student"]["flops_per_image"]), amount),
        "time": _mean(group.each(total_seconds), duration),
    }


def _useful(group: Group) -> str:
    holds = group.each(lambda summary: summary["scorer"]["class_prior_holds"])
    return mean_and_spread(group.each(lambda s: s["scorer"]["class_prior"])) if all(holds) else "not known"


def mean_and_spread(shares: Sequence[float], *, sign: str = "") -> str:
    """Return shares as "83.0 ± 0.5", in percent: mean and sample standard deviation; "–" of none.

    Args:
        shares: one a run.
        sign: "+" writes the sign of positive numbers too.
    """
    if not shares:
        return "–"
    spread = f" ± {100 * np.std(shares, ddof=1):.1f}" if len(shares) > 1 else ""
    return f"{100 * np.mean(shares):{sign}.1f}{spread}".replace("-", "−")


def _mean(values: Sequence[float], write: Callable[[float], str]) -> str:
    return write(float(np.mean(values))) if values else "–"


def total_seconds(summary: Summary) -> float:
    """Return the time of all stages and baselines of a summary."""
    blocks = [*summary.values(), *summary.get("baselines", {}).values()]
    return sum(block.get("seconds", 0.0) for block in blocks)


def _accuracies(group: Group) -> list[dict[str, Any]]:
    """Return a row with a bar for a group's student, and for each of its baselines."""
    baselines = dict.fromkeys(itertools.chain(*(run.summary.get("baselines", {}) for run in group.runs)))
    values = {"mined images": group.each(_student)}
    values |= {name: group.each(lambda s, name=name: s["baselines"][name]["accuracy"]) for name in baselines}
    rows = []
    for name, shares in values.items():
        if shares:
            mean, spread = float(np.mean(shares)), float(np.std(shares, ddof=1)) if len(shares) > 1 else 0.0
            colour = "chosen" if name == "mined images" else "pool"
            told = f"{group.name}, {name}: {mean_and_spread(shares)} %"
            rows.append(
                {
                    "name": name.replace("_", " "),
                    "bar": charts.bar([(colour, mean, told)], error=spread),
                    "accuracy": mean_and_spread(shares),
                    "runs": len(shares),
                }
            )
    return rows


def differences(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Return (option, its value in each group) of the options that are not the same in all groups."""
    told = [_telling(group.runs[0]) for group in groups]
    names = dict.fromkeys(itertools.chain(*told))
    return [
        (name, [cut(own.get(name, "–"), 120) for own in told])
        for name in names
        if any(own.get(name) != told[0].get(name) for own in told)
    ]
