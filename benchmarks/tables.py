"""Write the tables of docs/results.md and docs/benchmarks.md from the result files.

python -m benchmarks.tables            # --check only compares
"""

import argparse
import collections
import re
import sys
from pathlib import Path

import numpy as np

from benchmarks import speed_tables
from benchmarks.charts import bar_chart
from benchmarks.results_file import RESULTS
from benchmarks.results_file import read as read_file

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


def accuracy_table(lines: list[dict]) -> str:
    """Return Markdown: one line a training set, with what its scorer found; means over trainings."""
    if not lines:
        return "Not measured yet."
    head = ("student trained on", "images", "test accuracy, %", "trainings", "precision, %", "recall, %", "scorer AUC",
            "class prior, %", "scorer, s")  # fmt: skip
    out = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    rows = rows_of(lines)
    for row in sorted(rows, key=lambda row: np.mean([line["accuracy"] or 0 for line in lines if line["row"] == row])):
        own = [line for line in lines if line["row"] == row]
        # Older lines of mined rows hold the number of mined images alone; all tables have ten classes.
        images = [line.get("train_images") or line["selected"] + 10 * line.get("per_class", 10) for line in own]
        cells = [NAMES.get(row, row), f"{np.mean(images):,.0f}", mean_sd([line["accuracy"] for line in own])]
        cells += [str(len(own)), *(mean_sd([line.get(key) for line in own]) for key in ("precision", "recall"))]
        cells += [mean_sd([line.get("truth_auc") for line in own], 1, 3)]
        cells += [mean_sd([line.get("class_prior") for line in own])]
        cells += [mean_sd([(line.get("seconds") or {}).get("scorer") for line in own], 1, 0)]
        out.append("| " + " | ".join(cells) + " |")
    first = lines[0]
    versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("jax", "flax", "python"))
    commits = ", ".join(dict.fromkeys(line["commit"] for line in lines))
    teachers = ", ".join(dict.fromkeys(f"{100 * line['teacher_accuracy']:.1f} %" for line in lines))
    priors = [line["true_prior"] for line in lines if line.get("true_prior")]
    updates = f"{first['student_steps']:,} updates. " if "student_steps" in first else ""
    out.append(
        f"\n{updates}Teacher {teachers}. True class prior {mean_sd(priors[:1])} %. "
        f"Mean ± standard deviation over trainings, at the last step. {first['device_kind'].upper()}, {versions}, "
        f"commit {commits}."
    )
    return "\n".join(out)


def scorers_table(lines: list[dict]) -> str:
    """Return Markdown: AUC of every score by pool, and the share of the way from chance to the ceiling."""
    if not lines:
        return "Not measured yet."
    pools = list(dict.fromkeys(map(_pool_of, lines)))
    out = ["| score | " + " | ".join(pools) + " |"]
    out.append("|---" * (len(pools) + 1) + "|")
    aucs: dict[tuple, list[float]] = collections.defaultdict(list)
    for line in lines:
        aucs[line["row"], _pool_of(line)].append(line["auc"])
    for row in sorted(rows_of(lines), key=lambda row: row == "ceiling"):
        cells = []
        for pool in pools:
            values, ceiling = aucs[row, pool], aucs["ceiling", pool]
            way = f" ({100 * (np.mean(values) - 0.5) / (np.mean(ceiling) - 0.5):.0f} %)" if values and ceiling else ""
            cells.append(mean_sd(values, 1, 3) + way)
        out.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def _pool_of(line: dict) -> str:
    """Return what a column of the table of scorers is named."""
    teacher = ", better teacher" if line.get("networks") == "cpu_resnet18" else ""
    return f"{line['table']}, {line['per_class']} a class{teacher}"


