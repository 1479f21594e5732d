"""Python inside forward(): depth that depends on the data, numpy, checkpoints, operators that work in place."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.own.draw import Builder, normal, words


class DataDependentDepth(nn.Module):
    """Layers are added until the features are large enough, four at most."""

    def __init__(self, width: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.enter = nn.Linear(8, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x))
        for layer in self.layers:
            if x.abs().mean() > 10.0:
                break
            x = x + torch.tanh(layer(x))
        if x.mean().item() > 100.0:
            x = -x
        return self.head(x)


class NumpyPositions(nn.Module):
    """A table of positions that numpy computes in every forward pass."""

    def __init__(self, vocabulary: int = 30, width: int = 12, classes: int = 4) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        places = np.arange(tokens.shape[1])[:, None] / 10000 ** (np.arange(self.width)[None, :] / self.width)
        table = torch.from_numpy(np.sin(places)).to(self.embedding.weight)
        return self.head(torch.tanh(self.mix(self.embedding(tokens) + table)).mean(dim=1))


class NumpyScale(nn.Module):
    """The input is divided by a quantile that numpy takes of its values."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, classes))

    def forward(self, x: Tensor) -> Tensor:
        scale = float(np.quantile(np.abs(x.detach().cpu().numpy()), 0.9))
        return self.net(x / scale)


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass to save memory."""

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(10, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.head(x)


class InPlace(nn.Module):
    """Values changed where they stand: slices written, gates multiplied in, rectified in place."""

    calls: Tensor

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(10, width)
        self.gate = nn.Linear(10, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        hidden = self.enter(x)
        hidden.mul_(torch.sigmoid(self.gate(x)))
        hidden[:, ::2] += 0.5
        hidden = hidden.clone()
        hidden[:, :4] = hidden[:, 4:8] * 2
        hidden += self.mix(hidden)
        return self.head(F.relu_(hidden))


class Signum(nn.Module):
    """Units that are -1 or 1: nothing here has a useful derivative."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sign(self.second(torch.sign(self.first(x)))))


class Quantised(nn.Module):
    """Activations rounded to a few levels with the straight-through estimator."""

    def __init__(self, classes: int = 4, levels: int = 8) -> None:
        super().__init__()
        self.levels = levels
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.clamp(self.norm(self.conv(image)), 0, 1)
        x = x + (torch.round(x * self.levels) / self.levels - x).detach()
        return self.head(F.avg_pool2d(x, 2).flatten(1))


MODELS: dict[str, Builder] = {
    "data_dependent_depth": lambda: ZooModel(
        "data_dependent_depth", DataDependentDepth(), (normal(6, 8),), "cross-entropy", words(3, 6)
    ),
    "numpy_positions": lambda: ZooModel(
        "numpy_positions", NumpyPositions(), (words(30, 4, 6),), "cross-entropy", words(4, 4)
    ),
    "numpy_scale": lambda: ZooModel("numpy_scale", NumpyScale(), (normal(6, 8),), "cross-entropy", words(3, 6)),
    "checkpointed": lambda: ZooModel("checkpointed", Checkpointed(), (normal(6, 10),), "cross-entropy", words(4, 6)),
    "in_place": lambda: ZooModel("in_place", InPlace(), (normal(6, 10),), "cross-entropy", words(4, 6)),
    "signum": lambda: ZooModel("signum", Signum(), (normal(8, 12),), "cross-entropy", words(4, 8)),
    "straight_through": lambda: ZooModel(
        "straight_through", Quantised(), (normal(4, 3, 8, 8),), "cross-entropy", words(4, 4)
    ),
}
