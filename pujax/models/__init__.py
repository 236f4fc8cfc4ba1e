"""Classifiers and the PU head. Every classifier returns `(logits, features)`: see `create_classifier`."""

import difflib
import functools
import inspect
import re

import flax.linen as nn
import jax.numpy as jnp

from pujax.models import mobilenet_v3
from pujax.models.convnext import ConvNeXt
from pujax.models.efficientnet import EfficientNet
from pujax.models.inverted_residual import Dialect
from pujax.models.lenet import LeNet
from pujax.models.mobilenet import MobileNetV2
from pujax.models.mobilenet_v3 import MobileNetV3
from pujax.models.pu_scorer import PUScorer
from pujax.models.resnet import Bottleneck, ResNet
from pujax.models.vgg import VGG
from pujax.models.vit import VisionTransformer

__all__ = ["CLASSIFIERS", "PUScorer", "create_classifier", "parse_name"]

_TENSORFLOW = Dialect(epsilon=1e-3, same_padding=True)
_V3_SMALL = functools.partial(MobileNetV3, stages=mobilenet_v3.SMALL, hidden=1024)
_V3_LARGE = functools.partial(MobileNetV3, stages=mobilenet_v3.LARGE, hidden=1280)
_VGG_SIZES = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}

# Where projects compute a network differently, timm's variant has the prefix `timm_`, and `tf_` stands for weights
# trained in TensorFlow, as in timm.
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
    "resnet101": functools.partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck, imagenet_stem=True),
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3_small": _V3_SMALL,
    "mobilenet_v3_large": _V3_LARGE,
    "timm_mobilenet_v3_small": functools.partial(_V3_SMALL, dialect=Dialect()),
    "timm_mobilenet_v3_large": functools.partial(_V3_LARGE, dialect=Dialect()),
    "tf_mobilenet_v3_small": functools.partial(_V3_SMALL, dialect=_TENSORFLOW),
    "tf_mobilenet_v3_large": functools.partial(_V3_LARGE, dialect=_TENSORFLOW),
    "efficientnet_b0": EfficientNet,
    "efficientnet_lite0": functools.partial(EfficientNet, lite=True),
    "tf_efficientnet_b0": functools.partial(EfficientNet, dialect=_TENSORFLOW),
    "tf_efficientnet_lite0": functools.partial(EfficientNet, lite=True, dialect=_TENSORFLOW),
    "convnext_tiny": ConvNeXt,
    "vit_s16": functools.partial(VisionTransformer, width=384, heads=6),
    "vit_b16": functools.partial(VisionTransformer, width=768, heads=12),
}
for _name, _sizes in _VGG_SIZES.items():
    CLASSIFIERS[_name] = functools.partial(VGG, stage_sizes=_sizes)
    CLASSIFIERS[f"{_name}_bn"] = functools.partial(VGG, stage_sizes=_sizes, batch_norm=True)
    CLASSIFIERS[f"timm_{_name}"] = functools.partial(VGG, stage_sizes=_sizes, sliding_head=True)
    CLASSIFIERS[f"timm_{_name}_bn"] = functools.partial(VGG, stage_sizes=_sizes, batch_norm=True, sliding_head=True)


def create_classifier(name: str, num_classes: int, *, dtype: jnp.dtype = jnp.float32) -> nn.Module:
    """Return a classifier by name.

    Args:
        name: a key of `CLASSIFIERS`, or one with a width multiplier behind it, `mobilenet_v2_x0.5`: the MobileNets and
            EfficientNets round widths to multiples of eight, by torchvision's rules; the others to whole numbers.
        num_classes: K.
        dtype: compute dtype; parameters, BatchNorm statistics, logits and features are float32.

    Returns:
        A module whose `apply(variables, x, train=False)` gives `(logits [B, K], features)` for normalised images
        x [B, H, W, C]; features is a tuple of [B, C_i], the globally pooled output of each stage, shallow to deep.

    Raises:
        ValueError: there is no such model, or it has no width to multiply.
    """
    base, multiplier = parse_name(name)
    options = {} if multiplier == 1 else {"width_multiplier": multiplier}
    return CLASSIFIERS[base](num_classes, dtype=dtype, **options)


def parse_name(name: str) -> tuple[str, float]:
    """Return (key of `CLASSIFIERS`, width multiplier) of a classifier's name; raise ValueError if there is none."""
    base, number = re.fullmatch(r"(.*?)(?:_x(\d+\.?\d*))?", name, re.DOTALL).groups()
    if base not in CLASSIFIERS:
        close = difflib.get_close_matches(base, CLASSIFIERS, 1)
        hint = f"did you mean {close[0] + name[len(base) :]!r}? " if close else ""
        raise ValueError(f"there is no model {name!r}; {hint}choose from {', '.join(CLASSIFIERS)}")
    multiplier = float(number or 1)
    if not multiplier:
        raise ValueError(f"the width multiplier of {name!r} must be above 0")
    if multiplier != 1 and "width_multiplier" not in inspect.signature(CLASSIFIERS[base]).parameters:
        raise ValueError(f"{base} has no width multiplier, so there is no {name!r}; leave out {name[len(base) :]!r}")
    return base, multiplier
