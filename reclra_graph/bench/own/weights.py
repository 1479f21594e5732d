"""Weights that are computed: tied, normalised, or made by another net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.own.draw import Builder, normal, words


class TiedAutoencoder(nn.Module):
    """The decoder's matrices are the encoder's, transposed."""

    def __init__(self, features: int = 20, width: int = 12, code: int = 6) -> None:
        super().__init__()
        self.outer = nn.Linear(features, width)
        self.inner = nn.Linear(width, code)
        self.inner_bias = nn.Parameter(torch.zeros(width))
        self.outer_bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.inner(torch.tanh(self.outer(x))))
        hidden = torch.tanh(F.linear(code, self.inner.weight.t(), self.inner_bias))
        return F.linear(hidden, self.outer.weight.t(), self.outer_bias)


class WeightNormed(nn.Module):
    """Weight normalisation on every layer (Salimans and Kingma 2016)."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv1d(3, 8, 3, padding=1))
        self.hidden = parametrizations.weight_norm(nn.Linear(8, 16))
        self.head = parametrizations.weight_norm(nn.Linear(16, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(F.relu(self.conv(x)).amax(dim=2))))


class SpectralNormed(nn.Module):
    """A GAN's critic: spectral normalisation, with its power iteration in buffers (Miyato et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, stride=2, padding=1)),
            nn.LeakyReLU(0.1),
            parametrizations.spectral_norm(nn.Conv2d(8, 16, 3, stride=2, padding=1)),
            nn.LeakyReLU(0.1),
        )
        self.score = parametrizations.spectral_norm(nn.Linear(16, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.score(self.features(image).sum(dim=(2, 3)))


class HyperNetwork(nn.Module):
    """One net writes the weights of another, for each sample (Ha et al. 2017)."""

    def __init__(self, features: int = 6, context: int = 4, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.features, self.width = features, width
        self.write = nn.Sequential(nn.Linear(context, 16), nn.Tanh(), nn.Linear(16, features * width + width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        written = self.write(context)
        weight = written[:, : self.features * self.width].view(-1, self.width, self.features)
        bias = written[:, self.features * self.width :]
        return self.head(torch.tanh(torch.bmm(weight, x.unsqueeze(2)).squeeze(2) + bias))


class EmbeddingBagNet(nn.Module):
    """Bags of words, averaged; a classifier of texts (Joulin et al. 2017)."""

    def __init__(self, vocabulary: int = 50, width: int = 12, classes: int = 4) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(vocabulary, width, mode="mean")
        self.hidden = nn.Linear(width, 16)
        self.head = nn.Linear(16, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.bag(tokens))))


class FactorisedEmbedding(nn.Module):
    """Categories and numbers of a table, embedded and crossed (a factorisation machine with an MLP)."""

    def __init__(self, sizes: tuple[int, ...] = (7, 5, 11), numbers: int = 4, width: int = 6) -> None:
        super().__init__()
        self.categories = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.number = nn.Linear(numbers, width)
        self.mlp = nn.Sequential(nn.Linear(width * (len(sizes) + 1), 16), nn.PReLU(), nn.Linear(16, 1))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        parts = [table(categories[:, index]) for index, table in enumerate(self.categories)]
        stacked = torch.stack([*parts, self.number(numbers)], dim=1)
        crossed = 0.5 * (stacked.sum(dim=1).square() - stacked.square().sum(dim=1)).sum(dim=1, keepdim=True)
        return (crossed + self.mlp(stacked.flatten(1))).squeeze(1)


MODELS: dict[str, Builder] = {
    "tied_autoencoder": lambda: ZooModel("tied_autoencoder", TiedAutoencoder(), (normal(6, 20),), "mse", normal(6, 20)),
    "weight_norm": lambda: ZooModel("weight_norm", WeightNormed(), (normal(4, 3, 9),), "cross-entropy", words(4, 4)),
    "spectral_norm": lambda: ZooModel(
        "spectral_norm", SpectralNormed(), (normal(4, 3, 8, 8),), "bce-with-logits", torch.rand(4, 1).round()
    ),
    "hypernetwork": lambda: ZooModel(
        "hypernetwork", HyperNetwork(), (normal(6, 6), normal(6, 4)), "cross-entropy", words(3, 6)
    ),
    "embedding_bag": lambda: ZooModel(
        "embedding_bag", EmbeddingBagNet(), (words(50, 6, 5),), "cross-entropy", words(4, 6)
    ),
    "factorised_table": lambda: ZooModel(
        "factorised_table",
        FactorisedEmbedding(),
        (words(5, 6, 3), normal(6, 4)),
        "bce-with-logits",
        torch.rand(6).round(),
        # The crossed embeddings act on the output at once: random feedback must move them less than the layers above.
        options={"beta": 0.01},
    ),
}
