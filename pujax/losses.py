"""Losses as pure functions of logits: positive-unlabelled risks and robust knowledge distillation.

Everything is computed in float32. PU risks see one batch of `pu_logits` with a mask `labelled`; the labelled images
are the positives P, the others the unlabelled U. Means are over the whole (global) batch, never over per-device parts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Risk = tuple[jax.Array, dict[str, jax.Array]]


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean of `values` [B] where `mask` [B] is True; 0 if it is nowhere."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


# --- positive-unlabelled risks --------------------------------------------------------------------------------

# loss of calling a logit positive: l(z); of calling it negative: l(-z)
SURROGATES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": lambda z: jax.nn.sigmoid(-z),
    "logistic": lambda z: jax.nn.softplus(-z),
}


def _parts(pu_logits: jax.Array, labelled: jax.Array, surrogate: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the mean losses (P called positive, P called negative, U called negative)."""
    logits, loss = pu_logits.astype(jnp.float32), SURROGATES[surrogate]
    positive = masked_mean(loss(logits), labelled)
    return positive, masked_mean(loss(-logits), labelled), masked_mean(loss(-logits), ~labelled)


def upu_risk(pu_logits: jax.Array, labelled: jax.Array, *, class_prior: float, surrogate: str) -> Risk:
    """Return the unbiased PU risk, pi R_p^+ + (R_u^- - pi R_p^-), which a flexible model drives below zero.

    Args:
        pu_logits: [B] floats.
        labelled: [B] bool, True for positives.
        class_prior: pi, share of positives among the unlabelled.
        surrogate: "sigmoid" or "logistic".

    Returns:
        (risk [], metrics).

    Reference: du Plessis et al., "Convex formulation for learning from positive and unlabeled data", ICML 2015.
    """
    positive, positive_as_negative, unlabelled = _parts(pu_logits, labelled, surrogate)
    positive_risk = class_prior * positive
    negative_risk = unlabelled - class_prior * positive_as_negative
    return positive_risk + negative_risk, {"positive_risk": positive_risk, "negative_risk": negative_risk}


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
    positive, positive_as_negative, unlabelled = _parts(pu_logits, labelled, surrogate)
    return _non_negative(class_prior * positive, unlabelled - class_prior * positive_as_negative, beta, gamma)


def balanced_nnpu_risk(
    pu_logits: jax.Array, labelled: jax.Array, *, class_prior: float, beta: float, gamma: float, surrogate: str
) -> Risk:
    """Return the non-negative risk of a test distribution with as many positives as negatives.

    R = 1/2 R_p^+ + 1/2 max(0, R_u^- - pi R_p^-) / (1 - pi), so a small pi no longer makes the positives cheap.
    Arguments and gradient rule as for `nnpu_risk`.

    Reference: Su, Chen and Xu, "Positive-unlabeled learning from imbalanced data", IJCAI 2021.
    """
    positive, positive_as_negative, unlabelled = _parts(pu_logits, labelled, surrogate)
    negative_risk = (unlabelled - class_prior * positive_as_negative) / (1 - class_prior)
    return _non_negative(0.5 * positive, 0.5 * negative_risk, beta, gamma)


def labelled_vs_unlabelled(pu_logits: jax.Array, labelled: jax.Array) -> Risk:
    """Return the class-balanced logistic loss of telling labelled from unlabelled: no prior is needed.

    Under selection completely at random its optimum is a monotone function of the chance of being positive, so it
    ranks the pool; its zero is not a decision threshold.

    Reference: Elkan and Noto, "Learning classifiers from only positive and unlabeled data", KDD 2008.
    """
    positive, _, unlabelled = _parts(pu_logits, labelled, "logistic")
    return 0.5 * (positive + unlabelled), {"positive_risk": positive, "negative_risk": unlabelled}