def rates_table(lines: list[dict]) -> str:
    """Return Markdown: class prior, AUC, precision and recall by the true rate of positives."""
    if not lines:
        return "Not measured yet."
    head = (
        "true rate, %",
        "estimate, %",
        "largest error",
        "interval covers",
        "scorer AUC",
        "precision, %",
        "recall, %",
    )
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for rate in sorted({line["rate"] for line in lines}):
        own = [line for line in lines if line["rate"] == rate]
        covered = sum(line["class_prior_interval"][0] <= rate <= line["class_prior_interval"][1] for line in own)
        error = max(abs(line["class_prior"] - rate) for line in own)
        priors, aucs, precisions, recalls = (
            [line[key] for line in own] for key in ("class_prior", "truth_auc", "precision", "recall")
        )
        cells = [f"{100 * rate:g}", mean_sd(priors, digits=2), f"{100 * error:.2f}", f"{covered} of {len(own)}"]
        cells += [mean_sd(aucs, 1, 4), mean_sd(precisions), mean_sd(recalls)]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def speed_results() -> dict[str, list[dict]]:
    """Return the lines of the tables of speed."""
    return {name: read(name) for name in ("throughput", "input_pipeline", "job")}


def accuracy_figures() -> dict[str, str]:
    """Return SVG by file name: students of the CIFAR-10 table, and the scorer's AUC by the class prior it was given."""
    charts = {}
    if lines := cifar10_lines(100, 3000):
        means = {row: np.mean([line["accuracy"] for line in lines if line["row"] == row]) for row in rows_of(lines)}
        names = {row: NAMES.get(row, row).replace("**mined", "pujax: mined").replace("**", "") for row in means}
        bars = [(names[row], mean, f"{100 * mean:.1f} %") for row, mean in means.items()]
        charts["cifar10.svg"] = bar_chart(
            f"CIFAR-10, students after {lines[0]['student_steps']:,} updates", [("test accuracy", bars)]
        )
    if lines := [line for line in read("scorers") if "prior 0." in line["row"]]:
        groups = []
        for pool in dict.fromkeys(map(_pool_of, lines)):
            own = [line for line in lines if _pool_of(line) == pool]
            means = {row: np.mean([line["auc"] for line in own if line["row"] == row]) for row in rows_of(own)}
            groups.append((pool, [(row, mean, f"{mean:.4f}") for row, mean in means.items()]))
        charts["class_prior.svg"] = bar_chart("AUC of the scorer by the class prior that it was given", groups)
    return charts


def figures() -> dict[str, str]:
    """Return SVG by file name, for all that has been measured."""
    return accuracy_figures() | speed_tables.figures(speed_results())


def cifar10_lines(per_class: int, steps: int, networks: str = "cpu") -> list[dict]:
    """Return the lines of CIFAR-10 with so many labelled images a class, updates of the student, and networks."""
    setting = {"per_class": per_class, "student_steps": steps, "networks": networks}
    return [line for line in read("cifar10") if setting.items() <= line.items()]


def rows_of(lines: list[dict]) -> list[str]:
    """Return the rows of some lines, each once, in the order in which they appear."""
    return list(dict.fromkeys(line["row"] for line in lines))


def fill(text: str) -> str:
    """Return a page with every marked table made anew."""
    tables = {
        "quickstart": accuracy_table(speed_tables.newest(read("quickstart"), "row", "seed")),
        "cifar10_100": accuracy_table(cifar10_lines(100, 3000)),
        "cifar10_100_short": accuracy_table(cifar10_lines(100, 1000)),
        "cifar10_eight_views": accuracy_table(cifar10_lines(100, 3000, "cpu_eight_views")),
        "cifar10_longer": accuracy_table(cifar10_lines(100, 6000, "cpu_eight_views")),
        "cifar10_50": accuracy_table(cifar10_lines(50, 2000)),
        "cifar10_20": accuracy_table(cifar10_lines(20, 2000)),
        "quickstart_changes": accuracy_table(read("quickstart_changes")),
        "cifar10_changes": accuracy_table(read("cifar10_changes")),
        "cached_logits": accuracy_table(read("cached_logits")),
        "digits": accuracy_table(read("digits")),
        "fashion": accuracy_table(read("fashion")),
        "scorers": scorers_table(read("scorers")),
        "rates": rates_table(read("rates")),
        "digits_rates": rates_table(read("digits_rates")),
        "at_scale": speed_tables.at_scale_table(read("at_scale")),
        **speed_tables.tables(speed_results()),
    }
    for name, table in tables.items():
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
