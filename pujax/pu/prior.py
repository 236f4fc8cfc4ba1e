"""How many of the pool are positives: the class prior, estimated from held-out scores.

The positives' scores must come from models that did not train on them, and so must the pool's.
"""

from dataclasses import dataclass

import numpy as np

LARGEST_Z = 2.0  # for its error rates see docs/notebook.md
ENOUGH = 10  # pool images that score like the upper half of the positives, for a test to say anything


@dataclass(frozen=True)
class PriorEstimate:
    """The class prior, its interval, and a second opinion."""

    class_prior: float
    lo: float
    hi: float
    second: float


def best_bin(positive: np.ndarray, pool: np.ndarray, *, caution: float = 4.0) -> tuple[float, float]:
    """Estimate the class prior by the cleanest top part of the scores (Best Bin Estimation).

    For any score c, F_u(c) / F_p(c) >= pi with F the shares scoring at least c, and equality where no negative does.
    The c is taken that minimises the upper confidence bound (F_u + caution s_u) / (F_p - caution s_p), s the binomial
    standard errors; a small `caution` falls for a top that is thin by chance and estimates too low.

    Args:
        positive: [P] held-out scores of positives.
        pool: [U] held-out scores of the unlabelled.
        caution: standard errors in the bound.

    Returns:
        (estimate in (0, 1], its binomial standard error at the chosen c).

    Reference: Garg et al., "Mixture proportion estimation and PU learning: a modern approach", NeurIPS 2021.
    Note: they bound both shares by Hoeffding's inequality, which is too wide for a hundred positives.
    """
    cuts = np.sort(positive)
    share_positive = np.arange(len(cuts), 0, -1) / len(cuts)
    share_pool = 1 - np.searchsorted(np.sort(pool), cuts, "left") / len(pool)
    error_positive, error_pool = _binomial_error(share_positive, len(cuts)), _binomial_error(share_pool, len(pool))
    floor = np.maximum(share_positive - caution * error_positive, 1e-9)
    best = int(np.argmin((share_pool + caution * error_pool) / floor))
    estimate = float(np.clip(share_pool[best] / share_positive[best], 1 / len(pool), 1.0))
    relative = np.hypot(error_positive / share_positive, error_pool / np.maximum(share_pool, 1 / len(pool)))
    return estimate, float(estimate * relative[best])


def _binomial_error(share: np.ndarray, count: int) -> np.ndarray:
    """Return standard errors of shares observed in `count` draws; never less than one draw's worth."""
    return np.sqrt(np.maximum(share * (1 - share), 1 / count) / count)


