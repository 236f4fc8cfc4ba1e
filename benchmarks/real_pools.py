"""Students from pools that are not made like the labelled images: shifted in style, lacking classes, or empty.

    python -m benchmarks.real_pools --data raw               # raw: see tools/build_embedded_data.py --raw_out
    python -m benchmarks.real_pools --data raw --imbalance   # robust forms and weights where classes are missing

The task is MNIST or Fashion-MNIST with few labelled images a class. The pool of 40,000 holds images of the task at a
small rate, which alone are shifted, letters, and images of the other of the two. Beside pujax stand random images of
equal number and, for one draw, the scorer that sees no styles and, on two pools, a choice drawn by the scores.
Lines are appended to `benchmarks/results/real_pools.jsonl` or `imbalance.jsonl`; what is there is not run again.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.ablation import STAGES_OF_RATES, Job, arrays, run_job, task_config
from benchmarks.results_file import RESULTS, append, command_line, is_there
from pujax import pipeline
from pujax.config import Config, with_options
from pujax.errors import UserError
from pujax.sharding import configure_backend

SIZE = 40_000
Shift = Callable[[Image.Image, np.random.Generator], Image.Image]


def _moved(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    x, y = map(int, rng.integers(-3, 4, 2))
    turned = image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(1))
    return turned.transform(image.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y))


SHIFTS: dict[str, Shift] = {
    "none": lambda image, rng: image,
    "blurred": lambda image, rng: image.filter(ImageFilter.GaussianBlur(1)),
    "turned": lambda image, rng: image.rotate(rng.choice((-15, 15)), Image.Resampling.BILINEAR),
    "blurred, turned, shifted": _moved,
    "inverted": lambda image, rng: Image.fromarray(255 - np.asarray(image)),
}
# Shares of the ten classes among the pool's positives.
CLASSES: dict[str, np.ndarray] = {
    "3 classes": np.isin(np.arange(10), (2, 5, 7)) / 3,
    "power law": 1 / np.arange(1, 11) / np.sum(1 / np.arange(1, 11)),
}
SETTINGS = (  # task, labelled images a class, rate, pools, draws at most
    ("digits", 10, 0.02, ("none", "blurred", "turned"), 3),
    ("clothes", 10, 0.02, ("none", "blurred", "turned"), 3),
    ("digits", 10, 0.02, ("blurred, turned, shifted", "inverted", "3 classes", "empty"), 2),
    ("clothes", 10, 0.02, ("blurred, turned, shifted", "inverted", "empty"), 2),
    ("digits", 100, 0.05, ("none", "blurred", "turned"), 1),
)
ROWS: dict[str, dict[str, Any]] = {
    "pujax": {},
    "no styles": {"scorer.frozen.styles": "off"},  # the scorer alone
    "drawn by the scores": {"select.rule": "sample"},
}
# What to do about classes that are rare among the chosen.
REMEDIES: dict[str, dict[str, Any]] = {
    "pujax": {},
    "highest score": {"select.rule": "top_k"},
    "robust, paper": {"distill.class_weights": "inverse_frequency", "distill.robust": "paper"},
    "robust, worst case": {"distill.robust": "worst_case"},
}


def pool_config(task: str, pool: str, per_class: int, rate: float, seed: int, data: Path, workdir: Path) -> Config:
    """Return a task with `per_class` labelled images and one of the pools, its positives at `rate`, drawn by `seed`."""
    target, other = ("mnist", "fashion") if task == "digits" else ("fashion", "mnist")
    name = f"{task}_{pool.replace(', ', '_').replace(' ', '_')}_{per_class}_{rate:g}_{seed}.npz"
    labelled_path, pool_path = data / f"real_labelled_{name}", data / f"real_pool_{name}"
    if not pool_path.exists():
        rng, arrays_of = np.random.default_rng((seed, per_class)), lambda part: np.load(data / f"{part}.npz")
        images, labels = (arrays_of(f"{target}_train")[key] for key in ("images", "labels"))
        by_class = [rng.permutation(np.flatnonzero(labels == k)) for k in range(10)]
        labelled = np.concatenate([own[:per_class] for own in by_class])
        np.savez(labelled_path, images=images[labelled], labels=labels[labelled])
        count = 0 if pool == "empty" else round(rate * SIZE)
        counts = np.diff(np.round(count * np.cumsum([0, *CLASSES.get(pool, np.full(10, 0.1))])).astype(int))
        rows = np.concatenate([own[per_class : per_class + n] for own, n in zip(by_class, counts)])
        shift = SHIFTS.get(pool, SHIFTS["none"])
        shifted = [shift(Image.fromarray(np.pad(image, 2)), rng) for image in images[rows]]
        letters = round((SIZE - count) * 6 / 11)
        parts = [np.array(shifted, np.uint8).reshape(-1, 32, 32)]
        for part, n in (("letters", letters), (f"{other}_train", SIZE - count - letters)):
            own = arrays_of(part)["images"]
            parts.append(np.pad(own[rng.choice(len(own), n, replace=False)], ((0, 0), (2, 2), (2, 2))))
        order = rng.permutation(SIZE)
        np.savez(pool_path, images=np.concatenate(parts)[order], truth=(np.arange(SIZE) < count)[order])
    options = arrays(labelled=labelled_path, pool=pool_path) | {"baselines": ()}
    return task_config(task, seed, data, workdir, options)


def jobs(imbalance: bool, seeds: int, data: Path, workdir: Path) -> list[Job]:
    """Return every job, draw after draw."""
    settings = (("digits", 10, 0.05, tuple(CLASSES), seeds),) if imbalance else SETTINGS
    pools = [
        ({"task": task, "pool": pool, "per_class": per_class, "rate": rate}, seed)
        for seed in range(seeds)
        for task, per_class, rate, names, draws in settings
        if seed < draws
        for pool in names
    ]

    def job(row: str, changes: dict[str, Any], setting: dict[str, Any], seed: int) -> Job:
        make = partial(_changed, changes, **setting, seed=seed, data=data, workdir=workdir)
        return Job(row, seed, setting, make, STAGES_OF_RATES if row == "no styles" else pipeline.STAGES)

    return [
        job(row, changes, setting, seed)
        for setting, seed in pools
        for row, changes in (REMEDIES if imbalance else _rows(setting["pool"], seed)).items()
    ]


def _rows(pool: str, seed: int) -> dict[str, dict[str, Any]]:
    """Return what is measured on a pool: all of `ROWS` on the first draw, drawing on two pools alone."""
    if pool == "empty":
        return {"pujax": {}}
    left_out = set() if pool in ("none", "blurred") else {"drawn by the scores"}
    others = {row: changes for row, changes in ROWS.items() if seed == 0 and row not in {"pujax", *left_out}}
    return {"pujax": ROWS["pujax"] | {"baselines": ("random",)}} | others


def _changed(changes: dict[str, Any], **setting: Any) -> Config:
    return with_options(pool_config(**setting), changes)


def main() -> None:
    """Run the jobs that have no result yet."""
    options = {"data": (Path("raw"), "folder of the arrays"), "seeds": 3, "workdir": Path("runs/real_pools")}
    parser = command_line(__doc__, **options)
    parser.add_argument("--imbalance", action="store_true", help="instead, remedies for classes that are missing")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/{real_pools,imbalance}.jsonl")
    args: argparse.Namespace = parser.parse_args()
    configure_backend()
    table = "imbalance" if args.imbalance else "real_pools"
    out = args.out or RESULTS / f"{table}.jsonl"
    for job in jobs(args.imbalance, args.seeds, args.data, args.workdir):
        if is_there(out, {"row": job.row, "seed": job.seed, **job.setting}):
            continue
        print(f"== {table} {job.name}", flush=True)
        try:
            append(out, *run_job(job, table, args.workdir / job.name.replace(",", ""), extra_rows=False))
        except UserError as error:
            if job.setting["pool"] != "empty":
                raise
            append(out, {"table": table, "row": job.row, "seed": job.seed, **job.setting, "refused": str(error)})


if __name__ == "__main__":
    main()
