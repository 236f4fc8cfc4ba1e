"""A student: trained on given images by robust knowledge distillation from the teacher."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from pujax.artifacts import Unit, load_array, save_array
from pujax.config import DistillConfig, RunConfig
from pujax.data.batches import make_batches
from pujax.data.reading import remove_training_images, training_images
from pujax.data.sources import ImageSource
from pujax.data.transforms import augment, fixed_views
from pujax.errors import UserError
from pujax.importers.network import import_network
from pujax.inference import accuracy, map_images
from pujax.job import Job
from pujax.kd_losses import (
    class_weights_from_mass,
    kd_loss,
    kl_from_logits,
    masked_mean,
    perturbed_weights,
    robust_kd_paper,
    robust_kd_worst_case,
)
from pujax.metrics import MetricsLog, flops_per_image, num_params
from pujax.networks import Network, abstract_network, describes_itself, init_network, load_network, save_network
from pujax.progress import Progress
from pujax.sharding import barrier, is_main_process, replicate
from pujax.train import LossFn, fit

Parts = list[tuple[ImageSource, np.ndarray]]  # (source, indices) pairs, the labelled images first
# (student, variables, normalised images) -> (logits, BatchNorm's running statistics)
Forward = Callable[[Network, Any, jax.Array], tuple[jax.Array, Any]]


class ExtraTerm(NamedTuple):
    """A term that another method adds to the loss, with parameters that are trained beside the student's."""

    params: dict[str, jax.Array]
    loss: Callable[[dict[str, jax.Array], jax.Array, jax.Array], jax.Array]  # (params, student, teacher logits) -> []


def train_student(
    distill: DistillConfig,
    teacher: Network,
    parts: Parts,
    *,
    unit: Unit,
    seed: int,
    mesh: Mesh,
    run: RunConfig,
    log: MetricsLog,
    name: str,
    extra: ExtraTerm | None = None,
    begin: Network | None = None,
    forward: Forward | None = None,
) -> tuple[Network, int]:
    """Distil the teacher into a student on given images.

    Args:
        distill: student, recipe and number of steps.
        teacher: the frozen network.
        parts: together they are the training set. Only labels of labelled sources are used.
        unit: receives the images, checkpoints and the student.
        seed: of weights, batches and views.
        mesh: devices.
        run: where data may live, how often to save and log.
        log: receives the metrics.
        name: prefix of the metrics.
        extra: a further term of the loss.
        begin: the student at step 0; without it, a fresh one by `begin_with`.
        forward: how the student computes in training; without it, as it is with BatchNorm of the batch.

    Returns:
        (the student after the last step, number of training images).
    """
    _check_enough(distill, parts)
    images = training_images(unit, parts)
    rng = jax.random.key(seed)
    if begin is None:
        begin = begin_with(distill, init_network(abstract_student(distill, teacher), jax.random.fold_in(rng, 0)))
    student = begin
    teacher = teacher.with_variables(replicate(mesh, teacher.folded))
    forward_options = {"seed": seed, "mesh": mesh, "batch_size": run.inference_batch_size}
    class_weights = class_weight_set(distill, teacher, images, **forward_options)
    columns = {"label": np.concatenate([_labels(source, index) for source, index in parts])}
    if distill.cached_views:
        columns["teacher_logits"] = cache_teacher_logits(distill, teacher, images, unit, **forward_options)
    variables = student.variables | {"params": student.variables["params"] | (extra.params if extra else {})}
    variables = fit(
        distill,
        make_distill_loss(distill, student, teacher, extra=extra, forward=forward or train_forward),
        variables,
        images=images,
        columns=columns,
        make_batches=make_batches(
            [len(index) for _, index in parts], distill.batch_size, share=distill.labelled_per_batch, seed=seed
        ),
        frozen=frozen_arrays(distill, seed=seed, class_weights=class_weights, teacher_variables=teacher.variables),
        rng=jax.random.fold_in(rng, 1),
        mesh=mesh,
        run=run,
        folder=unit.checkpoints,
        log=log,
        name=name,
    )
    for param in extra.params if extra else ():  # learned beside the student, and left behind
        variables["params"].pop(param)
    student = student.with_variables(variables)
    if is_main_process():
        save_network(unit.student, student)
    remove_training_images(unit)
    return student, len(images)


