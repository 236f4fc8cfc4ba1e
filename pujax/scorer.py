"""Stage 2: the positive-unlabelled scorer on the teacher's multi-scale features.

`frozen`: the features of the positives and of a sample of the pool are computed once, and small heads are trained on
them. The heads are trained crosswise over folds, so every positive and every sampled pool image has a score from a
head that did not see it: these held-out scores estimate the class prior and are all that is reported.
`finetune`: the whole network, initialised from the teacher, is trained end to end, as released; a share of the
positives is kept out of training for the same purpose.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pujax.checkpoint import load_weights, save_weights
from pujax.config import Config, ScorerConfig, given_class_prior
from pujax.data.batches import index_batches, mixed_index_batches
from pujax.data.sources import ImageSource, drop_unreadable, open_source, read_or_fail, write_images
from pujax.data.transforms import augment
from pujax.distance import fit_gaussians, relative_distance
from pujax.inference import map_images, prepare
from pujax.losses import pu_loss
from pujax.metrics import MetricsLog, Progress, auc
from pujax.models import PUScorer
from pujax.optim import make_optimizer
from pujax.prior import estimate_class_prior, unlevel_top
from pujax.sharding import barrier, is_main_process, replicate
from pujax.teacher import image_shape, load_teacher
from pujax.train import LossFn, fit

_ROUGH_PRIOR = 0.1  # used inside losses that need a prior before any scores exist to estimate one from


class PUNet(nn.Module):
    """A classifier's backbone under a PU head: images in, one logit out; the classifier's own head is unused."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Return pu_logits [B] of normalised images [B, H, W, C]."""
        _, features = self.backbone(images, train=train)
        return self.head(features)


def run(config: Config, workdir: Path, mesh: Mesh, log: MetricsLog) -> dict[str, Any]:
    """Leave `scorer.safetensors` and `held_out.npz` in the stage's folder; return the summary block."""
    labelled = open_source(config.data.labelled, config.data)
    pool = open_source(config.data.pool, config.data, labelled=False)
    sample = sample_pool(len(pool), config.scorer.pool_sample, config.seed)
    if config.mining.max_unreadable:
        sample = drop_unreadable(pool, sample)
    train = _train_frozen if config.scorer.mode == "frozen" else _train_finetuned
    weights, held_out = train(config, workdir, labelled, pool, sample, mesh, log)
    if is_main_process():
        save_weights(workdir / "scorer" / "scorer.safetensors", weights)
        np.savez(workdir / "scorer" / "held_out.npz", **held_out)
    block = {"loss": config.scorer.loss, **class_prior_block(config, held_out), "steps": config.scorer.num_steps}
    block["held_out_auc"] = auc(held_out["positive"], held_out["pool"])  # positives against the unlabelled
    if pool.truth is not None:
        truth = pool.truth[held_out["pool_index"]]
        block["truth_auc"] = auc(held_out["pool"][truth], held_out["pool"][~truth])
    return block


def sample_pool(pool_size: int, sample_size: int, seed: int) -> np.ndarray:
    """Return sorted int64 indices of a uniform sample; all of the pool when `sample_size` is 0 or large enough."""
    if sample_size == 0 or sample_size >= pool_size:
        return np.arange(pool_size)
    return np.sort(np.random.default_rng(seed).choice(pool_size, sample_size, replace=False))


