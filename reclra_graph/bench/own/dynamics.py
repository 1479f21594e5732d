"""Loops that are part of the mathematics: a flow, a differential equation, a fixed point, a sampled code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.own.draw import Builder, normal, words


class Coupling(nn.Module):
    """An affine coupling: one half of the features scales and shifts the other (Dinh et al. 2017)."""

    def __init__(self, features: int, width: int = 12) -> None:
        super().__init__()
        half = features // 2
        self.net = nn.Sequential(nn.Linear(half, width), nn.Tanh(), nn.Linear(width, 2 * half))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x.chunk(2, dim=1)
        scale, shift = self.net(kept).chunk(2, dim=1)
        scale = torch.tanh(scale)
        return torch.cat([moved * torch.exp(scale) + shift, kept], dim=1), scale.sum(dim=1)


class Flow(nn.Module):
    """A normalising flow: returns the code and the logarithm of the determinant."""

    def __init__(self, features: int = 6, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(features) for _ in range(layers))
        self.log_scale = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x[:, 0])
        for layer in self.layers:
            x, logarithm = layer(x)
            total = total + logarithm
        return x * torch.exp(self.log_scale), total + self.log_scale.sum()


class Field(nn.Module):
    """The right-hand side of the equation; time is an input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width + 1, width), nn.Linear(width, width)

    def forward(self, time: float, state: Tensor) -> Tensor:
        now = torch.full_like(state[:, :1], time)
        return self.second(torch.tanh(self.first(torch.cat([state, now], dim=1))))


class NeuralODE(nn.Module):
    """Classical Runge-Kutta steps of one learned field (Chen et al. 2018)."""

    def __init__(self, features: int = 6, width: int = 10, classes: int = 3, steps: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.enter = nn.Linear(features, width)
        self.field = Field(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        state, step = self.enter(x), 1.0 / self.steps
        for number in range(self.steps):
            time = number * step
            k1 = self.field(time, state)
            k2 = self.field(time + step / 2, state + step / 2 * k1)
            k3 = self.field(time + step / 2, state + step / 2 * k2)
            k4 = self.field(time + step, state + step * k3)
            state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return self.head(state)


class Equilibrium(nn.Module):
    """A few iterations towards a fixed point, without gradient, and one with it (Bai et al. 2019)."""

    def __init__(self, features: int = 8, width: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.inject = nn.Linear(features, width)
        self.repeat = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        given = self.inject(x)
        state = torch.zeros_like(given)
        with torch.no_grad():
            for _ in range(4):
                state = torch.tanh(self.norm(self.repeat(state) + given))
        return self.head(torch.tanh(self.norm(self.repeat(state) + given)))


class VariationalAutoencoder(nn.Module):
    """A code drawn from a learned normal distribution (Kingma and Welling 2014)."""

    def __init__(self, features: int = 16, code: int = 4) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(features, 12), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(12, code), nn.Linear(12, code)
        self.decode = nn.Sequential(nn.Linear(code, 12), nn.ReLU(), nn.Linear(12, features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encode(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decode(code), mean, log_variance


MODELS: dict[str, Builder] = {
    "normalising_flow": lambda: ZooModel("normalising_flow", Flow(), (normal(6, 6),), "mse", normal(6, 6)),
    "neural_ode": lambda: ZooModel("neural_ode", NeuralODE(), (normal(6, 6),), "cross-entropy", words(3, 6)),
    "equilibrium": lambda: ZooModel("equilibrium", Equilibrium(), (normal(6, 8),), "cross-entropy", words(3, 6)),
    "variational_autoencoder": lambda: ZooModel(
        "variational_autoencoder", VariationalAutoencoder(), (normal(6, 16),), "mse", normal(6, 16)
    ),
}
