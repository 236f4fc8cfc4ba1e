"""The numbers of an evaluation, against SciPy, PyTorch, and plain loops."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional

from pujax.measures import (
    agreement,
    calibration_error,
    class_table,
    confusion_matrix,
    confusions,
    measure,
    outcomes,
    reliability_table,
    wilson_interval,
)


@pytest.fixture(scope="module")
def answers():
    """Logits float32 [500, 12] and labels that they are right about sometimes."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (500, 12)).astype(np.float32)
    return logits, np.where(rng.random(500) < 0.4, logits.argmax(1), rng.integers(0, 11, 500)).astype(np.int32)


def test_outcomes_are_pytorchs(answers):
    logits, labels = answers
    found = outcomes(logits, labels)
    x, y = torch.from_numpy(logits).double(), torch.from_numpy(labels).long()
    probs = x.softmax(1)
    np.testing.assert_array_equal(found["predicted"], x.argmax(1))
    np.testing.assert_allclose(found["nll"], functional.cross_entropy(x, y, reduction="none"), rtol=1e-12)
    np.testing.assert_allclose(found["confidence"], probs.max(1).values, rtol=1e-12)
    np.testing.assert_allclose(found["brier"], ((probs - functional.one_hot(y, 12)) ** 2).sum(1), rtol=1e-10)
    for k in (1, 5):
        within = (x.topk(k).indices == y[:, None]).any(1)
        np.testing.assert_array_equal(found["rank"] < k, within)


def test_of_equally_likely_classes_the_first_counts():
    found = outcomes(np.float32([[1, 1, 0], [1, 1, 0], [0, 0, 0]]), np.array([0, 1, 2]))
    assert found["rank"].tolist() == [0, 1, 2] and found["predicted"].tolist() == [0, 0, 0]


def test_sure_answers_stay_finite():
    found = outcomes(np.float32([[1e4, -1e4], [1e4, -1e4]]), np.array([0, 1]))
    assert found["nll"].tolist() == [0, 2e4] and found["brier"].tolist() == [0, 2]


def test_agreement_is_pytorchs(answers):
    logits, _ = answers
    other = logits + np.random.default_rng(1).normal(0, 1, logits.shape).astype(np.float32)
    found = agreement(logits, other)
    log_q, log_p = (torch.from_numpy(values).double().log_softmax(1) for values in (logits, other))
    expected = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    np.testing.assert_allclose(found["kl"], expected, rtol=1e-9)
    np.testing.assert_array_equal(found["agrees"], log_q.argmax(1) == log_p.argmax(1))
    same = agreement(logits, logits)
    assert same["agrees"].all() and not same["kl"].any()


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (3, 7), (50, 50), (8354, 10_000)])
def test_the_interval_is_scipys(hits, total):
    expected = scipy.stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, total) == pytest.approx(tuple(expected), abs=1e-12)


def test_nothing_counted_says_nothing():
    assert wilson_interval(0, 0) == (0, 1)


def test_confusions_are_counted(answers):
    logits, labels = answers
    predicted = logits.argmax(1)
    found = confusion_matrix(labels, predicted, 12)
    expected = np.zeros((12, 12), int)
    for k, j in zip(labels, predicted):
        expected[k, j] += 1
    np.testing.assert_array_equal(found, expected)
    wrong = sorted(((int(expected[k, j]), k, j) for k in range(12) for j in range(12) if k != j), reverse=True)
    assert [count for _, _, count in confusions(found, 4)] == [count for count, _, _ in wrong[:4]]
    assert confusions(np.diag([1, 2]), 4) == []


def test_classes_have_their_recall_and_precision():
    rows = class_table(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ("a", "b", "c"))
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert [(row["images"], row["predicted"]) for row in rows] == [(4, 3), (4, 5), (0, 0)]
    assert [row["recall"] for row in rows] == [0.75, 1, None]
    assert [row["precision"] for row in rows] == [1, 0.8, None]
    assert (rows[0]["recall_low"], rows[0]["recall_high"]) == wilson_interval(3, 4)
    assert rows[2]["recall_low"] is None and class_table(np.eye(1, dtype=int), None)[0]["name"] is None


def test_the_calibration_error_is_the_papers(answers):
    """Against a loop over bins that are open to the left and closed to the right, as Guo et al. define them."""
    logits, labels = answers
    found = outcomes(logits, labels)
    confidence, right = found["confidence"], found["rank"] == 0
    expected = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            expected += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    table = reliability_table(confidence, right)
    assert calibration_error(table) == pytest.approx(expected, rel=1e-12)
    assert sum(row["images"] for row in table) == len(labels) and len(table) == 15


def test_an_answer_on_an_edge_is_in_the_bin_below():
    table = reliability_table(np.array([0.5, 0.51, 1.0]), np.array([True, False, True]), bins=2)
    assert [row["images"] for row in table] == [1, 2]
    assert table[1]["accuracy"] == 0.5 and table[1]["confidence"] == pytest.approx(0.755)
    assert calibration_error(table) == pytest.approx((0.5 + 2 * 0.255) / 3)
    assert reliability_table(np.array([0.9]), np.array([True]), bins=2)[0]["accuracy"] is None


def test_everything_of_a_set(answers):
    logits, labels = answers
    columns = outcomes(logits, labels)
    found = measure(columns, labels, names=None, num_classes=12)
    right = logits.argmax(1) == labels
    assert found["accuracy"] == right.mean() and found["images"] == 500
    assert found["lowest_class_accuracy"] == min(right[labels == k].mean() for k in np.unique(labels))
    assert found["top5_accuracy"] > found["accuracy"]
    assert found["calibration"]["nll"] == pytest.approx(columns["nll"].mean())
    assert np.trace(found["confusion"]) == right.sum()
    few = {name: column[:3] for name, column in outcomes(logits[:, :9], np.minimum(labels, 8)).items()}
    assert "top5_accuracy" not in measure(few, np.minimum(labels, 8)[:3], names=None, num_classes=9)
