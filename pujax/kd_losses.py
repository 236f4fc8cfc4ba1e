"""Robust knowledge distillation as pure functions of logits, in float32.

Means are over the whole (global) batch, never over per-device parts.
"""

import jax
import jax.numpy as jnp


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean of `values` [B] where `mask` [B] is True; 0 if it is nowhere."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


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
    return jnp.concatenate([weights[None], weights[None] + noise])


def kd_loss(kl: jax.Array, teacher_class: jax.Array, *, weights: jax.Array) -> jax.Array:
    """Return mean_x w_{k(x)} KL(x), from kl [B], teacher_class int [B] (the teacher's argmax) and weights [K]."""
    return jnp.mean(weights[teacher_class] * kl)


def robust_kd_paper(kl: jax.Array, teacher_class: jax.Array, weight_set: jax.Array) -> jax.Array:
    """Return the largest of the weighted losses over the rows of `weight_set` [m + 1, K]."""
    return jnp.max(jnp.mean(weight_set[:, teacher_class] * kl[None], axis=-1))


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
