"""Write the tables of docs/results.md and docs/benchmarks.md from the result files.

python -m benchmarks.tables            # --check only compares
"""

import argparse
import functools
import re
import sys
from operator import itemgetter
from pathlib import Path

import numpy as np

from benchmarks.results_file import RESULTS
from benchmarks.results_file import read as read_file
from benchmarks.speed_tables import (
    SPEED,
    at_scale_table,
    bar_chart,
    grouped,
    markdown,
    newest,
    score_rate_table,
    with_chart,
)
from benchmarks.speed_tables import figures as speed_figures

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "benchmarks.md")
NAMES = {
    "labelled_only": "labelled images only",
    "random": "random pool images, pujax's recipe",
    "random_published": "random pool images, as published",
    "teacher_confidence": "teacher's most confident, pujax's recipe",
    "dfnd_published": "teacher's most confident, as published (DFND)",
    "nearest_neighbour": "nearest to the labelled, pujax's recipe",
    "all": "whole pool",
    "true_positives": "true positives alone",
    "full_data": "all of the original data (oracle)",
    "pujax": "**mined by pujax**",
    "highest score": "mined by pujax, highest score alone",
    "trained_once": "mined by pujax, heads trained once (an earlier default)",
    "confident": "mined, the most confident of the better-scored",
    "class-balanced quota": "mined by pujax, equal quotas of the teacher's classes",
    "released": "released method, cut to the CPU",
}
CIFAR10 = {  # its tables: labelled images a class, updates of the student, networks
    "cifar10_100": (100, 3000),
    "cifar10_100_short": (100, 1000),
    "cifar10_eight_views": (100, 3000, "cpu_eight_views"),
    "cifar10_longer": (100, 6000, "cpu_eight_views"),
    "cifar10_50": (50, 2000),
    "cifar10_20": (20, 2000),
}


def read(table: str) -> list[dict]:
    """Return the result lines of a table."""
    return read_file(RESULTS / f"{table}.jsonl")


def mean_sd(values: list[float], scale: float = 100, digits: int = 1) -> str:
    """Return "mean +- sample standard deviation", or a dash."""
    values = [scale * value for value in values if value is not None]
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _cells(lines: list[dict], *columns: tuple) -> list[str]:
    """Return the mean and deviation of columns of (key, scale, digits)."""
    return [mean_sd([line.get(key) for line in lines], *form) for key, *form in columns]


def accuracy_table(lines: list[dict]) -> str:
    """Return Markdown: one line a training set, with what its scorer found; means over trainings."""
    head = "student trained on; images; test accuracy, %; trainings; precision, %; recall, %; scorer AUC; "
    head += "class prior, %; scorer, s"
    found = ("precision",), ("recall",), ("truth_auc", 1, 3), ("class_prior",)
    rows = []
    by_row = grouped(lines, itemgetter("row"))
    for row, own in sorted(by_row.items(), key=lambda item: np.mean([line["accuracy"] or 0 for line in item[1]])):
        # Older lines of mined rows hold the number of mined images alone; all tables have ten classes.
        images = [line.get("train_images") or line["selected"] + 10 * line.get("per_class", 10) for line in own]
        rows.append([NAMES.get(row, row), f"{np.mean(images):,.0f}", *_cells(own, ("accuracy",))])
        rows[-1] += [str(len(own)), *_cells(own, *found)]
        rows[-1] += [mean_sd([(line.get("seconds") or {}).get("scorer") for line in own], 1, 0)]
    first = lines[0]
    versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("jax", "flax", "python"))
    commits = ", ".join(dict.fromkeys(line["commit"] for line in lines))
    teachers = ", ".join(dict.fromkeys(f"{100 * line['teacher_accuracy']:.1f} %" for line in lines))
    priors = [line["true_prior"] for line in lines if line.get("true_prior")]
    updates = f"{first['student_steps']:,} updates. " if "student_steps" in first else ""
    return (
        f"{markdown(head, rows, '---')}\n\n{updates}Teacher {teachers}. True class prior {mean_sd(priors[:1])} %. "
        f"Mean ± standard deviation over trainings, at the last step. {first['device_kind'].upper()}, {versions}, "
        f"commit {commits}."
    )


def scorers_table(lines: list[dict]) -> str:
    """Return Markdown: AUC of every score by pool, and the share of the way from chance to the ceiling."""
    pools = grouped(lines, _pool_of)
    by_cell = grouped(lines, lambda line: (line["row"], _pool_of(line)))
    aucs = {key: [line["auc"] for line in own] for key, own in by_cell.items()}
    rows = []
    for row in sorted(grouped(lines, itemgetter("row")), key=lambda row: row == "ceiling"):
        rows.append([row])
        for pool in pools:
            values, ceiling = aucs.get((row, pool), []), aucs.get(("ceiling", pool), [])
            way = f" ({100 * (np.mean(values) - 0.5) / (np.mean(ceiling) - 0.5):.0f} %)" if values and ceiling else ""
            rows[-1].append(mean_sd(values, 1, 3) + way)
    return markdown("; ".join(["score", *pools]), rows, "---")


def _pool_of(line: dict) -> str:
    """Return what a column of the table of scorers is named."""
    teacher = ", better teacher" if line.get("networks") == "cpu_resnet18" else ""
    return f"{line['table']}, {line['per_class']} a class{teacher}"


