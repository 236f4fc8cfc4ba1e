"""What ranks a pool best: losses, features and parts of the score, on features that are computed once.

    python -m benchmarks.scorers --table quickstart
    python -m benchmarks.scorers --table cifar10 --data raw --per_class 100     # raw: see benchmarks.ablation

The measure is the area under the ROC curve of the pool's truth, from held-out scores. Every seed draws other labelled
images. The last rows say what could be had, by looking where no scorer may: at every labelled image of the original
data, the pool's true negatives, labelled images from the pool's own positives, and the pool's truth. Rows that are
there are not run again.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import ablation
from benchmarks.other_losses import any_pu_loss
from benchmarks.results_file import append, is_there
from benchmarks.rivals import nearness
from pujax.config import Config, resolve
from pujax.data.reading import read_or_fail
from pujax.data.sources import open_source
from pujax.inference import map_images
from pujax.metrics import MetricsLog, auc
from pujax.pu.distance import fit_gaussians, relative_distance
from pujax.pu.heads import fit_heads, score
from pujax.pu.prior import class_prior_block
from pujax.pu.scorer import frozen_inputs
from pujax.sharding import configure_backend, make_mesh, replicate
from pujax.stages.teacher import given_teacher

Arrays = dict[str, np.ndarray]

ALONE = {"distance": 0.0, "energy": 0.0, "reliable_negatives": 0.0}  # the head without the parts beside it
PARTS = {"distance": 1.5, "energy": 1.0, "reliable_negatives": 0.0}
TWICE = {"reliable_negatives": 0.5}  # trained a second time, against the lowest-scored half of the pool

# Rows that train heads: what each changes in the recipe of the table.
HEADS: dict[str, dict[str, Any]] = {
    "head trained twice, distance, energy": PARTS | TWICE,
    "head, distance, energy": PARTS,
    "head alone": ALONE,
    "head alone, trained twice": ALONE | TWICE,
    "head, distance": {**PARTS, "energy": 0.0},
    "head, energy": {**PARTS, "distance": 0.0},
    "head alone, linear": {**ALONE, "hidden": 0},
    "head alone, attention gate": {**ALONE, "gate": True},
    "head alone, last stage": {**ALONE, "last_stage": True},
    "head alone, no noise": {**ALONE, "feature_noise": 0.0},
    "balanced nnPU": {**ALONE, "loss": "balanced_nnpu", "class_prior": "true"},
    "nnPU, sigmoid, true prior": {**ALONE, "loss": "nnpu", "surrogate": "sigmoid", "class_prior": "true"},
    "nnPU, sigmoid, prior 0.21": {**ALONE, "loss": "nnpu", "surrogate": "sigmoid", "class_prior": 0.21},
    "VPU": {**ALONE, "loss": "vpu"},
    "Dist-PU": {**ALONE, "loss": "dist_pu", "class_prior": "true"},
}
PRIORS = (0.02, 0.05, 0.1, 0.2, 0.3)  # given ones, for the sensitivity to the prior
CEILING = {**ALONE, "num_steps": 4000, "weight_decay": 1e-4, "feature_noise": 0.1}


def outputs(config: Config, part: str, seen: dict[str, Arrays]) -> Arrays:
    """Return what the teacher makes of all images of a part of the data, and what is known of them.

    These are features [N, D], of which columns `last_stage` are the last stage's, energy, confidence, labels and truth
    [N]. `seen` keeps the former by source: seeds that share a pool share its outputs.
    """
    source = open_source(getattr(config.data, part), config.data, labelled=part != "pool")
    if source.fingerprint not in seen:
        teacher, mesh = given_teacher(config), make_mesh()

        def fn(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            logits, inputs = frozen_inputs(config.scorer.frozen, teacher, variables, images)
            return inputs | {"confidence": jnp.max(jax.nn.softmax(logits), axis=-1)}

        read = functools.partial(read_or_fail, source, what="images")
        batches = {"batch_size": config.run.inference_batch_size, "mesh": mesh}
        seen[source.fingerprint] = map_images(fn, replicate(mesh, teacher.folded), read, len(source), **batches)
    known = {"labels": source.labels, "truth": source.truth, "last_stage": last_stage_columns(config)}
    return seen[source.fingerprint] | known


def last_stage_columns(config: Config) -> np.ndarray:
    """Return which of the features are of the teacher's last stage, whichever way the image is turned."""
    teacher = given_teacher(config)
    image = jax.ShapeDtypeStruct((1, *teacher.preprocessing.image_shape), jnp.float32)
    _, features = jax.eval_shape(lambda x: teacher.module.apply(teacher.variables, x, train=False), image)
    sizes = [feature.shape[-1] for feature in features]
    columns = np.arange(sum(sizes[:-1]), sum(sizes))
    return np.concatenate([columns, sum(sizes) + columns]) if config.scorer.frozen.quarter_turn else columns


