"""The networks as PyTorch modules, written from their papers' and repositories' descriptions."""

import functools

import numpy as np
import torch
from torch import nn


class Block(nn.Module):
    expansion = 1

    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.project = stride != 1 or inside != width
        if self.project:
            self.shortcut_conv = nn.Conv2d(inside, width, 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.shortcut_bn(self.shortcut_conv(x)) if self.project else x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.project = stride != 1 or inside != 4 * width
        if self.project:
            self.shortcut_conv = nn.Conv2d(inside, 4 * width, 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(4 * width)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (self.shortcut_bn(self.shortcut_conv(x)) if self.project else x))


class ResNet(nn.Module):
    def __init__(self, num_classes, stage_sizes, width=64, imagenet_stem=False, block=Block):
        super().__init__()
        self.imagenet_stem = imagenet_stem
        self.conv1 = (
            nn.Conv2d(3, width, 7, 2, 3, bias=False) if imagenet_stem else nn.Conv2d(3, width, 3, 1, 1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(width)
        inside, self.stages = width, []
        for i, size in enumerate(stage_sizes):
            blocks = []
            for j in range(size):
                name, outside = f"layer{i + 1}_{j}", width * 2**i
                self.add_module(name, block(inside, outside, 2 if i and not j else 1))
                blocks.append(name)
                inside = block.expansion * outside
            self.stages.append(blocks)
        self.linear = nn.Linear(inside, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.imagenet_stem:
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        features = []
        for blocks in self.stages:
            for name in blocks:
                x = getattr(self, name)(x)
            features.append(x.mean((2, 3)))
        return self.linear(features[-1]), features


class InvertedResidual(nn.Module):
    def __init__(self, inside, width, stride, expansion):
        super().__init__()
        hidden = inside * expansion
        self.expand = expansion != 1
        if self.expand:
            self.expand_conv = nn.Conv2d(inside, hidden, 1, bias=False)
            self.expand_bn = nn.BatchNorm2d(hidden)
        self.depthwise_conv = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(hidden)
        self.project_conv = nn.Conv2d(hidden, width, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(width)
        self.residual = stride == 1 and inside == width

    def forward(self, x):
        y = nn.functional.relu6(self.expand_bn(self.expand_conv(x))) if self.expand else x
        y = self.project_bn(self.project_conv(nn.functional.relu6(self.depthwise_bn(self.depthwise_conv(y)))))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        inside, self.stages = 32, []
        for i, (expansion, width, blocks, stride) in enumerate(
            [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
        ):
            names = [f"layer{i + 1}_{j}" for j in range(blocks)]
            for j, name in enumerate(names):
                self.add_module(name, InvertedResidual(inside, width, 1 if j else stride, expansion))
                inside = width
            self.stages.append(names)
        self.conv2, self.bn2 = nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x):
        x, features = nn.functional.relu6(self.bn1(self.conv1(x))), []
        for names in self.stages:
            for name in names:
                x = getattr(self, name)(x)
            features.append(x.mean((2, 3)))
        features.append(nn.functional.relu6(self.bn2(self.conv2(x))).mean((2, 3)))
        return self.linear(features[-1]), features


class LeNet(nn.Module):
    def __init__(self, num_classes, channels=1, widths=(6, 16, 120, 84)):
        super().__init__()
        a, b, c, d = widths
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(channels, a, 5), nn.Conv2d(a, b, 5), nn.Conv2d(b, c, 5)
        self.fc1, self.linear = nn.Linear(c, d), nn.Linear(d, num_classes)

    def forward(self, x):
        a = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        b = nn.functional.max_pool2d(torch.relu(self.conv2(a)), 2)
        c = torch.relu(self.conv3(b))
        d = torch.relu(self.fc1(c.mean((2, 3))))
        return self.linear(d), [a.mean((2, 3)), b.mean((2, 3)), c.mean((2, 3)), d]


NETWORKS = {  # by pujax's names; each takes the number of classes
    "lenet5": LeNet,
    "lenet5_half": functools.partial(LeNet, widths=(3, 8, 60, 42)),
    "cifar_resnet10_w8": functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), width=8),
    "cifar_resnet10_w16": functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), width=16),
    "cifar_resnet18_w16": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), width=16),
    "cifar_resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    "cifar_resnet34": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3)),
    "resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), imagenet_stem=True),
    "resnet34": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), imagenet_stem=True),
    "resnet50": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), imagenet_stem=True, block=Bottleneck),
    "mobilenet_v2": MobileNetV2,
}


class PUHead(nn.Module):
    def __init__(self, channels, reduction=16):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)
        self.linear = nn.Linear(channels, 1)

    def forward(self, features):
        x = torch.cat(features, 1)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x))))
        return self.linear(x * gate)[:, 0]


class Scorer(nn.Module):
    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x):
        logits, features = self.backbone(x)
        return self.head(features) + 0 * logits.sum()  # a gradient of zero, so that weight decay moves them


def nnpu(z, labelled, prior):
    """The released rule with the sigmoid loss: below zero the gradient is that of minus the negative risk."""
    positive = prior * torch.sigmoid(-z[labelled]).mean()
    negative = torch.sigmoid(z[~labelled]).mean() - prior * torch.sigmoid(z[labelled]).mean()
    if negative >= 0:
        return positive + negative
    return -negative + (positive + negative).detach()  # reported: the positive risk alone


def randomize(module, seed):
    """Give every BatchNorm scales, shifts and running statistics that are not their trivial defaults."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.2)
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return module


def flax_variables(module):
    """Return the module's weights as Flax variables; names are equal, kernels transposed."""
    params, stats = {}, {}
    for name, layer in module.named_modules():
        parts = name.split(".") if name else []
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.detach().numpy()
            leaf = {"kernel": weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T}
            if layer.bias is not None:
                leaf["bias"] = layer.bias.detach().numpy()
            _put(params, parts, leaf)
        elif isinstance(layer, nn.BatchNorm2d):
            _put(params, parts, {"scale": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()})
            _put(stats, parts, {"mean": layer.running_mean.numpy(), "var": layer.running_var.numpy()})
    return {"params": params, "batch_stats": stats} if stats else {"params": params}


def _put(tree, parts, leaf):
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
    tree[parts[-1]] = {name: np.array(value) for name, value in leaf.items()}
