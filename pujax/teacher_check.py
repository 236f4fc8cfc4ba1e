"""Does a given teacher know the labelled images? If not, is it shown them wrongly, or are the classes in another order?

A network that is normalised wrongly still answers, some points worse, and nothing else would tell.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pujax.data.transforms import normalize
from pujax.networks import Network, Preprocessing

# What most networks were trained with, for RGB; images in [0, 1].
NORMALISATIONS = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean 0.5 and std 0.5": ((0.5,), (0.5,)),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "pixels in 0..1": ((0.0,), (1.0,)),
    "pixels in 0..255": ((0.0,), (1 / 255,)),
}


def check_teacher(teacher: Network, images: np.ndarray, labels: np.ndarray) -> tuple[float, list[str]]:
    """Return the share of labelled images that a teacher puts into their class, and what seems to be wrong.

    Another normalisation, or another order of the classes, is named where it is right more often by more than three
    standard errors of the difference.

    Args:
        teacher: with weights.
        images: uint8 [n, H, W, C].
        labels: int32 [n].
    """
    predict = _compile(teacher, images)
    preprocessing, found = teacher.preprocessing, []
    predicted = predict(preprocessing.mean, preprocessing.std)
    right = predicted == labels
    if other := other_order(predicted, labels, teacher.num_classes):
        found.append(f"{other}: give data.class_names in the order of the teacher's outputs")
        return float(right.mean()), found  # no normalisation can be judged
    for name, (mean, std) in NORMALISATIONS.items():
        if len(mean) > preprocessing.channels or _same(preprocessing, mean, std):
            continue
        with_other = predict(mean, std) == labels
        if _surely_better(with_other, right):
            found.append(
                f"with {name} it would be right on {100 * with_other.mean():.1f} %: "
                f"try --config.data.mean={_text(mean)} --config.data.std={_text(std)}"
            )
    return float(right.mean()), found


def other_order(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> str:
    """Return what would be right if the classes were in another order, where that is surely more; else nothing.

    Args:
        predicted: int [n], classes.
        labels: int [n].
        num_classes: K.
    """
    in_order = _best_order(predicted, labels, num_classes) == labels
    if not _surely_better(in_order, predicted == labels):
        return ""
    return f"with its classes in another order it would be right on {100 * in_order.mean():.1f} %"


def _compile(teacher: Network, images: np.ndarray) -> Callable[..., np.ndarray]:
    """Return `predict(mean, std) -> int [n]`, the classes of the images; compiled once for all normalisations."""
    batch = min(len(images), 64)
    batches = np.pad(images, ((0, -len(images) % batch), (0, 0), (0, 0), (0, 0))).reshape(-1, batch, *images.shape[1:])

    @jax.jit
    def classes(variables: Any, pixels: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
        return jnp.argmax(teacher.module.apply(variables, normalize(pixels, mean, std), train=False)[0], axis=-1)

    def predict(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
        constants = [np.broadcast_to(np.float32(values), images.shape[-1]) for values in (mean, std)]
        found = [np.asarray(classes(teacher.folded, pixels, *constants)) for pixels in batches]
        return np.concatenate(found)[: len(images)]

    return predict


def _best_order(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the predictions int [n] with the classes in the order that fits the labels best.

    The order for one half of the images is that of the other half, so that none is right by being fitted.
    """
    from scipy.optimize import linear_sum_assignment  # half a second that the other commands need not wait

    out = predicted.copy()
    half = np.arange(len(labels)) % 2
    for part in (0, 1):
        counts = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(counts, (predicted[half != part], labels[half != part]), 1)
        out[half == part] = linear_sum_assignment(counts, maximize=True)[1][predicted[half == part]]
    return out


def _same(preprocessing: Preprocessing, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    channels = preprocessing.channels
    pairs = ((preprocessing.mean, mean), (preprocessing.std, std))
    return all(np.allclose(np.broadcast_to(a, channels), np.broadcast_to(b, channels), atol=0.01) for a, b in pairs)


def _surely_better(other: np.ndarray, own: np.ndarray) -> bool:
    """Whether `other`, bool [n], is right more often by three standard errors, of the images where the two differ."""
    gained, lost = int((other & ~own).sum()), int((own & ~other).sum())
    return gained - lost > 3 * np.sqrt(gained + lost)


def _text(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.6g}" for value in values)
