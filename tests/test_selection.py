"""Selections on a table small enough to check by hand."""

import numpy as np
import pytest

from pujax.selection import SELECTIONS, ScoreTable, select

TABLE = ScoreTable(
    index=np.arange(100, 110),
    pu_logit=np.array([5, 4, 3, 2, 1, 0, -1, -2, -3, 3], np.float32),
    teacher_class=np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2], np.int32),
    teacher_confidence=np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.95], np.float32),
)
OPTIONS = {"threshold": 2.0, "budget": 4, "class_prior": 0.3, "seed": 0}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("threshold", [0, 1, 2, 9]),  # strictly above
        ("top_k", [0, 1, 2, 9]),
        ("prior", [0, 1, 2]),  # row 2 before row 9 at equal score
        ("teacher_confidence", [1, 3, 5, 9]),
        ("mean_rank", [0, 1, 3, 9]),  # ranks 0 + 9, 1 + 1, 4 + 2, 3 + 0; row 5's 6 + 3 comes after row 0's
        ("all", list(range(10))),
    ],
)
def test_by_hand(name, rows):
    assert select(name, TABLE, **OPTIONS).tolist() == rows


def test_class_balanced_shares_the_budget_and_fills_up_from_others():
    assert select("class_balanced", TABLE, **OPTIONS | {"budget": 6}).tolist() == [0, 1, 4, 5, 6, 9]
    # class 1 has two images only: what it cannot give is shared between the others
    assert select("class_balanced", TABLE, **OPTIONS | {"budget": 8}).tolist() == [0, 1, 2, 4, 5, 6, 7, 9]
    assert len(select("class_balanced", TABLE, **OPTIONS | {"budget": 99})) == 10


def test_random_is_seeded_and_without_replacement():
    first, again = (select("random", TABLE, **OPTIONS) for _ in range(2))
    assert first.tolist() == again.tolist() and len(set(first)) == 4
    others = {tuple(select("random", TABLE, **OPTIONS | {"seed": seed})) for seed in range(10)}
    assert len(others) > 1


@pytest.mark.parametrize("name", SELECTIONS)
def test_rows_are_sorted_and_unique(name):
    rows = select(name, TABLE, **OPTIONS)
    assert (np.diff(rows) > 0).all()


def test_an_empty_selection_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"keeps none of 10 images .* lower mining.threshold"):
        select("threshold", TABLE, **OPTIONS | {"threshold": 10.0})
