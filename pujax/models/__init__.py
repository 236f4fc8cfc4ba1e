"""Classifiers and the PU head. Every classifier returns `(logits, features)`: see `create_classifier`."""

import difflib
import functools

import flax.linen as nn
import jax.numpy as jnp

from pujax.models.lenet import LeNet
from pujax.models.mobilenet import MobileNetV2
from pujax.models.pu_scorer import PUScorer
from pujax.models.resnet import Bottleneck, ResNet

__all__ = ["CLASSIFIERS", "PUScorer", "create_classifier"]

CLASSIFIERS = {
    "lenet5": LeNet,
    "lenet5_half": functools.partial(LeNet, widths=(3, 8, 60, 42)),
    "cifar_resnet10_w8": functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), width=8),
    "cifar_resnet10_w16": functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), width=16),
    "cifar_resnet18_w16": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), width=16),
    "cifar_resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    "cifar_resnet34": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3)),
    "resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), imagenet_stem=True),
    "resnet34": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), imagenet_stem=True),
    "resnet50": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck, imagenet_stem=True),
    "mobilenet_v2": MobileNetV2,
}


def create_classifier(name: str, num_classes: int, *, dtype: jnp.dtype = jnp.float32) -> nn.Module:
    """Return a classifier by name.

    Args:
        name: a key of `CLASSIFIERS`.
        num_classes: K.
        dtype: compute dtype; parameters, BatchNorm statistics, logits and features are float32.

    Returns:
        A module whose `apply(variables, x, train=False)` gives `(logits [B, K], features)` for normalised images
        x [B, H, W, C]; features is a tuple of [B, C_i], the globally pooled output of each stage, shallow to deep.

    Raises:
        ValueError: there is no such model.
    """
    if name not in CLASSIFIERS:
        close = difflib.get_close_matches(name, CLASSIFIERS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no model {name!r}; {hint}choose from {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[name](num_classes, dtype=dtype)
