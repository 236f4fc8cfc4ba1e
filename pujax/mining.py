"""Stage 3: score the whole pool, shard by shard, then choose from the table of scores.

A shard is the unit of work and of retry: its file appears whole or not at all, and whoever runs next does the missing
ones. Processes share the shards out and do not talk while they score. The choice is a pure function of the
table and can be made again in seconds.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from pujax.config import Config
from pujax.data.sources import ImageSource, open_source
from pujax.inference import map_images
from pujax.metrics import MetricsLog, Progress
from pujax.scorer import make_score_fn
from pujax.selection import ScoreTable, select
from pujax.sharding import barrier, is_main_process, make_mesh, replicate

_FIELDS = ("index", "pu_logit", "teacher_class", "teacher_confidence")


def run(config: Config, workdir: Path, mesh: Mesh, log: MetricsLog, *, class_prior: float) -> dict[str, Any]:
    """Leave `shards/*.parquet` and `selected.parquet` in the stage's folder; return the summary block."""
    pool = open_source(config.data.pool, config.data, labelled=False)
    folder = workdir / "mine" / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    images_per_second = score_pool(config, workdir, folder, pool)
    barrier("mining")
    table, unreadable = read_scores(folder, num_images=len(pool), shard_size=config.mining.shard_size)
    if unreadable > config.mining.max_unreadable * len(pool):
        raise ValueError(
            f"{unreadable} of {len(pool)} pool images do not decode, the first is {first_unreadable(folder)}; "
            f"remove them or raise --config.mining.max_unreadable ({config.mining.max_unreadable})"
        )
    rows = select_rows(config, table, class_prior)
    if is_main_process():
        write_selection(workdir / "mine" / "selected.parquet", pool, table, rows)
    block = {
        "pool_images": len(pool),
        "scored": len(table.index),
        "unreadable": unreadable,
        "selected": len(rows),
        "threshold": float(table.pu_logit[rows].min()),  # the lowest logit among the chosen
        "images_per_second": images_per_second,
    }
    return block | truth_block(pool, table.index[rows])


def select_rows(config: Config, table: ScoreTable, class_prior: float) -> np.ndarray:
    """Return the chosen rows of the table under the config's rule."""
    return select(
        config.mining.selection,
        table,
        threshold=config.mining.threshold,
        budget=config.mining.budget or max(round(class_prior * len(table.index)), 1),
        class_prior=class_prior,
        seed=config.seed,
    )


def truth_block(pool: ImageSource, chosen: np.ndarray) -> dict[str, float]:
    """Return precision and recall of the chosen pool indices [n], where the pool carries truth for evaluation."""
    if pool.truth is None:
        return {}
    hits = int(pool.truth[chosen].sum())
    return {"precision": hits / len(chosen), "recall": hits / max(int(pool.truth.sum()), 1)}


def score_pool(config: Config, workdir: Path, folder: Path, pool: ImageSource) -> float:
    """Score this process's missing shards; return images per second over them (0 if there were none)."""
    shards = shard_ranges(len(pool), config.mining.shard_size)
    own = [shard for i, shard in enumerate(shards) if i % jax.process_count() == jax.process_index()]
    missing = missing_shards(folder, own)
    if not missing:
        return 0.0
    mesh = make_mesh(jax.local_devices())
    fn, arguments = make_score_fn(config, workdir)
    score = jax.jit(fn)
    arguments = replicate(mesh, arguments)
    total = sum(stop - start for start, stop in missing)
    progress = Progress("mine", total, "image", enabled=is_main_process())
    for start, stop in missing:
        write_shard(shard_path(folder, start, stop), config, pool, score, arguments, mesh, start, stop, progress)
    rate = progress.rate()
    progress.close()
    return rate


def missing_shards(folder: Path, shards: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return those of the shards whose file is not there, or does not end as it should."""

    def is_whole(start: int, stop: int) -> bool:
        try:
            return pq.read_metadata(shard_path(folder, start, stop)).num_rows == stop - start
        except (FileNotFoundError, pa.ArrowInvalid):
            return False

    return [shard for shard in shards if not is_whole(*shard)]


def shard_ranges(num_images: int, shard_size: int) -> list[tuple[int, int]]:
    """Return the [start, stop) of every shard."""
    return [(start, min(start + shard_size, num_images)) for start in range(0, num_images, shard_size)]


def shard_path(folder: Path, start: int, stop: int) -> Path:
    """Return the file of a shard; its name says which images it holds."""
    return folder / f"scores-{start:010d}-{stop:010d}.parquet"


def write_shard(
    path: Path,
    config: Config,
    pool: ImageSource,
    score: Any,
    arguments: Any,
    mesh: Mesh,
    start: int,
    stop: int,
    progress: Progress,
) -> None:
    """Score images start..stop-1 and write their table, under a temporary name first."""
    readable = np.zeros(stop - start, bool)

    def read(rows: np.ndarray) -> np.ndarray:
        images, readable[rows] = pool.read(start + rows)
        return images

    scores = map_images(
        score, arguments, read, stop - start, batch_size=config.mining.batch_size, mesh=mesh, progress=progress
    )
    index = np.arange(start, stop)
    columns = {"key": pool.keys(index), "index": index, **scores, "readable": readable}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(pa.table(columns), temporary)
    os.replace(temporary, path)


def read_scores(folder: Path, *, num_images: int, shard_size: int) -> tuple[ScoreTable, int]:
    """Return the table of the readable images of all shards, in pool order, and the number of unreadable ones.

    Raises:
        ValueError: a shard is damaged.
        RuntimeError: a shard is missing, or the shards do not hold every image exactly once.
    """
    paths = [shard_path(folder, start, stop) for start, stop in shard_ranges(num_images, shard_size)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise RuntimeError(f"{len(missing)} score shards are missing, the first is {missing[0]}; run the command again")
    tables = pa.concat_tables([_read_shard(path) for path in paths])
    columns = {name: tables[name].to_numpy() for name in (*_FIELDS, "readable")}
    if not np.array_equal(columns["index"], np.arange(num_images)):
        raise RuntimeError(f"the shards in {folder} do not hold every pool image exactly once")
    readable = columns.pop("readable")
    table = ScoreTable(**{name: column[readable] for name, column in columns.items()})
    return table, int((~readable).sum())


def _read_shard(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, columns=[*_FIELDS, "readable"])
    except (OSError, pa.ArrowInvalid) as error:
        done = path.parent.parent / "DONE.json"
        raise ValueError(f"{path} is damaged; delete it and {done}, and run the command again") from error


def first_unreadable(folder: Path) -> str:
    """Return the key of the first image that did not decode."""
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path, columns=["key"], filters=[("readable", "==", False)])
        if len(table):
            return table["key"][0].as_py()
    return ""


def write_selection(path: Path, pool: ImageSource, table: ScoreTable, rows: np.ndarray) -> None:
    """Write key, index and scores of the chosen images."""
    columns = {name: getattr(table, name)[rows] for name in _FIELDS}
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.table({"key": pool.keys(columns["index"]), **columns}), temporary)
    os.replace(temporary, path)


def read_selection(workdir: Path) -> np.ndarray:
    """Return the pool indices, int64 [n], that the mine stage chose."""
    return pq.read_table(workdir / "mine" / "selected.parquet", columns=["index"])["index"].to_numpy()
