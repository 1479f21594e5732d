"""Unusual signatures: several inputs and outputs, dicts, dataclasses, one module called twice, wrappers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.own.draw import Builder, normal, words


class Siamese(nn.Module):
    """One encoder for both images; are they of the same class?"""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16)
        )
        self.compare = nn.Linear(16, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.compare(torch.abs(self.encoder(left) - self.encoder(right)))


class CalledTwice(nn.Module):
    """A layer that is applied twice in a row, as in a recurrent residual net."""

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(10, width)
        self.shared = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x))
        x = torch.tanh(self.shared(x))
        x = torch.tanh(self.norm(self.shared(x)))
        return self.head(x)


class MultiTask(nn.Module):
    """A class, and a number, from one trunk: a dict out, a loss for each entry."""

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.classify = nn.Linear(width, classes)
        self.measure = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"kind": self.classify(x), "place": self.measure(x)}


class DictInOut(nn.Module):
    """A batch as a dict with an image and a table beside it; the scores and the features come back as a dict."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.table = nn.Linear(5, 8)
        self.join = nn.Linear(40, 16)
        self.classify = nn.Linear(16, classes)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        joined = torch.cat([self.image(batch["image"]), torch.relu(self.table(batch["table"]))], dim=1)
        features = torch.relu(self.join(joined))
        return {"features": features, "logits": self.classify(features)}


@dataclass
class Prediction:
    """What a detector says of each image."""

    logits: Tensor
    box: Tensor


class DataclassOut(nn.Module):
    """Scores and a box in a dataclass."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU())
        self.logits = nn.Linear(16, classes)
        self.box = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Prediction:
        x = self.body(x)
        return Prediction(logits=self.logits(x), box=torch.sigmoid(self.box(x)))


class KeywordsOnly(nn.Module):
    """Named arguments, one of them optional, as a question-answering model takes them."""

    def __init__(self, vocabulary: int = 30, width: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.kind = nn.Embedding(2, width)
        self.score = nn.Linear(width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, *, tokens: Tensor, mask: Tensor, kinds: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        if kinds is not None:
            x = x + self.kind(kinds)
        scores = self.score(torch.tanh(x)).squeeze(-1).masked_fill(mask == 0, float("-inf"))
        return self.head(torch.einsum("bt,btw->bw", scores.softmax(dim=-1), x))


class LightningStyle(nn.Module):
    """A wrapper with the methods of a Lightning module; ``self.model`` does the work."""

    def __init__(self, classes: int = 4, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.Hardswish(), nn.Linear(32, classes)
        )
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return self.criterion(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class NestedInputs(nn.Module):
    """A tuple inside the arguments, and a flag that is no tensor."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 8), nn.Linear(7, 8)
        self.head = nn.Bilinear(8, 8, classes)

    def forward(self, pair: tuple[Tensor, Tensor], normalise: bool = False) -> Tensor:
        left, right = torch.tanh(self.left(pair[0])), torch.tanh(self.right(pair[1]))
        if normalise:
            left, right = F.normalize(left, dim=1), F.normalize(right, dim=1)
        return self.head(left, right)


def _multi_task() -> ZooModel:
    loss = {"kind": "cross-entropy", "place": "mse"}
    return ZooModel("multi_task", MultiTask(), (normal(6, 10),), loss, {"kind": words(4, 6), "place": normal(6, 2)})


def _keywords() -> ZooModel:
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    inputs = {"tokens": words(30, 4, 6), "mask": mask, "kinds": words(2, 4, 6)}
    return ZooModel("keyword_inputs", KeywordsOnly(), inputs, "cross-entropy", words(3, 4))


MODELS: dict[str, Builder] = {
    "siamese": lambda: ZooModel(
        "siamese", Siamese(), (normal(4, 1, 8, 8), normal(4, 1, 8, 8)), "bce-with-logits", torch.rand(4, 1).round()
    ),
    "called_twice": lambda: ZooModel("called_twice", CalledTwice(), (normal(6, 10),), "cross-entropy", words(4, 6)),
    "multi_task": _multi_task,
    "dict_in_out": lambda: ZooModel(
        "dict_in_out",
        DictInOut(),
        ({"image": normal(4, 3, 8, 8), "table": normal(4, 5)},),
        "cross-entropy",
        words(4, 4),
    ),
    "dataclass_output": lambda: ZooModel(
        "dataclass_output", DataclassOut(), (normal(6, 12),), "cross-entropy", words(4, 6)
    ),
    "keyword_inputs": _keywords,
    "lightning_style": lambda: ZooModel(
        "lightning_style", LightningStyle(), (normal(6, 1, 8, 8),), "cross-entropy", words(4, 6)
    ),
    "nested_inputs": lambda: ZooModel(
        "nested_inputs", NestedInputs(), ((normal(6, 5), normal(6, 7)), True), "cross-entropy", words(3, 6)
    ),
}
