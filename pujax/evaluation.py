"""A classifier measured on labelled images: how often it is right, how well it knows that, how it agrees with another
one, and what is left of it when images are bad.
"""

import functools
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from pujax.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from pujax.data.decoders import CORES
from pujax.data.reading import read_or_fail
from pujax.data.sources import ImageSource
from pujax.errors import UserError
from pujax.loaded import Model, Read
from pujax.measures import agreement, measure, outcomes
from pujax.networks import check_class_names
from pujax.progress import Progress
from pujax.teacher_check import other_order


class Shown(NamedTuple):
    """A classifier, and the images as it sees them."""

    model: Model
    source: ImageSource
    where: str  # what a message calls the source


def evaluate(own: Shown, *, batch_size: int, teacher: Shown | None = None) -> dict[str, Any]:
    """Return what `measures.measure` does, and where a teacher is given how far both agree.

    Args:
        own: what is measured, with labels.
        batch_size: images a forward pass; changes no number.
        teacher: another classifier of the same classes; the same images, in the form that it sees.

    Raises:
        UserError: an image does not decode; the classes are not the same, or are in another order.
    """
    check_classes(own, teacher)
    read, teacher_read = reader(own), None
    if teacher:
        together = teacher.model.preprocessing.spec == own.model.preprocessing.spec
        read = remembering(read) if together else read
        teacher_read = read if together else reader(teacher)
    labels, count = own.source.labels, len(own.source)
    progress = Progress("evaluate", count, "image")
    answers = own.model.logits(read, count, batch_size=batch_size, progress=progress)
    others = teacher.model.logits(teacher_read, count, batch_size=batch_size) if teacher else itertools.repeat(None)
    parts, done = [], 0
    for logits, other in zip(answers, others):
        batch = labels[done : done + len(logits)]
        done += len(logits)
        parts.append(outcomes(logits, batch))
        if teacher:
            parts[-1] |= agreement(logits, other) | {"teacher_right": other.argmax(axis=1) == batch}
    progress.close()
    assert done == count
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names = own.model.class_names or own.source.class_names
    found = measure(columns, labels, names=names, num_classes=own.model.num_classes)
    if doubt := check_order(own, columns["predicted"]):
        found["doubt"] = doubt
    if teacher:
        found["teacher"] = {
            "model": teacher.model.where,
            "accuracy": float(columns["teacher_right"].mean()),
            "top1_agreement": float(columns["agrees"].mean()),
            "kl": float(columns["kl"].mean()),
        }
    return found


def check_classes(own: Shown, teacher: Shown | None) -> None:
    """Raise UserError unless classifier, images and teacher have the same classes in one order, as far as known."""
    named = [(own.model.where, own.model.class_names), (own.where, own.source.class_names)]
    if teacher:
        if teacher.model.num_classes != own.model.num_classes:
            raise UserError(
                f"{own.model.where} has {own.model.num_classes} classes, but {teacher.model.where} has "
                f"{teacher.model.num_classes}; give a teacher of the same classes, or --teacher none"
            )
        named.append((teacher.model.where, teacher.model.class_names))
    check_class_names(named)


def check_order(own: Shown, predicted: np.ndarray) -> str:
    """Return what is odd about the order of the classes, judged by the answers; nothing where nothing is.

    Raises:
        UserError: it is surely another one, and no names of classes say otherwise.
    """
    other = other_order(predicted, own.source.labels, own.model.num_classes)
    named = own.model.class_names is not None and own.source.class_names is not None
    if other and not named:
        unnamed = own.model.where if own.model.class_names is None else own.where
        raise UserError(
            f"the classes of {own.model.where} and of {own.where} seem to be in different orders: {other}, and "
            f"{unnamed} does not name them; give images with named classes, and --class_names where the model has none"
        )
    return other


def corrupted_accuracy(own: Shown, *, batch_size: int) -> dict[str, Any]:
    """Return how often the classifier is right on images made worse.

    Returns:
        For each of `CORRUPTIONS` a list, by severity; and "mean", over all of them.
    """
    kinds = list(itertools.product(CORRUPTIONS, range(1, SEVERITIES + 1)))
    count, done, right = len(own.source) * len(kinds), 0, np.zeros(len(kinds), np.int64)
    progress = Progress("corruptions", count, "image")
    with ThreadPoolExecutor(CORES) as pool:

        def read(rows: np.ndarray) -> np.ndarray:
            """Return image after image, each with every corruption; one is read once for all of a batch."""
            index, kind = divmod(rows, len(kinds))
            images = reader(own)(np.arange(index[0], index[-1] + 1))
            return np.stack(list(pool.map(lambda i, k: corrupt(images[i - index[0]], *kinds[k]), index, kind)))

        for logits in own.model.logits(read, count, batch_size=batch_size, progress=progress):
            index, kind = divmod(np.arange(done, done + len(logits)), len(kinds))
            done += len(logits)
            np.add.at(right, kind, logits.argmax(axis=1) == own.source.labels[index])
    progress.close()
    shares = (right / len(own.source)).reshape(len(CORRUPTIONS), SEVERITIES)
    return {**dict(zip(CORRUPTIONS, shares.tolist())), "mean": float(shares.mean())}


def reader(shown: Shown) -> Read:
    """Return what reads a source all of whose images must decode."""
    return lambda rows: read_or_fail(shown.source, rows, shown.where)


def remembering(read: Read) -> Read:
    """Return `read` for two that ask for the same rows, one soon after the other: rows are read once."""
    lock, kept = threading.Lock(), functools.lru_cache(4)(lambda first, last: read(np.arange(first, last + 1)))

    def read_once(rows: np.ndarray) -> np.ndarray:
        with lock:
            return kept(int(rows[0]), int(rows[-1]))

    return read_once
