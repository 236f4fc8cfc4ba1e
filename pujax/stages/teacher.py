"""Stage 1: the teacher, restored from weights or trained here on the whole labelled set."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from pujax.config import Config, TrainingConfig, with_options
from pujax.data.batches import index_batches
from pujax.data.class_names import given_class_names
from pujax.data.embedded import weights_file
from pujax.data.reading import read_or_fail, remove_training_images, spread, training_images
from pujax.data.sources import ImageSource
from pujax.data.transforms import augment
from pujax.errors import UserError
from pujax.importers.network import TORCHVISION, import_network
from pujax.inference import accuracy, resolve_dtype
from pujax.job import Job
from pujax.metrics import flops_per_image, num_params
from pujax.networks import (
    Network,
    Preprocessing,
    abstract_network,
    check_class_names,
    check_fits,
    describes_itself,
    init_network,
    load_network,
    preprocessing_of,
    save_network,
)
from pujax.sharding import is_main_process
from pujax.teacher_check import check_teacher
from pujax.train import LossFn, fit

RESULTS_VERSION = 2
_FIELDS = dataclasses.fields(Preprocessing)


def run(job: Job) -> dict[str, Any]:
    """Leave the teacher's network in the work directory; return the summary block."""
    config = job.config
    teacher = job.given_teacher or _train(job)
    if is_main_process():
        save_network(job.workdir.teacher, teacher)
    batch_size = config.run.inference_batch_size
    doubts = doubts_about(teacher, job.sources["test"]) if job.given_teacher else []
    return {
        **accuracy(teacher, job.sources["test"], mesh=job.mesh, batch_size=batch_size),
        "test_images": len(job.sources["test"]),
        "num_params": num_params(teacher.variables),
        "flops_per_image": flops_per_image(teacher.module, teacher.variables, teacher.preprocessing.image_shape),
        **({"doubt": "; ".join(doubts)} if doubts else {}),
    }


def doubts_about(teacher: Network, labelled: ImageSource) -> list[str]:
    """Return what seems to be wrong with a given teacher, judged by some labelled images."""
    rows = spread(len(labelled), 1024)
    return check_teacher(teacher, read_or_fail(labelled, rows, "labelled images"), labelled.labels[rows])[1]


def weights_path(config: Config) -> epath.Path | None:
    """Return the file that the teacher is restored from, or None where it is to be trained."""
    return weights_file(config.teacher.weights) if config.teacher.weights else None


def given_teacher(config: Config) -> Network | None:
    """Read the teacher's weights file, where there is one: one that describes itself, or a PyTorch state dict.

    Raises:
        UserError: it cannot be read, or is not of the network that teacher.model names.
    """
    path = weights_path(config)
    if path is None:
        return None
    dtype = resolve_dtype(config.compute_dtype)
    if describes_itself(path):
        return load_network(path, dtype=dtype)
    if not config.teacher.model:
        raise UserError(
            f"{path} does not say what network it holds; name it, as in --config.teacher.model=resnet18, or convert "
            "it by pujax import"
        )
    said = preprocessing_of(config.data)
    wanted = {field.name: getattr(said, field.name) or getattr(TORCHVISION, field.name) for field in _FIELDS}
    return import_network(
        path,
        config.teacher.model,
        num_classes=config.data.num_classes,
        preprocessing=Preprocessing(**wanted),
        dtype=dtype,
    )


def settle(config: Config, given: Network | None) -> tuple[Config, Network | None]:
    """Fill in what the options leave to the teacher, its classes and preprocessing, and check all the rest.

    Args:
        config: the job's options; what is 0 or empty in `data` is left open.
        given: the teacher's network, where it is not trained here.

    Returns:
        (the options without anything open, the teacher with the names of its classes).

    Raises:
        UserError: something is open and no teacher says it, or the teacher is not of the job's classes, images or
            model, or is named other classes.
    """
    own = {} if given is None else {"num_classes": given.num_classes, **dataclasses.asdict(given.preprocessing)}
    for field in _FIELDS:
        if not getattr(config.data, field.name):
            config = _fill(config, field.name, own)
    if not config.data.num_classes:
        config = _fill(config, "num_classes", own)
    names = given_class_names(config.data)
    if given is None:
        return config, None
    check_fits(given, config.teacher.weights, model=config.teacher.model, data=config.data)
    check_class_names([("the teacher", given.class_names), ("data.class_names", names)])
    return config, dataclasses.replace(given, class_names=given.class_names or names)


def _fill(config: Config, name: str, own: dict[str, Any]) -> Config:
    if name not in own:
        raise UserError(f"data.{name} is not set, and no weights are given that say it; give --config.data.{name}")
    return with_options(config, {f"data.{name}": own[name]})


def abstract_teacher(config: Config, given: Network | None) -> Network:
    """Return the teacher as given, or the one that is to be trained, without weights."""
    return given or _untrained(config, class_names=given_class_names(config.data))


def _untrained(config: Config, *, class_names: tuple[str, ...] | None) -> Network:
    return abstract_network(
        config.teacher.model,
        num_classes=config.data.num_classes,
        class_names=class_names,
        preprocessing=preprocessing_of(config.data),
        dtype=resolve_dtype(config.compute_dtype),
    )


def _train(job: Job) -> Network:
    config, source, unit = job.config, job.sources["full"], job.workdir.unit("teacher")
    images = training_images(unit, [(source, np.arange(len(source)))])
    rng = jax.random.key(config.seed)
    teacher = init_network(_untrained(config, class_names=source.class_names), jax.random.fold_in(rng, 0))
    variables = fit(
        config.teacher,
        make_teacher_loss(config.teacher, teacher),
        teacher.variables,
        images=images,
        columns={"label": np.asarray(source.labels)},
        make_batches=functools.partial(index_batches, len(images), config.teacher.batch_size, seed=config.seed),
        frozen={},
        rng=jax.random.fold_in(rng, 1),
        mesh=job.mesh,
        run=config.run,
        folder=unit.checkpoints,
        log=job.log,
        name="teacher",
    )
    remove_training_images(unit)
    return teacher.with_variables(variables)


def make_teacher_loss(training: TrainingConfig, teacher: Network) -> LossFn:
    """Return the cross-entropy of a batch of augmented images."""

    def loss_fn(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        images = teacher.preprocessing.prepare(
            augment(rng, batch["image"], pad=training.crop_padding, flip=training.flip)
        )
        variables = {"params": params, "batch_stats": batch_stats}
        (logits, _), mutated = teacher.module.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        hits = jnp.argmax(logits, axis=-1) == batch["label"]
        return jnp.mean(losses), (mutated.get("batch_stats", {}), {"accuracy": jnp.mean(hits)})

    return loss_fn
