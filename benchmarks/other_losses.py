"""Losses that only the tables use: other positive-unlabelled risks, and DFND's term of distillation."""

from typing import Any

import jax
import jax.numpy as jnp

from pujax.kd_losses import masked_mean
from pujax.pu.losses import PU_LOSSES, PULoss, Risk, make_pu_loss, mean_losses
from pujax.student import ExtraTerm


def upu_risk(pu_logits: jax.Array, labelled: jax.Array, *, class_prior: float, surrogate: str) -> Risk:
    """Return the unbiased PU risk, pi R_p^+ + (R_u^- - pi R_p^-); flexible models drive it below zero.

    Reference: du Plessis et al., "Convex formulation for learning from positive and unlabeled data", ICML 2015.
    """
    positive, positive_as_negative, unlabelled = mean_losses(pu_logits, labelled, surrogate)
    positive_risk = class_prior * positive
    negative_risk = unlabelled - class_prior * positive_as_negative
    return positive_risk + negative_risk, {"positive_risk": positive_risk, "negative_risk": negative_risk}


def vpu_risk(pu_logits: jax.Array, labelled: jax.Array) -> Risk:
    """Return the variational PU loss, log mean_U sigmoid(z) - mean_P log sigmoid(z): no prior is needed.

    Reference: Chen et al., "A variational approach for learning from positive and unlabeled data", 2020; no MixUp.
    """
    log_prob = jax.nn.log_sigmoid(pu_logits.astype(jnp.float32))
    count = jnp.maximum(jnp.sum(~labelled), 1)
    log_mean = jax.nn.logsumexp(jnp.where(labelled, -jnp.inf, log_prob)) - jnp.log(count)
    log_mean = jnp.where(jnp.any(~labelled), log_mean, 0.0)
    positive = -masked_mean(log_prob, labelled)
    return log_mean + positive, {"positive_risk": positive, "negative_risk": log_mean}


def dist_pu_risk(pu_logits: jax.Array, labelled: jax.Array, *, class_prior: float) -> Risk:
    """Return the label-distribution loss, 2 pi |mean_P p - 1| + |mean_U p - pi| with p = sigmoid(z).

    Reference: Zhao et al., "Dist-PU", CVPR 2022, without its entropy and MixUp regularisers.
    """
    probs = jax.nn.sigmoid(pu_logits.astype(jnp.float32))
    positive = 2 * class_prior * jnp.abs(masked_mean(probs, labelled) - 1)
    unlabelled = jnp.abs(masked_mean(probs, ~labelled) - class_prior)
    return positive + unlabelled, {"positive_risk": positive, "negative_risk": unlabelled}


def any_pu_loss(name: str, *, class_prior: float | None, **options: Any) -> PULoss:
    """Return a loss of the library or of this file, by name; see `pujax.pu.losses.make_pu_loss`."""
    if name in PU_LOSSES:
        return make_pu_loss(name, class_prior=class_prior, **options)
    prior = class_prior or 0.1
    return {
        "upu": lambda z, labelled: upu_risk(z, labelled, class_prior=prior, surrogate=options["surrogate"]),
        "vpu": vpu_risk,
        "dist_pu": lambda z, labelled: dist_pu_risk(z, labelled, class_prior=prior),
    }[name]


def noise_adapted_nll(
    student_logits: jax.Array, teacher_class: jax.Array, adaptation: jax.Array, diagonal: float
) -> jax.Array:
    """Return the cross-entropy [B] with the teacher's possibly wrong classes, through a learned confusion matrix M.

    -log sum_k softmax(student_logits)_k M_{k, teacher_class}, where M_kk = `diagonal`, the share of the teacher's
    classes that are right, and the rest of a row is shared out by a softmax of `adaptation` over the other classes.

    Reference: Chen et al., "Learning student networks in the wild", CVPR 2021 (DFND).
    """
    same = jnp.eye(adaptation.shape[0], dtype=bool)
    off = jax.nn.log_softmax(jnp.where(same, -jnp.inf, adaptation.astype(jnp.float32)), axis=-1) + jnp.log1p(-diagonal)
    log_confusion = jnp.where(same, jnp.log(diagonal), off)
    log_probs = jax.nn.log_softmax(student_logits.astype(jnp.float32))
    return -jax.nn.logsumexp(log_probs + log_confusion.T[teacher_class], axis=-1)


def noise_adaptation(num_classes: int, diagonal: float) -> ExtraTerm:
    """Return DFND's term: the student must agree with the teacher's classes through a learned confusion matrix."""

    def loss(params: dict[str, jax.Array], student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
        teacher_class = jnp.argmax(teacher_logits, axis=-1)
        return jnp.mean(noise_adapted_nll(student_logits, teacher_class, params["noise_adaptation"], diagonal))

    return ExtraTerm({"noise_adaptation": jnp.zeros((num_classes, num_classes))}, loss)
