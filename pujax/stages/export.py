"""The student as files for other programs, each run in a process of its own and compared on real images.

A file that answers otherwise than the student is not kept, and ends the job.
"""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from pujax.data.reading import read_or_fail, spread
from pujax.errors import UserError
from pujax.exporters.checked import CALIBRATION_IMAGES, Sample, draw_sample, export_into
from pujax.exporters.formats import FORMATS
from pujax.job import Job
from pujax.model_card import job_facts, make_card, save_card
from pujax.networks import Network, describe, load_network
from pujax.score_table import read_selection
from pujax.sharding import is_main_process

RESULTS_VERSION = 2


def run(job: Job, *, found: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Write the student in the formats of the options, and its model card; return the summary block.

    Args:
        job: the job.
        found: the summary blocks of the stages before, by their names.
        inputs: what the student depends on, with its sources' fingerprints.

    Raises:
        UserError: a file does not answer as the student does, or cannot be written; none is left.
    """
    student = load_network(job.workdir.unit("distill").student, dtype=jnp.dtype(jnp.float32))
    sample = draw_sample(
        student,
        job.sources["test"],
        "data.test",
        flops_per_image=found["distill"]["flops_per_image"],
        mesh=job.mesh,
        batch_size=job.config.run.inference_batch_size,
    )
    if not is_main_process():
        return {}
    blocks = {name: _export(job, name, student, sample) for name in job.config.export.formats}
    size = {name: found["distill"][name] for name in ("num_params", "flops_per_image")}
    card = make_card(describe(student), blocks, **size, inputs=inputs, job=job_facts(job.config, found))
    save_card(job.workdir.unit("export").folder, card)
    return {"test_images": len(sample.images), "formats": blocks}


def _export(job: Job, name: str, student: Network, sample: Sample) -> dict[str, Any]:
    form, folder = FORMATS[name], job.workdir.unit("export").folder
    if missing := form.missing():
        print(f"export: {name} skipped, {missing}", file=sys.stderr)
        return {"skipped": missing}
    try:
        block = export_into(
            folder,
            form.file,
            form,
            student,
            preprocessing=job.config.export.preprocessing,
            sample=sample,
            calibration=_training_sample(job) if form.calibrated else None,
        )
    except UserError as error:
        raise UserError(f"export as {name}: {error}; to do without, leave it out of export.formats") from error
    return block | {"path": str((folder / form.file).relative_to(job.workdir.root))}


def _training_sample(job: Job) -> np.ndarray:
    """Return images uint8 [n, H, W, C] that the student was trained on, spread over the labelled and the chosen."""
    labelled, chosen = job.sources["labelled"], read_selection(job.workdir.selected)
    rows = spread(len(labelled) + len(chosen), CALIBRATION_IMAGES)
    own, other = rows[rows < len(labelled)], chosen[rows[rows >= len(labelled)] - len(labelled)]
    parts = ((labelled, own), (job.sources["pool"], other))
    return np.concatenate([read_or_fail(source, index, "training set") for source, index in parts if len(index)])
