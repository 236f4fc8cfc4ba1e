"""Positive-unlabelled risks as pure functions of logits, in float32.

They see one batch of `pu_logits` with a mask `labelled`; the labelled images are the positives P, the others the
unlabelled U. Means are over the whole (global) batch, never over per-device parts.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pujax.kd_losses import masked_mean

Risk = tuple[jax.Array, dict[str, jax.Array]]
PULoss = Callable[[jax.Array, jax.Array], Risk]

# loss of calling a logit positive: l(z); of calling it negative: l(-z)
SURROGATES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": lambda z: jax.nn.sigmoid(-z),
    "logistic": lambda z: jax.nn.softplus(-z),
}


def mean_losses(pu_logits: jax.Array, labelled: jax.Array, surrogate: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the mean losses (P called positive, P called negative, U called negative)."""
    logits, loss = pu_logits.astype(jnp.float32), SURROGATES[surrogate]
    positive = masked_mean(loss(logits), labelled)
    return positive, masked_mean(loss(-logits), labelled), masked_mean(loss(-logits), ~labelled)


def _non_negative(positive_risk: jax.Array, negative_risk: jax.Array, beta: float, gamma: float) -> Risk:
    """Join two risks under the non-negative rule: one number is reported, another is differentiated.

    Where the negative risk falls below -beta it is overfitted. The reported value then holds it at -beta, while the
    gradient climbs back along -gamma * negative_risk and the positives get none on that batch. (`jnp.maximum(0, .)`
    would be another algorithm: it goes on fitting the positives and never undoes the overfit.)
    """
    clipped = negative_risk < -beta
    value = jnp.where(clipped, positive_risk - beta, positive_risk + negative_risk)
    surrogate = jnp.where(clipped, -gamma * negative_risk, positive_risk + negative_risk)
    metrics = {"positive_risk": positive_risk, "negative_risk": negative_risk, "clipped": clipped.astype(jnp.float32)}
    return surrogate + jax.lax.stop_gradient(value - surrogate), metrics


def nnpu_risk(
    pu_logits: jax.Array, labelled: jax.Array, *, class_prior: float, beta: float, gamma: float, surrogate: str
) -> Risk:
    """Return the non-negative PU risk, the released scorer's loss.

    Args:
        pu_logits: [B] floats.
        labelled: [B] bool.
        class_prior: pi.
        beta: tolerance, >= 0, before the negative risk counts as overfitted (released: 0).
        gamma: scale of the correcting gradient (released: 1).
        surrogate: "sigmoid" (released) or "logistic".

    Returns:
        (risk [], metrics); the gradient is the released rule's, see `_non_negative`.

    Note: at small priors the sigmoid form collapses to "everything is negative"; prefer a balanced loss.

    Reference: Kiryo et al., "Positive-unlabeled learning with non-negative risk estimator", NeurIPS 2017.
    """
    positive, positive_as_negative, unlabelled = mean_losses(pu_logits, labelled, surrogate)
    return _non_negative(class_prior * positive, unlabelled - class_prior * positive_as_negative, beta, gamma)


def balanced_nnpu_risk(
    pu_logits: jax.Array, labelled: jax.Array, *, class_prior: float, beta: float, gamma: float, surrogate: str
) -> Risk:
    """Return the non-negative risk of a test distribution with as many positives as negatives.

    R = 1/2 R_p^+ + 1/2 max(0, R_u^- - pi R_p^-) / (1 - pi), so a small pi no longer makes the positives cheap.
    Arguments and gradient rule as for `nnpu_risk`.

    Reference: Su, Chen and Xu, "Positive-unlabeled learning from imbalanced data", IJCAI 2021.
    """
    positive, positive_as_negative, unlabelled = mean_losses(pu_logits, labelled, surrogate)
    negative_risk = (unlabelled - class_prior * positive_as_negative) / (1 - class_prior)
    return _non_negative(0.5 * positive, 0.5 * negative_risk, beta, gamma)


def labelled_vs_unlabelled(pu_logits: jax.Array, labelled: jax.Array) -> Risk:
    """Return the class-balanced logistic loss of telling labelled from unlabelled: no prior is needed.

    Under selection completely at random its optimum is a monotone function of the chance of being positive, so it
    ranks the pool; its zero is not a decision threshold.

    Reference: Elkan and Noto, "Learning classifiers from only positive and unlabeled data", KDD 2008.
    """
    positive, _, unlabelled = mean_losses(pu_logits, labelled, "logistic")
    return 0.5 * (positive + unlabelled), {"positive_risk": positive, "negative_risk": unlabelled}


# name -> (function, the options it takes)
PU_LOSSES: dict[str, tuple[Callable[..., Risk], tuple[str, ...]]] = {
    "labelled_vs_unlabelled": (labelled_vs_unlabelled, ()),
    "balanced_nnpu": (balanced_nnpu_risk, ("class_prior", "beta", "gamma", "surrogate")),
    "nnpu": (nnpu_risk, ("class_prior", "beta", "gamma", "surrogate")),
}


ROUGH_PRIOR = 0.1  # used inside losses that need a prior before any scores exist to estimate one from


def make_pu_loss(name: str, *, class_prior: float | None, beta: float, gamma: float, surrogate: str) -> PULoss:
    """Return `(pu_logits [B], labelled bool [B]) -> (risk [], metrics)` of a key of `PU_LOSSES`.

    Args:
        name: the loss; it uses those of the options below that it knows.
        class_prior: share of positives among the unlabelled; None where it is yet to be estimated.
        beta: see `nnpu_risk`.
        gamma: see `nnpu_risk`.
        surrogate: a key of `SURROGATES`.
    """
    options = {"class_prior": class_prior or ROUGH_PRIOR, "beta": beta, "gamma": gamma, "surrogate": surrogate}
    function, takes = PU_LOSSES[name]
    return functools.partial(function, **{option: options[option] for option in takes})
