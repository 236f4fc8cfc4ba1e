"""Stage 4: choose from the score table. It takes seconds, and another rule or budget scores no image again."""

from typing import Any

import pyarrow.compute as pc

from pujax.artifacts import read_table
from pujax.job import Job
from pujax.metrics import precision_and_recall
from pujax.score_table import write_selection
from pujax.selection import select
from pujax.sharding import barrier, is_main_process

RESULTS_VERSION = 1


def run(job: Job, *, class_prior: float) -> dict[str, Any]:
    """Leave the chosen images' keys and scores in the work directory; return the summary block."""
    config, pool = job.config, job.sources["pool"]
    table = job.score_table()
    scored, _ = table.counts()
    chosen = select(
        config.select.rule,
        table,
        threshold=config.select.threshold,
        budget=config.select.budget or max(round(class_prior * scored), 1),
        class_prior=class_prior,
        seed=config.seed,
    )
    if is_main_process():
        write_selection(job.workdir.selected, table, chosen)
    barrier("selected")
    lowest = pc.min(read_table(job.workdir.selected, ["score"])["score"]).as_py()
    return {"selected": len(chosen), "threshold": lowest, **precision_and_recall(pool.truth, chosen)}
