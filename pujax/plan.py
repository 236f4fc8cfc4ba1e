"""`--dry_run`: check everything that can be checked without training, look at the images, and say what would run."""

import dataclasses
import math
import time

import jax
import numpy as np
from jax.sharding import Mesh

from pujax import pipeline
from pujax.artifacts import Workdir, write_atomic
from pujax.config import Config
from pujax.data.sources import ImageSource
from pujax.data.survey import Survey, contact_sheet, survey
from pujax.inference import resolve_dtype
from pujax.job import Job
from pujax.networks import Network
from pujax.programs import distillation, with_zeros, zeros
from pujax.pu.scorer import passes_per_image
from pujax.report.quantities import duration, size
from pujax.sharding import is_main_process, replicate, shard_batch, traced_on
from pujax.slice_plan import describe_slice, for_slice
from pujax.stages.teacher import abstract_teacher
from pujax.student import abstract_student
from pujax.teacher_check import check_teacher
from pujax.topology import Topology

_SAMPLE, _ON_SHEET = 256, 48  # images of a source that are read, and that are shown


def describe(config: Config, workdir: Workdir, stages: tuple[str, ...], topology: Topology | None = None) -> str:
    """Return the plan of a run: devices, data, networks, memory, time, and which stages are still to do.

    A contact sheet of the images is left in the work directory, and nothing else.

    Args:
        config: the job's options.
        workdir: its folder.
        stages: those that are asked for.
        topology: devices to plan for, which are not here; without them, those that are.

    Raises:
        UserError: whatever the run itself would refuse.
    """
    config = for_slice(config) if topology else config
    with pipeline.opened(config, workdir, stages, dry=True) as (job, units):
        pipeline.check(job, units, stages)
        here = "here" if topology else "devices"
        lines = [f"{here}: {job.mesh.size} x {jax.devices()[0].device_kind}, processes: {jax.process_count()}"]
        surveys = {part: survey(source, _SAMPLE) for part, source in job.sources.items()}
        for part, source in job.sources.items():
            lines += _describe_source(part, source, surveys[part])
        if is_main_process():
            write_atomic(
                workdir.contact_sheet, contact_sheet({f"data.{p}": _some(seen) for p, seen in surveys.items()})
            )
            lines.append(f"a look at them: {workdir.contact_sheet}")
        lines += _describe_teacher(job)
        if topology:
            lines += describe_slice(job, topology, stages)
        if "pool" in job.sources:
            lines.append(_describe_scoring(job, surveys["pool"], timed=not topology))
        if {"select", "distill", "baselines"} & set(stages):
            lines.append(_describe_disk(job))
        if {"distill", "baselines"} & set(stages) and not topology:
            lines.append(_describe_distilling(job))
        for name, unit in units.items():
            state = "done" if unit.is_done() else "to do" if unit.stage in stages else "not asked for"
            lines.append(f"stage {name}: {state}")
    return "\n".join(lines)


