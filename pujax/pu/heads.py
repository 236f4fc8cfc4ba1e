"""PU heads on stored features: one head a fold, trained together, and the parts that are added to their logits.

Every head is trained on the examples outside its fold, so that each positive and each sampled pool image has a score
from a head that did not see it: these held-out scores estimate the class prior and are all that is reported. The pool's
score table holds the mean over all heads instead, of which those outside an image's fold saw it as unlabelled: for what
that is worth see docs/results.md.

An image's score is the logit of the head. Where the pool overlaps the classes in style but not in kind, two parts
that need no training see what the head does not: `distance`, the relative Mahalanobis distance to the labelled
classes, and `energy`, the log-sum-exp of the teacher's logits, large where the teacher finds any class. With either of
them, the parts are each brought to mean 0 and variance 1 over the pool and added with their weights.

Labelled images may be given in several styles, each a view with features of its own: see `data.styles`. All views of
an image are in one fold, and the heads then learn what the views have in common.

With `reliable_negatives` the heads are trained a second time, against the lowest-scored share of the pool alone: what
they then have to tell from the labelled images holds few positives. Reference: Liu et al., "Building text classifiers
using positive and unlabeled examples", ICDM 2003.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pujax.config import FinetunedScorerConfig, FrozenScorerConfig
from pujax.errors import UserError
from pujax.metrics import MetricsLog
from pujax.models import PUScorer
from pujax.optim import make_optimizer
from pujax.pu.distance import fit_gaussians, relative_distance
from pujax.pu.losses import PULoss
from pujax.sharding import replicate

Inputs = dict[str, Any]  # "features": float32 [B, D], multi-scale; "energy": float32 [B]


def make_head(config: FrozenScorerConfig | FinetunedScorerConfig) -> PUScorer:
    """Return the module that turns features into one logit."""
    return PUScorer(gate=config.gate, hidden=config.hidden)


def in_styles(config: FrozenScorerConfig) -> FrozenScorerConfig:
    """Return the options of heads that see the labelled images in several styles.

    A linear head cannot tell a style from a kind, a hidden layer wants smaller steps, and the distance to the classes
    minds a style least.
    """
    hidden = {} if config.hidden else {"hidden": 64, "learning_rate": config.learning_rate / 4}
    return dataclasses.replace(config, distance=max(config.distance, 1.0), **hidden)


def init_heads(config: FrozenScorerConfig, rng: jax.Array, *, size: int, num_classes: int) -> Any:
    """Return weights at step 0, in the shapes of trained ones, for features of `size` channels."""
    head, folds = make_head(config), config.folds
    params = jax.vmap(lambda r: head.init(r, (jnp.zeros((1, size)),))["params"])(jax.random.split(rng, folds))
    weights = {"heads": params, "mean": jnp.zeros(size), "std": jnp.ones(size)}
    if config.distance:
        weights["gaussians"] = {
            "class_means": jnp.zeros((folds, num_classes, size)),
            "class_whitening": jnp.zeros((folds, size, size)),
            "pool_mean": jnp.zeros((folds, size)),
            "pool_whitening": jnp.zeros((folds, size, size)),
        }
    num_parts = len(_part_weights(config))
    if num_parts > 1:
        weights |= {"part_mean": jnp.zeros((num_parts, folds)), "part_std": jnp.ones((num_parts, folds))}
    return weights


def score(config: FrozenScorerConfig, weights: Any, inputs: Inputs) -> jax.Array:
    """Return the score [folds, B] of every fold: see the module's docstring."""
    return _add(config, weights, _parts(config, weights, inputs))


def _add(config: FrozenScorerConfig, weights: Any, parts: jax.Array) -> jax.Array:
    """Return the score [folds, B] of its parts [parts, folds, B]."""
    if len(parts) == 1:
        return parts[0]
    standardised = (parts - weights["part_mean"][..., None]) / weights["part_std"][..., None]
    return jnp.tensordot(_part_weights(config), standardised, axes=1)


def _part_weights(config: FrozenScorerConfig) -> jax.Array:
    """Return the weights of the parts that are switched on: the head's logit, then distance and energy."""
    return jnp.array([1.0, *(weight for weight in (config.distance, config.energy) if weight)])


