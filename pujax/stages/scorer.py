"""Stage 2: train the positive-unlabelled scorer on the labelled images and a sample of the pool.

`frozen`: the features of both are computed once, and small heads are trained on them, crosswise over folds. Where the
two then prove to differ in style, the heads are trained again on the labelled images in several styles.
`finetune`: the whole network is trained end to end, as released; a share of both is kept out of training, and gives the
held-out scores.
"""

import functools
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from pujax.artifacts import save_arrays
from pujax.config import FinetunedScorerConfig, FrozenScorerConfig, given_class_prior
from pujax.data.batches import make_batches
from pujax.data.reading import read_or_fail, reasons_of, remove_training_images, training_images
from pujax.data.sources import ImageSource
from pujax.data.transforms import augment
from pujax.data.unreadable import check_share, write_reasons
from pujax.errors import UserError
from pujax.folding import fold_batch_norms
from pujax.inference import map_images
from pujax.job import Job
from pujax.metrics import auc
from pujax.networks import Network
from pujax.pu.heads import Inputs, fit_heads, in_styles
from pujax.pu.losses import PULoss, make_pu_loss
from pujax.pu.prior import class_prior_block, selected_at_random, share_like_positives
from pujax.pu.scorer import STYLED, PUNet, extract_in_styles, extract_inputs, init_pu_net, make_pu_net
from pujax.sharding import is_main_process, replicate
from pujax.train import LossFn, fit
from pujax.weights import save_weights

RESULTS_VERSION = 3


class HeldOut(NamedTuple):
    """Scores of images by models that did not train on them."""

    positive: np.ndarray  # [V, P], of the labelled images; the plain view first, then in other styles
    pool: np.ndarray  # [U], of the pool sample
    pool_index: np.ndarray  # int64 [U], its places in the pool


Trained = tuple[Any, HeldOut, dict[str, str]]  # weights, held-out scores, what the weights file says of itself


def run(job: Job) -> dict[str, Any]:
    """Leave the scorer's weights and its held-out scores in the work directory; return the summary block."""
    config, pool = job.config, job.sources["pool"]
    options = getattr(config.scorer, config.scorer.mode)
    given = given_class_prior(config.scorer)
    loss = make_pu_loss(
        options.loss, class_prior=given, beta=options.beta, gamma=options.gamma, surrogate=options.surrogate
    )
    sample = sample_pool(len(pool), config.scorer.pool_sample, config.seed)
    train = _train_frozen if config.scorer.mode == "frozen" else _train_finetuned
    weights, held_out, metadata = train(job, loss, sample)
    if is_main_process():
        save_weights(job.workdir.scorer, weights, metadata=metadata)
        save_arrays(job.workdir.held_out, **held_out._asdict())
    in_range = share_like_positives(held_out.positive, held_out.pool, quantile=0.25)
    if given is None and in_range < config.scorer.min_in_range:  # a given class prior says that there are some
        raise UserError(_empty(in_range, held_out))
    plain = held_out.positive[0]
    block = {"loss": options.loss, "steps": options.num_steps, "styles": len(held_out.positive), "in_range": in_range}
    block["like_labelled"] = share_like_positives(held_out.positive, held_out.pool, quantile=0.1)
    block |= class_prior_block(plain, held_out.pool, given=given, seed=config.seed)
    if given is None and metadata and options.styles == "auto":
        block["class_prior_holds"] = False  # the test that failed was that of the heads before
    block["held_out_auc"] = auc(plain, held_out.pool)  # positives against the unlabelled
    return block | truth_auc(held_out, pool)


def _empty(in_range: float, held_out: HeldOut) -> str:
    """Return what to tell the user of a pool that has nothing like the labelled images."""
    looked_at, views = len(held_out.pool), len(held_out.positive)
    return (
        f"of {looked_at} pool images looked at, {round(in_range * looked_at)} score like a labelled one (above the "
        f"lower quartile of the held-out labelled images, plain or in one of {views - 1} other styles): the pool seems "
        "to hold none of the task's images. Look at data.pool; to go on all the same, set scorer.min_in_range=0"
    )


def sample_pool(pool_size: int, sample_size: int, seed: int) -> np.ndarray:
    """Return sorted int64 indices of a uniform sample; all of the pool when `sample_size` is 0 or large enough."""
    if sample_size == 0 or sample_size >= pool_size:
        return np.arange(pool_size)
    return np.sort(np.random.default_rng(seed).choice(pool_size, sample_size, replace=False))


def truth_auc(held_out: HeldOut, pool: ImageSource) -> dict[str, float]:
    """Return the AUC of the held-out pool scores, where the pool carries truth of both kinds for evaluation."""
    if pool.truth is None:
        return {}
    truth = pool.truth[held_out.pool_index]
    return {"truth_auc": auc(held_out.pool[truth], held_out.pool[~truth])} if 0 < truth.sum() < len(truth) else {}


# --- frozen ---------------------------------------------------------------------------------------------------