def rates_table(lines: list[dict]) -> str:
    """Return Markdown: class prior, AUC, precision and recall by the true rate of positives."""
    head = "true rate, %; estimate, %; largest error; interval covers; scorer AUC; precision, %; recall, %"
    rows = []
    for rate, own in sorted(grouped(lines, itemgetter("rate")).items()):
        covered = sum(line["class_prior_interval"][0] <= rate <= line["class_prior_interval"][1] for line in own)
        error = max(abs(line["class_prior"] - rate) for line in own)
        rows.append([f"{100 * rate:g}", *_cells(own, ("class_prior", 100, 2)), f"{100 * error:.2f}"])
        rows[-1] += [f"{covered} of {len(own)}", *_cells(own, ("truth_auc", 1, 4), ("precision",), ("recall",))]
    return markdown(head, rows, "---")


def real_pools_table(lines: list[dict]) -> str:
    """Return Markdown: for every pool what the scorer and the student reach, beside random images of equal number."""
    head = "task, labelled a class, rate; positives in the pool; z; AUC without styles; AUC; chosen; precision, %; "
    head += "student, %; random, %; drawn by the scores, %"
    rows = []
    for setting, own in grouped(lines, itemgetter("task", "per_class", "rate", "pool")).items():
        by_row = grouped(own, itemgetter("row"))
        mined = by_row["pujax"]
        task, per_class, rate, pool = setting
        rows.append([f"{task}, {per_class}, {100 * rate:g} %", pool])
        if "refused" in mined[0]:
            rows[-1] += ["-", "-", "-", f"refused, {len(mined)} of {len(mined)}", *"----"]
            continue
        rows[-1] += _cells(by_row.get("no styles", []), ("selected_at_random_z", 1, 1), ("truth_auc", 1, 3))
        rows[-1] += _cells(mined, ("truth_auc", 1, 3), ("selected", 1, 0), ("precision",))
        others = (by_row.get(row, []) for row in ("random", "drawn by the scores"))
        rows[-1] += [mean_sd([line["accuracy"] for line in group]) for group in (mined, *others)]
    return markdown(head, rows, "---")


def imbalance_table(lines: list[dict]) -> str:
    """Return Markdown: accuracy of the student, over all classes and in its worst one, by what is done about them."""
    rows = []
    for (pool, row), own in grouped(lines, itemgetter("pool", "row")).items():
        forms = ("accuracy",), ("lowest_class_accuracy",), ("selected", 1, 0)
        rows.append([pool, NAMES.get(row, row), *_cells(own, *forms), str(len(own))])
    return markdown("classes of the pool; form; student, %; its worst class, %; chosen; draws", rows, "---")


def figures() -> dict[str, str]:
    """Return SVG by file name, for all that has been measured: speed, students of CIFAR-10, AUC by the given prior."""
    charts = speed_figures({name: read(name) for name in SPEED})
    if lines := cifar10_lines(100, 3000):
        names = {row: name.replace("**mined", "pujax: mined").replace("**", "") for row, name in NAMES.items()}
        bars = {names.get(row, row): 100 * mean for row, mean in means(lines, "accuracy").items()}
        title = f"CIFAR-10, students after {lines[0]['student_steps']:,} updates"
        charts["cifar10.svg"] = bar_chart(title, [("test accuracy", bars)], "{:.1f} %")
    if lines := [line for line in read("scorers") if "prior 0." in line["row"]]:
        groups = [(pool, means(own, "auc")) for pool, own in grouped(lines, _pool_of).items()]
        title = "AUC of the scorer by the class prior that it was given"
        charts["class_prior.svg"] = bar_chart(title, groups, "{:.4f}")
    return charts


def means(lines: list[dict], key: str) -> dict[str, float]:
    """Return the mean of a value for every row."""
    by_row = grouped(lines, itemgetter("row"))
    return {row: float(np.mean([line[key] for line in own])) for row, own in by_row.items()}


def cifar10_lines(per_class: int, steps: int, networks: str = "cpu") -> list[dict]:
    """Return the lines of CIFAR-10 with so many labelled images a class, updates of the student, and networks."""
    setting = {"per_class": per_class, "student_steps": steps, "networks": networks}
    return [line for line in read("cifar10") if setting.items() <= line.items()]


def fill(text: str) -> str:
    """Return a page with every marked table made anew."""
    students = {name: cifar10_lines(*setting) for name, setting in CIFAR10.items()}
    students |= {name: read(name) for name in ("quickstart_changes", "cifar10_changes", "cached_logits")}
    students |= {name: newest(read(name), "row", "seed") for name in ("quickstart", "digits", "fashion")}
    tables = {name: (accuracy_table, lines) for name, lines in students.items()}
    tables |= {name: (rates_table, read(name)) for name in ("rates", "digits_rates")}
    tables |= {name: (functools.partial(with_chart, name), read(name)) for name in SPEED}
    tables |= {"real_pools": (real_pools_table, read("real_pools")), "imbalance": (imbalance_table, read("imbalance"))}
    tables |= {"scorers": (scorers_table, read("scorers")), "at_scale": (at_scale_table, read("at_scale"))}
    tables["score_rate"] = score_rate_table, read("score_rate")
    for name, (make, lines) in tables.items():
        table = make(lines) if lines else "Not measured yet."
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.S)
    return text


def main() -> None:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if a page differs from the result files")
    args = parser.parse_args()
    before = {path: path.read_text() for path in PAGES}
    after = {path: fill(text) for path, text in before.items()}
    if args.check:
        sys.exit(after != before)
    for path, text in after.items():
        path.write_text(text)
    (RESULTS / "figures").mkdir(exist_ok=True)
    for name, svg in figures().items():
        (RESULTS / "figures" / name).write_text(svg)


if __name__ == "__main__":
    main()
