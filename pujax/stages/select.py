"""Stage 4: choose from the score table, and write the chosen images down. Another rule or budget scores none again.

How many images: as many as the budget says; without one, the best, as many as the class prior says there are positives.
Where more than that score like labelled images the two cannot be told apart, and more of them teach a student more than
the very best alone: as many are taken as its updates can use, in equal shares of the teacher's classes. Where no class
prior holds, those that score like labelled images in one of the styles are taken, in the same way.

The images are read from the pool once, by all processes, each its files; whoever needs them later reads these files.
"""

import functools
import sys
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from pujax.config import Config
from pujax.data.reading import read_or_fail
from pujax.data.sources import ImageSource
from pujax.inference import read_ahead
from pujax.job import Job
from pujax.metrics import precision_and_recall
from pujax.near_duplicates import find_copies
from pujax.progress import Progress
from pujax.score_table import read_selection, write_selection
from pujax.selection import select
from pujax.shard_sharing import share_shards
from pujax.sharding import barrier, is_main_process

RESULTS_VERSION = 2
_BATCH = 512  # images that are read while those before them are written


class Decision(NamedTuple):
    """What to choose by."""

    rule: str  # a key of selection.RULES
    budget: int
    doubt: str = ""  # in plain words, where the class prior is not used


def run(job: Job, *, found: dict[str, Any]) -> dict[str, Any]:
    """Leave the chosen images' keys and scores in the work directory; return the summary block.

    Args:
        job: the job.
        found: the scorer's summary block: its class prior, and whether it holds.
    """
    config, pool = job.config, job.sources["pool"]
    table = job.score_table()
    scored, _ = table.counts()
    rule, budget, doubt = decide(config, found, scored)
    chosen = select(
        rule,
        table,
        budget=budget,
        threshold=config.select.threshold,
        sharpness=config.select.sharpness,
        seed=config.seed,
    )
    copies = {}
    if config.select.copies == "drop":
        copies = count_copies(job, pool, chosen)
        chosen = chosen[~np.any(list(copies.values()), axis=0)]
    if is_main_process():
        write_selection(job.workdir.selected, table, chosen)
        if doubt:
            print(f"warning: {doubt}", file=sys.stderr)
    barrier("selected")
    write_images(job)
    if config.select.copies == "count":
        copies = count_copies(job, *job.chosen())
    lowest = pc.min(read_selection(job.workdir.selected, ["score"])["score"]).as_py()
    block = {"rule": rule, "selected": len(chosen), "threshold": lowest, **precision_and_recall(pool.truth, chosen)}
    block |= {f"copies_of_{part}": int(copied.sum()) for part, copied in copies.items()}
    return block | ({"doubt": doubt} if doubt else {})


def write_images(job: Job) -> None:
    """Write the files of the chosen images that are missing, beside the job's other processes, until there are none.

    Raises:
        UserError: one of the images does not decode any more.
    """
    images, pool = job.chosen_images(), job.sources["pool"]
    if is_main_process():
        if job.config.select.images:
            images.begin()
        elif images.folder.exists():
            images.folder.rmtree()
    barrier("chosen images begun")
    if not job.config.select.images:
        return
    index = images.selected["index"].to_numpy()
    progress = Progress("chosen images", len(images), "image", enabled=is_main_process())

    def read(first: int, stop: int) -> np.ndarray:
        batch = read_or_fail(pool, index[first : min(first + _BATCH, stop)], "training set")
        progress.advance(len(batch))
        return batch

    with share_shards(images, job.workdir.writers) as shards:
        for start, stop in shards:
            images.write(start, stop, read_ahead(functools.partial(read, stop=stop), range(start, stop, _BATCH)))
    progress.close()
    barrier("chosen images written")


def count_copies(job: Job, source: ImageSource, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Return which of some images, bool [n], are also in the test set and among the labelled images, by part."""
    others = {part: job.sources[part] for part in ("test", "labelled")}
    batch_size = job.config.run.inference_batch_size
    return find_copies(source, indices, others, mesh=job.mesh, batch_size=batch_size)


def decide(config: Config, found: dict[str, Any], scored: int) -> Decision:
    """Return the rule and the budget for a pool of `scored` images, by the options and what the scorer found."""
    own, distill = config.select, config.distill
    if own.rule in ("threshold", "all") or own.budget:
        return Decision(own.rule, own.budget)
    best, more = ("top_k", "class_balanced") if own.rule == "prior" else (own.rule, own.rule)
    like = round(found["like_labelled"] * scored)
    usable = min(max(distill.num_steps // own.passes, 1) * distill.batch_size, scored)
    if not found["class_prior_holds"]:
        budget = min(max(like, distill.batch_size), usable)
        doubt = (
            "labelled and pool images differ in kind or style, so how many of the pool belong to the task is not known "
            f"(the estimate, {found['class_prior']:.2g}, fails its test, z = {found['selected_at_random_z']:.1f}); "
            f"{budget} images are taken: {like} score like labelled ones, and {distill.num_steps} updates can use "
            f"{usable}; set select.budget where you know better"
        )
        return Decision(more, budget, doubt)
    budget = max(round(found["class_prior"] * scored), 1)
    interval = found["class_prior_interval"]
    if interval is None:  # it was given
        return Decision(best, budget)
    if interval[1] >= 1:
        return Decision(best, scored)
    larger = min(like, usable)
    return Decision(more, larger) if larger > budget else Decision(best, budget)
