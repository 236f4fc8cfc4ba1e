"""The page of one run: plain data of every section, and the template that shows them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pujax.config import Config, flatten
from pujax.report import charts
from pujax.report.curves import Curve
from pujax.report.findings import headline, useful_share, warnings
from pujax.report.pool_view import PoolView
from pujax.report.quantities import accuracy_error, amount, count, duration, percent, points, ratio, size
from pujax.selection import Batch

_TEMPLATES = Path(__file__).parent / "templates"
_ROWS = 30  # classes of the table of classes
_LONGEST = 300  # characters of a key or of an option: what is longer is cut
_GRIDS = {
    "best": ("Best", "the highest scores among the chosen"),
    "last": ("Just chosen", "the lowest scores among the chosen"),
    "rejected": ("Just rejected", "the highest scores among the images that were not chosen"),
    "random": ("At random", "drawn from the whole pool, whatever their score"),
}


@dataclass(frozen=True)
class Facts:
    """All that the page of a run tells."""

    name: str  # of the run
    config: Config
    summary: dict[str, Any]  # as in summary.json
    seconds: dict[str, float | None]  # by stage or baseline; None where it has not run
    curves: dict[str, Curve] = field(default_factory=dict)  # by what was trained: the loss over steps
    class_names: tuple[str, ...] | None = None
    view: PoolView | None = None  # once the pool has been scored
    pictures: dict[int, tuple[str, str]] = field(default_factory=dict)  # pool index -> key, data: address

    def class_name(self, k: int) -> str:
        """Return the name of a class, or its number where names are not known."""
        return cut(self.class_names[k], 60) if self.class_names else f"class {k}"


def run_page(facts: Facts) -> str:
    """Return the page of a run; what has not run is named in it and left out."""
    summary, ran = facts.summary, {name: spent for name, spent in facts.seconds.items() if spent is not None}
    return environment().get_template("run.html").render(
        name=facts.name,
        headline=headline(summary),
        cards=cards(summary, sum(ran.values())),
        warnings=warnings(summary),
        missing=[name for name, spent in facts.seconds.items() if spent is None],
        accuracies=accuracies(summary),
        test_images=summary.get("teacher", {}).get("test_images", 0),
        funnel=funnel(summary),
        histogram=_histogram(facts),
        threshold=_threshold(facts),
        grids=grids(facts),
        by_class=best_of_each_class(facts),
        pixelated=facts.config.data.image_size <= 64,
        classes=class_balance(facts),
        curves=_curves(facts.curves),
        costs=costs(ran),
        rates=rates(summary),
        exports=exports(summary),
        recipe=recipe(facts.config),
        options=options(facts.config),
        run=summary.get("run", {}),
    )  # fmt: skip


@functools.cache
def environment() -> jinja2.Environment:
    """Return what renders the templates; every text is escaped."""
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["count"] = count
    return made


def cut(text: Any, longest: int = _LONGEST) -> str:
    """Return a text, cut where it is too long for a page."""
    text = str(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def cards(summary: dict[str, Any], seconds: float) -> list[dict[str, str]]:
    """Return the numbers of the first screen: {label, value, unit, note} of each that is known."""
    teacher, student, mining = (summary.get(name) for name in ("teacher", "student", "mining"))
    made = []

    def add(label: str, value: str, note: str = "", *, unit: str = "") -> None:
        made.append({"label": label, "value": value, "unit": unit, "note": note})

    images = teacher.get("test_images", 0) if teacher else 0
    for name, block in (("Student", student), ("Teacher", teacher)):
        if block:
            error = accuracy_error(block["accuracy"], images)
            add(f"{name}, right", percent(block["accuracy"]), f"± {100 * error:.1f} points" if error else "")
    network = student or teacher
    for label, number, unit in (("Parameters", "num_params", ""), ("Operations an image", "flops_per_image", "FLOPs")):
        if network:
            note = "of the teacher"
            if student:
                note = f"teacher {amount(teacher[number])}, {ratio(teacher[number], student[number])} times"
            add(label, amount(network[number]), note, unit=unit)
    if mining and "selected" in mining:
        share = percent(mining["selected"] / mining["pool_images"])
        add("Images chosen", count(mining["selected"]), f"{share} of {count(mining['pool_images'])}")
    if "scorer" in summary:
        add("Useful in the pool", *useful_share(summary))
    add("Time", duration(seconds), "sum of the stages")
    return made


def accuracies(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for teacher, student and each baseline, with bar, standard error, and what the student gains."""
    teacher, student = summary.get("teacher"), summary.get("student")
    if not teacher:
        return []
    named = [("teacher", "other", teacher), *([("student, mined", "chosen", student)] if student else [])]
    named += [(name.replace("_", " "), "pool", block) for name, block in summary.get("baselines", {}).items()]
    rows = []
    for name, colour, block in named:
        accuracy = block["accuracy"]
        error = accuracy_error(accuracy, teacher.get("test_images", 0))
        told = f"{name}: {percent(accuracy)} ± {100 * error:.1f}"
        rows.append(
            {
                "name": name,
                "bar": charts.bar([(colour, accuracy, told)], error=error),
                "accuracy": percent(accuracy),
                "error": f"{100 * error:.1f}" if error else "",
                "lowest": percent(block["lowest_class_accuracy"]) if "lowest_class_accuracy" in block else "",
                "images": count(block["train_images"]) if "train_images" in block else "",
                "gain": points(student["accuracy"] - accuracy) if student and colour == "pool" else "",
            }
        )
    return rows


