"""Stage 1: the teacher, restored from weights or trained here on the whole labelled set."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pujax.checkpoint import load_weights, save_weights
from pujax.config import Config
from pujax.data.batches import index_batches
from pujax.data.embedded import embedded_path
from pujax.data.sources import open_source, write_images
from pujax.data.transforms import augment
from pujax.inference import accuracy, compute_dtype, prepare
from pujax.metrics import MetricsLog, flops_per_image, num_params
from pujax.models import create_classifier
from pujax.sharding import barrier, is_main_process, replicate
from pujax.train import LossFn, fit


def image_shape(config: Config) -> tuple[int, int, int]:
    """Return (height, width, channels) of what the networks see."""
    return config.data.image_size, config.data.image_size, config.data.channels


def init_classifier(config: Config, name: str, rng: jax.Array) -> tuple[Any, Any]:
    """Return (module, freshly initialised variables) of a classifier."""
    module = create_classifier(name, config.data.num_classes, dtype=compute_dtype(config))
    # Run once: on a CPU, optimising the random numbers' code takes five times as long as all the rest.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(module.init, static_argnames="train", compiler_options=options)
    return module, init(rng, jnp.zeros((1, *image_shape(config))), train=False)


def load_classifier(config: Config, name: str, path: str | Path) -> tuple[Any, Any]:
    """Return (module, variables) of a classifier whose weights are in the file `path`."""
    module = create_classifier(name, config.data.num_classes, dtype=compute_dtype(config))
    image = jax.ShapeDtypeStruct((1, *image_shape(config)), jnp.float32)
    template = jax.eval_shape(lambda rng, x: module.init(rng, x, train=False), jax.random.key(0), image)
    return module, load_weights(path, template)


def load_teacher(config: Config, workdir: Path) -> tuple[Any, Any]:
    """Return (module, variables) of the teacher that the teacher stage left in the work directory."""
    return load_classifier(config, config.teacher.model, workdir / "teacher" / "teacher.safetensors")


def weights_path(config: Config) -> Path | None:
    """Return the file that the teacher is restored from, or None when it is to be trained."""
    weights = config.teacher.weights
    if weights.startswith("embedded:"):
        return embedded_path(weights.removeprefix("embedded:"))
    return Path(weights) if weights else None


def run(config: Config, workdir: Path, mesh: Mesh, log: MetricsLog) -> dict[str, Any]:
    """Leave `teacher.safetensors` in the stage's folder; return the summary block."""
    path = weights_path(config)
    if path:
        module, variables = load_classifier(config, config.teacher.model, path)
    else:
        module, variables = _train(config, workdir, mesh, log)
    if is_main_process():
        save_weights(workdir / "teacher" / "teacher.safetensors", variables)
    test = open_source(config.data.test, config.data)
    return {
        "accuracy": accuracy(config, module, replicate(mesh, variables), test, mesh),
        "num_params": num_params(variables),
        "flops_per_image": flops_per_image(module, variables, image_shape(config)),
    }


def _train(config: Config, workdir: Path, mesh: Mesh, log: MetricsLog) -> tuple[Any, Any]:
    source = open_source(config.data.full, config.data)
    images_path = workdir / "teacher" / "images.npy"  # mapped, for it may be larger than memory
    if is_main_process():
        write_images(images_path, [(source, np.arange(len(source)))])
    barrier("teacher images")
    images = np.load(images_path, mmap_mode="r")
    rng = jax.random.key(config.seed)
    module, variables = init_classifier(config, config.teacher.model, jax.random.fold_in(rng, 0))
    variables = fit(
        config,
        config.teacher,
        _make_loss(config, module),
        variables,
        images=images,
        columns={"label": np.asarray(source.labels)},
        make_batches=functools.partial(index_batches, len(images), config.teacher.batch_size, seed=config.seed),
        frozen={},
        rng=jax.random.fold_in(rng, 1),
        mesh=mesh,
        folder=workdir / "teacher" / "checkpoints",
        log=log,
        name="teacher",
    )
    return module, variables


def _make_loss(config: Config, module: Any) -> LossFn:
    def loss_fn(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        images = augment(rng, batch["image"], pad=config.teacher.crop_padding, flip=config.teacher.flip)
        variables = {"params": params, "batch_stats": batch_stats}
        (logits, _), mutated = module.apply(variables, prepare(config, images), train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        hits = jnp.argmax(logits, axis=-1) == batch["label"]
        return jnp.mean(losses), (mutated.get("batch_stats", {}), {"accuracy": jnp.mean(hits)})

    return loss_fn
