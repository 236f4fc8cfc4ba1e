"""The class prior from held-out scores of known mixtures."""

import numpy as np
import pytest

from pujax.pu.prior import (
    best_bin,
    class_prior_block,
    density_ratio,
    estimate_class_prior,
    selected_at_random,
    selected_at_random_z,
    share_like_positives,
)

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)


def mixture(seed, rate, *, hard, num_pool=20_000, num_positive=100):
    """Scores with negatives of two kinds; `hard`: a tenth of the positives lie deep among the negatives."""
    rng = np.random.default_rng(seed)

    def positives(n):
        scores = 2.5 - rng.exponential(0.7, n)
        return np.where(rng.random(n) < 0.1, rng.normal(-1, 1, n), scores) if hard else scores

    k = round(rate * num_pool)
    n = num_pool - k
    negatives = np.where(rng.random(n) < 0.3, rng.normal(-0.7, 0.5, n), rng.normal(-2.2, 0.7, n))
    return positives(num_positive), np.concatenate([positives(k), negatives])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("hard", [False, True])
def test_estimate_and_interval(rate, hard):
    estimates = [estimate_class_prior(*mixture(seed, rate, hard=hard), seed=0, num_resamples=20) for seed in range(10)]
    errors = [abs(estimate.class_prior - rate) for estimate in estimates]
    assert np.mean(errors) < 0.01 + 0.05 * rate
    assert max(errors) < (0.04 if hard and rate == 0.2 else 0.02)
    assert sum(estimate.lo <= rate <= estimate.hi for estimate in estimates) >= 8
    assert np.mean([abs(estimate.second - rate) for estimate in estimates]) < 0.005 + 0.2 * rate


def test_an_overlapping_pool_gives_an_upper_bound():
    rng = np.random.default_rng(0)
    pool = rng.normal(0, 1, 10_000)
    estimate, _ = best_bin(rng.normal(0.2, 1, 200), pool)
    assert 0.4 < estimate <= 1  # nearly the whole pool could be positive


def test_equal_scores_do_not_divide_by_zero():
    flat = np.zeros(50)
    assert best_bin(flat, np.zeros(500))[0] == 1
    assert density_ratio(flat, np.zeros(500)) == 1
    assert best_bin(np.ones(50), np.zeros(500))[0] == 1 / 500


def test_a_biased_choice_of_labelled_images_is_noticed():
    """Fair draws do not warn; labelled images that score a little above the pool's positives do."""
    fair = [selected_at_random_z(*mixture(seed, rate, hard=False)) for seed in range(10) for rate in RATES]
    assert max(fair) < 3
    positive, pool = zip(*(mixture(seed, 0.1, hard=False) for seed in range(10)))
    assert min(selected_at_random_z(p + 0.3, u) for p, u in zip(positive, pool)) > 3
    assert np.isfinite(selected_at_random_z(np.ones(50), np.zeros(500)))


def test_a_pool_without_positives_has_none_in_range_and_no_estimate_that_holds():
    positive, pool = mixture(0, 0.0, hard=False)
    assert share_like_positives(positive[None], pool, quantile=0.25) == 0
    assert not selected_at_random(positive, pool)
    positive, pool = mixture(0, 0.05, hard=False)
    assert 0.03 < share_like_positives(positive[None], pool, quantile=0.25) < 0.045  # three quarters
    views = np.stack([positive, positive - 100])
    assert share_like_positives(views, pool, quantile=0.1) == 1  # the view with most counts
    assert selected_at_random(positive, pool)


def test_the_summary_says_whether_the_class_prior_holds():
    positive, pool = mixture(0, 0.05, hard=False)
    for shift, holds in ((0.0, True), (1.0, False)):
        block = class_prior_block(positive + shift, pool, given=None, seed=0)
        assert block["class_prior_holds"] == holds
        given = class_prior_block(positive + shift, pool, given=0.3, seed=0)
        assert given["class_prior_holds"] and given["class_prior"] == 0.3  # the user's word
        assert given["selected_at_random_z"] == block["selected_at_random_z"]