def _train_frozen(job: Job, loss: PULoss, sample: np.ndarray) -> Trained:
    config, labelled, pool = job.config, job.sources["labelled"], job.sources["pool"]
    frozen, teacher = config.scorer.frozen, job.teacher()
    forward = {"mesh": job.mesh, "batch_size": config.run.inference_batch_size}

    def read_labelled(rows: np.ndarray) -> np.ndarray:
        return read_or_fail(labelled, rows, "data.labelled")

    reasons = np.full(len(sample), "", object)

    def read(rows: np.ndarray) -> np.ndarray:
        images, reasons[rows] = pool.read(sample[rows])
        return images

    inputs = extract_inputs(frozen, teacher, read, len(sample), name="pool features", **forward)
    readable = _check_readable(job, sample, reasons)
    inputs = {name: column[readable] for name, column in inputs.items()}

    def train(options: FrozenScorerConfig, positives: Inputs) -> tuple[Any, HeldOut]:
        weights, positive, unlabelled = fit_heads(
            options,
            loss,
            positives,
            inputs,
            labels=labelled.labels,
            num_classes=config.data.num_classes,
            seed=config.seed,
            mesh=job.mesh,
            log=job.log,
        )
        return weights, HeldOut(positive, unlabelled, sample[readable])

    if frozen.styles != "on":
        plain = extract_inputs(frozen, teacher, read_labelled, len(labelled), **forward)
        weights, held_out = train(frozen, {name: column[None] for name, column in plain.items()})
        if frozen.styles == "off" or selected_at_random(held_out.positive[0], held_out.pool):
            return weights, held_out, {}
        if is_main_process():
            print("scorer: labelled and pool images differ in style; trained again in several styles", file=sys.stderr)
    styled = extract_in_styles(frozen, teacher, read_labelled, len(labelled), seed=config.seed, **forward)
    return *train(in_styles(frozen), styled), STYLED


def _check_readable(job: Job, sample: np.ndarray, reasons: np.ndarray) -> np.ndarray:
    """Return, bool [n], which images of the sample decode; list those that do not, and stop if they are too many.

    Args:
        job: the job.
        sample: pool indices [n].
        reasons: text [n], empty where an image is readable, or where another process has read it.
    """
    broken = _on_any_process(reasons != "")
    if broken.any():
        reasons = np.where(broken & (reasons == ""), "see the other hosts", reasons)
        path = job.workdir.unit("scorer").unreadable
        if is_main_process():
            write_reasons(path, job.sources["pool"], sample, reasons)
        at = int(np.argmax(broken))
        first = f"{job.sources['pool'].keys(sample[at : at + 1])[0]} ({reasons[at]})"
        limit = job.config.score.max_unreadable
        check_share(int(broken.sum()), len(sample), limit=limit, first=first, listed=path)
    return ~broken


def _on_any_process(flags: np.ndarray) -> np.ndarray:
    """Return, bool [n], which flags are set on any process: each process reads its own part of the images."""
    return np.any(np.reshape(multihost_utils.process_allgather(flags), (-1, len(flags))), axis=0)


# --- finetune -------------------------------------------------------------------------------------------------


def _train_finetuned(job: Job, loss: PULoss, sample: np.ndarray) -> Trained:
    config, teacher, unit = job.config, job.teacher(), job.workdir.unit("scorer")
    labelled, pool, finetune = job.sources["labelled"], job.sources["pool"], config.scorer.finetune
    readable = sample[_check_readable(job, sample, reasons_of(pool, sample))]
    held_positives, positives = split_off(np.arange(len(labelled)), finetune.holdout, config.seed)
    held_pool, trained_pool = split_off(readable, finetune.holdout, config.seed)
    images = training_images(unit, [(labelled, positives), (pool, trained_pool)])
    net, rng = make_pu_net(finetune, teacher), jax.random.key(config.seed)
    init = jax.jit(functools.partial(init_pu_net, net, teacher))
    weights = fit(
        finetune,
        make_finetune_loss(finetune, loss, net, teacher, num_labelled=len(positives)),
        init(teacher.variables, jax.random.fold_in(rng, 0)),
        images=images,
        columns={},
        make_batches=make_batches(
            [len(positives), len(trained_pool)],
            finetune.batch_size,
            share=finetune.positives_per_batch,
            seed=config.seed,
        ),
        frozen={},
        rng=jax.random.fold_in(rng, 1),
        mesh=job.mesh,
        run=config.run,
        folder=unit.checkpoints,
        log=job.log,
        name="scorer",
    )
    remove_training_images(unit)

    folded = fold_batch_norms(net, weights, teacher.preprocessing.image_shape)

    def predict(weights: Any, batch: jax.Array) -> dict[str, jax.Array]:
        return {"score": net.apply(weights, teacher.preprocessing.prepare(batch), train=False)}

    def score(source: ImageSource, indices: np.ndarray, what: str) -> np.ndarray:
        def read(rows: np.ndarray) -> np.ndarray:
            return read_or_fail(source, indices[rows], what)

        on_mesh, batch_size = replicate(job.mesh, folded), config.run.inference_batch_size
        return map_images(predict, on_mesh, read, len(indices), batch_size=batch_size, mesh=job.mesh)["score"]

    positive = score(labelled, held_positives, "data.labelled")[None]
    return weights, HeldOut(positive, score(pool, held_pool, "data.pool"), held_pool), {}


def split_off(indices: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted (held out, kept) parts of `indices`: a random share, at least one each."""
    order = np.random.default_rng(seed).permutation(indices)
    count = min(max(round(share * len(indices)), 1), len(indices) - 1)
    return np.sort(order[:count]), np.sort(order[count:])


def make_finetune_loss(
    finetune: FinetunedScorerConfig, loss: PULoss, net: PUNet, teacher: Network, *, num_labelled: int
) -> LossFn:
    """Return the PU risk over a batch in which rows below `num_labelled` are the labelled positives."""
    # Batch statistics over a batch rich in positives do not carry over to the pool: then BatchNorm stays frozen.
    train = finetune.positives_per_batch == 0

    def loss_fn(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        images = augment(rng, batch["image"], pad=finetune.crop_padding, flip=finetune.flip)
        variables = {"params": params, "batch_stats": batch_stats}
        prepared = teacher.preprocessing.prepare(images)
        pu_logits, mutated = net.apply(variables, prepared, train=train, mutable=["batch_stats"])
        risk, metrics = loss(pu_logits, batch["index"] < num_labelled)
        return risk, (mutated.get("batch_stats", batch_stats), metrics)

    return loss_fn
