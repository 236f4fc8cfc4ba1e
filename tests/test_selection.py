"""Selections: by hand on a small table, and streamed against NumPy's sorting on tables of any shape."""

import contextlib
import tracemalloc

import numpy as np
import pytest

from pujax.errors import UserError
from pujax.selection import RULES, effective_sharpness, select, select_sample

INDEX = np.arange(100, 110)
OPTIONS = {"threshold": 2.0, "budget": 4, "seed": 0}


class Table:
    """A score table in memory, handed out in shards of a given size."""

    def __init__(self, columns, shard_size=3):
        self.columns, self.shard_size = columns, shard_size

    def batches(self, *names):
        for start in range(0, len(self.columns["index"]), self.shard_size):
            yield {name: self.columns[name][start : start + self.shard_size] for name in ("index", *names)}


TABLE = Table({
    "index": INDEX,
    "score": np.array([5, 4, 3, 2, 1, 0, -1, -2, -3, 3], np.float32),
    "teacher_class": np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2], np.int32),
    "teacher_confidence": np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.95], np.float32),
})  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "rows"),
    [
        ("threshold", [0, 1, 2, 9]),  # strictly above
        ("top_k", [0, 1, 2, 9]),
        ("teacher_confidence", [1, 3, 5, 9]),
        ("mean_rank", [0, 1, 3, 9]),  # ranks 0 + 9, 1 + 1, 4 + 2, 2.5 + 0; row 5's 6 + 3 comes after row 0's
        ("all", list(range(10))),
    ],
)
def test_by_hand(rule, rows):
    assert (select(rule, TABLE, **OPTIONS) - 100).tolist() == rows


def test_class_balanced_shares_the_budget_and_fills_up_from_others():
    def rows(budget):
        return (select("class_balanced", TABLE, **OPTIONS | {"budget": budget}) - 100).tolist()

    assert rows(6) == [0, 1, 4, 5, 6, 9]
    # class 1 has two images only: what it cannot give is shared between the others
    assert rows(8) == [0, 1, 2, 4, 5, 6, 7, 9]
    assert len(rows(99)) == 10


def test_an_empty_selection_is_refused_with_a_remedy():
    with pytest.raises(UserError, match=r"select.rule=threshold keeps none of 10 images .* lower select.threshold"):
        select("threshold", TABLE, **OPTIONS | {"threshold": 10.0})


@pytest.mark.parametrize("rule", ["top_k", "teacher_confidence", "mean_rank", "class_balanced", "random", "sample"])
def test_a_budget_of_nothing_is_refused_and_one_of_too_much_keeps_all(rule):
    with pytest.raises(UserError, match=rf"select.rule={rule} keeps none of 10 images .* highest score 5\)"):
        select(rule, TABLE, **OPTIONS | {"budget": 0})
    assert select(rule, TABLE, **OPTIONS | {"budget": 11}).tolist() == INDEX.tolist()


def random_columns(rng, count):
    digits = int(rng.integers(0, 4))  # few digits make many ties
    return {
        "index": np.sort(rng.choice(3 * count, count, replace=False)),
        "score": (np.round(rng.normal(size=count), digits) * rng.choice([1, 1e-30, 1e30])).astype(np.float32),
        "teacher_class": rng.integers(0, 6, count).astype(np.int32) * 2,  # classes between have no image
        "teacher_confidence": np.round(rng.random(count), digits + 1).astype(np.float32),
    }


def highest(values, count):
    return np.sort(np.argsort(-values.astype(np.float64), kind="stable")[:count])


def mid_ranks(values):
    """Ranks from below, ties sharing their mean, of values cut to 24 bits."""
    bits = (values + np.float32(0)).view(np.int32) >> 8
    order = np.where(bits < 0, -(bits & 0x7FFFFF) - 1, bits)
    return np.array([(order < own).sum() + ((order == own).sum() - 1) / 2 for own in order])


def expected(rule, columns, budget):
    """The chosen rows by sorting the whole table."""
    score, confidence, classes = (columns[name] for name in ("score", "teacher_confidence", "teacher_class"))
    if rule == "mean_rank":
        return highest(mid_ranks(score) + mid_ranks(confidence), budget)
    if rule == "class_balanced":
        quotas = {int(k): 0 for k in np.unique(classes)}
        while sum(quotas.values()) < min(budget, len(score)):  # one image a class in turn
            for k in quotas:
                if quotas[k] < (classes == k).sum() and sum(quotas.values()) < min(budget, len(score)):
                    quotas[k] += 1
        rows = {k: np.flatnonzero(classes == k) for k in quotas}
        return np.sort(np.concatenate([rows[k][highest(score[rows[k]], quota)] for k, quota in quotas.items()]))
    return highest(score if rule == "top_k" else confidence, budget)


