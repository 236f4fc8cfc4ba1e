"""Losses against NumPy float64: values and gradients, away from the default settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import losses as reference
from scipy.optimize import linprog

from benchmarks import other_losses
from pujax import kd_losses
from pujax.metrics import auc
from pujax.pu import losses

RNG = np.random.default_rng(0)
LABELLED = RNG.random(40) < 0.3
UNSURE = RNG.normal(0, 1.5, 40)  # the negative risk is positive
OVERFITTED = np.where(LABELLED, 4.0, -4.0) + RNG.normal(0, 0.3, 40)  # the negative risk is clipped at large priors

NON_NEGATIVE = [
    (z, prior, beta, gamma, surrogate)
    for z in (UNSURE, OVERFITTED)
    for prior, beta, gamma in ((0.3, 0.0, 1.0), (0.6, 0.05, 0.7), (0.05, 0.01, 2.0))
    for surrogate in ("sigmoid", "logistic")
]


def check(function, z, expected):
    value, grad = jax.value_and_grad(lambda z: function(z)[0])(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("z", "prior", "beta", "gamma", "surrogate"), NON_NEGATIVE)
@pytest.mark.parametrize("name", ["nnpu", "balanced_nnpu"])
def test_non_negative_risks(name, z, prior, beta, gamma, surrogate):
    options = {"class_prior": prior, "beta": beta, "gamma": gamma, "surrogate": surrogate}
    expected = getattr(reference, name)(z, LABELLED, prior, beta, gamma, surrogate)
    loss = losses.make_pu_loss(name, **options)
    check(lambda x: loss(x, jnp.asarray(LABELLED)), z, expected)


def test_both_branches_are_among_the_cases():
    clipped = [
        float(losses.nnpu_risk(jnp.asarray(z), LABELLED, class_prior=p, beta=b, gamma=g, surrogate=s)[1]["clipped"])
        for z, p, b, g, s in NON_NEGATIVE
    ]
    assert 0 < sum(clipped) < len(clipped)


@pytest.mark.parametrize("surrogate", ["sigmoid", "logistic"])
def test_unbiased_risk(surrogate):
    expected = reference.upu(OVERFITTED, LABELLED, 0.6, surrogate)
    check(lambda x: other_losses.upu_risk(x, LABELLED, class_prior=0.6, surrogate=surrogate), OVERFITTED, expected)
    if surrogate == "logistic":
        assert expected[0] < 0  # what the non-negative form exists for


@pytest.mark.parametrize("z", [UNSURE, OVERFITTED], ids=["unsure", "overfitted"])
def test_prior_free_and_distribution_risks(z):
    check(lambda x: losses.labelled_vs_unlabelled(x, LABELLED), z, reference.labelled_vs_unlabelled(z, LABELLED))
    check(lambda x: other_losses.vpu_risk(x, LABELLED), z, reference.vpu(z, LABELLED))
    check(lambda x: other_losses.dist_pu_risk(x, LABELLED, class_prior=0.2), z, reference.dist_pu(z, LABELLED, 0.2))


@pytest.mark.parametrize("name", [*losses.PU_LOSSES, "upu", "vpu", "dist_pu"])
@pytest.mark.parametrize("mask", [np.ones(6, bool), np.zeros(6, bool)], ids=["no unlabelled", "no labelled"])
def test_gradients_stay_finite(name, mask):
    z = jnp.array([-1e4, -50.0, 0.0, 1e-30, 50.0, 1e4])
    options = {"class_prior": 0.1, "beta": 0.0, "gamma": 1.0, "surrogate": "logistic"}
    loss = other_losses.any_pu_loss(name, **options)
    value, grad = jax.value_and_grad(lambda x: loss(x, jnp.asarray(mask))[0])(z)
    assert np.isfinite(value) and np.isfinite(grad).all()


def linear_scorer_auc(name, surrogate, prior, steps=3000):
    """Train a one-layer net on two overlapping clusters with a small share of positives; AUC of pool truth."""
    rng = np.random.default_rng(1)
    truth = rng.random(4000) < prior
    pool = rng.normal(0, 1, (4000, 2)) + np.where(truth[:, None], [1.5, 0.0], [-1.5, 0.0])
    pool[~truth & (rng.random(4000) < 0.4)] += [2.5, 2.5]  # some negatives lie beside the positives
    positives = rng.normal([1.5, 0.0], 1, (200, 2))
    data = jnp.asarray(np.concatenate([positives, pool]), jnp.float32)
    labelled = jnp.arange(len(data)) < 200
    options = {"class_prior": prior, "beta": 0.0, "gamma": 1.0, "surrogate": surrogate}

    def logits(params):
        return jnp.tanh(data @ params["w1"] + params["b1"][None]) @ params["w2"] + params["b2"]

    rngs = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(rngs[0], (2, 16)),
        "b1": jnp.zeros(16),
        "w2": 0.3 * jax.random.normal(rngs[1], (16,)),
        "b2": jnp.zeros(()),
    }
    loss = losses.make_pu_loss(name, **options)
    grad = jax.grad(lambda p: loss(logits(p), labelled)[0])

    @jax.jit
    def train(params):
        return jax.lax.fori_loop(0, steps, lambda _, p: jax.tree.map(lambda x, g: x - 0.5 * g, p, grad(p)), params)

    scores = np.asarray(logits(train(params)))
    return auc(scores[200:][truth], scores[200:][~truth]), float((scores[:200] > 0).mean())


def test_the_released_risk_collapses_at_a_small_prior_and_balanced_losses_do_not():
    ranking, recall = linear_scorer_auc("nnpu", "sigmoid", 0.02)
    assert recall < 0.4 and ranking < 0.92  # most is called negative, the labelled positives too
    for name in ("balanced_nnpu", "labelled_vs_unlabelled"):
        ranking, recall = linear_scorer_auc(name, "logistic", 0.02)
        assert recall > 0.85 and ranking > 0.95


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_kl_with_temperature(temperature):
    student, teacher = RNG.normal(0, 3, (5, 7)), RNG.normal(0, 3, (5, 7))
    expected, slope = reference.kl(student, teacher, temperature)
    function = lambda s: kd_losses.kl_from_logits(s, jnp.asarray(teacher, jnp.float32), temperature)  # noqa: E731
    np.testing.assert_allclose(function(jnp.asarray(student, jnp.float32)), expected, rtol=1e-6)
    grad = jax.grad(lambda s: function(s).sum())(jnp.asarray(student, jnp.float32))
    np.testing.assert_allclose(grad, slope, rtol=1e-6, atol=1e-6)


def test_kl_of_certain_teachers_is_finite():
    grad = jax.grad(lambda s: kd_losses.kl_from_logits(s, jnp.array([[1e4, -1e4, 0.0]]), 2.0).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(grad).all()


def test_class_weights_average_one_and_survive_an_empty_class():
    mass = np.array([10.0, 20.0, 0.0, 40.0])
    weights = np.asarray(kd_losses.class_weights_from_mass(mass))
    assert weights.sum() == pytest.approx(4) and np.isfinite(weights).all()
    full = np.array([10.0, 20.0, 5.0, 40.0])
    np.testing.assert_allclose(kd_losses.class_weights_from_mass(full), 4 / full / (1 / full).sum(), rtol=1e-6)


def robust_case(seed, num_classes=6):
    rng = np.random.default_rng(seed)
    kl, teacher_class = rng.exponential(1, 30), rng.integers(0, num_classes, 30)
    weights = rng.uniform(0.02, 2, num_classes)
    class_loss = np.bincount(teacher_class, kl, num_classes) / 30
    return kl, teacher_class, weights, class_loss


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 3.0])
def test_worst_case_is_the_exact_maximum(seed, epsilon):
    kl, teacher_class, weights, class_loss = robust_case(seed, num_classes=6 + seed % 2)
    bounds = [(max(0, w - epsilon), w + epsilon) for w in weights]
    best = linprog(-class_loss, A_eq=np.ones((1, len(weights))), b_eq=[weights.sum()], bounds=bounds)
    function = lambda k: kd_losses.robust_kd_worst_case(  # noqa: E731
        k, jnp.asarray(teacher_class), jnp.asarray(weights, jnp.float32), epsilon
    )
    value, grad = jax.value_and_grad(function)(jnp.asarray(kl, jnp.float32))
    assert value == pytest.approx(-best.fun, rel=1e-6)
    np.testing.assert_allclose(grad, best.x[teacher_class] / 30, rtol=1e-5, atol=1e-7)
    chosen = kd_losses.worst_case_weights(
        jnp.asarray(class_loss, jnp.float32), jnp.asarray(weights, jnp.float32), epsilon
    )
    assert float(chosen.sum()) == pytest.approx(weights.sum(), rel=1e-5)


def test_paper_form_takes_the_largest_and_with_one_perturbation_always_the_perturbed():
    kl, teacher_class, weights, _ = robust_case(0)
    weight_set = kd_losses.perturbed_weights(jax.random.key(0), weights, 0.1, 3)
    assert weight_set.shape == (4, 6)
    added = weight_set[1:] - weight_set[:1]
    assert ((added >= 0) & (added <= 0.1001)).all()
    expected = max((np.asarray(row)[teacher_class] * kl).mean() for row in weight_set)
    assert float(kd_losses.robust_kd_paper(jnp.asarray(kl), teacher_class, weight_set)) == pytest.approx(
        expected, rel=1e-6
    )
    plain = float(kd_losses.kd_loss(jnp.asarray(kl), teacher_class, weights=jnp.asarray(weights)))
    assert plain == pytest.approx((weights[teacher_class] * kl).mean(), rel=1e-6)
    assert expected > plain


def test_masked_mean_ignores_padding_and_counts_real_examples():
    values, mask = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])
    assert kd_losses.masked_mean(values, mask) == 2
    assert kd_losses.masked_mean(values, jnp.zeros(3, bool)) == 0
    assert kd_losses.masked_mean(jnp.append(values, 5.0), jnp.append(mask, True)) == 3


def test_noise_adaptation_against_the_written_out_matrix():
    student, adaptation = RNG.normal(0, 2, (12, 5)), RNG.normal(size=(5, 5))
    teacher_class = RNG.integers(0, 5, 12)

    def ours(student, adaptation):
        return jnp.sum(other_losses.noise_adapted_nll(student, jnp.asarray(teacher_class), adaptation, 0.8))

    arguments = [jnp.asarray(x, jnp.float32) for x in (student, adaptation)]
    expected = reference.noise_adapted_nll(student, teacher_class, adaptation, 0.8).sum()
    np.testing.assert_allclose(ours(*arguments), expected, rtol=1e-6)
    for i, grad in enumerate(jax.grad(ours, (0, 1))(*arguments)):
        for at in [(0, 1), (3, 3), (4, 0)]:
            values = []
            for step in (1e-5, -1e-5):
                moved = [student.copy(), adaptation.copy()]
                moved[i][at] += step
                values.append(reference.noise_adapted_nll(moved[0], teacher_class, moved[1], 0.8).sum())
            np.testing.assert_allclose(grad[at], (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-6)
