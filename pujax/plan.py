"""`--dry_run`: check everything that can be checked without training, and describe what would run."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pujax import pipeline
from pujax.artifacts import Workdir
from pujax.config import Config
from pujax.data.sources import ImageSource
from pujax.networks import Network
from pujax.optim import make_optimizer
from pujax.stages.teacher import abstract_teacher
from pujax.student import abstract_student, frozen_arrays, make_distill_loss
from pujax.train import init_state, make_train_step


def describe(config: Config, workdir: Workdir, stages: tuple[str, ...]) -> str:
    """Return the plan of a run: devices, data, networks, memory, and which stages are still to do.

    Raises:
        UserError: whatever the run itself would refuse.
    """
    with pipeline.opened(config, workdir, stages, dry=True) as (job, units):
        pipeline.check(job, units, stages)
        lines = [f"devices: {job.mesh.size} x {jax.devices()[0].device_kind}, processes: {jax.process_count()}"]
        lines += [_describe_source(part, source) for part, source in job.sources.items()]
        if "pool" in job.sources:
            lines.append(f"score: {len(job.score_table().shards)} shards")
            lines.append(_describe_distill_step(job.config, job.mesh, len(job.sources["labelled"])))
        for name, unit in units.items():
            state = "done" if unit.is_done() else "to do" if unit.stage in stages else "not asked for"
            lines.append(f"stage {name}: {state}")
    return "\n".join(lines)


def _describe_source(part: str, source: ImageSource) -> str:
    labels = "no labels" if source.labels is None else f"{len(set(source.labels.tolist()))} classes"
    skipped = "".join(f", {count} {what} skipped" for what, count in source.skipped.items() if count)
    return f"data.{part}: {len(source)} images, {labels}{skipped}"


def _describe_distill_step(config: Config, mesh: Mesh, num_images: int) -> str:
    """Compile the distillation step for abstract inputs; return the networks' names and the memory it takes.

    Cached logits are counted for `num_images` images, the labelled ones: how many will be chosen is not known yet.
    """
    teacher = abstract_teacher(config)
    student = abstract_student(config.distill, teacher)
    size = step_memory(config, teacher, student, mesh, num_images)
    return f"distill: {teacher.model} -> {student.model}, {size / 2**20:.0f} MiB a device for one step"


def step_memory(config: Config, teacher: Network, student: Network, mesh: Mesh, num_images: int) -> float:
    """Return the bytes that one distillation step takes on a device; NaN where the backend does not say."""
    distill, shape = config.distill, teacher.preprocessing.image_shape
    tx = make_optimizer(distill)
    loss_fn = make_distill_loss(distill, student, teacher, seed=config.seed)
    step = jax.jit(make_train_step(loss_fn, tx, mesh), donate_argnums=3)
    state = jax.eval_shape(lambda variables: init_state(variables, tx), student.variables)
    rows = {
        "index": jax.ShapeDtypeStruct((distill.batch_size,), jnp.int32),
        "image": jax.ShapeDtypeStruct((distill.batch_size, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((distill.batch_size,), jnp.int32),
    }
    weights = 1 + distill.num_perturbations if distill.robust == "paper" else 1
    frozen = frozen_arrays(
        distill,
        class_weights=jax.ShapeDtypeStruct((weights, teacher.num_classes), jnp.float32),
        teacher_variables=teacher.variables,
        teacher_logits=jax.ShapeDtypeStruct((num_images, distill.cached_views, teacher.num_classes), jnp.float32),
    )
    memory = step.lower(frozen, {}, jax.random.key(0), state, rows).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else math.nan