def run_heads(config: Config, options: dict[str, Any], labelled: Arrays, pool: Arrays, truth: np.ndarray) -> dict:
    """Train heads under changed options; return AUC, estimate of the class prior and seconds."""
    options, inputs = dict(options), [_inputs(labelled), _inputs(pool)]
    if options.pop("last_stage", False):
        inputs = [part | {"features": part["features"][:, labelled["last_stage"]]} for part in inputs]
    prior = options.pop("class_prior", None)
    prior = float(truth.mean()) if prior == "true" else prior
    started = time.perf_counter()
    _, positive, scores = _fit(config, options, *inputs, labels=labelled["labels"], class_prior=prior)
    seconds = time.perf_counter() - started
    estimate = class_prior_block(positive, scores, given=None, seed=config.seed)
    return {"auc": _auc(scores, truth), **estimate, "seconds": seconds}


def _inputs(part: Arrays, rows: Any = slice(None)) -> Arrays:
    """Return what the heads see of some rows."""
    return {name: part[name][rows] for name in ("features", "energy")}


def _fit(
    config: Config,
    changes: dict,
    positives: Arrays,
    pool: Arrays,
    *,
    labels: np.ndarray | None = None,
    class_prior: float | None = None,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Train heads under a changed recipe; return their weights, held-out scores of the positives and of the pool."""
    scorer = dataclasses.replace(config.scorer.frozen, **changes)
    options = {"beta": scorer.beta, "gamma": scorer.gamma, "surrogate": scorer.surrogate}
    loss, log = any_pu_loss(scorer.loss, class_prior=class_prior, **options), MetricsLog(Path(), enabled=False)
    labels = np.zeros(len(positives["energy"]), np.int32) if labels is None else labels
    plain = {name: column[None] for name, column in positives.items()}  # one view of each
    common = {"num_classes": config.data.num_classes, "seed": config.seed, "mesh": make_mesh(), "log": log}
    weights, positive, scores = fit_heads(scorer, loss, plain, pool, labels=labels, **common)
    return weights, positive[0], scores


def run_ceiling(config: Config, labelled: Arrays, pool: Arrays, truth: np.ndarray) -> dict:
    """Train the same head on the pool's truth; return the AUC of its held-out scores."""
    _, positive, negative = _fit(config, CEILING, _inputs(pool, truth), _inputs(pool, ~truth))
    return {"auc": auc(positive, negative)}


def run_true_negatives(config: Config, labelled: Arrays, pool: Arrays, truth: np.ndarray) -> dict:
    """Train against the pool's true negatives alone, as the best of losses could; return the AUC of the whole pool."""
    inputs = _inputs(labelled), _inputs(pool, ~truth)
    weights, _, negative = _fit(config, PARTS, *inputs, labels=labelled["labels"])
    scorer = dataclasses.replace(config.scorer.frozen, **PARTS)
    positive = jax.jit(functools.partial(score, scorer))(weights, _inputs(pool, truth)).mean(0)
    return {"auc": auc(np.asarray(positive), negative)}


def run_labelled_from_pool(config: Config, labelled: Arrays, pool: Arrays, truth: np.ndarray) -> dict:
    """Train the head on as many labelled images, taken from the pool's positives, so of its source; return its AUC."""
    rng, taken = np.random.default_rng(config.seed), np.zeros(len(truth), bool)
    taken[rng.choice(np.flatnonzero(truth), len(labelled["labels"]), replace=False)] = True
    _, _, scores = _fit(config, ALONE, _inputs(pool, taken), _inputs(pool, ~taken))
    return {"auc": _auc(scores, truth[~taken])}


def _auc(scores: np.ndarray, truth: np.ndarray) -> float:
    return auc(scores[truth], scores[~truth])


def untrained(config: Config, labelled: Arrays, pool: Arrays) -> dict[str, Callable[[], np.ndarray]]:
    """Return the scores of the pool that need no training, by row."""
    features = pool["features"]
    mean = features.mean(0)

    def distance() -> np.ndarray:
        options = {"num_classes": config.data.num_classes, "pool_mean": mean}
        options["pool_covariance"] = np.cov(features, rowvar=False)
        gaussians = fit_gaussians(labelled["features"], labelled["labels"], **options)
        return np.asarray(jax.jit(relative_distance)(gaussians, features))

    return {
        "teacher confidence": lambda: pool["confidence"],
        "teacher energy": lambda: pool["energy"],
        "five nearest labelled": lambda: nearness(features, labelled["features"]),
        "distance alone": distance,
    }


def rows_of(
    config: Config, labelled: Arrays, pool: Arrays, truth: np.ndarray, every_label: Callable[[], Arrays] | None = None
) -> dict[str, Callable[[], dict]]:
    """Return every row of a table by name; `every_label` gives what `labelled` holds, for all of the original data."""
    scores = untrained(config, labelled, pool).items()
    rows = {name: functools.partial(_timed_auc, make_scores, truth) for name, make_scores in scores}
    given = {f"balanced nnPU, prior {p}": {**ALONE, "loss": "balanced_nnpu", "class_prior": p} for p in PRIORS}
    for name, options in (HEADS | given).items():
        rows[name] = functools.partial(run_heads, config, options, labelled, pool, truth)
    if every_label:
        rows["every label (oracle)"] = lambda: run_heads(config, PARTS, every_label(), pool, truth)
        rows["every label, true negatives (oracle)"] = lambda: run_true_negatives(config, every_label(), pool, truth)
    oracles = {"true negatives (oracle)": run_true_negatives}
    oracles |= {"head alone, labelled from the pool": run_labelled_from_pool, "ceiling": run_ceiling}
    return rows | {name: functools.partial(run, config, labelled, pool, truth) for name, run in oracles.items()}


def _timed_auc(make_scores: Callable[[], np.ndarray], truth: np.ndarray) -> dict:
    started = time.perf_counter()
    scores = make_scores()
    return {"auc": _auc(scores, truth), "seconds": time.perf_counter() - started}


def main() -> None:
    """Measure the rows of a table that have no result yet."""
    args = ablation.table_command_line(__doc__, ("quickstart", "digits", "cifar10"), "scorers.jsonl").parse_args()
    configure_backend()
    seen: dict[str, Arrays] = {}
    setting = {"networks": args.networks} if args.table == "cifar10" else {}
    for seed in range(args.seeds):
        options = {"per_class": args.per_class, **setting}
        config = resolve(ablation.table_config(args.table, seed, args.data, args.workdir, **options))
        labelled, pool = (outputs(config, part, seen) for part in ("labelled", "pool"))
        per_class = len(labelled["labels"]) // config.data.num_classes
        common = {"table": args.table, **setting, "per_class": per_class, "seed": seed}
        every_label = functools.partial(outputs, config, "full", seen) if config.data.full.kind else None
        for row, run in rows_of(config, labelled, pool, pool["truth"], every_label).items():
            key = {**common, "row": row}
            if (args.rows and row not in args.rows) or is_there(args.out, key):
                continue
            line = key | run() | {"true_prior": float(pool["truth"].mean()), "device": jax.devices()[0].device_kind}
            append(args.out, line)
            print(f"{common} {row}: AUC {line['auc']:.4f}", flush=True)


if __name__ == "__main__":
    main()
