"""`--dry_run --topology=...`: what a job takes on devices that are not there, by their compiler and their makers.

For a TPU slice the job's own programs are compiled, and the compiler says what they take. For GPUs nothing is compiled,
since JAX's compiler for them does not tell what a program costs: the networks' operations alone are counted.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax

from pujax import programs
from pujax.config import Config
from pujax.job import Job
from pujax.metrics import flops_per_image, num_params
from pujax.networks import Network
from pujax.programs import Program
from pujax.pu.scorer import abstract_weights, passes_per_image, styled_views
from pujax.report.quantities import duration
from pujax.roofline import Cost, bound, compute_seconds, cost_of, memory_seconds, roofline_seconds
from pujax.sharding import check_splits
from pujax.stages.teacher import abstract_teacher
from pujax.student import abstract_student
from pujax.topology import Topology, outside_compile_cache

_TOO_LARGE = "RESOURCE_EXHAUSTED: "  # the compiler's words for a program that the memory does not hold


class Part(NamedTuple):
    """A program that time goes to."""

    what: str
    field: str  # that sets its batch
    images: int  # of one call, over all devices of it
    devices: int
    flops: float  # of one image: of its networks alone
    program: Callable[[], Program]


def for_slice(config: Config) -> Config:
    """Return the options as the processes of a slice settle them: networks compute in bfloat16 there."""
    return dataclasses.replace(config, compute_dtype="bfloat16") if config.compute_dtype == "auto" else config


def describe_slice(job: Job, topology: Topology, stages: tuple[str, ...]) -> list[str]:
    """Return what the job's programs take on the devices, and what that makes of the stages that are asked for.

    Raises:
        UserError: a batch does not split over the devices.
    """
    parts = parts_of(job, topology, stages)
    for part in parts.values():
        check_splits(part.images, part.devices, part.field)
    lines, call_seconds = [describe_topology(topology)], {}
    for name, part in parts.items():
        cost = _cost(part, topology)
        if isinstance(cost, Cost):
            lines.append(describe_part(part, cost, topology))
            call_seconds[name] = roofline_seconds(cost, topology.device)
        else:
            lines.append(f"  {part.what}: does not fit: {cost}")
    rate = topology.hosts * parts["score"].images / call_seconds["score"] if "score" in call_seconds else None
    times = stage_seconds(job, stages, call_seconds, rate)
    told = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times.items())
    return [*lines, f"  so the stages take: {told}"] if times else lines


def parts_of(job: Job, topology: Topology, stages: tuple[str, ...]) -> dict[str, Part]:
    """Return the programs that stages need, by stage; baselines have that of distill, and scorer that of score too."""
    config, mesh, count = job.config, topology.mesh, topology.count
    teacher = abstract_teacher(config, job.given_teacher)
    passes, found = flops_per_image(teacher.module, teacher.variables, teacher.preprocessing.image_shape), {}
    if "teacher" in stages and job.given_teacher is None:
        found["teacher"] = Part(
            "a step of the teacher", "teacher.batch_size", config.teacher.batch_size, count, 3 * passes,
            lambda: programs.teacher_training(config, teacher, mesh),
        )  # fmt: skip
    if {"score", "scorer"} & set(stages) and "pool" in job.sources:
        devices = count // topology.hosts
        images = config.run.inference_batch_size
        found["score"] = Part(
            "scoring, each host by itself" if topology.hosts > 1 else "scoring", "run.inference_batch_size",
            images + -images % devices, devices, passes_per_image(config.scorer) * passes,
            lambda: programs.scoring(config, teacher, topology.host_mesh),
        )  # fmt: skip
    if "scorer" in stages:
        found["scorer"] = _scorer_part(job, teacher, topology, passes)
    if {"distill", "baselines"} & set(stages):
        student = abstract_student(config.distill, teacher)
        own = 3 * flops_per_image(student.module, student.variables, student.preprocessing.image_shape)
        found["distill"] = Part(
            f"a step of distilling {teacher.model} -> {student.model}", "distill.batch_size",
            config.distill.batch_size, count, own + (0 if config.distill.cached_views else passes),
            lambda: programs.distillation(config, teacher, student, mesh),
        )  # fmt: skip
    return found


def _scorer_part(job: Job, teacher: Network, topology: Topology, passes: float) -> Part:
    mode = job.config.scorer.mode
    batch_size = getattr(job.config.scorer, mode).batch_size
    if mode == "finetune":
        what, flops = "a step of the fine-tuned scorer", 3 * passes
    else:
        heads = abstract_weights(job.config.scorer, teacher)["heads"]
        what, flops = "a step of the scorer's heads", 6 * num_params({"params": heads})
    labelled, sample = _labelled(job), _sample(job)
    return Part(
        what, f"scorer.{mode}.batch_size", batch_size, topology.count, flops,
        lambda: programs.scorer_training(
            job.config, teacher, topology.mesh, num_labelled=labelled, num_pool=sample
        ),
    )  # fmt: skip


def _cost(part: Part, topology: Topology) -> Cost | str:
    """Return what a part takes on each device; a text where it does not fit."""
    if topology.mesh is None:
        return Cost(part.flops * part.images / part.devices)
    print(f"compiling {part.what} for {topology.name}, which may take minutes", file=sys.stderr, flush=True)
    try:
        with outside_compile_cache():
            return cost_of(part.program().compile())
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith(_TOO_LARGE):
            raise
        return str(error).removeprefix(_TOO_LARGE).splitlines()[0]  # more would list what takes how much


def describe_topology(topology: Topology) -> str:
    """Return the line that says what the devices are."""
    device = topology.device
    figures = [f"{device.flops / 1e12:g} TFLOP/s in bfloat16", f"{device.bandwidth / 1e9:g} GB/s"]
    figures = f"{', '.join(figures)} and {device.memory / 2**30:g} GiB each, as published"
    how = "compiled for them, run nowhere" if topology.mesh else "operations of the networks are counted, no more"
    hosts = f" in {topology.hosts} hosts" if topology.hosts > 1 else ""
    return f"topology {topology.name}: {topology.count} {topology.unit}s{hosts}, {figures}; {how}"


def describe_part(part: Part, cost: Cost, topology: Topology) -> str:
    """Return the line of one program: what it takes of a device, and how fast it is by the roofline."""
    device, unit = topology.device, topology.unit
    took = [f"{_scaled(cost.flops, 1e9)} GFLOP"]
    times = [f"compute {1000 * compute_seconds(cost, device):.3g} ms"]
    if cost.accessed is not None:
        fits = "fits" if cost.memory <= device.memory else f"does not fit into {device.memory / 2**30:g} GiB"
        memory = f"{_scaled(cost.arguments, 2**20)} + {_scaled(cost.temporaries, 2**20)} MiB ({fits})"
        took = [memory, *took, f"{_scaled(cost.accessed, 1e9)} GB accessed", f"{cost.all_reduces} all-reduces"]
        times.append(f"memory {1000 * memory_seconds(cost, device):.3g} ms: bound by {bound(cost, device)}")
    rate = part.images / roofline_seconds(cost, device)
    return (
        f"  {part.what}, {part.images:,} images on {part.devices} {unit}s: a {unit} {', '.join(took)}; "
        f"{', '.join(times)}, {rate:,.0f} images/s"
    )


def _scaled(value: float, one: float) -> str:
    """Return a number of units of `one`, in three digits or as a whole."""
    return f"{value / one:,.0f}" if value >= 99.95 * one else f"{value / one:.3g}"


def stage_seconds(
    job: Job, stages: tuple[str, ...], call_seconds: dict[str, float], rate: float | None
) -> dict[str, float]:
    """Return the seconds, by the roofline, of every stage that is asked for and of which enough is known.

    Args:
        job: its options and the sizes of its sources.
        stages: those asked for.
        call_seconds: of one call of each of `parts_of`.
        rate: images/s that are scored, all devices together.
    """
    config, scorer, distill = job.config, job.config.scorer, job.config.distill
    found = {}
    if "teacher" in call_seconds:
        found["teacher"] = config.teacher.num_steps * call_seconds["teacher"]
    if "scorer" in call_seconds and rate:
        options = getattr(scorer, scorer.mode)
        turns = 2 if scorer.mode == "frozen" and scorer.frozen.reliable_negatives else 1
        found["scorer"] = turns * options.num_steps * call_seconds["scorer"]
        seen = _labelled(job) + _sample(job)
        if scorer.mode == "frozen" and scorer.frozen.styles == "on":
            seen += (styled_views(_labelled(job)) - 1) * _labelled(job)
        found["scorer"] += (seen if scorer.mode == "frozen" else seen * scorer.finetune.holdout) / rate
    if "score" in stages and rate:
        found["score"] = len(job.sources["pool"]) / rate
    if "distill" in call_seconds:
        steps = distill.num_steps * call_seconds["distill"]
        found |= {"distill": steps} if "distill" in stages else {}
        found |= {f"baselines/{name}": steps for name in config.baselines} if "baselines" in stages else {}
    return found


def _labelled(job: Job) -> int:
    return len(job.sources["labelled"])


def _sample(job: Job) -> int:
    pool = len(job.sources["pool"])
    return min(job.config.scorer.pool_sample or pool, pool)
