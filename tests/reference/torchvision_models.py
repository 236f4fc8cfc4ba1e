"""Networks as PyTorch modules under torchvision's names, written from their papers and torchvision's documentation."""

import functools

import torch
from torch import nn


def divisible(channels):
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def conv_bn(inside, outside, size=1, stride=1, groups=1, eps=1e-5, act=None):
    conv = nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside, eps), *([act()] if act else []))


class Bottleneck(nn.Module):
    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = conv_bn(inside, 4 * width, 1, stride) if stride > 1 or inside != 4 * width else None

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (self.downsample(x) if self.downsample else x))


class ResNet(nn.Module):
    def __init__(self, num_classes, sizes, width=64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        inside = width
        for i, size in enumerate(sizes):
            blocks = []
            for j in range(size):
                blocks.append(Bottleneck(inside, width * 2**i, 2 if i and not j else 1))
                inside = 4 * width * 2**i
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inside, num_classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class Gate(nn.Module):
    def __init__(self, channels, squeezed, act, function):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.function = act, function

    def forward(self, x):
        return x * self.function(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


class Residual(nn.Module):
    """`name` of the inner layers; the last of them is flat in MobileNetV2."""

    def __init__(self, layers, residual, name="block"):
        super().__init__()
        self.name, self.residual = name, residual
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x):
        y = getattr(self, self.name)(x)
        return x + y if self.residual else y


class Mobile(nn.Module):
    def __init__(self, features, classifier):
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2(num_classes, multiplier=1.0):
    inside = divisible(32 * multiplier)
    features = [conv_bn(3, inside, 3, 2, act=nn.ReLU6)]
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for t, c, n, s in rows:
        width = divisible(c * multiplier)
        for stride in [s] + [1] * (n - 1):
            hidden = t * inside
            layers = [conv_bn(inside, hidden, act=nn.ReLU6)] if t > 1 else []
            layers += [conv_bn(hidden, hidden, 3, stride, hidden, act=nn.ReLU6), *conv_bn(hidden, width)]
            features.append(Residual(layers, stride == 1 and inside == width, "conv"))
            inside = width
    last = divisible(1280 * max(1, multiplier))
    return Mobile([*features, conv_bn(inside, last, act=nn.ReLU6)], [nn.Dropout(), nn.Linear(last, num_classes)])


# kernel, hidden, width, gate, hard swish, stride
V3_SMALL = """
3 16 16 1 0 2, 3 72 24 0 0 2, 3 88 24 0 0 1, 5 96 40 1 1 2, 5 240 40 1 1 1, 5 240 40 1 1 1, 5 120 48 1 1 1,
5 144 48 1 1 1, 5 288 96 1 1 2, 5 576 96 1 1 1, 5 576 96 1 1 1"""
V3_LARGE = """
3 16 16 0 0 1, 3 64 24 0 0 2, 3 72 24 0 0 1, 5 72 40 1 0 2, 5 120 40 1 0 1, 5 120 40 1 0 1, 3 240 80 0 1 2,
3 200 80 0 1 1, 3 184 80 0 1 1, 3 184 80 0 1 1, 3 480 112 1 1 1, 3 672 112 1 1 1, 5 672 160 1 1 2, 5 960 160 1 1 1,
5 960 160 1 1 1"""


def mobilenet_v3(num_classes, table, last, multiplier=1.0):
    inside, bn = divisible(16 * multiplier), functools.partial(conv_bn, eps=1e-3)
    features = [bn(3, inside, 3, 2, act=nn.Hardswish)]
    for row in table.split(","):
        size, hidden, width, gate, hard_swish, stride = map(int, row.split())
        hidden, width, act = divisible(hidden * multiplier), divisible(width * multiplier), nn.ReLU
        act = nn.Hardswish if hard_swish else nn.ReLU
        layers = [bn(inside, hidden, act=act)] if hidden != inside else []
        layers.append(bn(hidden, hidden, size, stride, hidden, act=act))
        if gate:
            layers.append(Gate(hidden, divisible(hidden // 4), torch.relu, nn.functional.hardsigmoid))
        features.append(Residual([*layers, bn(hidden, width)], stride == 1 and inside == width))
        inside = width
    last = divisible(last * multiplier)
    head = [nn.Linear(6 * inside, last), nn.Hardswish(), nn.Dropout(), nn.Linear(last, num_classes)]
    return Mobile([*features, bn(inside, 6 * inside, act=nn.Hardswish)], head)


def efficientnet_b0(num_classes, multiplier=1.0):
    inside = divisible(32 * multiplier)
    features = [conv_bn(3, inside, 3, 2, act=nn.SiLU)]
    rows = [
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
    ]
    for t, size, first, width, n in [*rows, (6, 3, 1, 320, 1)]:
        width, blocks = divisible(width * multiplier), []
        for stride in [first] + [1] * (n - 1):
            hidden = t * inside
            layers = [conv_bn(inside, hidden, act=nn.SiLU)] if t > 1 else []
            layers.append(conv_bn(hidden, hidden, size, stride, hidden, act=nn.SiLU))
            layers.append(Gate(hidden, max(1, inside // 4), nn.functional.silu, torch.sigmoid))
            blocks.append(Residual([*layers, conv_bn(hidden, width)], stride == 1 and inside == width))
            inside = width
        features.append(nn.Sequential(*blocks))
    last = 4 * inside
    return Mobile([*features, conv_bn(inside, last, act=nn.SiLU)], [nn.Dropout(), nn.Linear(last, num_classes)])


class VGG(nn.Module):
    def __init__(self, num_classes, sizes, batch_norm=False, multiplier=1.0):
        super().__init__()
        layers, inside, hidden = [], 3, int(4096 * multiplier)
        for width, size in zip((64, 128, 256, 512, 512), sizes):
            for _ in range(size):
                layers.append(nn.Conv2d(inside, int(width * multiplier), 3, 1, 1))
                inside = int(width * multiplier)
                layers += [nn.BatchNorm2d(inside), nn.ReLU()] if batch_norm else [nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(7)
        head = [nn.Linear(49 * inside, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU()]
        self.classifier = nn.Sequential(*head, nn.Dropout(), nn.Linear(hidden, num_classes))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        spatial = [nn.Conv2d(width, width, 7, 1, 3, groups=width), nn.Identity(), nn.LayerNorm(width, 1e-6)]
        self.block = nn.Sequential(*spatial, nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.layer_scale = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x):
        y = self.block[0](x).permute(0, 2, 3, 1)
        return x + self.layer_scale * self.block[1:](y).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, num_classes, sizes=(3, 3, 9, 3), width=96):
        super().__init__()
        features = [nn.Sequential(nn.Conv2d(3, width, 4, 4), LayerNorm2d(width, 1e-6))]
        for i, size in enumerate(sizes):
            if i:
                features.append(nn.Sequential(LayerNorm2d(width, 1e-6), nn.Conv2d(width, 2 * width, 2, 2)))
                width *= 2
            features.append(nn.Sequential(*(ConvNeXtBlock(width) for _ in range(size))))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(LayerNorm2d(width, 1e-6), nn.Flatten(1), nn.Linear(width, num_classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3), keepdim=True))


class EncoderBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0), nn.Linear(4 * width, width), nn.Dropout(0)
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, width, heads, tokens, depth):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, tokens, width))
        self.layers = nn.Sequential()
        for i in range(depth):
            self.layers.add_module(f"encoder_layer_{i}", EncoderBlock(width, heads))
        self.ln = nn.LayerNorm(width, 1e-6)

    def forward(self, x):
        return self.ln(self.layers(x + self.pos_embedding))


class VisionTransformer(nn.Module):
    def __init__(self, num_classes, size, width=384, heads=6, depth=12, patch=16):
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.encoder = Encoder(width, heads, (size // patch) ** 2 + 1, depth)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(width, num_classes))

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1)
        return self.heads(self.encoder(x)[:, 0])


def randomize(module, seed=0):
    """Give a network numbers that let a signal through to the logits, and no statistic or shift its default.

    Initialised as for training, a deep network of depthwise convolutions has logits that hardly depend on the image.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith(("running_var", "layer_scale", "gamma")) or (value.ndim == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim < 2 and value.is_floating_point():
            value.normal_(0, 0.2, generator=generator)
        elif value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.ndim == 3:  # class token, positions
            value.normal_(0, 1, generator=generator)
        elif value.ndim == 2:
            value.normal_(0, value.shape[1] ** -0.5, generator=generator)
    return module.eval()


NETWORKS = {  # by pujax's names; each takes the number of classes
    "resnet50_x0.25": functools.partial(ResNet, sizes=(3, 4, 6, 3), width=16),
    "resnet101_x0.125": functools.partial(ResNet, sizes=(3, 4, 23, 3), width=8),
    "mobilenet_v2_x0.35": functools.partial(mobilenet_v2, multiplier=0.35),
    "mobilenet_v2_x1.4": functools.partial(mobilenet_v2, multiplier=1.4),
    "mobilenet_v3_small": functools.partial(mobilenet_v3, table=V3_SMALL, last=1024),
    "mobilenet_v3_large_x0.75": functools.partial(mobilenet_v3, table=V3_LARGE, last=1280, multiplier=0.75),
    "efficientnet_b0": efficientnet_b0,
    "efficientnet_b0_x0.5": functools.partial(efficientnet_b0, multiplier=0.5),
    "vgg11_x0.125": functools.partial(VGG, sizes=(1, 1, 2, 2, 2), multiplier=0.125),
    "vgg13_x0.125": functools.partial(VGG, sizes=(2, 2, 2, 2, 2), multiplier=0.125),
    "vgg16_bn_x0.125": functools.partial(VGG, sizes=(2, 2, 3, 3, 3), batch_norm=True, multiplier=0.125),
    "convnext_tiny_x0.25": functools.partial(ConvNeXt, width=24),
    "vit_s16": functools.partial(VisionTransformer, size=64),
    "vit_b16": functools.partial(VisionTransformer, size=64, width=768, heads=12),
}
