"""Stage 4: the student, by robust knowledge distillation on the labelled and the mined images."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pujax.checkpoint import save_weights
from pujax.config import Config, DistillConfig
from pujax.data.batches import index_batches, mixed_index_batches
from pujax.data.sources import ImageSource, open_source, write_images
from pujax.data.transforms import augment, fixed_views
from pujax.inference import accuracy, map_images, prepare
from pujax.losses import (
    class_weights_from_mass,
    kd_loss,
    kl_from_logits,
    masked_mean,
    noise_adapted_nll,
    perturbed_weights,
    robust_kd_paper,
    robust_kd_worst_case,
)
from pujax.metrics import MetricsLog, Progress, flops_per_image, num_params
from pujax.mining import read_selection
from pujax.sharding import barrier, is_main_process, replicate
from pujax.teacher import image_shape, init_classifier, load_teacher
from pujax.train import LossFn, fit


def run(config: Config, workdir: Path, mesh: Mesh, log: MetricsLog) -> dict[str, Any]:
    """Train the student on labelled + mined images; return the summary block."""
    labelled, pool = (
        open_source(config.data.labelled, config.data),
        open_source(config.data.pool, config.data, labelled=False),
    )
    parts = [(labelled, np.arange(len(labelled))), (pool, read_selection(workdir))]
    return train_student(config, workdir, workdir / "distill", parts, mesh, log)


def train_student(
    config: Config,
    workdir: Path,
    folder: Path,
    parts: list[tuple[ImageSource, np.ndarray]],
    mesh: Mesh,
    log: MetricsLog,
) -> dict[str, Any]:
    """Distil the teacher into a student on given images.

    Args:
        config: the job.
        workdir: holds the teacher.
        folder: receives `images.npy`, checkpoints and `student.safetensors`.
        parts: (source, indices) pairs, the labelled images first; together they are the training set. Only labels of
            labelled sources are used.
        mesh: devices.
        log: receives the metrics.

    Returns:
        The summary block: accuracy at the last step, size, cost, steps, number of training images.
    """
    images_path = folder / "images.npy"  # at training resolution, so nothing is decoded twice
    if is_main_process():
        write_images(images_path, parts)
    barrier(f"{folder.name} images")
    images = np.load(images_path, mmap_mode="r")
    rng = jax.random.key(config.seed)
    student, variables = init_classifier(config, config.distill.model, jax.random.fold_in(rng, 0))
    if config.distill.noise_adaptation:  # learned beside the student, and left behind
        variables["params"]["noise_adaptation"] = jnp.zeros((config.data.num_classes,) * 2)
    teacher, frozen = _frozen(config, workdir, folder, images, mesh)
    variables = fit(
        config,
        config.distill,
        make_distill_loss(config, student, teacher),
        variables,
        images=images,
        columns={"label": np.concatenate([_labels(source, index) for source, index in parts])},
        make_batches=_batches(config, [len(index) for _, index in parts]),
        frozen=frozen,
        rng=jax.random.fold_in(rng, 1),
        mesh=mesh,
        folder=folder / "checkpoints",
        log=log,
        name="distill" if folder.name == "distill" else f"distill_{folder.name}",
    )
    variables["params"].pop("noise_adaptation", None)
    if is_main_process():
        save_weights(folder / "student.safetensors", variables)
    test = open_source(config.data.test, config.data)
    return {
        "accuracy": accuracy(config, student, replicate(mesh, variables), test, mesh),
        "num_params": num_params(variables),
        "flops_per_image": flops_per_image(student, variables, image_shape(config)),
        "steps": config.distill.num_steps,
        "train_images": len(images),
    }


def _frozen(config: Config, workdir: Path, folder: Path, images: np.ndarray, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
    """Return the teacher's module, and what the loss reads: class weights, and its variables or its cached logits."""
    teacher, variables = load_teacher(config, workdir)
    variables = replicate(mesh, variables)
    frozen = {"class_weights": class_weight_set(config, teacher, variables, images, mesh)}
    if config.distill.cached_views:
        frozen["teacher_logits"] = cache_teacher_logits(config, teacher, variables, images, folder, mesh)
    else:
        frozen["teacher"] = variables
    return teacher, frozen


def _batches(config: Config, sizes: list[int]) -> Callable[..., Iterator[dict[str, np.ndarray]]]:
    """Return what makes batches of the parts' images: drawn uniformly, or with a fixed share of the first part."""
    distill = config.distill
    if not distill.labelled_per_batch or len(sizes) == 1:
        return functools.partial(index_batches, sum(sizes), distill.batch_size, seed=config.seed)
    return functools.partial(
        mixed_index_batches,
        *sizes,
        num_positive_per_batch=distill.labelled_per_batch,
        num_pool_per_batch=distill.batch_size - distill.labelled_per_batch,
        seed=config.seed,
    )