def _check_enough(distill: DistillConfig, parts: Parts) -> None:
    """Raise UserError if a batch is larger than what it is drawn from."""
    sizes = [len(index) for _, index in parts]
    share = distill.labelled_per_batch if len(parts) > 1 else 0
    drawn, given = distill.batch_size - share, sizes[-1] if share else sum(sizes)
    if drawn > given:
        raise UserError(
            f"distill.batch_size is {distill.batch_size}, of which {drawn} are drawn from {given} images; lower it, or "
            "choose more images (select.rule=top_k and select.budget)"
        )


def chosen_parts(job: Job) -> Parts:
    """Return what a job's student is trained on: all labelled images, and those chosen from the pool."""
    labelled = job.sources["labelled"]
    return [(labelled, np.arange(len(labelled))), job.chosen()]


def abstract_student(distill: DistillConfig, teacher: Network) -> Network:
    """Return the student without weights: it sees what the teacher sees, and names the same classes."""
    return abstract_network(
        distill.model,
        num_classes=teacher.num_classes,
        class_names=teacher.class_names,
        preprocessing=teacher.preprocessing,
        dtype=teacher.dtype,
    )


def begin_with(distill: DistillConfig, student: Network) -> Network:
    """Return a fresh student with the weights of the file that it is to begin with, where one is given.

    A last layer for another number of classes stays as it is.

    Raises:
        UserError: the file cannot be read, or is of another network.
    """
    if not distill.weights:
        return student
    path = epath.Path(distill.weights)
    if describes_itself(path):
        given = load_network(path, dtype=student.dtype)
        if given.model != student.model:
            raise UserError(f"{path} holds a {given.model}, but distill.model is {student.model}; correct one of them")
    else:
        given = import_network(
            path, student.model, num_classes=0, preprocessing=student.preprocessing, dtype=student.dtype
        )
    params = dict(given.variables["params"])
    if given.num_classes != student.num_classes:
        params["linear"] = student.variables["params"]["linear"]
    return student.with_variables({**given.variables, "params": params})


def make_student(
    job: Job, name: str, parts: Parts, *, distill: DistillConfig | None = None, extra: ExtraTerm | None = None
) -> dict[str, Any]:
    """Train a student of a job and measure it; return its summary block.

    Args:
        job: gives the teacher, the test images and how to run.
        name: of the folder in the work directory, and of the metrics.
        parts: what it is trained on.
        distill: the recipe, where it is not the job's.
        extra: a further term of the loss.

    Returns:
        Accuracy at the last step, size, cost, steps, number of training images.
    """
    config, distill = job.config, distill or job.config.distill
    student, num_images = train_student(
        distill,
        job.teacher(),
        parts,
        unit=job.workdir.unit(name),
        seed=config.seed,
        mesh=job.mesh,
        run=config.run,
        log=job.log,
        name=name if name == "distill" else f"distill_{name.rsplit('/', 1)[-1]}",
        extra=extra,
    )
    batch_size = config.run.inference_batch_size
    return {
        **accuracy(student, job.sources["test"], mesh=job.mesh, batch_size=batch_size),
        "num_params": num_params(student.variables),
        "flops_per_image": flops_per_image(student.module, student.variables, student.preprocessing.image_shape),
        "steps": distill.num_steps,
        "train_images": num_images,
    }


def frozen_arrays(distill: DistillConfig, *, seed: int, class_weights: Any, teacher_variables: Any) -> Any:
    """Return what the loss reads beside its batch.

    Args:
        distill: whether logits are cached, and come with the batch.
        seed: of the fixed views that these are of.
        class_weights: float32 [m, K].
        teacher_variables: used where logits are not cached.
    """
    targets = {"views": jax.random.key(seed)} if distill.cached_views else {"teacher": teacher_variables}
    return {"class_weights": class_weights, **targets}


def _labels(source: ImageSource, index: np.ndarray) -> np.ndarray:
    """Return int32 labels, -1 for images without one."""
    return np.full(len(index), -1, np.int32) if source.labels is None else source.labels[index].astype(np.int32)


