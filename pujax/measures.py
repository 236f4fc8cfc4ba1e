"""How good a classifier's answers are: numbers made of its logits and the labels, without images or networks."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

TOP = 5  # classes in which the right one may be, where there are at least twice as many
BINS = 15  # of the reliability table, as in Guo et al. 2017
_Z = 1.959963984540054  # a normal variable is within so many standard deviations 95 % of the time

Columns = dict[str, np.ndarray]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities float64 [B, K] of logits [B, K]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def outcomes(logits: np.ndarray, labels: np.ndarray) -> Columns:
    """Return what each image's answer comes to.

    Args:
        logits: float [B, K].
        labels: int [B].

    Returns:
        "predicted" int32, the most likely class, of equally likely ones the first; "rank" int32, how many classes come
        before the right one; "confidence", the largest probability; "nll", minus the logarithm of the right class's;
        "brier", the squared distance of the probabilities from the right answer, 0 to 2. Each [B].
    """
    rows = np.arange(len(labels))
    log_probs = log_softmax(logits)
    probs = np.exp(log_probs)
    own = logits[rows, labels][:, None]
    before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    return {
        "predicted": logits.argmax(axis=1).astype(np.int32),
        "rank": before.sum(axis=1, dtype=np.int32),
        "confidence": probs.max(axis=1),
        "nll": -log_probs[rows, labels],
        "brier": (probs**2).sum(axis=1) + 1 - 2 * probs[rows, labels],
    }


def agreement(logits: np.ndarray, teacher_logits: np.ndarray) -> Columns:
    """Return "agrees" bool [B], whether both name the same class, and "kl" [B], KL(teacher || network) in nats.

    Args:
        logits: float [B, K].
        teacher_logits: float [B, K].
    """
    log_p, log_q = log_softmax(teacher_logits), log_softmax(logits)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return {"agrees": logits.argmax(axis=1) == teacher_logits.argmax(axis=1), "kl": kl}


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share; (0, 1) where nothing was counted.

    Unlike the share plus and minus its standard error it lies in [0, 1], and holds for shares near its ends.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if not total:
        return 0.0, 1.0
    share, z2 = hits / total, _Z**2 / total
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return int64 [K, K]: in row k and column j how many images of class k were taken for class j."""
    cells = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_table(confusion: np.ndarray, names: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """Return a row for each class.

    "recall" is the share of its images that were put into it, its accuracy, with the 95 % interval; "precision" the
    share of what was put into it that belongs there. Where nothing was counted, they are None.

    Args:
        confusion: int [K, K], from `confusion_matrix`.
        names: of the classes.
    """
    rows = []
    for k, (count, predicted, hits) in enumerate(zip(confusion.sum(1), confusion.sum(0), confusion.diagonal())):
        low, high = wilson_interval(int(hits), int(count)) if count else (None, None)
        rows.append({
            "class": k,
            "name": names[k] if names else None,
            "images": int(count),
            "predicted": int(predicted),
            "recall": float(hits / count) if count else None,
            "recall_low": low,
            "recall_high": high,
            "precision": float(hits / predicted) if predicted else None,
        })  # fmt: skip
    return rows


def confusions(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Return the most frequent mistakes, at most `count`: (class, class that it was taken for, images)."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, wrong.shape))
    return [(int(k), int(j), int(wrong[k, j])) for k, j in pairs if wrong[k, j]]


def reliability_table(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """Return, for bins of equal width over (0, 1], how sure the answers in them are, and how often they are right.

    Args:
        confidence: float [N], the largest probabilities.
        right: bool [N].
        bins: how many.
    """
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    sums = [np.bincount(places, weights=values, minlength=bins) for values in (confidence, right)]
    return [
        {"low": i / bins, "high": (i + 1) / bins, "images": int(n), "confidence": c / n if n else None,
         "accuracy": hits / n if n else None}
        for i, (n, c, hits) in enumerate(zip(counts, *(values.tolist() for values in sums)))
    ]  # fmt: skip


def calibration_error(table: list[dict[str, Any]]) -> float:
    """Return the expected calibration error of a `reliability_table`: mean |accuracy - confidence| over the images.

    Reference: Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.
    """
    total = sum(row["images"] for row in table)
    return sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in table if row["images"]) / total


def measure(
    columns: Mapping[str, np.ndarray], labels: np.ndarray, *, names: tuple[str, ...] | None, num_classes: int
) -> dict[str, Any]:
    """Return every number of a set of labelled images.

    Args:
        columns: from `outcomes`, each [N].
        labels: int [N].
        names: of the classes.
        num_classes: K.
    """
    right = columns["rank"] == 0
    confusion = confusion_matrix(labels, columns["predicted"], num_classes)
    classes = class_table(confusion, names)
    bins = reliability_table(columns["confidence"], right)
    return {
        "images": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_interval": list(wilson_interval(int(right.sum()), len(labels))),
        **({"top5_accuracy": float((columns["rank"] < TOP).mean())} if num_classes >= 2 * TOP else {}),
        "lowest_class_accuracy": min(row["recall"] for row in classes if row["images"]),
        "calibration": {
            "nll": float(columns["nll"].mean()),
            "brier": float(columns["brier"].mean()),
            "ece": calibration_error(bins),
            "bins": bins,
        },
        "classes": classes,
        "confusion": confusion.tolist(),
    }