def vpu_risk(pu_logits: jax.Array, labelled: jax.Array) -> Risk:
    """Return the variational PU loss, log mean_U sigmoid(z) - mean_P log sigmoid(z): no prior is needed.

    Reference: Chen et al., "A variational approach for learning from positive and unlabeled data", NeurIPS 2020,
    without its MixUp regulariser.
    """
    log_prob = jax.nn.log_sigmoid(pu_logits.astype(jnp.float32))
    count = jnp.maximum(jnp.sum(~labelled), 1)
    log_mean = jax.nn.logsumexp(jnp.where(labelled, -jnp.inf, log_prob)) - jnp.log(count)
    log_mean = jnp.where(jnp.any(~labelled), log_mean, 0.0)
    positive = -masked_mean(log_prob, labelled)
    return log_mean + positive, {"positive_risk": positive, "negative_risk": log_mean}


def dist_pu_risk(pu_logits: jax.Array, labelled: jax.Array, *, class_prior: float) -> Risk:
    """Return the label-distribution loss, 2 pi |mean_P p - 1| + |mean_U p - pi| with p = sigmoid(z).

    Reference: Zhao et al., "Dist-PU: positive-unlabeled learning from a label distribution perspective", CVPR 2022,
    without its entropy and MixUp regularisers.
    """
    probs = jax.nn.sigmoid(pu_logits.astype(jnp.float32))
    positive = 2 * class_prior * jnp.abs(masked_mean(probs, labelled) - 1)
    unlabelled = jnp.abs(masked_mean(probs, ~labelled) - class_prior)
    return positive + unlabelled, {"positive_risk": positive, "negative_risk": unlabelled}


# name -> (function, the options it takes)
PU_LOSSES: dict[str, tuple[Callable[..., Risk], tuple[str, ...]]] = {
    "labelled_vs_unlabelled": (labelled_vs_unlabelled, ()),
    "balanced_nnpu": (balanced_nnpu_risk, ("class_prior", "beta", "gamma", "surrogate")),
    "nnpu": (nnpu_risk, ("class_prior", "beta", "gamma", "surrogate")),
    "upu": (upu_risk, ("class_prior", "surrogate")),
    "vpu": (vpu_risk, ()),
    "dist_pu": (dist_pu_risk, ("class_prior",)),
}


def pu_loss(name: str, pu_logits: jax.Array, labelled: jax.Array, **options: Any) -> Risk:
    """Return the risk called `name`, a key of `PU_LOSSES`, with those of `options` that it takes."""
    function, takes = PU_LOSSES[name]
    return function(pu_logits, labelled, **{option: options[option] for option in takes})


# --- robust knowledge distillation ----------------------------------------------------------------------------


