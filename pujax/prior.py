"""How many of the pool are positives: the class prior, estimated from held-out scores.

The positives' scores must come from models that did not train on them, and so must the pool's.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import gaussian_kde


@dataclass(frozen=True)
class PriorEstimate:
    """The class prior, its interval, and a second opinion."""

    class_prior: float
    lo: float
    hi: float
    second: float


def best_bin(positive: np.ndarray, pool: np.ndarray, *, caution: float = 1.0) -> float:
    """Estimate the class prior by the cleanest top part of the scores (Best Bin Estimation).

    For any score c, F_u(c) / F_p(c) >= pi with F the shares above c, and equality where no negative scores above
    c. The c is taken that minimises the upper confidence bound
    (F_u + caution s_u) / (F_p - caution s_p), s the binomial standard errors, so that few positives do not mislead it.

    Args:
        positive: [P] held-out scores of positives.
        pool: [U] held-out scores of the unlabelled.
        caution: standard errors in the bound.

    Returns:
        The estimate, in (0, 1].

    Reference: Garg et al., "Mixture proportion estimation and PU learning: a modern approach", NeurIPS 2021.
    Note: they bound both shares by Hoeffding's inequality, too wide for a hundred positives.
    """
    cuts = np.sort(positive)
    share_positive = np.arange(len(cuts), 0, -1) / len(cuts)
    share_pool = 1 - np.searchsorted(np.sort(pool), cuts, "left") / len(pool)
    error_positive = np.sqrt(np.maximum(share_positive * (1 - share_positive), 1 / len(cuts)) / len(cuts))
    error_pool = np.sqrt(np.maximum(share_pool * (1 - share_pool), 1 / len(pool)) / len(pool))
    floor = share_positive - caution * error_positive
    bound = np.where(floor > 0, (share_pool + caution * error_pool) / np.maximum(floor, 1e-9), np.inf)
    best = int(np.argmin(bound))
    return float(np.clip(share_pool[best] / share_positive[best], 1 / len(pool), 1.0))


def density_ratio(positive: np.ndarray, pool: np.ndarray, *, grid_size: int = 200) -> float:
    """Estimate the class prior as the smallest ratio of the pool's to the positives' score density.

    Densities are Gaussian kernel estimates on ranks of the pool's scores; the minimum is taken where a tenth of the
    positives or more score at least as high, and smoothed by a running median.

    Args:
        positive: [P] held-out scores.
        pool: [U] held-out scores.
        grid_size: points at which the densities are compared.

    Returns:
        The estimate, in (0, 1].

    Reference: Ivanov, "DEDPUL: difference-of-estimated-densities-based positive-unlabeled learning", ICMLA 2020.
    """
    low, high = np.quantile(positive, [0.1, 0.95])
    if high <= low:
        return best_bin(positive, pool)
    grid = np.linspace(low, high, grid_size)
    bandwidth = gaussian_kde(positive).factor * positive.std()
    ratio = _density(pool, grid, bandwidth) / _density(positive, grid, bandwidth)
    return float(np.clip(np.quantile(ratio, 0.05), 1 / len(pool), 1.0))


def _density(scores: np.ndarray, grid: np.ndarray, bandwidth: float) -> np.ndarray:
    """Return the Gaussian kernel density of scores at the grid points."""
    near = scores[(scores > grid[0] - 5 * bandwidth) & (scores < grid[-1] + 5 * bandwidth)]
    kernels = np.exp(-0.5 * ((grid[:, None] - near[None]) / bandwidth) ** 2)
    return kernels.sum(1) / (len(scores) * bandwidth * np.sqrt(2 * np.pi))


def estimate_class_prior(
    positive: np.ndarray, pool: np.ndarray, *, seed: int, num_resamples: int = 200, confidence: float = 0.95
) -> PriorEstimate:
    """Return `best_bin` with a bootstrap interval, and `density_ratio` as a cross-check.

    Args:
        positive: [P] held-out scores of positives.
        pool: [U] held-out scores of the unlabelled.
        seed: of the bootstrap.
        num_resamples: of positives and pool, both with replacement; each resample chooses its own cut.
        confidence: of the interval.
    """
    rng = np.random.default_rng(seed)
    estimate = best_bin(positive, pool)
    resampled = [
        best_bin(rng.choice(positive, len(positive)), rng.choice(pool, len(pool))) for _ in range(num_resamples)
    ]
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(resampled, [tail, 1 - tail])
    return PriorEstimate(estimate, float(lo), float(hi), density_ratio(positive, pool))
