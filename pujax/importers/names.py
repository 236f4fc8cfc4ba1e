"""What PyTorch projects call the layers of our networks: a table for every project and family."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pujax.models import parse_name

Path = tuple[str, ...]
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_BLOCK = re.compile(r"layer(\d+)(?:_(\d+))?")


@dataclass(frozen=True)
class Naming:
    """How one project names the layers of one family, by pujax's names.

    A name may have in braces: i and j, the numbers of a block `layer<i>_<j>` (i0 counts from 0, `odd` is 2 i - 1); n,
    the block's place among all, from 0 (n1 from 1); c, the place of a convolution with its BatchNorm among those of the
    block, from 0 (c1 from 1), and k, the same with the gate counted too (k1 from 1); pwl, `pwl` or, without expansion,
    `pw`; stages and last, the number of stages and of blocks, plus 1.
    """

    title: str
    layers: Mapping[str, str]  # outside of the blocks; a name that ends in "_" is joined to the leaf as it is
    block: Mapping[str, str]  # within a block; "" where the block is a single layer
    prefix: str = ""  # before every name of `block`

    def name(self, path: Path, context: Mapping[str, Any]) -> str:
        """Return the name of the tensor at `path`, which ends in the name of a leaf."""
        *layer, leaf = path
        table = {key: self.prefix + value for key, value in self.block.items()} if "i" in context else self.layers
        if leaf not in _LEAVES:
            return table[leaf].format(**context)
        name = table["/".join(layer)].format(**context)
        return name + ("" if name.endswith("_") else ".") + _LEAVES[leaf]


_CONV_BN = {"conv1": "conv1", "bn1": "bn1", "conv2": "conv2", "bn2": "bn2", "conv3": "conv3", "bn3": "bn3"}
_RESNETS = tuple(
    Naming(
        title,
        {"conv1": "conv1", "bn1": "bn1", "linear": linear},
        {**_CONV_BN, "shortcut_conv": f"{shortcut}.0", "shortcut_bn": f"{shortcut}.1"},
        "layer{i}.{j}.",
    )
    for title, shortcut, linear in (("torchvision", "downsample", "fc"), ("kuangliu", "shortcut", "linear"))
)
_TIMM_BLOCK = {
    "expand_conv": "conv_pw",
    "expand_bn": "bn1",
    "depthwise_conv": "conv_dw",
    "depthwise_bn": "bn{c1}",
    "squeeze_conv": "se.conv_reduce",
    "excite_conv": "se.conv_expand",
    "project_conv": "conv_{pwl}",
    "project_bn": "bn{c1}",
}
_TIMM_MOBILE = Naming(
    "timm",
    {"conv1": "conv_stem", "bn1": "bn1", "conv2": "conv_head", "bn2": "bn2", "linear": "classifier"},
    _TIMM_BLOCK,
    "blocks.{i0}.{j}.",
)
_TIMM_MOBILENET_V3 = Naming(
    "timm",
    {
        "conv1": "conv_stem",
        "bn1": "bn1",
        "conv2": "blocks.{stages}.0.conv",
        "bn2": "blocks.{stages}.0.bn1",
        "fc1": "conv_head",
        "linear": "classifier",
    },
    _TIMM_BLOCK,
    "blocks.{i0}.{j}.",
)
_MOBILENET_V2 = Naming(
    "torchvision",
    {
        "conv1": "features.0.0",
        "bn1": "features.0.1",
        "conv2": "features.{last}.0",
        "bn2": "features.{last}.1",
        "linear": "classifier.1",
    },
    {
        "expand_conv": "0.0",
        "expand_bn": "0.1",
        "depthwise_conv": "{k}.0",
        "depthwise_bn": "{k}.1",
        "project_conv": "{k}",
        "project_bn": "{k1}",
    },
    "features.{n1}.conv.",
)
_TORCHVISION_BLOCK = {
    "expand_conv": "0.0",
    "expand_bn": "0.1",
    "depthwise_conv": "{k}.0",
    "depthwise_bn": "{k}.1",
    "squeeze_conv": "{k}.fc1",
    "excite_conv": "{k}.fc2",
    "project_conv": "{k}.0",
    "project_bn": "{k}.1",
}
_MOBILENET_V3 = Naming(
    "torchvision",
    {
        "conv1": "features.0.0",
        "bn1": "features.0.1",
        "conv2": "features.{last}.0",
        "bn2": "features.{last}.1",
        "fc1": "classifier.0",
        "linear": "classifier.3",
    },
    _TORCHVISION_BLOCK,
    "features.{n1}.block.",
)
_EFFICIENTNET = Naming(
    "torchvision",
    {
        "conv1": "features.0.0",
        "bn1": "features.0.1",
        "conv2": "features.{stages1}.0",
        "bn2": "features.{stages1}.1",
        "linear": "classifier.1",
    },
    _TORCHVISION_BLOCK,
    "features.{i}.{j}.block.",
)
_LUKEMELAS = Naming(  # EfficientNet-PyTorch, of which there is a Lite version on PyPI
    "EfficientNet-PyTorch",
    {"conv1": "_conv_stem", "bn1": "_bn0", "conv2": "_conv_head", "bn2": "_bn1", "linear": "_fc"},
    {
        "expand_conv": "_expand_conv",
        "expand_bn": "_bn0",
        "depthwise_conv": "_depthwise_conv",
        "depthwise_bn": "_bn1",
        "squeeze_conv": "_se_reduce",
        "excite_conv": "_se_expand",
        "project_conv": "_project_conv",
        "project_bn": "_bn2",
    },
    "_blocks.{n}.",
)
_VGG, _TIMM_VGG = (
    Naming(title, {"fc1": fc1, "fc2": fc2, "linear": linear}, {"": "features.{i}"})
    for title, fc1, fc2, linear in (
        ("torchvision", "classifier.0", "classifier.3", "classifier.6"),
        ("timm", "pre_logits.fc1", "pre_logits.fc2", "head.fc"),
    )
)
_CONVNEXTS = (
    Naming(
        "torchvision",
        {
            "stem_conv": "features.0.0",
            "stem_norm": "features.0.1",
            **{f"downsample{i}_norm": f"features.{2 * i - 2}.0" for i in (2, 3, 4)},
            **{f"downsample{i}_conv": f"features.{2 * i - 2}.1" for i in (2, 3, 4)},
            "norm": "classifier.0",
            "linear": "classifier.2",
        },
        {
            "depthwise_conv": "block.0",
            "norm": "block.2",
            "fc1": "block.3",
            "fc2": "block.5",
            "layer_scale": "layer_scale",
        },
        "features.{odd}.{j}.",
    ),
    Naming(
        "timm",
        {
            "stem_conv": "stem.0",
            "stem_norm": "stem.1",
            **{f"downsample{i}_norm": f"stages.{i - 1}.downsample.0" for i in (2, 3, 4)},
            **{f"downsample{i}_conv": f"stages.{i - 1}.downsample.1" for i in (2, 3, 4)},
            "norm": "head.norm",
            "linear": "head.fc",
        },
        {"depthwise_conv": "conv_dw", "norm": "norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "layer_scale": "gamma"},
        "stages.{i0}.blocks.{j}.",
    ),
)
_VITS = (
    Naming(
        "torchvision",
        {
            "patch_conv": "conv_proj",
            "class_token": "class_token",
            "positions": "encoder.pos_embedding",
            "norm": "encoder.ln",
            "linear": "heads.head",
        },
        {
            "norm1": "ln_1",
            "qkv": "self_attention.in_proj_",
            "proj": "self_attention.out_proj",
            "norm2": "ln_2",
            "fc1": "mlp.0",
            "fc2": "mlp.3",
        },
        "encoder.layers.encoder_layer_{i0}.",
    ),
    Naming(
        "timm",
        {
            "patch_conv": "patch_embed.proj",
            "class_token": "cls_token",
            "positions": "pos_embed",
            "norm": "norm",
            "linear": "head",
        },
        {
            "norm1": "norm1",
            "qkv": "attn.qkv",
            "proj": "attn.proj",
            "norm2": "norm2",
            "fc1": "mlp.fc1",
            "fc2": "mlp.fc2",
        },
        "blocks.{i0}.",
    ),
)
_LENET = Naming("pujax", {name: name for name in ("conv1", "conv2", "conv3", "fc1", "linear")}, {})

# By the beginning of a model's name, first match; the naming that an exporter should write comes first.
NAMINGS: Mapping[str, tuple[Naming, ...]] = {
    "lenet": (_LENET,),
    "cifar_resnet": _RESNETS[::-1],
    "resnet": _RESNETS,
    "mobilenet_v2": (_MOBILENET_V2, _TIMM_MOBILE),
    "mobilenet_v3": (_MOBILENET_V3,),
    "timm_mobilenet_v3": (_TIMM_MOBILENET_V3,),
    "tf_mobilenet_v3": (_TIMM_MOBILENET_V3,),
    "efficientnet_b0": (_EFFICIENTNET, _TIMM_MOBILE),
    "efficientnet_lite0": (_TIMM_MOBILE,),
    "tf_efficientnet": (_TIMM_MOBILE, _LUKEMELAS),
    "vgg": (_VGG,),
    "timm_vgg": (_TIMM_VGG,),
    "convnext": _CONVNEXTS,
    "vit": _VITS,
}


def namings_of(model: str) -> tuple[Naming, ...]:
    """Return the namings that a model's weights come in."""
    base, _ = parse_name(model)
    return next(namings for beginning, namings in NAMINGS.items() if base.startswith(beginning))


