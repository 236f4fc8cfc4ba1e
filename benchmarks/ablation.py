"""Accuracy tables: the default against the released method and honest baselines, over seeds.

    python -m benchmarks.ablation --table quickstart
    python -m benchmarks.ablation --table rates --data raw      # raw: see benchmarks/build_embedded_data.py --raw_out
    python -m benchmarks.ablation --table cifar10 --data DIR    # DIR: cifar_train.npz cifar_test.npz in_pool.npz and,
                                                                # optionally, cifar_teacher.safetensors

Every student of a table has the same network, recipe and number of updates, and the mined ones and their baselines
the same budget; accuracy is that of the last step, on test images that no choice of the run has seen. Results are
appended to `benchmarks/results/<table>.jsonl`; rows that are there are not run again, so a stopped table continues.
"""

import argparse
import dataclasses
import datetime
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from configs import cifar10, quickstart
from pujax import pipeline
from pujax.config import Config, SourceConfig, resolve
from pujax.data.sources import open_source
from pujax.sharding import configure_backend

RESULTS = Path(__file__).parent / "results"
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)

# The released method: fine-tuned scorer, uniform batches, sigmoid nnPU at the true prior, weights and maximum as is.
# Its 170 epochs are cut to what the CPU allows ("steps" in a result line). Its threshold of 0 keeps no
# image where the estimator has collapsed, so it is told how many to keep.
RELEASED = {
    "scorer.mode": "finetune",
    "scorer.loss": "nnpu",
    "scorer.surrogate": "sigmoid",
    "scorer.positives_per_batch": 0,
    "scorer.gate": True,
    "scorer.hidden": 0,
    "scorer.learning_rate": 1e-3,
    "scorer.weight_decay": 5e-3,
    "mining.selection": "prior",
    "distill.class_weights": "inverse_frequency",
    "distill.robust": "paper",
    "distill.temperature": 1.0,
}
# One change at a time, from the default.
CHANGES: dict[str, dict[str, Any]] = {
    "loss nnPU sigmoid": {"scorer.loss": "nnpu", "scorer.surrogate": "sigmoid"},
    "loss balanced nnPU": {"scorer.loss": "balanced_nnpu"},
    "loss VPU": {"scorer.loss": "vpu"},
    "attention gate": {"scorer.gate": True},
    "no input noise": {"scorer.feature_noise": 0.0},
    "class-balanced quota": {"mining.selection": "class_balanced"},
    "inverse-frequency weights": {"distill.class_weights": "inverse_frequency"},
    "robust, paper": {"distill.class_weights": "inverse_frequency", "distill.robust": "paper"},
    "robust, worst case": {"distill.robust": "worst_case"},
    "temperature 1": {"distill.temperature": 1.0},
    "label term": {"distill.label_weight": 0.5},
}


def set_options(config: Config, options: dict[str, Any]) -> Config:
    """Return a copy of the config with "a.b" options set."""
    config = dataclasses.replace(config)
    for path, value in options.items():
        *groups, leaf = path.split(".")
        owner = config
        for group in groups:
            setattr(owner, group, dataclasses.replace(getattr(owner, group)))
            owner = getattr(owner, group)
        setattr(owner, leaf, value)
    return config


def quickstart_config(seed: int) -> Config:
    """Return the quickstart with every baseline."""
    baselines = ("labelled_only", "random", "teacher_confidence", "all", "true_positives")
    return set_options(quickstart.get_config(), {"seed": seed, "baselines": baselines})


def rate_config(seed: int, data: Path, rate: float) -> Config:
    """Return the quickstart on fresh draws of the labelled images and of a pool with positives at `rate`."""
    labelled, pool = data / f"labelled_{seed}.npz", data / f"pool_{rate:g}_{seed}.npz"
    if not pool.exists():
        _write_draw(labelled, pool, data, rate, seed)
    options = {
        "seed": seed,
        "baselines": (),
        "data.labelled": SourceConfig(kind="array", path=str(labelled)),
        "data.pool": SourceConfig(kind="array", path=str(pool)),
    }
    return set_options(quickstart.get_config(), options)


def _write_draw(labelled_path: Path, pool_path: Path, data: Path, rate: float, seed: int, size: int = 30_000) -> None:
    """Draw ten labelled Fashion images a class, and a pool of others, digits and letters; `truth` marks the Fashion."""
    rng = np.random.default_rng(seed)
    arrays = {name: np.load(data / f"{name}.npz") for name in ("fashion_train", "mnist_train", "letters")}
    fashion, labels = arrays["fashion_train"]["images"], arrays["fashion_train"]["labels"]
    labelled = np.concatenate([rng.choice(np.flatnonzero(labels == k), 10, replace=False) for k in range(10)])
    np.savez(labelled_path, images=fashion[labelled], labels=labels[labelled])
    positives = round(rate * size)
    digits = (size - positives) // 2
    counts = (positives, digits, size - positives - digits)
    sets = (np.delete(fashion, labelled, axis=0), arrays["mnist_train"]["images"], arrays["letters"]["images"])
    pool = np.concatenate([own[rng.choice(len(own), count, replace=False)] for own, count in zip(sets, counts)])
    order = rng.permutation(size)
    np.savez(pool_path, images=pool[order], truth=(np.arange(size) < positives)[order])


