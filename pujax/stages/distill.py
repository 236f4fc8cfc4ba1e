"""Stage 5: the student, on the labelled and the chosen images."""

from typing import Any

import numpy as np

from pujax.job import Job
from pujax.score_table import read_selection
from pujax.student import student_block, train_student

RESULTS_VERSION = 1


def run(job: Job) -> dict[str, Any]:
    """Train the student; return the summary block."""
    labelled, pool, config = job.sources["labelled"], job.sources["pool"], job.config
    parts = [(labelled, np.arange(len(labelled))), (pool, read_selection(job.workdir.selected))]
    student, num_images = train_student(
        config.distill,
        job.teacher(),
        parts,
        unit=job.workdir.unit("distill"),
        seed=config.seed,
        mesh=job.mesh,
        run=config.run,
        log=job.log,
        name="distill",
    )
    return student_block(
        student,
        job.sources["test"],
        steps=config.distill.num_steps,
        train_images=num_images,
        mesh=job.mesh,
        batch_size=config.run.inference_batch_size,
    )
