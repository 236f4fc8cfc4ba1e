"""Relative Mahalanobis distance against plain NumPy, and what it adds to the frozen scorer."""

import numpy as np

from pujax.pu.distance import fit_gaussians, relative_distance


def problem(classes=4, size=6):
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 2, (classes, size))
    labels = rng.integers(0, classes, 80)
    positives = centres[labels] + 0.5 * rng.normal(size=(80, size))
    pool = rng.normal(0, 2, (500, size)) @ rng.normal(size=(size, size))
    spread = {"pool_mean": pool.mean(0), "pool_covariance": np.cov(pool, rowvar=False)}
    return positives, labels, pool, spread


def test_values():
    positives, labels, pool, spread = problem()
    fitted = fit_gaussians(positives, labels, num_classes=4, **spread)
    means = [positives[labels == k].mean(0) for k in range(4)]
    residuals = positives - np.array(means)[labels]
    shared = np.linalg.inv((residuals.T @ residuals + 6 * spread["pool_covariance"]) / 86)
    general = np.linalg.inv(spread["pool_covariance"])
    expected = [
        (x - pool.mean(0)) @ general @ (x - pool.mean(0)) - min((x - m) @ shared @ (x - m) for m in means)
        for x in pool[:20]
    ]
    actual = relative_distance(fitted, pool[:20].astype(np.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


def test_a_class_without_images_changes_nothing():
    positives, labels, pool, spread = problem()
    four, six = (fit_gaussians(positives, labels, num_classes=k, **spread) for k in (4, 6))
    assert six["class_means"].shape == (6, 6)
    np.testing.assert_allclose(relative_distance(four, pool), relative_distance(six, pool), rtol=1e-5)


def test_views_of_one_image_count_as_one():
    rng = np.random.default_rng(0)
    positives, labels = rng.normal(size=(30, 6)), np.arange(30) % 3
    spread = {"num_classes": 3, "pool_mean": np.zeros(6), "pool_covariance": np.diag(np.arange(1.0, 7.0))}
    once = fit_gaussians(positives, labels, **spread)
    thrice = fit_gaussians(np.tile(positives, (3, 1)), np.tile(labels, 3), views=3, **spread)
    for name, value in once.items():
        np.testing.assert_allclose(thrice[name], value, rtol=1e-5, atol=1e-6)