def class_weight_set(
    distill: DistillConfig, teacher: Network, images: np.ndarray, *, seed: int, mesh: Mesh, batch_size: int
) -> np.ndarray:
    """Return the class weights, float32 [m, K]: one row, or for the "paper" form also its perturbed copies.

    The rows are all ones, or inverse to the teacher's probability mass over the training images, as released.
    """
    weights = np.ones(teacher.num_classes, np.float32)
    if distill.class_weights == "inverse_frequency":

        def predict(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
            return {"probs": jax.nn.softmax(teacher.logits(variables, batch))}

        read = images.__getitem__
        probs = map_images(predict, teacher.variables, read, len(images), batch_size=batch_size, mesh=mesh)["probs"]
        weights = np.asarray(class_weights_from_mass(probs.sum(0)))
    if distill.robust != "paper":
        return weights[None]
    rng = jax.random.fold_in(jax.random.key(seed), 2)
    return np.asarray(perturbed_weights(rng, weights, distill.epsilon, distill.num_perturbations))


def cache_teacher_logits(
    distill: DistillConfig,
    teacher: Network,
    images: np.ndarray,
    unit: Unit,
    *,
    seed: int,
    mesh: Mesh,
    batch_size: int,
) -> np.ndarray:
    """Return the teacher's logits, float32 [N, cached_views, K], of every fixed view of every training image.

    They are kept in the unit's folder, so a resumed run does not compute them again.
    """
    path, views = unit.teacher_logits, distill.cached_views
    if not path.exists():

        def read(rows: np.ndarray) -> dict[str, np.ndarray]:
            index, view = (part.astype(np.int32) for part in divmod(rows, views))
            return {"image": images[index], "index": index, "view": view}

        def predict(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return {"logits": teacher.logits(variables, _fixed_views(distill, batch, jax.random.key(seed)))}

        count = len(images) * views
        progress = Progress("teacher logits", count, "view", enabled=is_main_process())
        result = map_images(
            predict, teacher.variables, read, count, batch_size=batch_size, mesh=mesh, progress=progress
        )
        progress.close()
        barrier("teacher logits computed")
        if is_main_process():
            save_array(path, result["logits"].reshape(len(images), views, -1))
        barrier("teacher logits written")
    return load_array(path)


def _fixed_views(distill: DistillConfig, batch: dict[str, jax.Array], rng: jax.Array) -> jax.Array:
    return fixed_views(
        rng,
        batch["image"],
        batch["index"],
        batch["view"],
        pad=distill.crop_padding,
        flip=distill.flip,
    )


def train_forward(student: Network, variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
    """Return logits float32 [B, K] of normalised images by the batch's statistics, and the new running ones."""
    (logits, _), mutated = student.module.apply(variables, images, train=True, mutable=["batch_stats"])
    return logits, mutated.get("batch_stats", {})


def make_distill_loss(
    distill: DistillConfig,
    student: Network,
    teacher: Network,
    *,
    extra: ExtraTerm | None = None,
    forward: Forward = train_forward,
) -> LossFn:
    """Return the robust KD loss, plus cross-entropy on the labelled images where `label_weight` is set."""

    def targets(frozen: Any, batch: Any, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the uint8 images of the step, and the teacher's logits on them."""
        if distill.cached_views:
            view = jax.random.randint(rng, batch["index"].shape, 0, distill.cached_views)
            images = _fixed_views(distill, batch | {"view": view}, frozen["views"])
            return images, jnp.take_along_axis(batch["teacher_logits"], view[:, None, None], axis=1)[:, 0]
        images = augment(rng, batch["image"], pad=distill.crop_padding, flip=distill.flip)
        return images, teacher.logits(frozen["teacher"], images)

    def loss_fn(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        images, teacher_logits = targets(frozen, batch, rng)
        variables = {"params": params, "batch_stats": batch_stats}
        logits, batch_stats = forward(student, variables, student.preprocessing.prepare(images))
        teacher_class = jnp.argmax(teacher_logits, axis=-1)
        kl = kl_from_logits(logits, teacher_logits, distill.temperature)
        loss = _weighted_kl(distill, kl, teacher_class, frozen["class_weights"])
        metrics = {"kl": jnp.mean(kl)}
        if extra:
            metrics["extra"] = extra.loss(params, logits, teacher_logits)
            loss += metrics["extra"]
        if distill.label_weight:
            labelled = batch["label"] >= 0
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch["label"], 0))
            metrics["cross_entropy"] = masked_mean(cross_entropy, labelled)
            loss += distill.label_weight * metrics["cross_entropy"]
        return loss, (batch_stats, metrics)

    return loss_fn


def _weighted_kl(distill: DistillConfig, kl: jax.Array, teacher_class: jax.Array, weight_set: jax.Array) -> jax.Array:
    if distill.robust == "paper":
        return robust_kd_paper(kl, teacher_class, weight_set)
    if distill.robust == "worst_case":
        return robust_kd_worst_case(kl, teacher_class, weight_set[0], distill.epsilon)
    return kd_loss(kl, teacher_class, weights=weight_set[0])