def _parts(config: FrozenScorerConfig, weights: Any, inputs: Inputs) -> jax.Array:
    """Return the parts of the score, [parts, folds, B], as they are."""
    standardised = (inputs["features"] - weights["mean"][None]) / weights["std"][None]
    logits = jax.vmap(lambda params: make_head(config).apply({"params": params}, (standardised,)))(weights["heads"])
    parts = [logits]
    if config.distance:
        parts.append(jax.vmap(relative_distance, in_axes=(0, None))(weights["gaussians"], inputs["features"]))
    if config.energy:
        parts.append(jnp.broadcast_to(inputs["energy"], logits.shape))
    return jnp.stack(parts)


def fit_heads(
    config: FrozenScorerConfig,
    loss: PULoss,
    positives: Inputs,
    pool: Inputs,
    *,
    labels: np.ndarray,
    num_classes: int,
    seed: int,
    mesh: Mesh,
    log: MetricsLog,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Train one head per fold, all in the same dispatches, each on the examples outside its fold.

    Args:
        config: number of steps, batch shares, parts of the score.
        loss: of one batch.
        positives: of the P labelled images, each in V views: [V, P, ...].
        pool: of the U images of the pool sample.
        labels: int [P]; only the distances use them.
        num_classes: K.
        seed: of folds, weights and batches.
        mesh: devices; the batch is split over them.
        log: receives the losses.

    Returns:
        (weights, held-out scores of the positives [V, P], of the pool sample [U]).

    Raises:
        UserError: fewer positives or pool images than folds, or too few reliable negatives.
        FloatingPointError: the loss is not finite.
    """
    views, count = positives["features"].shape[:2]
    positives = {name: column.reshape(views * count, *column.shape[2:]) for name, column in positives.items()}
    raw, rng = (positives["features"], pool["features"]), jax.random.key(seed)
    folds = (np.tile(_deal_folds(count, config.folds, seed), views), _deal_folds(len(raw[1]), config.folds, seed))
    check_enough(count, len(raw[1]), config.folds)
    spread = {"labels": np.tile(labels, views), "num_classes": num_classes, "views": views}
    weights = _untrained(config, *raw, folds=folds[0], rng=rng, **spread)
    fresh = replicate(mesh, weights["heads"])
    features = replicate(mesh, [(x - weights["mean"]) / weights["std"] for x in raw])
    train_heads = make_heads_training(config, loss, mesh)
    parts_of, add = (jax.jit(functools.partial(fn, config)) for fn in (_parts, _add))
    score_held_out = functools.partial(_score_held_out, parts_of, add, (positives, pool), folds)
    kept, all_positives = np.ones(len(raw[1]), bool), np.ones(len(raw[0]), bool)
    for turn in range(2 if config.reliable_negatives else 1):
        rows = [_rows_outside_folds(fold, own, config.folds) for fold, own in zip(folds, (all_positives, kept))]
        data = {"features": features, "rows": replicate(mesh, rows)}
        heads, losses = train_heads(fresh, data, jax.random.fold_in(rng, 1 + turn))
        _check_and_log(jax.device_get(losses), log, first_step=turn * config.num_steps)
        weights, held_out = score_held_out(weights | {"heads": jax.device_get(heads)})
        kept = held_out[1] <= np.quantile(held_out[1], config.reliable_negatives)
    return weights, held_out[0].reshape(views, count), held_out[1]


def check_enough(num_labelled: int, num_pool: int, folds: int) -> None:
    """Raise UserError unless every fold can have an image of each kind."""
    if min(num_labelled, num_pool) < folds:
        raise UserError(
            f"{num_labelled} labelled and {num_pool} pool images are too few for scorer.frozen.folds={folds}; give "
            "more images or fewer folds"
        )


def _deal_folds(count: int, num_folds: int, seed: int) -> np.ndarray:
    """Return the fold of every image, int64 [count], in shares that differ by one at most."""
    return np.random.default_rng((seed, count)).permutation(count) % num_folds


def _untrained(
    config: FrozenScorerConfig,
    positives: np.ndarray,
    pool: np.ndarray,
    *,
    labels: np.ndarray,
    folds: np.ndarray,
    num_classes: int,
    views: int,
    rng: jax.Array,
) -> Any:
    """Return the weights before the heads are trained: what standardises the features, and the distances."""
    weights = init_heads(config, jax.random.fold_in(rng, 0), size=pool.shape[1], num_classes=num_classes)
    weights |= {"mean": pool.mean(0), "std": pool.std(0) + 1e-6}
    if config.distance:
        outside = [np.flatnonzero(folds != k) for k in range(config.folds)]
        sizes = {"num_classes": num_classes, "views": views}
        weights["gaussians"] = _fit_distances(positives, labels, outside, pool, **sizes)
    return weights


def _score_held_out(
    parts_of: Any, add: Any, inputs: tuple[Inputs, Inputs], folds: tuple[np.ndarray, np.ndarray], weights: Any
) -> tuple[Any, tuple[np.ndarray, ...]]:
    """Return the weights with the parts' scales set, and the scores of (positives, pool) by heads that saw neither."""
    parts = [parts_of(weights, own) for own in inputs]
    if "part_mean" in weights:
        weights |= {"part_mean": np.mean(parts[1], axis=-1), "part_std": np.std(parts[1], axis=-1) + 1e-6}
    return weights, tuple(np.asarray(add(weights, own))[fold, np.arange(len(fold))] for own, fold in zip(parts, folds))


def _rows_outside_folds(fold: np.ndarray, kept: np.ndarray, num_folds: int) -> np.ndarray:
    """Return int32 [num_folds, n]: for each fold those of the kept rows not in it, cut to a common length."""
    rows = [np.flatnonzero((fold != k) & kept) for k in range(num_folds)]
    shortest = min(map(len, rows))
    if shortest == 0:
        raise UserError(
            f"{kept.sum()} images are too few for {num_folds} folds; raise scorer.frozen.reliable_negatives"
        )
    return np.stack([r[:shortest] for r in rows]).astype(np.int32)


def make_heads_training(config: FrozenScorerConfig, loss: PULoss, mesh: Mesh) -> Callable[..., Any]:
    """Build the compiled function that trains the heads of all folds from their fresh weights.

    Returns:
        `train(heads, data, rng) -> (heads, losses [num_steps])`, `data` with "features", float32 [P, D] and [U, D] of
        positives and pool, and "rows", int32 [folds, n] of each: those that a fold's head may see.
    """
    return jax.jit(functools.partial(_scan_heads, config, loss, mesh))


def _scan_heads(
    config: FrozenScorerConfig, loss: PULoss, mesh: Mesh, heads: Any, data: Any, rng: jax.Array
) -> tuple[Any, jax.Array]:
    """Train all heads for `config.num_steps`; return (params, mean loss of every step)."""
    tx = make_optimizer(config)
    num_positive = config.positives_per_batch
    num_pool = config.batch_size - num_positive
    labelled = jnp.arange(config.batch_size) < num_positive
    split = NamedSharding(mesh, P("data"))

    def loss_fn(params: Any, rows: Any, rng: jax.Array) -> jax.Array:
        draw, noise = jax.random.split(rng)
        batch = [
            features[own[jax.random.randint(r, (count,), 0, len(own))]]
            for r, features, own, count in zip(jax.random.split(draw), data["features"], rows, (num_positive, num_pool))
        ]
        inputs = jax.lax.with_sharding_constraint(jnp.concatenate(batch), split)
        inputs += config.feature_noise * jax.random.normal(noise, inputs.shape)
        pu_logits = make_head(config).apply({"params": params}, (inputs,))
        return loss(pu_logits, labelled)[0]

    def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        rngs = jax.random.split(jax.random.fold_in(rng, index), config.folds)
        losses, grads = jax.vmap(jax.value_and_grad(loss_fn))(params, data["rows"], rngs)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), jnp.mean(losses)

    (heads, _), losses = jax.lax.scan(step, (heads, tx.init(heads)), jnp.arange(config.num_steps))
    return heads, losses


def _check_and_log(losses: np.ndarray, log: MetricsLog, *, first_step: int) -> None:
    if not np.isfinite(losses).all():
        step = first_step + int(np.flatnonzero(~np.isfinite(losses))[0]) + 1
        raise FloatingPointError(f"scorer: the loss is not finite at step {step}; lower scorer.frozen.learning_rate")
    for step in range(0, len(losses), 100):
        log.write(first_step + step, {"scorer/loss": float(losses[step : step + 100].mean())})


def _fit_distances(
    positives: np.ndarray, labels: np.ndarray, outside: list[np.ndarray], pool: np.ndarray, **sizes: int
) -> Any:
    """Return, stacked over folds, the Gaussians of the classes outside each fold beside the pool's."""
    spread = {"pool_mean": pool.mean(0), "pool_covariance": np.cov(pool, rowvar=False)}
    fitted = [fit_gaussians(positives[rows], labels[rows], **spread, **sizes) for rows in outside]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *fitted)