def kl_from_logits(student_logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """Return T^2 KL(teacher || student) of the distributions softened by T, per example.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: T > 0. The factor T^2 keeps the gradient's size; the released code has T, at T = 1.

    Returns:
        float32 [B], >= 0 up to rounding.

    Reference: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
    """
    log_p = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
    log_q = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def class_weights_from_mass(mass: jax.Array) -> jax.Array:
    """Return weights inverse to the teacher's class mass, with mean one: w_k = K (1/y_k) / sum_j (1/y_j).

    Args:
        mass: [K], y_k = sum over the training images of the teacher's probability of class k. Classes below a
            thousandth of the mean mass count as that, so an empty class cannot take all the weight.

    Returns:
        float32 [K].
    """
    mass = jnp.asarray(mass, jnp.float32)
    inverse = 1 / jnp.maximum(mass, 1e-3 * jnp.mean(mass))
    return len(mass) * inverse / jnp.sum(inverse)


def perturbed_weights(rng: jax.Array, weights: jax.Array, epsilon: float, num_perturbations: int) -> jax.Array:
    """Return [m + 1, K]: `weights` [K], and m copies with U(0, epsilon) added to every entry, as released.

    Note: the additions are never negative and not normalised, so with m = 1 the largest loss is always that of the
    perturbed copy: as released, the maximum is plain weighting with a fixed random tilt.
    """
    weights = jnp.asarray(weights, jnp.float32)
    noise = jax.random.uniform(rng, (num_perturbations, len(weights)), maxval=epsilon)
    return jnp.concatenate([weights[None], weights + noise])


def kd_loss(kl: jax.Array, teacher_class: jax.Array, *, weights: jax.Array) -> jax.Array:
    """Return mean_x w_{k(x)} KL(x), from kl [B], teacher_class int [B] (the teacher's argmax) and weights [K]."""
    return jnp.mean(weights[teacher_class] * kl)


def robust_kd_paper(kl: jax.Array, teacher_class: jax.Array, weight_set: jax.Array) -> jax.Array:
    """Return the largest of the weighted losses over the rows of `weight_set` [m + 1, K]."""
    return jnp.max(jnp.mean(weight_set[:, teacher_class] * kl, axis=-1))


def worst_case_weights(class_loss: jax.Array, weights: jax.Array, epsilon: float) -> jax.Array:
    """Return the weights that maximise the loss over a mean-preserving uncertainty set.

    The set is W = {w' : |w'_k - w_k| <= epsilon, w'_k >= 0, sum_k w'_k = sum_k w_k}; the loss, linear in w', is
    sum_k w'_k a_k with a_k = (1/B) sum of the KL of the images that the teacher puts into class k.

    Closed form: write w' = l + c with l_k = max(0, w_k - epsilon), 0 <= c_k <= h_k - l_k, h_k = w_k + epsilon. What is
    left to give out, R = sum_k (w_k - l_k), is fixed, so this is the fractional knapsack: fill the
    classes in order of falling a_k, each to its capacity, until R is spent. (Exchange argument: moving weight from
    a class of smaller to one of larger a_k never lowers the sum.)

    Args:
        class_loss: a, [K].
        weights: w, [K], >= 0.
        epsilon: radius, >= 0.

    Returns:
        float32 [K] in W. The mean weight stays, so unlike the released form this is no larger step in disguise.
    """
    lower = jnp.maximum(weights - epsilon, 0.0)
    capacity = weights + epsilon - lower
    order = jnp.argsort(-class_loss)
    before = jnp.cumsum(capacity[order]) - capacity[order]
    given = jnp.clip(jnp.sum(weights - lower) - before, 0.0, capacity[order])
    return lower + jnp.zeros_like(lower).at[order].set(given)


def robust_kd_worst_case(kl: jax.Array, teacher_class: jax.Array, weights: jax.Array, epsilon: float) -> jax.Array:
    """Return the exact inner maximum of the class-weighted loss over the set of `worst_case_weights`.

    By Danskin's theorem its gradient is that of the loss at the maximising weights, which are held fixed.
    """
    class_loss = jnp.zeros_like(weights).at[teacher_class].add(kl) / len(kl)
    worst = jax.lax.stop_gradient(worst_case_weights(class_loss, weights, epsilon))
    return kd_loss(kl, teacher_class, weights=worst)


def noise_adapted_nll(
    student_logits: jax.Array, teacher_class: jax.Array, adaptation: jax.Array, diagonal: float
) -> jax.Array:
    """Return the cross-entropy with the teacher's possibly wrong classes, through a learned confusion matrix.

    -log sum_k softmax(student_logits)_k M_{k, teacher_class}, where M_kk = `diagonal` and the rest of a row is shared
    out by a softmax over the other classes.

    Args:
        student_logits: [B, K].
        teacher_class: int [B], the teacher's argmax.
        adaptation: [K, K], learned; its diagonal is not used.
        diagonal: share of the teacher's classes that are right, in (0, 1).

    Returns:
        float32 [B].

    Reference: Chen et al., "Learning student networks in the wild", CVPR 2021 (DFND).
    """
    same = jnp.eye(adaptation.shape[0], dtype=bool)
    off = jax.nn.log_softmax(jnp.where(same, -jnp.inf, adaptation.astype(jnp.float32)), axis=-1) + jnp.log1p(-diagonal)
    log_confusion = jnp.where(same, jnp.log(diagonal), off)
    log_probs = jax.nn.log_softmax(student_logits.astype(jnp.float32))
    return -jax.nn.logsumexp(log_probs + log_confusion.T[teacher_class], axis=-1)
