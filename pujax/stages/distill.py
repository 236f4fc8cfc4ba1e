"""Stage 5: the student, on the labelled and the chosen images."""

from typing import Any

import numpy as np

from pujax.job import Job
from pujax.score_table import read_selection
from pujax.student import make_student

RESULTS_VERSION = 1


def run(job: Job) -> dict[str, Any]:
    """Train the student; return the summary block."""
    labelled, pool = job.sources["labelled"], job.sources["pool"]
    parts = [(labelled, np.arange(len(labelled))), (pool, read_selection(job.workdir.selected))]
    return make_student(job, "distill", parts)
