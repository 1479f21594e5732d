"""Small models that torch.export refuses, or that are easy to record wrongly."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_tracing


class Depth(nn.Module):
    """As many layers as the mean of the batch asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        depth = 0
        while depth < 4 and x.abs().mean() > 0.2:
            x = torch.tanh(self.layers[depth](x))
            depth += 1
        return self.head(x)


class NumpyConstant(nn.Module):
    """numpy makes a table that does not depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        window = torch.from_numpy(np.hanning(6)).to(x)
        return self.body(x * window[: int(x.detach().numpy().shape[1])])


class NumpyData(nn.Module):
    """numpy computes a factor from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        largest = np.abs(x.detach().numpy()).max(axis=1, keepdims=True)
        return self.body(x / torch.from_numpy(largest))


class ItemAsNumber(nn.Module):
    """A number read from the batch scales it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / x.max().item())


class Experts(nn.Module):
    """A mixture of experts with a loop over nonzero(), batch norm, dropout, and a counter that is replaced."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls = self.calls + 1
        h = self.drop(self.norm(x))
        weight = self.gate(h).softmax(-1)
        chosen = weight.argmax(-1)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero().flatten()
            if mine.numel():
                out[mine] += expert(h[mine]) * weight[mine, number : number + 1]
        with torch.no_grad():
            centre = out.mean(0, keepdim=True)
        return {"logits": self.head(torch.relu(out - centre)), "weight": weight}


class Tied(nn.Module):
    """One weight as embedding and as head, one layer called twice, and a branch on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.layer(torch.tanh(self.layer(self.embed(ids)))))
        if mask is not None:
            h = h * mask.unsqueeze(-1)
        if h.sum() == float("inf"):
            h = -h
        return self.head(h) * scale


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    note: str = "text"


class Tagger(nn.Module):
    """An LSTM that answers with a dataclass; with ``pick``, for the samples that have steps."""

    def __init__(self, pick: bool = False) -> None:
        super().__init__()
        self.pick = pick
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor, lengths: dict[str, Tensor]) -> Answer:
        steps = int(lengths["steps"].max())
        if self.pick:
            x = x[lengths["steps"].nonzero().flatten()]
        h, (last, _) = self.lstm(x[:, :steps])
        return Answer(self.head(h), (last, h))


class Sine(torch.autograd.Function):
    """w·sin(x), both ways in numpy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return torch.from_numpy(np.sin(x.detach().numpy()) * w.detach().numpy())

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return error * torch.cos(x) * w, (error * torch.sin(x)).sum(0)


class NumpyLayer(nn.Module):
    """Takes constants and a dict, returns a dict with a number in it; its operator is numpy's."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6))
        self.width = 6
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor, power: int, *, extra: dict[str, Tensor | None]) -> dict[str, Any]:
        scale = extra["scale"]
        assert scale is not None
        return {"y": Sine.apply(self.norm(x), self.w) ** power * scale, "mean": [x.mean()], "width": 6}


class Untraceable(nn.Module):
    """Refuses to run under a tracer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        if is_fx_tracing():
            raise RuntimeError("not while somebody is tracing")
        return self.drop(torch.tanh(self.inner(x)))


class Round(nn.Module):
    """numpy in a sub-module of a module with numpy: both turn the batch into constants."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.inner = Round(depth - 1) if depth else nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * torch.from_numpy(np.sign(x.detach().numpy()))


class Around(nn.Module):
    """An odd sub-module between ordinary layers."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.body = nn.Sequential()
        self.body.odd = odd
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        if isinstance(self.body.odd, NumpyLayer) or hasattr(self.body.odd, "width"):
            found = self.body.odd(x, 2, extra={"scale": x[0], "none": None})
            return self.head(found["y"] + found["mean"][0] * found["width"])
        return self.head(self.body.odd(self.body.odd(x)))


class Energy(nn.Module):
    """One step down an energy, whose derivative forward() takes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.energy = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        (slope,) = torch.autograd.grad(self.energy(torch.tanh(x)).sum(), x, create_graph=True)
        return x - slope


class BehindTheBack(nn.Module):
    """numpy writes to a tensor's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.detach().numpy()[:] += 1
        return torch.tanh(x)


class Mapped(nn.Module):
    """vmap and a functional derivative inside of forward, and a branch that torch.cond takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.other = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cond(x.sum() > 1e9, self.layer, self.other, (x,))
        y = torch.vmap(lambda row: self.layer(row).tanh())(x)
        return y + torch.func.grad(lambda item: self.layer(item).sin().sum())(x)


class OlderNorm(nn.Module):
    """Weights that older hooks compute, which deepcopy refuses; casts; and the layer's own branch on the data."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.layer = nn.utils.weight_norm(nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            x = x.nan_to_num()
        x = self.layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = x.float() @ x.float().T
        return x + y.mean().to(x.dtype)


class Dropped(nn.Module):
    """Layers that Python leaves out at random."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if torch.rand(()) < 0.5:
                x = torch.tanh(layer(x))
        return x
