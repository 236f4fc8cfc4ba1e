"""Relative Mahalanobis distance on features: how much nearer an image is to a labelled class than to the pool at large.

No training: Gaussians with one covariance for all classes, against one Gaussian of the whole pool. It sees what a
positive-unlabelled head does not, the classes, and the two together rank better than either.

Reference: Ren et al., "A simple fix to Mahalanobis distance for improving near-OOD detection", 2021.
"""

import jax
import jax.numpy as jnp
import numpy as np

Gaussians = dict[str, jax.Array]


def fit_gaussians(
    positives: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    pool_mean: np.ndarray,
    pool_covariance: np.ndarray,
    views: int = 1,
) -> Gaussians:
    """Return the class Gaussians beside the pool's.

    A few hundred images cannot fill the classes' common covariance: it is the mean of theirs and of D images more
    that have the pool's, as a prior of that weight (inverse Wishart) would have it.

    Args:
        positives: float [P, D] features of the labelled images.
        labels: int [P], 0..num_classes-1.
        num_classes: K; a class without images takes the place of one that has some.
        pool_mean: [D].
        pool_covariance: [D, D].
        views: how many rows of `positives` show one image: they count as one.

    Returns:
        `class_means` [K, D], `class_whitening` [D, D], `pool_mean` [D], `pool_whitening` [D, D], float32: a squared
        distance is |(x - mean) @ whitening|^2.
    """
    means = np.repeat(positives[labels == labels[0]].mean(0)[None], num_classes, axis=0)
    for k in np.unique(labels):
        means[k] = positives[labels == k].mean(0)
    residuals = positives - means[labels]
    scatter, count = residuals.T @ residuals / views, len(positives) / views
    within = (scatter + len(pool_mean) * pool_covariance) / (count + len(pool_mean))
    return {
        "class_means": means.astype(np.float32),
        "class_whitening": _whitening(within),
        "pool_mean": pool_mean.astype(np.float32),
        "pool_whitening": _whitening(pool_covariance),
    }


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """Return W, float32 [D, D], with W W^T the inverse of the covariance; a small ridge keeps it finite."""
    ridge = 1e-6 * np.trace(covariance) / len(covariance) + 1e-12
    return np.linalg.cholesky(np.linalg.inv(covariance + ridge * np.eye(len(covariance)))).astype(np.float32)


def relative_distance(gaussians: Gaussians, features: jax.Array) -> jax.Array:
    """Return the pool distance minus that to the nearest class, [B] for features [B, D]: larger is more in-domain."""
    centred = features - gaussians["pool_mean"][None]
    to_pool = jnp.sum(jnp.square(centred @ gaussians["pool_whitening"]), axis=-1)
    inputs = centred @ gaussians["class_whitening"]
    centres = (gaussians["class_means"] - gaussians["pool_mean"][None]) @ gaussians["class_whitening"]
    products = jnp.sum(inputs**2, -1)[:, None] - 2 * inputs @ centres.T + jnp.sum(centres**2, -1)[None]
    return to_pool - jnp.min(products, axis=-1)