def _labels(source: ImageSource, index: np.ndarray) -> np.ndarray:
    """Return int32 labels, -1 for images without one."""
    return np.full(len(index), -1, np.int32) if source.labels is None else source.labels[index].astype(np.int32)


def class_weight_set(config: Config, teacher: Any, variables: Any, images: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Return the class weights, float32 [m, K]: one row, or for the "paper" form also its perturbed copies.

    The rows are all ones, or inverse to the teacher's probability mass over the training images, as released.
    """
    weights = np.ones(config.data.num_classes, np.float32)
    if config.distill.class_weights == "inverse_frequency":

        def predict(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
            return {"probs": jax.nn.softmax(teacher.apply(variables, prepare(config, batch), train=False)[0])}

        batch_size = config.mining.batch_size
        read = images.__getitem__
        probs = map_images(predict, variables, read, len(images), batch_size=batch_size, mesh=mesh)["probs"]
        weights = np.asarray(class_weights_from_mass(probs.sum(0)))
    if config.distill.robust != "paper":
        return weights[None]
    rng = jax.random.fold_in(jax.random.key(config.seed), 2)
    return np.asarray(perturbed_weights(rng, weights, config.distill.epsilon, config.distill.num_perturbations))


def cache_teacher_logits(
    config: Config, teacher: Any, variables: Any, images: np.ndarray, folder: Path, mesh: Mesh
) -> np.ndarray:
    """Return the teacher's logits, float32 [N, cached_views, K], of every fixed view of every training image.

    They are kept in the folder, so a resumed run does not compute them again.
    """
    path, views = folder / "teacher_logits.npy", config.distill.cached_views
    if not path.exists():

        def read(rows: np.ndarray) -> dict[str, np.ndarray]:
            index, view = (part.astype(np.int32) for part in divmod(rows, views))
            return {"image": images[index], "index": index, "view": view}

        def predict(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return {"logits": teacher.apply(variables, prepare(config, _fixed_views(config, batch)), train=False)[0]}

        batch_size, count = config.mining.batch_size, len(images) * views
        progress = Progress("teacher logits", count, "view", enabled=is_main_process())
        result = map_images(predict, variables, read, count, batch_size=batch_size, mesh=mesh, progress=progress)
        progress.close()
        if is_main_process():
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.save(file, result["logits"].reshape(len(images), views, -1))
            os.replace(temporary, path)
        barrier(f"{folder.name} teacher logits")
    return np.load(path)


def _fixed_views(config: Config, batch: dict[str, jax.Array]) -> jax.Array:
    return fixed_views(
        jax.random.key(config.seed),
        batch["image"],
        batch["index"],
        batch["view"],
        pad=config.distill.crop_padding,
        flip=config.distill.flip,
    )


def make_distill_loss(config: Config, student: Any, teacher: Any) -> LossFn:
    """Return the robust KD loss, plus cross-entropy on the labelled images where `label_weight` is set."""
    distill = config.distill

    def targets(frozen: Any, batch: Any, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the images of the step, normalised, and the teacher's logits on them."""
        if distill.cached_views:
            view = jax.random.randint(rng, batch["index"].shape, 0, distill.cached_views)
            images = prepare(config, _fixed_views(config, batch | {"view": view}))
            return images, frozen["teacher_logits"][batch["index"], view]
        images = prepare(config, augment(rng, batch["image"], pad=distill.crop_padding, flip=distill.flip))
        return images, teacher.apply(frozen["teacher"], images, train=False)[0]

    def loss_fn(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        images, teacher_logits = targets(frozen, batch, rng)
        variables = {"params": params, "batch_stats": batch_stats}
        (logits, _), mutated = student.apply(variables, images, train=True, mutable=["batch_stats"])
        kl = kl_from_logits(logits, teacher_logits, distill.temperature)
        teacher_class = jnp.argmax(teacher_logits, axis=-1)
        loss = _weighted_kl(distill, kl, teacher_class, frozen["class_weights"])
        metrics = {"kl": jnp.mean(kl)}
        if distill.noise_adaptation:
            nll = noise_adapted_nll(logits, teacher_class, params["noise_adaptation"], distill.noise_adaptation)
            metrics["noise_adapted_nll"] = jnp.mean(nll)
            loss += metrics["noise_adapted_nll"]
        if distill.label_weight:
            labelled = batch["label"] >= 0
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch["label"], 0))
            metrics["cross_entropy"] = masked_mean(cross_entropy, labelled)
            loss += distill.label_weight * metrics["cross_entropy"]
        return loss, (mutated.get("batch_stats", {}), metrics)

    return loss_fn


def _weighted_kl(distill: DistillConfig, kl: jax.Array, teacher_class: jax.Array, weight_set: jax.Array) -> jax.Array:
    if distill.robust == "paper":
        return robust_kd_paper(kl, teacher_class, weight_set)
    if distill.robust == "worst_case":
        return robust_kd_worst_case(kl, teacher_class, weight_set[0], distill.epsilon)
    return kd_loss(kl, teacher_class, weights=weight_set[0])