def funnel(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is left of the pool, step by step: {name, number, share, bar, note}."""
    mining, scorer = summary.get("mining"), summary.get("scorer", {})
    if not mining:
        return []
    pool, scored = mining["pool_images"], mining["scored"]
    steps = [("In the pool", pool, ""), ("Readable", scored, "decoded and scored")]
    if "like_labelled" in scorer:
        like = round(scorer["like_labelled"] * scored)
        steps.append(("Like labelled", like, "score above the lowest tenth of labelled images, by the held-out scores"))
    if "selected" in mining:
        steps.append(("Chosen", mining["selected"], f"by the rule {mining['rule']}{_measured(mining)}"))
    return [
        {
            "name": name,
            "number": count(number),
            "share": percent(number / pool),
            "bar": charts.bar(
                [("chosen" if name == "Chosen" else "pool", number / pool, f"{name}: {count(number)} images")]
            ),
            "note": note,
        }
        for name, number, note in steps
    ]


def _measured(mining: dict[str, Any]) -> str:
    """Return what the pool's own truth says of the choice, where it carries one; mining does not see it."""
    if "precision" not in mining:
        return ""
    found = f", which are {percent(mining['recall'])} of all that do" if "recall" in mining else ""
    return f"; by the pool's own truth {percent(mining['precision'])} of them belong to the task{found}"


def _histogram(facts: Facts) -> Any:
    view = facts.view
    if view is None:
        return None
    return charts.score_histograms(view.edges, view.labelled, view.pool, view.chosen, _threshold(facts))


def _threshold(facts: Facts) -> float | None:
    return facts.summary.get("mining", {}).get("threshold")


def grids(facts: Facts) -> list[dict[str, Any]]:
    """Return the grids of images that are not empty: {title, note, images}."""
    if facts.view is None:
        return []
    made = [
        {"title": title, "note": note, "images": _images(facts, facts.view.grids[name])}
        for name, (title, note) in _GRIDS.items()
    ]
    return [grid for grid in made if grid["images"]]


def best_of_each_class(facts: Facts) -> list[dict[str, Any]]:
    """Return the best chosen images of the classes that were chosen most: {title, note, images}."""
    if facts.view is None:
        return []
    made = [
        {
            "title": facts.class_name(k),
            "note": f"{count(facts.view.chosen_classes[k])} chosen",
            "images": _images(facts, rows),
        }
        for k, rows in facts.view.by_class.items()
    ]
    return [grid for grid in made if grid["images"]]


def _images(facts: Facts, rows: Batch) -> list[dict[str, str]]:
    """Return {address, score, class_name, told} of the rows whose image could be read."""
    made = []
    for index, score, k in zip(rows["index"], rows["score"], rows["teacher_class"]):
        if int(index) in facts.pictures:
            key, address = facts.pictures[int(index)]
            name = facts.class_name(int(k))
            told = f"{cut(key)}: score {score:.2f}, {name} to the teacher"
            made.append({"address": address, "score": f"{score:.2f}", "class_name": name, "told": told})
    return made


def class_balance(facts: Facts) -> dict[str, Any] | None:
    """Return the shares of the teacher's classes before and after: {rows, others}; None before the pool is scored.

    With many classes those come that are most frequent in the choice, and the others are summed up in one row.
    """
    view = facts.view
    if view is None:
        return None
    pool, chosen = view.pool_classes, view.chosen_classes
    shown = np.arange(len(pool))
    if len(pool) > _ROWS:
        shown = np.sort(np.lexsort((-pool, -chosen))[: _ROWS - 1])
    groups: list[tuple[str, Any]] = [(facts.class_name(int(k)), int(k)) for k in shown]
    if others := len(pool) - len(shown):
        groups.append((f"{count(others)} other classes", np.setdiff1d(np.arange(len(pool)), shown)))
    numbers = [(name, int(pool[k].sum()), int(chosen[k].sum())) for name, k in groups]
    totals = max(int(pool.sum()), 1), max(int(chosen.sum()), 1)
    widest = max(max(before / totals[0], after / totals[1]) for _, before, after in numbers)
    return {"rows": [_class_row(*row, totals, widest or 1.0) for row in numbers], "any_chosen": bool(chosen.sum())}


def _class_row(name: str, before: int, after: int, totals: tuple[int, int], widest: float) -> dict[str, Any]:
    shares = before / totals[0], after / totals[1]
    told = [f"{name}, {what}: {count(number)} images, {percent(share)}"
            for what, number, share in zip(("pool", "chosen"), (before, after), shares)]  # fmt: skip
    parts = [(colour, share / widest, text) for colour, share, text in zip(("pool", "chosen"), shares, told)]
    return {"name": name, "bar": charts.bar(parts), "before": count(before), "before_share": percent(shares[0]),
            "after": count(after), "after_share": percent(shares[1])}  # fmt: skip


def _curves(found: dict[str, Curve]) -> dict[str, Any] | None:
    """Return the chart of what was trained by distillation, and its legend; None where nothing was."""
    named = {
        name.removeprefix("distill_").replace("distill", "student").replace("_", " "): curve
        for name, curve in found.items()
        if name.startswith("distill") and len(curve) > 1
    }
    if not named:
        return None
    last = [{"name": name, "value": f"{curve[-1][1]:.3g}"} for name, curve in named.items()]
    return {"chart": charts.curves(named, y_label="distillation loss"), "last": last}


def costs(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for each stage that ran: {name, time, share, bar}."""
    total = sum(seconds.values()) or 1.0
    return [
        {
            "name": name.replace("baselines/", "baseline: ").replace("_", " "),
            "time": duration(spent),
            "share": percent(spent / total),
            "bar": charts.bar([("pool", spent / total, f"{name}: {duration(spent)}")]),
        }
        for name, spent in seconds.items()
    ]


def rates(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, how much) of speeds and sizes that are known."""
    made = []
    if speed := summary.get("mining", {}).get("images_per_second"):
        made.append(("Scoring", f"{amount(speed)} images/s"))
    for name in ("teacher", "student"):
        if block := summary.get(name):
            made.append((f"{name.capitalize()}, one image", f"{amount(block['flops_per_image'])} FLOPs"))
            made.append((f"{name.capitalize()}, size", f"{amount(block['num_params'])} parameters"))
    return made


def exports(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Return a row for each format that the student was exported in, or why it was not."""
    rows = []
    for name, block in summary.get("export", {}).items():
        if isinstance(block, dict):
            told = {"name": name, "skipped": cut(block.get("skipped", ""))}
            shown = {"size": ("bytes", size), "difference": ("max_abs_diff", "{:.1e}".format),
                     "agreement": ("top1_agreement", functools.partial(percent, digits=2)),
                     "accuracy": ("accuracy", percent), "latency": ("latency_ms", "{:.2f} ms".format)}  # fmt: skip
            for column, (key, write) in shown.items():
                told[column] = write(block[key]) if block.get(key) is not None else ""
            rows.append(told)
    return rows


def options(config: Config) -> list[tuple[str, str, bool]]:
    """Return (name, value, whether it differs from the default) of every option."""
    defaults = dict(flatten(Config()))
    return [(name, cut(_written(value)), value != defaults[name]) for name, value in flatten(config)]


def _written(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def recipe(config: Config) -> str:
    """Return a recipe, a Python file, that gives this very config."""
    defaults = dict(flatten(Config()))
    changed = {name: value for name, value in flatten(config) if value != defaults[name]}
    lines = [f"        {name!r}: {value!r},\n" for name, value in changed.items()]
    return (
        "from pujax.config import Config, with_options\n\n\ndef get_config():\n"
        f"    return with_options(Config(), {{\n{''.join(lines)}    }})\n"
    )
