"""The student as files for other programs, each run in a process of its own and compared on real images.

A file that answers otherwise than the student is not kept, and ends the job.
"""

import dataclasses
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
from pujax.quantization import int8_forward
from pujax.sharding import barrier, is_main_process
from pujax.student import chosen_parts, train_student

RESULTS_VERSION = 3


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
    written = [name for name in job.config.export.formats if not FORMATS[name].missing()]
    for_int8 = _for_int8(job, student) if any(FORMATS[name].calibrated for name in written) else student
    if not is_main_process():
        return {}
    blocks = {
        name: _export(job, name, for_int8 if FORMATS[name].calibrated else student, sample)
        for name in job.config.export.formats
    }
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
        other = "distil further for it with export.int8_steps=300, or " if form.calibrated else ""
        raise UserError(f"export as {name}: {error}; {other}to do without, leave it out of export.formats") from error
    steps = {"int8_steps": job.config.export.int8_steps} if form.calibrated and job.config.export.int8_steps else {}
    return block | steps | {"path": str((folder / form.file).relative_to(job.workdir.root))}


def _training_sample(job: Job) -> np.ndarray:
    """Return images uint8 [n, H, W, C] that the student was trained on, spread over the labelled and the chosen."""
    parts = chosen_parts(job)
    part = np.repeat(np.arange(len(parts)), [len(index) for _, index in parts])
    rows = spread(len(part), CALIBRATION_IMAGES)
    taken = [np.concatenate([index for _, index in parts])[rows[part[rows] == k]] for k in range(len(parts))]
    return np.concatenate(
        [read_or_fail(source, index, "training set") for (source, _), index in zip(parts, taken) if len(index)]
    )


def _for_int8(job: Job, student: Network) -> Network:
    """Return the student after the steps with int8 simulated that the options ask for, from its file if it is there."""
    config, unit = job.config, job.workdir.unit("export/int8")
    if not config.export.int8_steps:
        return student
    if not unit.student.exists():
        distill = dataclasses.replace(
            config.distill,
            num_steps=config.export.int8_steps,
            learning_rate=config.export.int8_learning_rate,
            schedule="cosine",
            warmup_steps=0,
        )
        how = {"seed": config.seed, "mesh": job.mesh, "run": config.run, "log": job.log, "name": "int8"}
        train_student(distill, job.teacher(), chosen_parts(job), unit=unit, begin=student, forward=int8_forward, **how)
    barrier("int8 student")
    return load_network(unit.student, dtype=student.dtype)
