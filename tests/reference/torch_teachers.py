"""Small PyTorch networks for the import command, as a user's package would hold them."""

import torch
from torch import nn

from .torchvision_models import BasicBlock, ResNet, randomize


class SmallCNN(nn.Module):
    """Three resolutions; depthwise and strided convolutions, squeeze and excitation, ceil-mode pooling."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Sequential(
            nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(8, 8, 5, 1, 2, groups=8), nn.Hardswish(), nn.Conv2d(8, 12, 1)
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1), nn.Sigmoid())
        self.last = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.SiLU())
        self.head = nn.Linear(16, num_classes)

    def stages(self, images):
        first = self.stem(images)
        second = self.body(first)
        return first, second, self.last(second * self.gate(second))

    def forward(self, images):
        return self.head(self.stages(images)[-1].mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.softmax = nn.Softmax(-1)  # returns attention maps: they are no features

    def forward(self, tokens):
        batch, count, width = tokens.shape
        q, k, v = self.qkv(tokens).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        maps = self.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5)
        return self.out((maps @ v).transpose(1, 2).reshape(batch, count, width))


class TokenBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 3)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, tokens):
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class SmallTransformer(nn.Module):
    """Six blocks over sixteen patches and a class token; the last is PyTorch's own layer."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 24, 8, 8)
        self.class_token, self.places = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 17, 24))
        self.blocks = nn.ModuleList(TokenBlock(24) for _ in range(5))
        self.final = nn.TransformerEncoderLayer(24, 3, 32, batch_first=True, activation="gelu")
        self.head = nn.Linear(24, 10)
        self.register_buffer("order", torch.arange(17).flip(0), persistent=False)

    def embed(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens + self.places[:, self.order]

    def forward(self, images):
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return {"logits": self.head(self.final(tokens)[:, 0])}


def small_cnn(num_classes=10, channels=1):
    """The same weights and statistics each time, as if trained."""
    torch.manual_seed(0)
    module = SmallCNN(num_classes, channels)
    with torch.no_grad():
        for norm in (own for own in module.modules() if isinstance(own, nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return module


def small_transformer():
    torch.manual_seed(0)
    return SmallTransformer()


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 10))


class Branching(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def branching():
    return nn.Sequential(nn.Conv2d(1, 10, 3, 2), Branching())


class FixedBatch(nn.Module):
    def forward(self, images):
        return images.reshape(len(images), 10, -1).mean(2)


def fixed_batch():
    return nn.Sequential(nn.Conv2d(1, 10, 3, 2), FixedBatch())


def maker_that_fails():
    raise RuntimeError("no such checkpoint")


def no_module():
    return 3


def narrow_resnet(num_classes=10):
    torch.manual_seed(0)
    return randomize(ResNet(num_classes, (2, 2, 2, 2), width=8, block=BasicBlock))