def class_prior_block(config: Config, held_out: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the class prior of the summary: as given, or estimated from held-out scores with its interval."""
    given = given_class_prior(config.scorer)
    if given is not None:
        return {"class_prior": given, "class_prior_interval": None}
    scores = held_out["positive"], held_out["pool"]
    estimate, unlevel = estimate_class_prior(*scores, seed=config.seed), unlevel_top(*scores)
    if unlevel > 3 and is_main_process():
        print(
            f"warning: labelled images score above the best of the pool (z = {unlevel:.1f}), so they are not a random "
            f"sample of its positives, and the class prior {estimate.class_prior:.2g} is not to be trusted; "
            "set mining.budget and mining.selection=top_k",
            file=sys.stderr,
        )
    return {
        "class_prior": estimate.class_prior,
        "class_prior_interval": [estimate.lo, estimate.hi],
        "class_prior_second": estimate.second,
        "class_prior_unlevel_z": unlevel,
    }


def make_score_fn(config: Config, workdir: Path) -> tuple[Any, Any]:
    """Return (fn, arguments) such that `fn(arguments, uint8 images)` scores a batch, with the trained scorer.

    `fn` returns pu_logit float32 [B], teacher_class int32 [B] and teacher_confidence float32 [B].
    """
    module, variables = load_teacher(config, workdir)
    template = jax.eval_shape(functools.partial(_init_weights, config, module, variables), jax.random.key(0))
    weights = load_weights(workdir / "scorer" / "scorer.safetensors", template)

    def fn(arguments: Any, images: jax.Array) -> dict[str, jax.Array]:
        variables, weights = arguments
        inputs = prepare(config, images)
        if config.scorer.mode == "frozen":
            logits, features = frozen_features(config, module, variables, inputs)
            pu_logits = jnp.mean(head_logits(config.scorer, weights, features), axis=0)
        else:
            logits, _ = module.apply(variables, inputs, train=False)
            pu_logits = PUNet(module, make_head(config.scorer)).apply(weights, inputs, train=False)
        probs = jax.nn.softmax(logits)
        return {
            "pu_logit": pu_logits,
            "teacher_class": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "teacher_confidence": jnp.max(probs, axis=-1),
        }

    return fn, (variables, weights)


def make_head(config: ScorerConfig) -> PUScorer:
    """Return the module that turns features into one logit."""
    return PUScorer(gate=config.gate, hidden=config.hidden)


def head_logits(config: ScorerConfig, weights: Any, features: jax.Array) -> jax.Array:
    """Return the score [folds, B] of every fold on raw features [B, D].

    It is the logit of the fold's head; with `distance`, that and the relative Mahalanobis distance, each brought to
    mean 0 and variance 1 over the pool, are added.
    """
    inputs = (features - weights["mean"]) / weights["std"]
    logits = jax.vmap(lambda params: make_head(config).apply({"params": params}, (inputs,)))(weights["heads"])
    if not config.distance:
        return logits
    mean, std = weights["score_mean"][..., None], weights["score_std"][..., None]
    logits, distances = (jnp.stack([logits, _distances(weights, features)]) - mean) / std
    return logits + config.distance * distances


def _distances(weights: Any, features: jax.Array) -> jax.Array:
    return jax.vmap(relative_distance, in_axes=(0, None))(weights["gaussians"], features)


def _init_weights(config: Config, module: nn.Module, variables: Any, rng: jax.Array) -> Any:
    """Return the scorer's weights at step 0."""
    images = jnp.zeros((1, *image_shape(config)))
    head = make_head(config.scorer)
    if config.scorer.mode == "finetune":
        fresh = PUNet(module, head).init(rng, images, train=False)
        merged = {kind: dict(tree) for kind, tree in fresh.items()}
        for kind in merged:
            merged[kind]["backbone"] = variables[kind]
        return merged
    _, features = module.apply(variables, images, train=False)
    joined = jnp.concatenate(features, axis=-1)
    heads = jax.vmap(lambda r: head.init(r, (joined,))["params"])(jax.random.split(rng, config.scorer.folds))
    size = joined.shape[-1]
    weights = {"heads": heads, "mean": jnp.zeros(size), "std": jnp.ones(size)}
    return weights | _empty_distance_weights(config, size) if config.scorer.distance else weights


def _empty_distance_weights(config: Config, size: int) -> Any:
    """Return zeros in the shapes of what `_add_distance` adds."""
    folds = config.scorer.folds
    gaussians = {
        "class_means": jnp.zeros((folds, config.data.num_classes, size)),
        "class_whitening": jnp.zeros((folds, size, size)),
        "pool_mean": jnp.zeros((folds, size)),
        "pool_whitening": jnp.zeros((folds, size, size)),
    }
    return {"gaussians": gaussians, "score_mean": jnp.zeros((2, folds)), "score_std": jnp.ones((2, folds))}


# --- frozen ---------------------------------------------------------------------------------------------------


def frozen_features(
    config: Config, module: nn.Module, variables: Any, inputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the teacher's logits [B, K] and multi-scale features [B, D] of normalised images [B, H, W, C].

    With `scorer.flip` the features are the mean of those of the image and of its mirror image.
    """
    logits, features = module.apply(variables, inputs, train=False)
    joined = jnp.concatenate(features, axis=-1)
    if config.scorer.flip:
        _, mirrored = module.apply(variables, inputs[:, :, ::-1], train=False)
        joined = (joined + jnp.concatenate(mirrored, axis=-1)) / 2
    return logits, joined


def _train_frozen(
    config: Config,
    workdir: Path,
    labelled: ImageSource,
    pool: ImageSource,
    sample: np.ndarray,
    mesh: Mesh,
    log: MetricsLog,
) -> tuple[Any, dict[str, np.ndarray]]:
    module, variables = load_teacher(config, workdir)
    rng = jax.random.key(config.seed)
    on_mesh = replicate(mesh, variables)
    features = functools.partial(extract_features, config, module, on_mesh, mesh=mesh)
    positives = features(lambda rows: read_or_fail(labelled, rows, "data.labelled"), len(labelled))
    pool_features = features(
        lambda rows: read_or_fail(pool, sample[rows], "data.pool"), len(sample), name="pool features"
    )
    weights = jax.jit(functools.partial(_init_weights, config, module))(variables, jax.random.fold_in(rng, 0))
    weights |= {"mean": pool_features.mean(0), "std": pool_features.std(0) + 1e-6}
    weights, positive_logits, pool_logits = fit_heads(
        config.scorer,
        weights,
        positives,
        pool_features,
        labels=labelled.labels,
        num_classes=config.data.num_classes,
        rng=jax.random.fold_in(rng, 1),
        mesh=mesh,
        log=log,
    )
    return weights, {"positive": positive_logits, "pool": pool_logits, "pool_index": sample}


def extract_features(
    config: Config, module: nn.Module, variables: Any, read: Any, num_images: int, *, mesh: Mesh, name: str = ""
) -> np.ndarray:
    """Return the teacher's multi-scale features, float32 [num_images, D], shallow to deep."""

    def fn(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"features": frozen_features(config, module, variables, prepare(config, images))[1]}

    progress = Progress(name, num_images, "image", enabled=bool(name) and is_main_process())
    batch_size = config.mining.batch_size
    result = map_images(fn, variables, read, num_images, batch_size=batch_size, mesh=mesh, progress=progress)
    progress.close()
    return result["features"]


def fit_heads(
    config: ScorerConfig,
    weights: Any,
    positives: np.ndarray,
    pool: np.ndarray,
    *,
    labels: np.ndarray,
    num_classes: int,
    rng: jax.Array,
    mesh: Mesh,
    log: MetricsLog,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Train one head per fold, all in the same dispatches, each on the examples outside its fold.

    Args:
        config: loss, number of steps, batch shares.
        weights: {"heads": params with a leading fold axis, "mean": [D], "std": [D]}.
        positives: float32 [P, D] raw features of the labelled images.
        pool: float32 [U, D] raw features of the pool sample.
        labels: int [P]; only the distances use them.
        num_classes: K.
        rng: root key.
        mesh: devices; the batch is split over them.
        log: receives the losses.

    Returns:
        (weights, held-out scores of the positives [P], of the pool sample [U]).

    Raises:
        ValueError: fewer positives or pool images than folds.
        FloatingPointError: the loss is not finite.
    """
    if min(len(positives), len(pool)) < config.folds:
        raise ValueError(
            f"{len(positives)} labelled and {len(pool)} pool images are too few for scorer.folds={config.folds}"
        )
    folds = [np.random.default_rng((0, len(x))).permutation(len(x)) % config.folds for x in (positives, pool)]
    training_rows = [_rows_outside_folds(fold, config.folds) for fold in folds]
    standardised = [(x - weights["mean"]) / weights["std"] for x in (positives, pool)]
    data = replicate(mesh, {"features": standardised, "rows": training_rows})
    prior = given_class_prior(config) or _ROUGH_PRIOR
    train_heads = jax.jit(functools.partial(_scan_heads, config, mesh))
    heads, losses = train_heads(replicate(mesh, weights["heads"]), data, rng, prior)
    _check_and_log(jax.device_get(losses), log)
    weights = weights | {"heads": jax.device_get(heads)}
    if config.distance:
        weights = _add_distance(config, weights, positives, folds[0], pool, labels, num_classes)
    score = jax.jit(functools.partial(head_logits, config))
    held_out = [np.asarray(score(weights, x))[fold, np.arange(len(x))] for x, fold in zip((positives, pool), folds)]
    return weights, *held_out


def _check_and_log(losses: np.ndarray, log: MetricsLog) -> None:
    if not np.isfinite(losses).all():
        step = int(np.flatnonzero(~np.isfinite(losses))[0]) + 1
        raise FloatingPointError(f"scorer: the loss is not finite at step {step}; lower scorer.learning_rate")
    for step in range(0, len(losses), 100):
        log.write(step, {"scorer/loss": float(losses[step : step + 100].mean())})


def _add_distance(
    config: ScorerConfig,
    weights: Any,
    positives: np.ndarray,
    fold: np.ndarray,
    pool: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
) -> Any:
    """Return the weights with Gaussians of the positives outside each fold, and the scores' spread over the pool."""
    spread = {"pool_mean": pool.mean(0), "pool_covariance": np.cov(pool, rowvar=False)}
    outside = [np.flatnonzero(fold != k) for k in range(config.folds)]
    fitted = [fit_gaussians(positives[rows], labels[rows], num_classes=num_classes, **spread) for rows in outside]
    weights = weights | {"gaussians": jax.tree.map(lambda *leaves: np.stack(leaves), *fitted)}
    plain = functools.partial(head_logits, dataclasses.replace(config, distance=0.0))
    scores = jax.jit(lambda w, x: jnp.stack([plain(w, x), _distances(w, x)]))(weights, pool)
    return weights | {"score_mean": np.mean(scores, axis=-1), "score_std": np.std(scores, axis=-1) + 1e-6}


def _rows_outside_folds(fold: np.ndarray, num_folds: int) -> np.ndarray:
    """Return int32 [num_folds, n]: for each fold the rows not in it, cut to a common length."""
    rows = [np.flatnonzero(fold != k) for k in range(num_folds)]
    shortest = min(map(len, rows))
    return np.stack([r[:shortest] for r in rows]).astype(np.int32)


def _scan_heads(
    config: ScorerConfig, mesh: Mesh, heads: Any, data: Any, rng: jax.Array, class_prior: float
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
        loss, _ = _apply_loss(config, pu_logits, labelled, class_prior)
        return loss

    def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        rngs = jax.random.split(jax.random.fold_in(rng, index), config.folds)
        losses, grads = jax.vmap(jax.value_and_grad(loss_fn))(params, data["rows"], rngs)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), jnp.mean(losses)

    (heads, _), losses = jax.lax.scan(step, (heads, tx.init(heads)), jnp.arange(config.num_steps))
    return heads, losses


def _apply_loss(config: ScorerConfig, pu_logits: jax.Array, labelled: jax.Array, class_prior: float) -> Any:
    return pu_loss(
        config.loss,
        pu_logits,
        labelled,
        class_prior=class_prior,
        beta=config.beta,
        gamma=config.gamma,
        surrogate=config.surrogate,
    )


# --- finetune -------------------------------------------------------------------------------------------------


def _train_finetuned(
    config: Config,
    workdir: Path,
    labelled: ImageSource,
    pool: ImageSource,
    sample: np.ndarray,
    mesh: Mesh,
    log: MetricsLog,
) -> tuple[Any, dict[str, np.ndarray]]:
    module, variables = load_teacher(config, workdir)
    rng = jax.random.key(config.seed)
    order = np.random.default_rng(config.seed).permutation(len(labelled))
    num_held_out = round(config.scorer.holdout * len(labelled))
    held_out, kept = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
    images_path = workdir / "scorer" / "images.npy"
    if is_main_process():
        write_images(images_path, [(labelled, kept), (pool, sample)])
    barrier("scorer images")
    images = np.load(images_path, mmap_mode="r")
    net = PUNet(module, make_head(config.scorer))
    weights = jax.jit(functools.partial(_init_weights, config, module))(variables, jax.random.fold_in(rng, 0))
    weights = fit(
        config,
        config.scorer,
        make_finetune_loss(config, net, num_labelled=len(kept)),
        weights,
        images=images,
        columns={},
        make_batches=functools.partial(_finetune_batches, config, len(kept), len(sample)),
        frozen={},
        rng=jax.random.fold_in(rng, 1),
        mesh=mesh,
        folder=workdir / "scorer" / "checkpoints",
        log=log,
        name="scorer",
    )

    def score(weights: Any, batch: jax.Array) -> dict[str, jax.Array]:
        return {"pu_logit": net.apply(weights, prepare(config, batch), train=False)}

    scores = functools.partial(
        map_images, score, replicate(mesh, weights), batch_size=config.mining.batch_size, mesh=mesh
    )
    positive = scores(lambda rows: read_or_fail(labelled, held_out[rows], "data.labelled"), len(held_out))
    unlabelled = scores(lambda rows: images[len(kept) + rows], len(sample))
    return weights, {"positive": positive["pu_logit"], "pool": unlabelled["pu_logit"], "pool_index": sample}


def _finetune_batches(config: Config, num_labelled: int, num_pool: int, **feed: Any) -> Any:
    """Return batches over labelled + pool images: fixed shares, or uniform as released."""
    scorer = config.scorer
    if scorer.positives_per_batch == 0:
        return index_batches(num_labelled + num_pool, scorer.batch_size, seed=config.seed, **feed)
    return mixed_index_batches(
        num_labelled,
        num_pool,
        num_positive_per_batch=scorer.positives_per_batch,
        num_pool_per_batch=scorer.batch_size - scorer.positives_per_batch,
        seed=config.seed,
        **feed,
    )


def make_finetune_loss(config: Config, net: PUNet, *, num_labelled: int) -> LossFn:
    """Return the PU risk over a batch in which rows below `num_labelled` are the labelled positives."""
    prior = given_class_prior(config.scorer) or _ROUGH_PRIOR
    # Batch statistics over a batch rich in positives do not carry over to the pool: then BatchNorm stays frozen.
    train = config.scorer.positives_per_batch == 0

    def loss_fn(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        images = augment(rng, batch["image"], pad=config.scorer.crop_padding, flip=config.scorer.flip)
        variables = {"params": params, "batch_stats": batch_stats}
        pu_logits, mutated = net.apply(variables, prepare(config, images), train=train, mutable=["batch_stats"])
        loss, metrics = _apply_loss(config.scorer, pu_logits, batch["index"] < num_labelled, prior)
        return loss, (mutated.get("batch_stats", batch_stats), metrics)

    return loss_fn