def torch_names(naming: Naming, leaves: Mapping[Path, Any]) -> dict[Path, str]:
    """Return PyTorch's name of every leaf of a model's variables, by its path; no two are the same."""
    paths = [path[1:] for path in leaves]
    blocks = {path[0] for path in paths if _BLOCK.fullmatch(path[0])}
    order = sorted(blocks, key=_numbers)
    stages = len({_numbers(block)[0] for block in order})
    outside = {"stages": stages, "stages1": stages + 1, "last": len(order) + 1}
    names = {}
    for path in leaves:
        _, block, *rest = path
        if block not in blocks:
            names[path] = naming.name(path[1:], outside)
            continue
        layers = {other[1] for other in paths if other[0] == block}
        context = {**_block_context(block, order), **_layer_context(rest[0], layers)}
        names[path] = naming.name(tuple(rest), context)
    return names


def _numbers(block: str) -> tuple[int, int]:
    """Return i and j of `layer<i>_<j>`."""
    i, j = _BLOCK.fullmatch(block).groups()
    return int(i), int(j or 0)


def _block_context(block: str, order: list[str]) -> dict[str, int]:
    i, j = _numbers(block)
    n = order.index(block)
    return {"i": i, "i0": i - 1, "odd": 2 * i - 1, "j": j, "n": n, "n1": n + 1}


def _layer_context(layer: str, layers: set[str]) -> dict[str, Any]:
    """Return the place of a layer in an inverted residual block, of which `layers` are all."""
    present = [part for part in ("expand", "depthwise", "squeeze", "project") if f"{part}_conv" in layers]
    part = {"excite": "squeeze"}.get(layer.split("_")[0], layer.split("_")[0])
    pwl = "pwl" if "expand" in present else "pw"
    if part not in present:
        return {"pwl": pwl}
    convs = [other for other in present if other != "squeeze"]
    k, c = present.index(part), convs.index(part) if part in convs else 0
    return {"k": k, "k1": k + 1, "c1": c + 1, "pwl": pwl}
