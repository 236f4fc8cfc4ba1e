"""The score table on disk: shards whole or missing, rows in pool order, damage named."""

import numpy as np
import pytest
from etils import epath

from pujax.artifacts import read_table
from pujax.errors import UserError
from pujax.score_table import ScoreTable, read_selection, write_selection
from pujax.selection import select

OPTIONS = {"threshold": 0.0, "budget": 40, "seed": 3}


def columns(start, stop):
    index = np.arange(start, stop)
    rng = np.random.default_rng(start)
    readable = index % 7 != 3
    return {
        "key": [f"a/{i}" for i in index],
        "index": index,
        "score": np.where(readable, rng.normal(size=len(index)), np.nan).astype(np.float32),
        "teacher_class": (index % 3).astype(np.int32),
        "teacher_confidence": rng.random(len(index)).astype(np.float32),
        "readable": readable,
        "reason": np.where(readable, "", "OSError: truncated").astype(object),
    }


def table(folder, num_images=1000, shard_size=1):
    own = ScoreTable(epath.Path(folder), num_images, shard_size)
    for shard in own.shards:
        own.write(*shard, columns(*shard))
    return own


@pytest.mark.slow
def test_a_thousand_shards_are_chosen_from_as_one(tmp_path):
    many = table(tmp_path / "many")
    many.check()
    assert many.counts() == (857, 143)
    rows = [columns(i, i + 1) for i in range(1000)]
    whole = {name: np.concatenate([row[name] for row in rows]) for name in ("score", "readable")}
    readable = np.flatnonzero(whole["readable"])
    order = readable[np.argsort(-whole["score"][readable], kind="stable")[:40]]
    chosen = select("top_k", many, **OPTIONS)
    assert chosen.tolist() == np.sort(order).tolist()
    write_selection(epath.Path(tmp_path / "selected.parquet"), many, chosen)
    selected = read_table(epath.Path(tmp_path / "selected.parquet"))
    assert selected["key"].to_pylist() == [f"a/{i}" for i in chosen]
    np.testing.assert_array_equal(selected["score"].to_numpy(), whole["score"][chosen])
    path = epath.Path(tmp_path / "selected.parquet")
    assert read_selection(path)["index"].to_pylist() == chosen.tolist()
    path.write_bytes(path.read_bytes()[:-20])
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{path} is damaged, or gone; delete what .*{path.parent.name}/DONE.json"):
            read_selection(path)
        path.unlink(missing_ok=True)


def test_batches_hold_the_asked_columns_of_the_readable_images_in_order(tmp_path):
    own = table(tmp_path, 50, 8)
    for _ in range(2):  # again at every call
        batches = list(own.batches("score"))
        assert all(batch.keys() == {"index", "score"} for batch in batches)
        index = np.concatenate([batch["index"] for batch in batches])
        assert index.tolist() == [i for i in range(50) if i % 7 != 3]
        assert all(np.isfinite(batch["score"]).all() for batch in batches)


def test_unreadable_images_are_listed_with_their_reasons(tmp_path):
    own = table(tmp_path / "shards", 50, 8)
    assert own.first_unreadable() == ("a/3", "OSError: truncated")
    own.write_unreadable(epath.Path(tmp_path / "unreadable.parquet"))
    listed = read_table(epath.Path(tmp_path / "unreadable.parquet")).to_pydict()
    assert listed["index"] == [i for i in range(50) if i % 7 == 3]
    assert listed["key"][0] == "a/3" and set(listed["reason"]) == {"OSError: truncated"}


def test_a_score_that_is_not_finite_names_the_image(tmp_path):
    own, broken = ScoreTable(epath.Path(tmp_path), 20, 10), columns(10, 20)
    broken["score"][4] = np.inf
    with pytest.raises(FloatingPointError, match="the score of pool image a/14 is not finite"):
        own.write(10, 20, broken)
    assert not list(epath.Path(tmp_path).iterdir())


def test_a_shard_cut_short_counts_as_missing_and_is_never_read(tmp_path):
    own = table(tmp_path, 130, 50)
    own.path(100, 130).unlink()
    cut = own.path(50, 100)
    cut.write_bytes(cut.read_bytes()[:-20])
    assert own.missing(own.shards) == [(50, 100), (100, 130)]
    with pytest.raises(RuntimeError, match=r"2 score shards are missing, the first is scores-0000000050-"):
        own.check()
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{cut.name} is damaged, or gone; delete what .*DONE.json"):
            list(own.batches("score"))
        cut.unlink(missing_ok=True)


def test_a_shard_of_other_images_is_refused(tmp_path):
    own = table(tmp_path, 100, 50)
    own.write(50, 100, columns(0, 50))
    with pytest.raises(RuntimeError, match="does not hold images 50 to 99 once each"):
        own.check()