def cifar_config(seed: int, data: Path, per_class: int, steps: int) -> Config:
    """Return the CIFAR-10 protocol with networks that two CPU cores can train."""
    teacher = data / "cifar_teacher.safetensors"
    options: dict[str, Any] = {
        "seed": seed,
        "data.labelled": SourceConfig(kind="array", path=str(data / "cifar_train.npz"), per_class=per_class),
        "data.full": SourceConfig(kind="array", path=str(data / "cifar_train.npz")),
        "data.test": SourceConfig(kind="array", path=str(data / "cifar_test.npz")),
        "data.pool": SourceConfig(kind="array", path=str(data / "in_pool.npz")),
        "teacher.model": "cifar_resnet10_w16",
        "teacher.weights": str(teacher) if teacher.exists() else "",
        "teacher.num_steps": 6000,
        "teacher.warmup_steps": 500,
        "distill.model": "cifar_resnet10_w8",
        "distill.num_steps": steps,
        "distill.batch_size": 128,
        "distill.learning_rate": 0.05,
        "distill.warmup_steps": 100,
        "mining.batch_size": 1000,
        "mining.budget": 20_000,
        "mining.selection": "top_k",
        "baselines": ("labelled_only", "random", "teacher_confidence", "full_data"),
    }
    return set_options(cifar10.get_config(), options)


def run_row(config: Config, workdir: Path, stages: tuple[str, ...] = pipeline.STAGES) -> dict[str, Any]:
    """Run one job; return its summary with the pool's true class prior."""
    config = resolve(config)
    summary = pipeline.run(config, workdir, stages)
    pool = open_source(config.data.pool, config.data, labelled=False)
    summary["true_prior"] = float(pool.truth.mean())
    return summary


def result_lines(table: str, row: str, seed: int, summary: dict[str, Any], setting: dict[str, Any]) -> list[dict]:
    """Return the JSON lines of one job: its own row and one for each baseline."""
    scorer, mining = summary["scorer"], summary["mining"]
    common = {"table": table, **setting, "seed": seed, "date": str(datetime.date.today()), "commit": commit(),
              **{key: summary["run"][key] for key in ("device_kind", "versions")}}  # fmt: skip
    line = {"row": row, "accuracy": summary.get("student", {}).get("accuracy"), "true_prior": summary["true_prior"]}
    line |= {
        key: scorer.get(key)
        for key in ("class_prior", "class_prior_interval", "class_prior_second", "truth_auc", "held_out_auc", "steps")
    }
    line |= {key: mining[key] for key in ("selected", "precision", "recall")}
    line["seconds"] = {key: summary[key]["seconds"] for key in ("scorer", "mining", "student") if key in summary}
    others = [
        {"row": name, **block, "seconds": {"student": block["seconds"]}}
        for name, block in summary.get("baselines", {}).items()
    ]
    return [{**common, **entry, "teacher_accuracy": summary["teacher"]["accuracy"]} for entry in (line, *others)]


def commit() -> str:
    """Return the commit that is measured, marked when the tree differs from it."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(describe, capture_output=True, text=True, cwd=RESULTS.parent, check=False).stdout.strip()


def jobs(args: argparse.Namespace) -> list[tuple[str, int, dict[str, Any], Callable[[], Config], tuple[str, ...]]]:
    """Return (row, seed, setting, config, stages) of every job of the table, the most telling first."""
    work = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        if args.table == "rates":
            for rate in RATES:
                make = lambda seed=seed, rate=rate: rate_config(seed, args.data, rate)  # noqa: E731
                work.append(("pujax", seed, {"rate": rate}, make, ("teacher", "scorer", "mine")))
            continue
        if args.table == "quickstart":
            base, setting, rows = (lambda seed=seed: quickstart_config(seed)), {}, CHANGES
            released = RELEASED | {"scorer.class_prior": "0.05", "scorer.num_steps": 200, "scorer.batch_size": 1024}
        else:
            base = lambda seed=seed: cifar_config(seed, args.data, args.per_class, args.steps)  # noqa: E731
            setting, rows = {"per_class": args.per_class, "student_steps": args.steps}, CHANGES
            released = RELEASED | {"scorer.class_prior": "0.1", "scorer.num_steps": 100, "scorer.batch_size": 1024}
            released |= {"mining.selection": "top_k"}
        work.append(("pujax", seed, setting, base, pipeline.STAGES))
        others = {"released": released} | (rows if args.changes else {})
        for row, options in others.items():
            make = lambda base=base, options=options: set_options(base(), options | {"baselines": ()})  # noqa: E731
            work.append((row, seed, setting, make, pipeline.STAGES))
    return work


def main() -> None:
    """Run the jobs of a table that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=("quickstart", "rates", "cifar10"), required=True)
    parser.add_argument("--data", type=Path, default=Path("raw"), help="folder of the arrays that the table needs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--per_class", type=int, default=100, help="cifar10: labelled images a class")
    parser.add_argument("--steps", type=int, default=1500, help="cifar10: updates of every student")
    parser.add_argument("--changes", action="store_true", help="also the rows that change one thing each")
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<table>.jsonl")
    args = parser.parse_args()
    configure_backend()
    out = args.out or RESULTS / f"{args.table}.jsonl"
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for row, seed, setting, make, stages in jobs(args):
        if any(line["row"] == row and line["seed"] == seed and setting.items() <= line.items() for line in done):
            continue
        name = "-".join([args.table, row.replace(" ", "_"), *map(str, setting.values()), str(seed)])
        print(f"== {name}", flush=True)
        summary = run_row(make(), args.workdir / name, stages)
        with out.open("a") as file:
            for line in result_lines(args.table, row, seed, summary, setting):
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