def density_ratio(positive: np.ndarray, pool: np.ndarray, *, grid_size: int = 200) -> float:
    """Estimate the class prior as the smallest ratio of the pool's to the positives' score density.

    Densities are Gaussian kernel estimates with one bandwidth, compared between the 10th and the 95th percentile of the
    positives; the 5th percentile of the ratio stands for its minimum, which noise would pull down.

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
        return best_bin(positive, pool)[0]
    grid = np.linspace(low, high, grid_size)
    bandwidth = len(positive) ** -0.2 * positive.std()  # Scott's rule
    ratio = _density(pool, grid, bandwidth) / _density(positive, grid, bandwidth)
    return float(np.clip(np.quantile(ratio, 0.05), 1 / len(pool), 1.0))


def _density(scores: np.ndarray, grid: np.ndarray, bandwidth: float) -> np.ndarray:
    """Return the Gaussian kernel density of scores at the grid points."""
    near = scores[(scores > grid[0] - 5 * bandwidth) & (scores < grid[-1] + 5 * bandwidth)]
    kernels = np.exp(-0.5 * ((grid[:, None] - near[None]) / bandwidth) ** 2)
    return kernels.sum(1) / (len(scores) * bandwidth * np.sqrt(2 * np.pi))


def selected_at_random_z(positive: np.ndarray, pool: np.ndarray) -> float:
    """Test the assumption of selection completely at random; return a z-score, suspicious above 3.

    If the labelled images are a random sample of the positives (selected completely at random) and the best scores are
    all positives, then F_u(c) / F_p(c) is level, at the class prior, from some c up. Compared are its values at the
    median of the positives and at their upper fifth. A ratio that falls on towards the top means that labelled images
    score above everything in the pool, so they differ from its positives in kind (style, resolution, compression), or
    that negatives reach the median. In both cases the estimate of the class prior is not to be trusted.

    Args:
        positive: [P] held-out scores of positives.
        pool: [U] held-out scores of the unlabelled.
    """
    wide, top = np.quantile(positive, [0.5, 0.8])
    counts = [np.array([(scores >= wide).sum(), (scores >= top).sum()]) for scores in (positive, pool)]
    (wide_positive, top_positive), (wide_pool, top_pool) = counts
    share = top_positive / wide_positive  # of those above the median, as it should be in the pool
    if share == 1 or wide_pool == 0:
        return 0.0
    variance = wide_pool * share * (1 - share) * (1 + wide_pool / wide_positive)  # binomial, and that of `share`
    return float((wide_pool * share - top_pool) / np.sqrt(variance))


def selected_at_random(positive: np.ndarray, pool: np.ndarray) -> bool:
    """Return whether the class prior can be estimated: the test passes, and there are pool images to test it on."""
    if np.sum(pool >= np.median(positive)) < ENOUGH:
        return False
    return selected_at_random_z(positive, pool) <= LARGEST_Z


def share_like_positives(positive: np.ndarray, pool: np.ndarray, *, quantile: float) -> float:
    """Return the share of the pool that scores like the positives, in that view of them where it is largest.

    Under selection at random it is at least 1 - quantile times the class prior, and more by those negatives that are
    hard to tell from positives.

    Args:
        positive: [V, P] held-out scores of positives in V views.
        pool: [U] held-out scores of the unlabelled.
        quantile: share of the positives that may score lower.
    """
    return float(max(np.mean(pool >= np.quantile(view, quantile)) for view in positive))


def estimate_class_prior(
    positive: np.ndarray, pool: np.ndarray, *, seed: int, num_resamples: int = 100
) -> PriorEstimate:
    """Return `best_bin`, bagged, with a 95 % interval, and `density_ratio` as a cross-check.

    The estimate is the median over bootstrap resamples of positives and pool, each of which chooses its own c; a single
    choice of c from a hundred positives is at the mercy of a few of them. The interval is the estimate plus or minus
    1.96 standard errors: the larger of the bootstrap's and the binomial one. Where the second estimate lies outside,
    the interval is widened to hold it: the two go wrong in different ways.

    Args:
        positive: [P] held-out scores of positives.
        pool: [U] held-out scores of the unlabelled.
        seed: of the bootstrap.
        num_resamples: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    _, error = best_bin(positive, pool)
    resampled = [
        best_bin(rng.choice(positive, len(positive)), rng.choice(pool, len(pool)))[0] for _ in range(num_resamples)
    ]
    estimate = float(np.median(resampled))
    half = 1.96 * max(error, float(np.std(resampled)))
    second = density_ratio(positive, pool)
    lo, hi = max(min(estimate - half, second), 0.0), min(max(estimate + half, second), 1.0)
    return PriorEstimate(estimate, lo, hi, second)


def class_prior_block(
    positive: np.ndarray, pool: np.ndarray, *, given: float | None, seed: int
) -> dict[str, float | list[float] | None]:
    """Return what the summary says of the class prior, given or estimated: its interval, test, whether it holds.

    Args:
        positive: [P] held-out scores of positives.
        pool: [U] held-out scores of the unlabelled.
        given: the user's class prior, or None to estimate it.
        seed: of the bootstrap.
    """
    test = {"selected_at_random_z": selected_at_random_z(positive, pool)}
    if given is not None:
        return {"class_prior": given, "class_prior_interval": None, "class_prior_holds": True, **test}
    estimate = estimate_class_prior(positive, pool, seed=seed)
    return {
        "class_prior": estimate.class_prior,
        "class_prior_interval": [estimate.lo, estimate.hi],
        "class_prior_second": estimate.second,
        "class_prior_holds": selected_at_random(positive, pool),
        **test,
    }
