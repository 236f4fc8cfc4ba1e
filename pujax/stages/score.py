"""Stage 3: score the whole pool, shard by shard, into the score table.

A shard is the unit of work and of retry: its file appears whole or not at all, and whoever runs next does the missing
ones. Processes, of one job or each by itself, share the shards out as `shard_sharing` says.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pujax.artifacts import save_json
from pujax.data.reading import noting_reader
from pujax.data.sources import ImageSource
from pujax.data.unreadable import check_share
from pujax.inference import CompiledMap, compile_map, map_compiled
from pujax.job import Job
from pujax.progress import Progress
from pujax.pu.scorer import make_score_fn
from pujax.score_table import ScoreTable
from pujax.shard_sharing import share_shards
from pujax.sharding import barrier, is_main_process, make_mesh, replicate

RESULTS_VERSION = 2


def run(job: Job) -> dict[str, Any]:
    """Leave the score table and the list of unreadable images in the work directory; return the summary block."""
    config, pool = job.config.score, job.sources["pool"]
    table = job.score_table()
    if is_main_process():  # for whoever asks how far it is
        save_json(job.workdir.shard_plan, {"images": len(pool), "shards": len(table.shards)})
    images_per_second = score_pool(job, table)
    barrier("score")
    table.check()
    scored, unreadable = table.counts()
    listed = job.workdir.unit("score").unreadable
    if is_main_process() and unreadable:
        table.write_unreadable(listed)
    barrier("unreadable")
    if unreadable:
        key, reason = table.first_unreadable()
        check_share(unreadable, len(pool), limit=config.max_unreadable, first=f"{key} ({reason})", listed=listed)
    block = {"pool_images": len(pool), "scored": scored, "unreadable": unreadable}
    return block | {"images_per_second": images_per_second} | ({"skipped": pool.skipped} if pool.skipped else {})


def score_pool(job: Job, table: ScoreTable) -> float:
    """Score missing shards beside whoever else does, until there are none; return this process's images per second.

    A shard is written while the next one is scored.
    """
    score, arguments, mesh, progress = None, None, make_mesh(jax.local_devices()), None
    batch_size, pool = job.config.run.inference_batch_size, job.sources["pool"]
    with share_shards(table, job.workdir.workers) as shards, ThreadPoolExecutor(1) as writer:
        written = None
        for start, stop in shards:
            if score is None:
                fn, arguments = make_score_fn(job.config.scorer, job.teacher(), job.workdir.scorer)
                score, arguments = compile_map(fn, mesh), replicate(mesh, arguments)
                progress = Progress("score", table.num_images, "image", enabled=is_main_process())
            scored = score_shard(score, arguments, pool, start, stop, mesh, batch_size, progress)
            if written:
                written.result()
            written = writer.submit(write_shard, table, pool, start, stop, *scored)
        if written:
            written.result()
    if progress is None:
        return 0.0
    progress.close()
    return progress.rate()


def score_shard(
    score: CompiledMap,
    arguments: Any,
    pool: ImageSource,
    start: int,
    stop: int,
    mesh: Mesh,
    batch_size: int,
    progress: Progress | None = None,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Return the scores of images start..stop-1, and why some of them do not decode, by their place among these."""
    reasons: dict[int, str] = {}
    read = noting_reader(pool, reasons, first=start)
    scores = map_compiled(score, arguments, read, stop - start, batch_size=batch_size, mesh=mesh, progress=progress)
    return scores, reasons


def write_shard(
    table: ScoreTable, pool: ImageSource, start: int, stop: int, scores: dict[str, np.ndarray], reasons: dict[int, str]
) -> None:
    """Write what `score_shard` returned into the table, if nobody has."""
    if table.path(start, stop).exists():
        return
    index = np.arange(start, stop)
    reason = np.array([reasons.get(row, "") for row in range(stop - start)], object)
    columns = {"key": pool.keys(index), "index": index, **scores, "readable": reason == "", "reason": reason}
    table.write(start, stop, columns)