def _some(seen: Survey) -> np.ndarray:
    """Return up to `_ON_SHEET` of the images that were read."""
    return seen.images[:: max(-(-len(seen.images) // _ON_SHEET), 1)]


def _describe_source(part: str, source: ImageSource, seen: Survey) -> list[str]:
    skipped = "".join(f", {count} {what} skipped" for what, count in source.skipped.items() if count)
    lines = [f"data.{part}: {len(source)} images, {_describe_labels(source.labels)}{skipped}"]
    if seen.kinds:
        kinds = ", ".join(f"{count} {kind}" for kind, count in seen.kinds.items())
        lines.append(f"  of {seen.sampled} read: {kinds}; short sides {seen.sides[0]} to {seen.sides[1]} pixels")
    if seen.reasons:
        key, reason = next(iter(seen.reasons.items()))
        share = 100 * len(seen.reasons) / seen.sampled
        lines.append(f"  {share:.1f} % of those read do not decode, the first is {key} ({reason})")
    return lines


def _describe_labels(labels: np.ndarray | None) -> str:
    if labels is None:
        return "no labels"
    counts = np.unique(labels, return_counts=True)[1]
    return f"{len(counts)} classes of {counts.min()} to {counts.max()} images"


def _describe_teacher(job: Job) -> list[str]:
    """Return how often a given teacher is right on labelled images, where any were opened, and what seems wrong."""
    teacher = job.given_teacher
    part = next((name for name in ("labelled", "test") if name in job.sources), None)
    if teacher is None or part is None:
        return []
    source = job.sources[part]
    rows = np.arange(0, len(source), -(-len(source) // 1024))
    images, reasons = source.read(rows)
    sound = reasons == ""
    teacher = dataclasses.replace(teacher, dtype=resolve_dtype("auto"))  # this machine looks, whatever is planned for
    accuracy, doubts = check_teacher(teacher, images[sound], source.labels[rows[sound]])
    seen = dataclasses.asdict(teacher.preprocessing).items()
    lines = [f"teacher: {teacher.model}, " + ", ".join(f"{name} {value}" for name, value in seen)]
    lines += [f"  it is right on {100 * accuracy:.1f} % of {sound.sum()} images of data.{part}"]
    return lines + [f"  but {doubt}" for doubt in doubts]


def _describe_scoring(job: Job, pool: Survey, *, timed: bool) -> str:
    """Return how long scoring takes, from the images that were read and, if it is `timed`, a few forward passes."""
    shards = f"score: {len(job.score_table().shards)} shards; reading {pool.images_per_second:,.0f} images/s"
    count = len(job.sources["pool"])
    if not timed:
        return f"{shards} on this machine, which for {count:,} images takes {duration(count / pool.images_per_second)}"
    teacher = abstract_teacher(job.config, job.given_teacher)
    forward = _forward_rate(job.config, teacher, job.mesh) / passes_per_image(job.config.scorer)
    rate = min(forward, pool.images_per_second)
    return f"{shards}, the teacher {forward:,.0f}: about {duration(count / rate)}"


def _describe_distilling(job: Job) -> str:
    """Return memory and time of distilling, from a compiled step and a few runs of it."""
    config = job.config
    teacher = abstract_teacher(config, job.given_teacher)
    student = abstract_student(config.distill, teacher)
    memory, seconds = step_cost(config, teacher, student, job.mesh)
    students = 1 + len(config.baselines)
    needed = f"{memory / 2**20:.0f} MiB" if memory else "unknown memory"
    return (
        f"distill: {teacher.model} -> {student.model}, {needed} a device for one step, {1000 * seconds:.0f} ms a step: "
        f"about {duration(config.distill.num_steps * seconds)} a student, {students} of them"
    )


def _describe_disk(job: Job) -> str:
    """Return what the chosen images take; how many they are is known of a budget alone."""
    data, select, pool = job.config.data, job.config.select, len(job.sources["pool"])
    count = pool if select.rule == "all" else min(select.budget, pool)
    image = math.prod((data.image_size, data.image_size, data.channels))
    count = count or 100_000
    kept = f"in {job.workdir.chosen_images}, and " if select.images else ""
    where = job.workdir.unit("distill").images
    return f"disk: {count:,} chosen images take {size(count * image)}: {kept}in {where} while a student trains"


def step_cost(config: Config, teacher: Network, student: Network, mesh: Mesh) -> tuple[float, float]:
    """Return (bytes that one distillation step takes on a device, 0 where the backend does not say; its seconds).

    Weights and images are zero.
    """
    program = distillation(config, teacher, student, mesh)
    compiled = program.compile()
    memory = compiled.memory_analysis()
    frozen, key, state, rows = zeros(program)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        state, metrics = compiled(frozen, key, state, rows)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    return (memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else 0.0), min(seconds)


def _forward_rate(config: Config, teacher: Network, mesh: Mesh) -> float:
    """Return images per second of the teacher's forward pass over all devices, for a batch of black images."""
    batch = max(min(config.run.inference_batch_size, 64 * mesh.size) // mesh.size, 1) * mesh.size
    variables = replicate(mesh, with_zeros(teacher).folded)
    images = np.zeros((batch // jax.process_count(), *teacher.preprocessing.image_shape), np.uint8)
    forward, batches = jax.jit(traced_on(mesh)(teacher.logits)), shard_batch(mesh, images)
    jax.block_until_ready(forward(variables, batches))
    started = time.perf_counter()
    jax.block_until_ready(forward(variables, batches))
    return batch / (time.perf_counter() - started)
