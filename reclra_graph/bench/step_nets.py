"""The nets of ``reclra bench step`` that are defined here: an MLP, a vision transformer, a GPT, and VGG-11's layers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reclra_graph.bench.loader import imported


def mlp(
    inputs: int, width: int, depth: int, classes: int, activation: Callable[[], nn.Module] = nn.Tanh
) -> nn.Sequential:
    """[B, inputs] to scores [B, classes]: ``depth`` hidden layers with an activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise([inputs, *(width,) * depth]):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


class Block(nn.Module):
    """A transformer's block, [B, T, width] to the same: attention and an MLP of four times the width, each behind a
    layer norm and beside a skip connection."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to [B, T, width]."""
        batch, length, width = x.shape
        query, key, value = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


class ViT(nn.Module):
    """Images [B, 3, size, size] to scores [B, classes] (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021): a
    class token before the patches, whose last state the head reads."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, size, size] to [B, classes]."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        scores: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return scores


class GPT(nn.Module):
    """Tokens [B, length] to scores [B, length, vocabulary] of the next (Radford et al., "Language Models are
    Unsupervised Multitask Learners", 2019). ``tied``: the last layer's weight is that of the embedding, as in GPT-2."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
            nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, length] to [B, length, vocabulary]."""
        scores: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))
        return scores


def vgg11(classes: int, narrower: int = 1) -> nn.Sequential:
    """torchvision's layers of VGG-11, [B, 3, H, W], their mean over positions, and one linear layer to [B, classes];
    its own three linear layers would hold 13 of 14 parameters and hide the convolutions. ``narrower``: every layer has
    so many times fewer channels.

    Raises ModelError RG802 where torchvision is not installed."""
    vgg = imported("torchvision").models.vgg
    sizes = [item if isinstance(item, str) else item // narrower for item in vgg.cfgs["A"]]
    net = nn.Sequential(
        vgg.make_layers(sizes), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512 // narrower, classes)
    )
    for module in net.modules():  # as torchvision begins
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return net


def resnet50(classes: int, narrow: bool = False) -> nn.Module:
    """torchvision's ResNet-50, [B, 3, H, W] to [B, classes]; ``narrow``: one block in each stage, of an eighth the
    inner width.

    Raises ModelError RG802 where torchvision is not installed."""
    models = imported("torchvision").models
    made: nn.Module = (
        models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=classes, width_per_group=8)
        if narrow
        else models.resnet50(num_classes=classes)
    )
    return made