@pytest.mark.parametrize("rule", ["top_k", "teacher_confidence", "mean_rank", "class_balanced"])
def test_streamed_selections_are_those_of_sorting_the_whole_table(rule):
    rng = np.random.default_rng(0)
    for _ in range(2 if rule == "mean_rank" else 25):
        count = int(rng.integers(1, 300))
        columns, shard_size = random_columns(rng, count), int(rng.integers(1, 60))
        for budget in {1, count // 3 + 1, count, 2 * count}:
            chosen = select(rule, Table(columns, shard_size), **OPTIONS | {"budget": budget})
            assert chosen.tolist() == columns["index"][expected(rule, columns, budget)].tolist()


def test_minus_zero_is_zero_and_equal_scores_go_by_the_pool_order():
    columns = {"index": np.arange(6), "score": np.array([-0.0, 0.0, -0.0, 1, 0.0, -1], np.float32)}
    assert select("top_k", Table(columns, 2), **OPTIONS | {"budget": 3}).tolist() == [0, 1, 3]
    level = {"index": np.arange(1000), "score": np.full(1000, 7, np.float32)}
    assert select("top_k", Table(level, 64), **OPTIONS | {"budget": 130}).tolist() == list(range(130))


def test_a_random_choice_is_uniform_and_the_same_in_shards_of_any_size():
    columns = {"index": np.arange(50)}
    counts = np.zeros(50)
    for seed in range(400):
        chosen = select("random", Table(columns, 7), **OPTIONS | {"budget": 10, "seed": seed})
        assert len(chosen) == 10 and (np.diff(chosen) > 0).all()
        assert (
            chosen.tolist() == select("random", Table(columns, 50), **OPTIONS | {"budget": 10, "seed": seed}).tolist()
        )
        counts[chosen] += 1
    chi_square = ((counts - 80) ** 2 / (80 * 0.8)).sum()
    assert 25 < chi_square < 85  # 49 degrees of freedom: one in a thousand on either side


@pytest.mark.parametrize("rule", RULES)
def test_indices_are_sorted_and_unique(rule):
    assert (np.diff(select(rule, TABLE, **OPTIONS)) > 0).all()


class Made:
    """A table that is made as it is read."""

    def __init__(self, shards):
        self.shards = shards

    def batches(self, *names):
        for i in range(self.shards):
            columns = random_columns(np.random.default_rng(i), 2000)
            yield {name: columns[name] for name in names} | {"index": np.arange(2000 * i, 2000 * (i + 1))}


def peak_memory(rule, table, **options):
    tracemalloc.start()
    with contextlib.suppress(UserError):
        select(rule, table, **OPTIONS | options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("top_k", {"budget": 100}),
        ("random", {"budget": 100}),
        ("mean_rank", {"budget": 100}),
        ("class_balanced", {"budget": 100}),
        ("threshold", {"threshold": 3e38}),  # keeps none; the message tells the highest score
    ],
)
def test_memory_does_not_grow_with_the_table(rule, options):
    assert peak_memory(rule, Made(20), **options) < peak_memory(rule, Made(2), **options) + 100_000


def test_many_classes_take_the_memory_of_one_count_each_and_digit():
    num_classes, rng = 2000, np.random.default_rng(0)
    columns = random_columns(rng, 5000) | {"teacher_class": rng.permutation(5000).astype(np.int32) % num_classes}
    assert peak_memory("class_balanced", Table(columns, 500), budget=100) < 1.3 * 8 * 4096 * num_classes


def drawn_shares(scores, budget, sharpness, draws=1500):
    table = Table({"index": np.arange(len(scores)), "score": np.asarray(scores, np.float32)})
    chosen = np.concatenate([select_sample(table, budget, seed, sharpness) for seed in range(draws)])
    return np.bincount(chosen, minlength=len(scores)) / draws


@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_a_draw_of_one_follows_the_weights(sharpness):
    scores = np.array([-1.0, 0.0, 0.25, 1.5, -30.0])
    weights = np.exp(sharpness * scores) / np.exp(sharpness * scores).sum()
    np.testing.assert_allclose(drawn_shares(scores, 1, sharpness), weights, atol=0.05)


def test_a_draw_of_two_is_without_replacement():
    """The chance of being first or second, of weights 1, 2 and 3, by hand."""
    weights = np.array([1, 2, 3]) / 6
    second = [sum(weights[j] * weights[i] / (1 - weights[j]) for j in range(3) if j != i) for i in range(3)]
    np.testing.assert_allclose(drawn_shares(np.log([1, 2, 3]), 2, 1.0), weights + second, atol=0.05)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_sharpness_that_is_found_has_the_budget_as_effective_sample_size(scale):
    scores = (np.random.default_rng(0).normal(size=3000) - 4) * scale
    table = Table({"index": np.arange(3000), "score": scores.astype(np.float32)}, shard_size=700)
    for size in (30, 300, 2000):
        weights = np.exp(effective_sharpness(table, size) * (scores - scores.max()))
        assert weights.sum() ** 2 / (weights**2).sum() == pytest.approx(size, rel=0.03)
        chosen = select("sample", table, budget=size, seed=1)
        assert len(chosen) == size and scores[chosen].mean() > scores.mean() + 0.2 * scale
    assert np.array_equal(chosen, select_sample(Table(table.columns, shard_size=11), 2000, 1))


def test_a_sharp_draw_takes_the_best():
    assert select("sample", TABLE, budget=4, sharpness=1e6).tolist() == select("top_k", TABLE, budget=4).tolist()
