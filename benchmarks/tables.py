"""Write the README's tables from the result files: `python -m benchmarks.tables` (`--check` only compares)."""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

from benchmarks import speed_tables
from benchmarks.ablation import RESULTS

ROOT = Path(__file__).parent.parent
NAMES = {
    "labelled_only": "labelled images only (each twice)",
    "random": "random pool images",
    "teacher_confidence": "teacher's most confident (DFND)",
    "all": "whole pool",
    "true_positives": "true positives (oracle)",
    "full_data": "all of the original data (oracle)",
    "pujax": "**mined by pujax**",
    "released": "released method, cut to the CPU",
}


def read(table: str) -> list[dict]:
    """Return the result lines of a table."""
    path = RESULTS / f"{table}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mean_sd(values: list[float], scale: float = 100, digits: int = 1) -> str:
    """Return "mean +- sample standard deviation", or a dash."""
    values = [scale * value for value in values if value is not None]
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def accuracy_table(lines: list[dict]) -> str:
    """Return Markdown: one line a training set, accuracy over seeds."""
    if not lines:
        return "Not measured yet."
    out = ["| student trained on | images | test accuracy, % | seeds | precision of the mined, % | scorer AUC |",
           "|---|---|---|---|---|---|"]  # fmt: skip
    rows = list(dict.fromkeys(line["row"] for line in lines))
    for row in sorted(rows, key=lambda row: np.mean([line["accuracy"] or 0 for line in lines if line["row"] == row])):
        own = [line for line in lines if line["row"] == row]
        images = [line.get("train_images", line.get("selected")) for line in own]
        precision = mean_sd([line.get("precision") for line in own])
        auc = mean_sd([line.get("truth_auc") for line in own], 1, 3)
        accuracy = mean_sd([line["accuracy"] for line in own])
        out.append(
            f"| {NAMES.get(row, row)} | {np.mean(images):,.0f} | {accuracy} | {len(own)} | {precision} | {auc} |"
        )
    first = lines[0]
    versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("jax", "flax", "python"))
    out.append(
        f"\nTeacher {100 * first['teacher_accuracy']:.1f} %. Mean ± standard deviation over seeds, at the last step. "
        f"{first['device_kind'].upper()}, {versions}, commit {first['commit']}."
    )
    return "\n".join(out)


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


def fill(text: str) -> str:
    """Return the README with every marked table made anew."""
    tables = {
        "quickstart": accuracy_table(read("quickstart")),
        "cifar10": accuracy_table([line for line in read("cifar10") if line.get("per_class") == 100]),
        "rates": rates_table(read("rates")),
        **speed_tables.tables(speed_results()),
    }
    for name, table in tables.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.S)
    return text


def main() -> None:
    """Write or check README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the README differs from the result files")
    args = parser.parse_args()
    path = ROOT / "README.md"
    before = path.read_text()
    after = fill(before)
    if args.check:
        sys.exit(after != before)
    path.write_text(after)
    speed_tables.write_figures(RESULTS / "figures", speed_results())


if __name__ == "__main__":
    main()
