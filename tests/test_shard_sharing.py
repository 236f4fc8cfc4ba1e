"""Workers that share a score table: every shard once, whoever comes, goes, dies or is slow."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from pujax.artifacts import save_json
from pujax.presence import who
from pujax.score_table import ScoreTable
from pujax.shard_sharing import Claim, choose, share_shards

ROOT = Path(__file__).parent.parent
WORKER = """
import sys, time, os
import numpy as np
from etils import epath
from pujax.score_table import ScoreTable
from pujax.shard_sharing import share_shards
folder, seconds = epath.Path(sys.argv[1]), float(sys.argv[2])
table = ScoreTable(folder / "shards", int(sys.argv[3]), 10)
with share_shards(table, folder / "workers") as shards:
    for start, stop in shards:
        time.sleep(seconds)
        index = np.arange(start, stop)
        if not table.path(start, stop).exists():
            table.write(start, stop, {"key": [f"k{i}" for i in index], "index": index, "score": np.sin(index),
                "teacher_class": index % 3, "teacher_confidence": np.cos(index), "readable": index >= 0,
                "reason": [""] * len(index)})
            with (folder / "log").open("a") as log:
                log.write(f"{os.getpid()} {start}\\n")
table.check()
"""


def start(folder, *, seconds=0.02, images=400):
    command = [sys.executable, "-c", WORKER, str(folder), str(seconds), str(images)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})


def written(folder):
    lines = (folder / "log").read_text().split("\n")[:-1]
    return [tuple(map(int, line.split())) for line in lines]


def shards(*starts):
    return [(at, at + 10) for at in starts]


@pytest.mark.parametrize(
    ("missing", "claimed", "expected"),
    [
        (range(0, 100, 10), (), 0),  # the first of all
        (range(0, 100, 10), (0,), 50),  # the others are being filled from the front: the middle of them
        ((20, 30, 60, 70, 80), (), 60),  # the larger gap
        ((20, 30, 60, 70, 80), (60,), 20),  # what is left of the larger one counts half
        ((90,), (90,), None),
        ((), (), None),
        ((0, 90), (90,), 0),
    ],
)
def test_the_largest_gap_is_gone_on_with(missing, claimed, expected):
    all_of_them = shards(*range(0, 100, 10))
    found = choose(all_of_them, set(shards(*missing)), set(shards(*claimed)))
    assert found == (None if expected is None else (expected, expected + 10))


def test_several_workers_do_every_shard_and_hardly_one_twice(tmp_path):
    workers = [start(tmp_path, seconds=0.1, images=300) for _ in range(3)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    done = [shard for _, shard in written(tmp_path)]
    assert set(done) == set(range(0, 300, 10)) and len(done) <= 32  # a claim that is a moment late costs one
    assert not list((tmp_path / "workers").iterdir())


def test_killed_at_any_moment_and_in_any_number_the_table_is_that_of_one_worker(tmp_path):
    assert start(tmp_path / "one", seconds=0).wait(timeout=60) == 0
    folder, draw = tmp_path / "many", random.Random(0)
    workers, finished = [], {}
    for _ in range(8):
        workers += [start(folder, images=2000, seconds=0.03) for _ in range(draw.randint(1, 3) - len(workers))]
        time.sleep(draw.uniform(0.3, 1.5))
        for path in (folder / "shards").glob("*.parquet"):
            finished.setdefault(path.name, path.stat().st_mtime_ns)
        victim = workers.pop(draw.randrange(len(workers)))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    workers.append(start(folder, images=2000, seconds=0.0))
    assert [worker.wait(timeout=100) for worker in workers] == [0] * len(workers)
    for name, when in finished.items():  # what was finished was never written again
        assert (folder / "shards" / name).stat().st_mtime_ns == when
    table = ScoreTable(epath.Path(folder / "shards"), 2000, 10)
    assert not table.missing(table.shards)
    for path in (tmp_path / "one" / "shards").glob("*.parquet"):
        assert path.read_bytes() == (folder / "shards" / path.name).read_bytes()


def claim(folder, name, shard, **told):
    save_json(
        epath.Path(folder) / "workers" / name,
        {**who(), "shard": list(shard), "writes": None, "done": 0, "images_per_second": 5.0, **told},
    )


def test_the_shard_of_a_dead_worker_is_taken_at_once_and_that_of_a_slow_one_in_time(tmp_path):
    table = ScoreTable(epath.Path(tmp_path) / "shards", 40, 10)
    columns = {"teacher_class": np.zeros(10, int), "teacher_confidence": np.ones(10), "readable": np.ones(10, bool)}
    columns |= {"key": ["k"] * 10, "score": np.ones(10), "reason": [""] * 10}
    claim(tmp_path, "a-dead.json", (10, 20), process=2**22 + 1)  # no such process
    claim(tmp_path, "a-slow.json", (20, 30), host="elsewhere")
    order = []
    with share_shards(table, epath.Path(tmp_path) / "workers") as given:
        for begin, stop in given:
            order.append(begin)
            time.sleep(0.1)
            table.write(begin, stop, columns | {"index": np.arange(begin, stop)})
    assert sorted(order[:2]) == [0, 30] and order[2:] == [10, 20]
    with share_shards(table, epath.Path(tmp_path) / "workers") as given:
        assert list(given) == []


@pytest.mark.parametrize(("rate", "least"), [(100.0, 0.2), (20.0, 1.0)])
def test_who_has_timed_no_shard_waits_as_long_as_the_other_one_s_take(tmp_path, rate, least):
    table = ScoreTable(epath.Path(tmp_path) / "shards", 10, 10)
    claim(tmp_path, "a-slow.json", (0, 10), host="elsewhere", images_per_second=rate)
    began = time.monotonic()
    with share_shards(table, epath.Path(tmp_path) / "workers") as given:
        assert next(given) == (0, 10) and time.monotonic() - began > least
    assert [path.name for path in (tmp_path / "workers").iterdir()] == ["a-slow.json"]


def test_a_shard_that_another_is_still_writing_is_left_to_it(tmp_path):
    table = ScoreTable(epath.Path(tmp_path) / "shards", 30, 10)
    claim(tmp_path, "a-other.json", (10, 20), host="elsewhere", writes=[0, 10])
    with share_shards(table, epath.Path(tmp_path) / "workers") as given:
        assert next(given) == (20, 30)


@pytest.mark.parametrize(
    ("age", "takes", "took", "given_up"),
    [(90, 0, 0, False), (130, 0, 0, True), (30, 10, 0, True), (30, 10, 20, False), (float("inf"), 0, 0, True)],
)
def test_when_a_shard_is_given_up(age, takes, took, given_up):
    assert Claim(age, takes).is_given_up(took) == given_up


def test_a_shard_that_ends_early_is_missing_and_done_again(tmp_path):
    assert start(tmp_path, seconds=0).wait(timeout=60) == 0
    table = ScoreTable(epath.Path(tmp_path) / "shards", 400, 10)
    path = table.path(50, 60)
    path.write_bytes(path.read_bytes()[:-20])
    assert list(table.missing(table.shards)) == [(50, 60)]
    assert table.absent() == set()
    assert start(tmp_path, seconds=0).wait(timeout=60) == 0
    assert written(tmp_path)[40:] == [(written(tmp_path)[-1][0], 50)] and not table.missing(table.shards)
