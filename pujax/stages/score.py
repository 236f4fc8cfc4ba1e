"""Stage 3: score the whole pool, shard by shard, into the score table.

A shard is the unit of work and of retry: its file appears whole or not at all, and whoever runs next does the missing
ones. Processes share the shards out and do not talk while they score.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pujax.artifacts import save_json
from pujax.data.reading import noting_reader
from pujax.data.sources import ImageSource
from pujax.data.unreadable import check_share
from pujax.inference import map_images
from pujax.job import Job
from pujax.progress import Progress
from pujax.pu.scorer import make_score_fn
from pujax.score_table import ScoreTable
from pujax.sharding import barrier, is_main_process, make_mesh, replicate

RESULTS_VERSION = 1


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
    """Score this process's missing shards; return images per second over them (0 if there were none)."""
    own = [shard for i, shard in enumerate(table.shards) if i % jax.process_count() == jax.process_index()]
    missing = table.missing(own)
    if not missing:
        return 0.0
    mesh = make_mesh(jax.local_devices())
    fn, arguments = make_score_fn(job.config.scorer, job.teacher(), job.workdir.scorer)
    score, arguments = jax.jit(fn), replicate(mesh, arguments)
    progress = Progress("score", sum(stop - start for start, stop in missing), "image", enabled=is_main_process())
    batch_size = job.config.run.inference_batch_size
    for start, stop in missing:
        columns = score_shard(score, arguments, job.sources["pool"], start, stop, mesh, batch_size, progress)
        table.write(start, stop, columns)
    rate = progress.rate()
    progress.close()
    return rate


def score_shard(
    score: Any,
    arguments: Any,
    pool: ImageSource,
    start: int,
    stop: int,
    mesh: Mesh,
    batch_size: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the columns of the score table for images start..stop-1."""
    reasons: dict[int, str] = {}
    read = noting_reader(pool, reasons, first=start)
    scores = map_images(score, arguments, read, stop - start, batch_size=batch_size, mesh=mesh, progress=progress)
    index = np.arange(start, stop)
    reason = np.array([reasons.get(row, "") for row in range(stop - start)], object)
    return {"key": pool.keys(index), "index": index, **scores, "readable": reason == "", "reason": reason}
