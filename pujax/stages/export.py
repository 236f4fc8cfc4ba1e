"""The student as files for other programs, each run in a process of its own and compared on real images.

A file that answers otherwise than the student is not kept, and ends the job.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pujax.artifacts import save_json, write_atomic
from pujax.data.reading import read_or_fail, spread
from pujax.data.sources import ImageSource
from pujax.errors import UserError
from pujax.exporters.formats import FORMATS, Format
from pujax.exporters.parity import compare, replay
from pujax.inference import map_images
from pujax.job import Job
from pujax.model_card import as_markdown, make_card
from pujax.networks import Network, describe, load_network
from pujax.quantization import int8_forward
from pujax.sharding import barrier, is_main_process, replicate
from pujax.student import chosen_parts, train_student

RESULTS_VERSION = 1
_FEWEST_IMAGES, _MOST_IMAGES, _CALIBRATION_IMAGES = 200, 1000, 512
_OPERATIONS = 2e11  # that comparing one file may take on one thread, where that is more than the fewest images


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
    affordable = int(_OPERATIONS / found["distill"]["flops_per_image"])
    images, labels = _sample(job.sources["test"], min(max(affordable, _FEWEST_IMAGES), _MOST_IMAGES))
    expected = _logits(job, student, images)
    written = [name for name in job.config.export.formats if not FORMATS[name].missing()]
    for_int8 = _for_int8(job, student) if any(FORMATS[name].calibrated for name in written) else student
    if not is_main_process():
        return {}
    blocks = {
        name: _export(job, name, for_int8 if FORMATS[name].calibrated else student, images, labels, expected)
        for name in job.config.export.formats
    }
    card = make_card(describe(student), job.config, inputs=inputs, found=found, files=blocks)
    folder = job.workdir.unit("export").folder
    save_json(folder / "MODEL_CARD.json", card)
    write_atomic(folder / "MODEL_CARD.md", as_markdown(card).encode())
    return {"test_images": len(images), "formats": blocks}


def export(
    form: Format,
    network: Network,
    path: Path,
    *,
    preprocessing: bool,
    images: np.ndarray,
    labels: np.ndarray,
    expected: np.ndarray,
    calibration: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write a network to a local file, run that and compare; return what is to be known of it.

    Args:
        form: how it is written.
        network: what is written.
        path: of the file.
        preprocessing: whether the file takes pixels, or normalised float32.
        images: uint8 [N, H, W, C].
        labels: int32 [N].
        expected: the network's logits, float32 [N, K].
        calibration: uint8 [n, H, W, C], typical images, for formats that are calibrated.

    Raises:
        UserError: it cannot be written or run, or does not answer as the network does; it is not left.
    """
    options = {"images": calibration} if form.calibrated else {}
    form.write(network, path, preprocessing=preprocessing, **options)
    try:
        given = images if preprocessing else np.asarray(network.preprocessing.prepare(images))
        logits, latency = replay(form.loader, path, given, timed=form.runtime)
        parity = compare(expected, logits, labels, form.limits)
        if wrong := parity.violation(form.limits):
            raise UserError(f"{path.name} does not answer as the student does, and is not kept: {wrong}")
    except UserError:
        path.unlink()
        raise
    block = {name: value for name, value in dataclasses.asdict(parity).items() if name != "original_accuracy"}
    return {"bytes": path.stat().st_size, **block} | ({"latency_ms": latency} if latency else {})


def _export(
    job: Job, name: str, student: Network, images: np.ndarray, labels: np.ndarray, expected: np.ndarray
) -> dict[str, Any]:
    form = FORMATS[name]
    if missing := form.missing():
        print(f"export: {name} skipped, {missing}", file=sys.stderr)
        return {"skipped": missing}
    target = job.workdir.unit("export").folder / form.file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / form.file
        try:
            block = export(
                form,
                student,
                path,
                preprocessing=job.config.export.preprocessing,
                images=images,
                labels=labels,
                expected=expected,
                calibration=_training_sample(job) if form.calibrated else None,
            )
        except UserError as error:
            other = "distil further for it with export.int8_steps=300, or " if form.calibrated else ""
            raise UserError(
                f"export as {name}: {error}; {other}to do without, leave it out of export.formats"
            ) from error
        write_atomic(target, path.read_bytes())
    steps = {"int8_steps": job.config.export.int8_steps} if form.calibrated and job.config.export.int8_steps else {}
    return {"path": str(target.relative_to(job.workdir.root)), **block, **steps}


def _sample(source: ImageSource, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [n, H, W, C] of a labelled source, spread over it, and their labels int32 [n]."""
    rows = spread(len(source), count)
    return read_or_fail(source, rows, "data.test"), source.labels[rows]


def _training_sample(job: Job) -> np.ndarray:
    """Return images uint8 [n, H, W, C] that the student was trained on, spread over the labelled and the chosen."""
    parts = chosen_parts(job)
    part = np.repeat(np.arange(len(parts)), [len(index) for _, index in parts])
    rows = spread(len(part), _CALIBRATION_IMAGES)
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


def _logits(job: Job, network: Network, images: np.ndarray) -> np.ndarray:
    """Return logits float32 [N, K] in full precision; accelerators round sums to fewer digits by default."""

    def predict(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        return {"logits": network.logits(variables, batch)}

    variables, batch_size = replicate(job.mesh, network.variables), job.config.run.inference_batch_size
    with jax.default_matmul_precision("highest"):
        read = images.__getitem__
        return map_images(predict, variables, read, len(images), batch_size=batch_size, mesh=job.mesh)["logits"]
