"""`--dry_run`: check everything that can be checked without training, and describe what would run."""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pujax import pipeline
from pujax.config import Config
from pujax.data.sources import ImageSource
from pujax.distill import make_distill_loss
from pujax.metrics import MetricsLog
from pujax.mining import shard_ranges
from pujax.optim import make_optimizer
from pujax.sharding import make_mesh
from pujax.teacher import image_shape, init_classifier, load_classifier, weights_path
from pujax.train import init_state, make_train_step


def describe(config: Config, workdir: Path, stages: tuple[str, ...]) -> str:
    """Return the plan of a run: devices, data, networks, memory, and which stages are still to do.

    Raises:
        ValueError: whatever the run itself would refuse.
        FileNotFoundError: likewise.
    """
    mesh = make_mesh()
    units = pipeline.make_units(config, workdir, mesh, MetricsLog(workdir, enabled=False))
    pipeline.check(config, units, stages, mesh)
    lines = [f"devices: {mesh.size} x {jax.devices()[0].device_kind}, processes: {jax.process_count()}"]
    sources = pipeline.open_all(config)
    lines += [_describe_source(part, source) for part, source in sources.items()]
    lines.append(f"mine: {len(shard_ranges(len(sources['pool']), config.mining.shard_size))} shards")
    lines.append(_describe_distill_step(config, mesh))
    for name, unit in units.items():
        state = "done" if unit.is_done() else "to do" if name.split("/")[0] in stages else "not asked for"
        lines.append(f"stage {name}: {state}")
    return "\n".join(lines)


def _describe_source(part: str, source: ImageSource) -> str:
    labels = "no labels" if source.labels is None else f"{len(set(source.labels.tolist()))} classes"
    return f"data.{part}: {len(source)} images, {labels}"


def _describe_distill_step(config: Config, mesh: Any) -> str:
    """Compile the distillation step for abstract inputs; return the networks' names and the memory it takes."""
    path = weights_path(config)
    if path:
        teacher, teacher_variables = load_classifier(config, config.teacher.model, path)
    else:
        teacher, teacher_variables = init_classifier(config, config.teacher.model, jax.random.key(0))
    student, variables = init_classifier(config, config.distill.model, jax.random.key(0))
    tx = make_optimizer(config.distill)
    step = jax.jit(make_train_step(make_distill_loss(config, student, teacher), tx, mesh))
    state = jax.eval_shape(functools.partial(init_state, tx=tx), variables)
    batch = (config.distill.batch_size,)
    rows = {
        "index": jax.ShapeDtypeStruct(batch, jnp.int32),
        "image": jax.ShapeDtypeStruct((*batch, *image_shape(config)), jnp.uint8),
        "label": jax.ShapeDtypeStruct(batch, jnp.int32),
    }
    frozen = {"teacher": teacher_variables, "class_weights": jnp.ones((1, config.data.num_classes))}
    memory = step.lower(frozen, {}, jax.random.key(0), state, rows).compile().memory_analysis()
    size = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) if memory else math.nan
    return f"distill: {config.teacher.model} -> {config.distill.model}, {size / 2**20:.0f} MiB a device for one step"
