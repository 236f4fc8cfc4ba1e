"""Accuracy tables: the default against the released method and honest baselines, over seeds.

    python -m benchmarks.ablation --table quickstart
    python -m benchmarks.ablation --table rates --data raw      # raw: see benchmarks/build_embedded_data.py --raw_out
    python -m benchmarks.ablation --table digits --data raw     # MNIST, 100 labelled a class, pool with letters
    python -m benchmarks.ablation --table cifar10 --data DIR    # DIR: cifar_train.npz cifar_test.npz in_pool.npz and,
                                                                # optionally, cifar_teacher.safetensors

Every student of a table has the same network, recipe and number of updates, and the mined ones and their baselines
the same budget; accuracy is that of the last step, on test images that no choice of the run has seen. Results are
appended to `benchmarks/results/<table>.jsonl`; rows that are there are not run again, so a stopped table continues.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import nearest_neighbour
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
RELEASED_CUT: dict[str, dict[str, Any]] = {
    "rates": {},
    "quickstart": {"scorer.class_prior": "0.05", "scorer.num_steps": 200, "scorer.batch_size": 1024},
    "digits": {"scorer.class_prior": "0.0833", "scorer.num_steps": 400, "scorer.batch_size": 1024},
    "cifar10": {
        "scorer.class_prior": "0.1",
        "scorer.num_steps": 100,
        "scorer.batch_size": 1024,
        "scorer.flip": True,
        "scorer.crop_padding": 4,
        "mining.selection": "top_k",
    },
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
        positives = round(rate * 30_000)
        digits = (30_000 - positives) // 2
        counts = {"mnist_train": digits, "letters": 30_000 - positives - digits}
        _write_draw(labelled, pool, data, seed, "fashion_train", 10, positives, counts)
    options = {
        "seed": seed,
        "baselines": (),
        "data.labelled": SourceConfig(kind="array", path=str(labelled)),
        "data.pool": SourceConfig(kind="array", path=str(pool)),
    }
    return set_options(quickstart.get_config(), options)


def digits_config(seed: int, data: Path, workdir: Path) -> Config:
    """Return MNIST with 100 labelled images a class; 5,000 digits in a pool of 60,000 letters and Fashion images."""
    labelled, pool = data / f"digits_labelled_{seed}.npz", data / f"digits_pool_{seed}.npz"
    if not pool.exists():
        counts = {"letters": 30_000, "fashion_train": 25_000}
        _write_draw(labelled, pool, data, seed, "mnist_train", 100, 5_000, counts)
    options = {
        "data.labelled": SourceConfig(kind="array", path=str(labelled)),
        "data.full": SourceConfig(kind="array", path=str(data / "mnist_train.npz")),
        "data.test": SourceConfig(kind="array", path=str(data / "mnist_test.npz")),
        "data.pool": SourceConfig(kind="array", path=str(pool)),
        "data.mean": (0.1307,),
        "data.std": (0.3081,),
        "distill.flip": False,
        "teacher.weights": "",
        "teacher.num_steps": 3000,
        "teacher.learning_rate": 0.02,
        "teacher.warmup_steps": 200,
        "teacher.crop_padding": 2,
        "baselines": ("labelled_only", "random", "teacher_confidence", "all", "true_positives", "full_data"),
    }
    config = set_options(quickstart.get_config(), options)
    return set_options(config, {"seed": seed, "teacher.weights": trained_teacher(config, workdir / "digits-teacher")})


def trained_teacher(config: Config, workdir: Path) -> str:
    """Return the weights file of the teacher that the config describes, trained once for all rows and seeds."""
    pipeline.run(resolve(config), workdir, ("teacher",))
    return str(workdir / "teacher" / "teacher.safetensors")


def _write_draw(
    labelled_path: Path,
    pool_path: Path,
    data: Path,
    seed: int,
    target: str,
    per_class: int,
    positives: int,
    others: dict[str, int],
) -> None:
    """Draw `per_class` labelled images of `target` a class, and a pool of `positives` more and of `others`."""
    rng = np.random.default_rng(seed)
    arrays = {name: np.load(data / f"{name}.npz") for name in (target, *others)}
    images, labels = arrays[target]["images"], arrays[target]["labels"]
    labelled = np.concatenate([rng.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in range(10)])
    np.savez(labelled_path, images=images[labelled], labels=labels[labelled])
    sets = (np.delete(images, labelled, axis=0), *(arrays[name]["images"] for name in others))
    counts = (positives, *others.values())
    pool = np.concatenate([own[rng.choice(len(own), count, replace=False)] for own, count in zip(sets, counts)])
    order = rng.permutation(len(pool))
    np.savez(pool_path, images=pool[order], truth=(np.arange(len(pool)) < positives)[order])


def cifar_config(seed: int, data: Path, per_class: int, steps: int, workdir: Path) -> Config:
    """Return the CIFAR-10 protocol with networks that two CPU cores can train."""
    options: dict[str, Any] = {
        "data.labelled": SourceConfig(kind="array", path=str(data / "cifar_train.npz"), per_class=per_class),
        "data.full": SourceConfig(kind="array", path=str(data / "cifar_train.npz")),
        "data.test": SourceConfig(kind="array", path=str(data / "cifar_test.npz")),
        "data.pool": SourceConfig(kind="array", path=str(data / "in_pool.npz")),
        "teacher.model": "cifar_resnet10_w16",
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
    config, given = set_options(cifar10.get_config(), options), data / "cifar_teacher.safetensors"
    weights = str(given) if given.exists() else trained_teacher(config, workdir / "cifar10-teacher")
    return set_options(config, {"seed": seed, "teacher.weights": weights})


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


def base_config(args: argparse.Namespace, seed: int) -> Config:
    """Return pujax's own row of a table of students."""
    if args.table == "quickstart":
        return quickstart_config(seed)
    if args.table == "digits":
        return digits_config(seed, args.data, args.workdir)
    return cifar_config(seed, args.data, args.per_class, args.steps, args.workdir)


def jobs(args: argparse.Namespace) -> list[tuple[str, int, dict[str, Any], Callable[[], Config], tuple[str, ...]]]:
    """Return (row, seed, setting, config, stages) of every job of the table, the most telling first."""
    setting = {"per_class": args.per_class, "student_steps": args.steps} if args.table == "cifar10" else {}
    rows = {"pujax": {}, "released": RELEASED | RELEASED_CUT[args.table] | {"baselines": ()}}
    if args.changes:
        rows |= {row: options | {"baselines": ()} for row, options in CHANGES.items()}
    work = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        if args.table == "rates":
            for rate in RATES:
                make = functools.partial(rate_config, seed, args.data, rate)
                work.append(("pujax", seed, {"rate": rate}, make, ("teacher", "scorer", "mine")))
            continue
        for row, options in rows.items():
            make = lambda seed=seed, options=options: set_options(base_config(args, seed), options)  # noqa: E731
            work.append((row, seed, setting, make, pipeline.STAGES))
    return work


def main() -> None:
    """Run the jobs of a table that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=tuple(RELEASED_CUT), required=True)
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
        config = make()
        summary = run_row(config, args.workdir / name, stages)
        lines = result_lines(args.table, row, seed, summary, setting)
        if row == "pujax" and "distill" in stages:
            lines.append({**lines[1], **nearest_neighbour.run(resolve(config), args.workdir / name)})
        with out.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
