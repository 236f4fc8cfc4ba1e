"""Stage 2: the positive-unlabelled scorer on the teacher's multi-scale features.

`frozen`: the features of the positives and of a sample of the pool are computed once, and small heads are trained on
them, crosswise over folds: see `heads`.
`finetune`: the whole network, initialised from the teacher, is trained end to end, as released; a share of the
positives is kept out of training for the same purpose.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pujax.checkpoint import load_weights, save_weights
from pujax.config import Config, given_class_prior
from pujax.data.batches import index_batches, mixed_index_batches
from pujax.data.sources import ImageSource, drop_unreadable, open_source, read_or_fail, write_images
from pujax.data.transforms import augment
from pujax.heads import ROUGH_PRIOR, Inputs, apply_loss, fit_heads, init_heads, make_head, score
from pujax.inference import map_images, prepare
from pujax.metrics import MetricsLog, Progress, auc
from pujax.prior import estimate_class_prior, unlevel_top
from pujax.sharding import barrier, is_main_process, replicate
from pujax.teacher import image_shape, load_teacher
from pujax.train import LossFn, fit


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
            logits, seen = frozen_inputs(config, module, variables, inputs)
            pu_logits = jnp.mean(score(config.scorer, weights, seen), axis=0)
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


def _init_finetuned(config: Config, module: nn.Module, variables: Any, rng: jax.Array) -> Any:
    """Return the weights of a `PUNet` at step 0: the teacher's backbone under a fresh head."""
    fresh = PUNet(module, make_head(config.scorer)).init(rng, jnp.zeros((1, *image_shape(config))), train=False)
    return {kind: tree | {"backbone": variables[kind]} for kind, tree in fresh.items()}


def _init_weights(config: Config, module: nn.Module, variables: Any, rng: jax.Array) -> Any:
    """Return the scorer's weights at step 0, for the shapes of its file."""
    if config.scorer.mode == "finetune":
        return _init_finetuned(config, module, variables, rng)
    _, inputs = frozen_inputs(config, module, variables, jnp.zeros((1, *image_shape(config))))
    size = inputs["features"].shape[-1]
    return init_heads(config.scorer, rng, size=size, num_classes=config.data.num_classes)


# --- frozen ---------------------------------------------------------------------------------------------------


def frozen_inputs(config: Config, module: nn.Module, variables: Any, images: jax.Array) -> tuple[jax.Array, Inputs]:
    """Return the teacher's logits [B, K] and what the heads see of normalised images [B, H, W, C].

    With `scorer.flip` features and energy are of the mean of the image's and its mirror image's outputs. With
    `scorer.quarter_turn` the features of these images turned by 90 degrees follow: things that stand upright lose
    theirs, textures do not.
    """
    sides = [images, images[:, :, ::-1]] if config.scorer.flip else [images]

    def outputs(views: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        """Return the logits of every view and the features, their mean over the views."""
        logits, features = zip(*(module.apply(variables, view, train=False) for view in views))
        return logits, sum(jnp.concatenate(scales, axis=-1) for scales in features) / len(views)

    logits, features = outputs(sides)
    if config.scorer.quarter_turn:
        _, turned = outputs([jnp.rot90(side, axes=(1, 2)) for side in sides])
        features = jnp.concatenate([features, turned], axis=-1)
    return logits[0], {"features": features, "energy": jax.nn.logsumexp(sum(logits) / len(sides), axis=-1)}


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
    extract = functools.partial(extract_inputs, config, module, replicate(mesh, variables), mesh=mesh)
    positives = extract(lambda rows: read_or_fail(labelled, rows, "data.labelled"), len(labelled))
    pool_inputs = extract(lambda rows: read_or_fail(pool, sample[rows], "data.pool"), len(sample), name="pool features")
    weights, positive_scores, pool_scores = fit_heads(
        config.scorer,
        positives,
        pool_inputs,
        labels=labelled.labels,
        num_classes=config.data.num_classes,
        rng=jax.random.key(config.seed),
        mesh=mesh,
        log=log,
    )
    return weights, {"positive": positive_scores, "pool": pool_scores, "pool_index": sample}


def extract_inputs(
    config: Config, module: nn.Module, variables: Any, read: Any, num_images: int, *, mesh: Mesh, name: str = ""
) -> dict[str, np.ndarray]:
    """Return what the heads see of images: "features" float32 [num_images, D], shallow to deep, and "energy"."""

    def fn(variables: Any, images: jax.Array) -> Inputs:
        return frozen_inputs(config, module, variables, prepare(config, images))[1]

    progress = Progress(name, num_images, "image", enabled=bool(name) and is_main_process())
    batch_size = config.mining.batch_size
    result = map_images(fn, variables, read, num_images, batch_size=batch_size, mesh=mesh, progress=progress)
    progress.close()
    return result


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
    weights = jax.jit(functools.partial(_init_finetuned, config, module))(variables, jax.random.fold_in(rng, 0))
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

    def predict(weights: Any, batch: jax.Array) -> dict[str, jax.Array]:
        return {"pu_logit": net.apply(weights, prepare(config, batch), train=False)}

    scores = functools.partial(
        map_images, predict, replicate(mesh, weights), batch_size=config.mining.batch_size, mesh=mesh
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
    prior = given_class_prior(config.scorer) or ROUGH_PRIOR
    # Batch statistics over a batch rich in positives do not carry over to the pool: then BatchNorm stays frozen.
    train = config.scorer.positives_per_batch == 0

    def loss_fn(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        images = augment(rng, batch["image"], pad=config.scorer.crop_padding, flip=config.scorer.flip)
        variables = {"params": params, "batch_stats": batch_stats}
        pu_logits, mutated = net.apply(variables, prepare(config, images), train=train, mutable=["batch_stats"])
        loss, metrics = apply_loss(config.scorer, pu_logits, batch["index"] < num_labelled, prior)
        return loss, (mutated.get("batch_stats", batch_stats), metrics)

    return loss_fn
