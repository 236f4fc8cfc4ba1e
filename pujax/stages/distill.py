"""Stage 5: the student, on the labelled and the chosen images."""

from typing import Any

from pujax.job import Job
from pujax.student import chosen_parts, make_student

RESULTS_VERSION = 2


def run(job: Job) -> dict[str, Any]:
    """Train the student; return the summary block."""
    return make_student(job, "distill", chosen_parts(job))
