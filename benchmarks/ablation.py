"""Accuracy tables: the default against the released method and honest baselines, over seeds.

    python -m benchmarks.ablation --table quickstart
    python -m benchmarks.ablation --table fashion --data raw    # raw: see tools/build_embedded_data.py --raw_out
    python -m benchmarks.ablation --table cifar10 --data raw --networks paper    # see tools/pack_cifar10.py, NETWORKS
    python -m benchmarks.ablation --table cifar10 --data raw --changes           # see CHANGES

Every student of a table has the same network, recipe and number of updates, and the mined ones and their baselines
the same budget; accuracy is that of the last step, on test images that no choice of the run has seen. Rows that
`benchmarks/results/<table>.jsonl` holds are not run again, so a stopped table continues.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rivals
from benchmarks.results_file import RESULTS, append, command_line, is_there
from benchmarks.rivals import RELEASED_DISTILLATION, RELEASED_SCORER
from configs import cifar10, quickstart
from pujax import artifacts, pipeline
from pujax.config import BASELINES, Config, SourceConfig, resolve, with_options
from pujax.data.sources import open_source
from pujax.sharding import configure_backend

FOUND = ("class_prior", "class_prior_interval", "class_prior_second", "class_prior_holds", "selected_at_random_z",
         "in_range", "styles", "truth_auc", "held_out_auc", "steps")  # fmt: skip
CHOSEN = ("rule", "selected", "precision", "recall")
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
STAGES_OF_RATES = ("teacher", "scorer", "score", "select")  # no students: the question is what is found


def _cut(class_prior: str, num_steps: int) -> dict[str, Any]:
    steps = {"scorer.finetune.num_steps": num_steps, "scorer.finetune.batch_size": 1024}
    return {"scorer.class_prior": class_prior, **steps}


# How the released method is cut to the CPU, and what it is told.
RELEASED_CUT: dict[str, dict[str, Any]] = {
    "rates": {},
    "digits_rates": {},
    "quickstart": _cut("0.05", 200),
    "digits": _cut("0.0833", 400),
    "fashion": _cut("0.0833", 400),
    # 0.21 as released: at the true one, 0.1, the estimator collapses
    "cifar10": _cut("0.21", 100)
    | {
        "scorer.finetune.flip": True,
        "scorer.finetune.crop_padding": 4,
        "select.rule": "top_k",
        "select.budget": 20_000,
    },
}
# Networks and recipes of the CIFAR-10 protocol. "cpu": what two CPU cores can train; "cpu_resnet18": the same student
# under a better teacher, an hour's training; "cpu_eight_views": a better recipe, more views of an image and labelled
# ones drawn like the others; "paper": ResNet-34 -> ResNet-18 with the recipe of configs/cifar10.py, on a GPU;
# "paper_short": the same under a teacher of 30 epochs, in five minutes.
CPU_NETWORKS = {"teacher.model": "cifar_resnet10_w16", "teacher.num_steps": 6000, "teacher.warmup_steps": 500}
CPU_NETWORKS |= {"distill.model": "cifar_resnet10_w8", "distill.batch_size": 128, "distill.labelled_per_batch": 32}
CPU_NETWORKS |= {"distill.learning_rate": 0.15, "distill.warmup_steps": 100, "distill.cached_views": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "cpu": CPU_NETWORKS,
    "cpu_resnet18": CPU_NETWORKS | {"teacher.model": "cifar_resnet18_w16", "teacher.num_steps": 7000},
    "cpu_eight_views": CPU_NETWORKS | {"distill.cached_views": 8, "distill.labelled_per_batch": 0},
    "paper": {},
    "paper_short": {
        "teacher.num_steps": 3000,
        "teacher.batch_size": 512,
        "teacher.learning_rate": 0.2,
        "teacher.warmup_steps": 300,
    },
}
# One change at a time, from the default.
CHANGES: dict[str, dict[str, Any]] = {
    "loss nnPU sigmoid": {"scorer.frozen.loss": "nnpu", "scorer.frozen.surrogate": "sigmoid"},
    "loss balanced nnPU": {"scorer.frozen.loss": "balanced_nnpu"},
    "attention gate": {"scorer.frozen.gate": True},
    "no input noise": {"scorer.frozen.feature_noise": 0.0},
    "highest score": {"select.rule": "top_k"},
    "class-balanced quota": {"select.rule": "class_balanced"},
    "no share of labelled images": {"distill.labelled_per_batch": 0},
    "new views, teacher in each step": {"distill.cached_views": 0},
    "one cached view": {"distill.cached_views": 1},
    "four cached views": {"distill.cached_views": 4},
    "distance and energy beside the head": {"scorer.frozen.distance": 1.0, "scorer.frozen.energy": 1.0},
    "head trained twice": {"scorer.frozen.reliable_negatives": 0.5},
    "head trained once": {"scorer.frozen.reliable_negatives": 0.0},
    "no quarter turn": {"scorer.frozen.quarter_turn": False},
    "head alone": {"scorer.frozen.distance": 0.0, "scorer.frozen.energy": 0.0},
    "released distillation": RELEASED_DISTILLATION,
    "inverse-frequency weights": {"distill.class_weights": "inverse_frequency"},
    "robust, paper": {"distill.class_weights": "inverse_frequency", "distill.robust": "paper"},
    "robust, worst case": {"distill.robust": "worst_case"},
    "temperature 1": {"distill.temperature": 1.0},
    "label term": {"distill.label_weight": 0.5},
}


def arrays(**paths: Path) -> dict[str, SourceConfig]:
    """Return the options that read parts of the data from files of arrays."""
    return {f"data.{part}": SourceConfig(kind="array", path=str(path)) for part, path in paths.items()}


def rate_config(seed: int, data: Path, rate: float) -> Config:
    """Return the quickstart on fresh draws of the labelled images and of a pool with positives at `rate`."""
    positives = round(rate * 30_000)
    digits = (30_000 - positives) // 2
    counts = {"fashion_train": positives, "mnist_train": digits, "letters": 30_000 - positives - digits}
    options = drawn(data / f"labelled_{seed}.npz", data / f"pool_{rate:g}_{seed}.npz", seed, 10, counts)
    return with_options(quickstart.get_config(), options | {"seed": seed, "baselines": ()})


def whole_config(table: str, seed: int, data: Path, workdir: Path, rate: float = 1 / 12) -> Config:
    """Return MNIST or Fashion-MNIST whole: 100 labelled images a class, a pool of 60,000 with positives at `rate`.

    The rest of the pool is letters and the other data set, six to five: at a twelfth 5,000, 30,000 and 25,000.
    """
    target, other = ("mnist", "fashion") if table == "digits" else ("fashion", "mnist")
    positives = round(60_000 * rate)
    letters = round((60_000 - positives) * 6 / 11)
    counts = {f"{target}_train": positives, "letters": letters, f"{other}_train": 60_000 - positives - letters}
    labelled, pool = (data / f"{table}_{part}_{rate:g}_{seed}.npz" for part in ("labelled", "pool"))
    options = drawn(labelled, pool, seed, 100, counts) | {"baselines": BASELINES}
    return task_config(table, seed, data, workdir, options)


def task_config(task: str, seed: int, data: Path, workdir: Path, options: dict[str, Any]) -> Config:
    """Return the recipe of MNIST ("digits") or Fashion-MNIST with its teacher, on the images that the options name."""
    target = "mnist" if task == "digits" else "fashion"
    options = options | arrays(full=data / f"{target}_train.npz", test=data / f"{target}_test.npz")
    if task != "digits":
        return with_options(quickstart.get_config(), options | {"seed": seed})
    options |= {"data.mean": (0.1307,), "data.std": (0.3081,), "distill.flip": False, "teacher.weights": ""}
    options |= {"teacher.num_steps": 3000, "teacher.learning_rate": 0.02, "teacher.warmup_steps": 200}
    options |= {"teacher.crop_padding": 2}
    return with_teacher(with_options(quickstart.get_config(), options), seed, workdir / "digits-teacher")


def with_teacher(config: Config, seed: int, workdir: Path) -> Config:
    """Return the config with a seed and the weights of its teacher, which is trained once for all rows and seeds."""
    pipeline.run(resolve(config), workdir, ("teacher",))
    return with_options(config, {"seed": seed, "teacher.weights": str(workdir / "teacher" / "teacher.safetensors")})


def drawn(labelled: Path, pool: Path, seed: int, per_class: int, counts: dict[str, int]) -> dict[str, SourceConfig]:
    """Return options that read draws, made once: labelled images of the first set, a pool of `counts` of every set."""
    if not pool.exists():
        rng = np.random.default_rng(seed)
        first, *others = (np.load(pool.parent / f"{name}.npz") for name in counts)
        unlabelled = np.delete(first["images"], _write_labelled(labelled, first, rng, per_class), axis=0)
        sets = zip([unlabelled, *(other["images"] for other in others)], counts.values())
        images = np.concatenate([own[rng.choice(len(own), count, replace=False)] for own, count in sets])
        order, positives = rng.permutation(len(images)), next(iter(counts.values()))
        np.savez(pool, images=images[order], truth=(np.arange(len(images)) < positives)[order])
    return arrays(labelled=labelled, pool=pool)


def _write_labelled(path: Path, arrays: Any, rng: np.random.Generator, per_class: int) -> np.ndarray:
    """Write a draw of `per_class` images of every class; return its rows."""
    labels = arrays["labels"]
    rows = np.concatenate([rng.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in range(10)])
    np.savez(path, images=arrays["images"][rows], labels=labels[rows])
    return rows


def table_config(
    table: str, seed: int, data: Path, workdir: Path, *, per_class: int = 100, steps: int = 3000, networks: str = "cpu"
) -> Config:
    """Return pujax's own row of a table of students; CIFAR-10 with one of `NETWORKS`."""
    if table == "quickstart":
        return with_options(quickstart.get_config(), {"seed": seed, "baselines": BASELINES[:-1]})  # it has no full data
    if table != "cifar10":
        return whole_config(table, seed, data, workdir)
    labelled = data / f"cifar_labelled_{per_class}_{seed}.npz"
    if not labelled.exists():
        _write_labelled(labelled, np.load(data / "cifar_train.npz"), np.random.default_rng(seed), per_class)
    options: dict[str, Any] = arrays(labelled=labelled, pool=data / "in_pool.npz", test=data / "cifar_test.npz")
    options |= arrays(full=data / "cifar_train.npz") | {"baselines": tuple(b for b in BASELINES if b != "all")}
    options |= {"run.inference_batch_size": 1000, "select.budget": 20_000, "distill.num_steps": steps}
    config = with_options(cifar10.get_config(), options | NETWORKS[networks])
    return with_teacher(config, seed, workdir / f"cifar10-teacher-{config.teacher.model}")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the pipeline, and the rows of the table that it gives."""

    row: str
    seed: int
    setting: dict[str, Any]  # what else tells its lines from others of the table
    make_config: Callable[[], Config]
    stages: tuple[str, ...] = pipeline.STAGES

    @property
    def name(self) -> str:
        """Return a name for its work directory."""
        return "-".join([self.row.replace(" ", "_").replace(",", ""), *map(str, self.setting.values()), str(self.seed)])


def jobs(args: argparse.Namespace) -> list[Job]:
    """Return every job of the table, seed after seed, the most telling first."""
    setting, options = {}, {}
    if args.table == "cifar10":
        options = {"per_class": args.per_class, "steps": args.steps, "networks": args.networks}
        setting = {"per_class": args.per_class, "student_steps": args.steps, "networks": args.networks}
    released_scorer = RELEASED_SCORER | RELEASED_CUT[args.table]
    rows = {"pujax": {}, "released": released_scorer | RELEASED_DISTILLATION | {"baselines": ()}}
    if args.changes:
        changes = {"pujax": {}, "released scorer": released_scorer, **CHANGES}
        rows = {row: own | {"baselines": ()} for row, own in changes.items()}

    def make(seed: int, changes: dict[str, Any]) -> Config:
        config = table_config(args.table, seed, args.data, args.workdir, **options)
        if args.baselines is not None:
            config.baselines = tuple(args.baselines)
        return with_options(config, changes)

    def make_at_rate(seed: int, rate: float) -> Config:
        if args.table == "rates":
            return rate_config(seed, args.data, rate)
        return whole_config("digits", seed, args.data, args.workdir, rate)

    out = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        if args.table in ("rates", "digits_rates"):
            for rate in RATES:
                make_config = functools.partial(make_at_rate, seed, rate)
                out.append(Job("pujax", seed, {"rate": rate}, make_config, STAGES_OF_RATES))
        else:
            own = ((row, changes) for row, changes in rows.items() if not args.rows or row in args.rows)
            out += [Job(row, seed, setting, functools.partial(make, seed, changes)) for row, changes in own]
    return out


def run_job(job: Job, table: str, workdir: Path, extra_rows: bool) -> list[dict]:
    """Run a job; return its result lines: its own row, one for each baseline and, as extra rows, for each rival."""
    config = resolve(job.make_config())
    summary = pipeline.run(config, workdir, job.stages)
    accuracy, student = summary["teacher"]["accuracy"], summary.get("student", {})
    common = {"table": table, **job.setting, "seed": job.seed, "device_kind": summary["run"]["device_kind"]}
    pool = {"true_prior": float(open_source(config.data.pool, config.data, labelled=False).truth.mean())}
    line = {"row": job.row, **{key: student.get(key) for key in ("accuracy", "lowest_class_accuracy")}, **pool}
    line |= {key: summary["scorer"].get(key) for key in FOUND} | {key: summary["mining"].get(key) for key in CHOSEN}
    line["train_images"] = student.get("train_images")
    line["seconds"] = {key: summary[key]["seconds"] for key in ("scorer", "mining", "student") if key in summary}
    lines = [line]
    for name, block in summary.get("baselines", {}).items():
        lines.append({"row": name, **block, "seconds": {"student": block["seconds"]}})
    if extra_rows:
        with pipeline.opened(config, artifacts.open_workdir(workdir), pipeline.STAGES) as (opened, _):
            lines += [pool | rivals.run(opened, name, teacher_accuracy=accuracy) for name in rivals.RIVALS]
    return [{**common, **line, "teacher_accuracy": accuracy} for line in lines]


def table_command_line(doc: str, tables: tuple[str, ...], out: str = "") -> argparse.ArgumentParser:
    """Return a parser with the options of the programs that fill a table over seeds."""
    data = Path("raw"), "folder of the arrays that the table needs"
    options = {"data": data, "seeds": 3, "per_class": (100, "cifar10: labelled images a class")}
    parser = command_line(doc, out, **options, workdir=Path("runs/ablation"))
    parser.add_argument("--table", choices=tables, required=True)
    parser.add_argument("--networks", choices=tuple(NETWORKS), default="cpu", help="cifar10: networks and recipe")
    parser.add_argument("--rows", nargs="*", help="only these of the table")
    return parser


def main() -> None:
    """Run the jobs of a table that have no result yet."""
    parser = table_command_line(__doc__, tuple(RELEASED_CUT))
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000, help="cifar10: updates of every student")
    parser.add_argument("--changes", action="store_true", help="instead, pujax and CHANGES, without baselines")
    parser.add_argument("--baselines", nargs="*", help="instead of the table's own")
    others = "nearest neighbours, and other methods as published"
    parser.add_argument("--others", action=argparse.BooleanOptionalAction, default=True, help=others)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<table>[_changes].jsonl")
    args = parser.parse_args()
    configure_backend()
    out = args.out or RESULTS / f"{args.table}{'_changes' if args.changes else ''}.jsonl"
    for job in jobs(args):
        key = {"row": job.row, "seed": job.seed, **job.setting}
        if is_there(out, key):
            continue
        print(f"== {args.table} {job.name}", flush=True)
        extra_rows = args.others and not args.changes and job.row == "pujax" and "distill" in job.stages
        append(out, *run_job(job, args.table, args.workdir / f"{args.table}-{job.name}", extra_rows))


if __name__ == "__main__":
    main()
