"""Many runs in one step, in float64: each beside the same run alone, and backpropagation beside PyTorch's own loop."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.stacked import StackedStep
from reclra_graph.runtime.stacked_backprop import StackedBackprop
from tests.differential.agreement import TOLERANCE
from tests.models import SmallCNN, mlp
from tests.unit.stacks import batches, gap, runs_of, together

STEPS = 3


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm, with skips; words and places are embedded, the first token tells
    the class."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(5, 8) / 3)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.wide, self.narrow, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places
        q, k, v = self.qkv(self.norm1(x)).view(*tokens.shape, 3, 2, 4).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(z)
        x = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        logits: Tensor = self.head(x[:, 0])
        return logits


def images() -> Tensor:
    return torch.zeros(4, 2, 8, 8).double()


def beside(step: CompiledStep, make: Callable[[list[Any]], tuple[list[Any], list[Any]]] | None = None) -> None:
    """Steps of three runs together and alone: losses, parameters, buffers, synapses, what the optimiser remembers."""
    stack, alone = StackedStep(runs_of(step), fused=False), runs_of(step)
    for number in range(STEPS):
        inputs, targets = batches(step, seed=10 * number) if make is None else make([number])
        losses = stack(*together(inputs, targets))
        wanted = torch.stack([run(x, y) for run, x, y in zip(alone, inputs, targets, strict=True)])
        assert float((losses - wanted).abs().max()) < TOLERANCE
    assert max(map(gap, stack.unstack(), alone)) < TOLERANCE
    assert min(gap(first, second) for first, second in itertools.combinations(alone, 2)) > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize(
    "options",
    [
        {"wiring": "flat"},
        {"wiring": "flat", "without": ("shared",)},
        {"wiring": "chain", "rule": "fixed", "gain": True},
        {"wiring": "chain", "norm": 1, "sign": "printed", "weight_decay": 0.01},
        {"synapse": "lowrank(2)"},
        {"synapse": "implicit", "loss": "mse"},
        {"without": ("straight", "factors", "shared", "batch", "group")},
    ],
    ids=str,
)
def test_mlp(options: dict[str, Any], optimizer: str) -> None:
    torch.manual_seed(1)
    net = mlp(6, 8, 8, 5, 3).double()
    beside(rg.compile(net, torch.zeros(4, 6).double(), optimizer=optimizer, lr=0.03, beta=0.4, gamma=0.3, **options))


@pytest.mark.parametrize("synapse", ["dense", "channel", "conv"])
def test_convolutions_and_batch_norm(synapse: str) -> None:
    torch.manual_seed(2)
    wiring = "chain" if synapse == "conv" else "flat"
    beside(rg.compile(SmallCNN(4).double(), images(), synapse=synapse, wiring=wiring, lr=0.05, beta=0.3, gamma=0.2))


def words(numbers: list[int]) -> tuple[list[Any], list[Any]]:
    draw = torch.Generator().manual_seed(numbers[0])
    return (
        [(torch.randint(11, (4, 5), generator=draw),) for _ in range(3)],
        [torch.randint(3, (4,), generator=draw) for _ in range(3)],
    )


@pytest.mark.parametrize("synapse", ["auto", "token"])
def test_attention(synapse: str) -> None:
    torch.manual_seed(3)
    tokens = torch.zeros(4, 5, dtype=torch.int64)
    beside(rg.compile(Block().double(), tokens, synapse=synapse, optimizer="adamw", lr=0.01), words)


# -- backpropagation, beside a plain loop with torch.optim ------------------------------------------------------------

# A bias before a batch norm has no gradient but rounding, which a small eps would make large.
OPTIMISERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda held: torch.optim.SGD(held, lr=0.05, weight_decay=0.02),
    "momentum": lambda held: torch.optim.SGD(held, lr=0.05, weight_decay=0.02, momentum=0.9),
    "adamw": lambda held: torch.optim.AdamW(held, lr=0.05, weight_decay=0.02, eps=1e-3),
}


def trained(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One step by backpropagation; returns the loss."""
    loss = F.cross_entropy(model.train()(x), y, label_smoothing=0.1)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("kind", ["mlp", "cnn", "attention"])
def test_backpropagation(kind: str, optimizer: str) -> None:
    torch.manual_seed(4)
    nets: dict[str, tuple[nn.Module, Tensor]] = {
        "mlp": (mlp(6, 8, 5, 3), torch.zeros(4, 6).double()),
        "cnn": (SmallCNN(4), images()),
        "attention": (Block(), torch.zeros(4, 5, dtype=torch.int64)),
    }
    net, example = nets[kind]
    first = next(iter(net.parameters()))
    first.requires_grad_(kind != "mlp")  # what is frozen stays
    step = rg.compile(
        net.double(), example, optimizer=optimizer, lr=0.05, weight_decay=0.02, eps=1e-3, label_smoothing=0.1
    )
    stack = StackedBackprop(runs_of(step), fused=False)
    models = [copy.deepcopy(run.model) for run in stack.runs]
    optimisers = [OPTIMISERS[optimizer]([p for p in model.parameters() if p.requires_grad]) for model in models]
    for number in range(STEPS):
        inputs, targets = words([number]) if kind == "attention" else batches(step, seed=10 * number)
        losses = stack(*together(inputs, targets))
        for run, (model, optimiser) in enumerate(zip(models, optimisers, strict=True)):
            loss = trained(model, optimiser, *inputs[run], targets[run])
            assert abs(float(losses[run] - loss)) < TOLERANCE
    stack.unstack()
    for run, model in zip(stack.models, models, strict=True):
        for (name, mine), theirs in zip(run.state_dict().items(), model.state_dict().values(), strict=True):
            assert float((mine.double() - theirs.double()).abs().max()) < TOLERANCE, name


def test_backpropagation_leaves_a_failed_run_alone() -> None:
    torch.manual_seed(5)
    step = rg.compile(SmallCNN(4).double(), images(), optimizer="adamw")
    stack, other = (StackedBackprop(runs_of(step), fused=False) for _ in range(2))
    (x,), y = together(*batches(step))
    other(x, y)
    x[2] *= float("inf")
    before = {name: value[2].clone() for name, value in stack.held.items()}
    stack(x, y)
    assert stack.failed == (2,)
    for name, value in stack.held.items():
        assert torch.equal(value[2], before[name])
        assert torch.equal(value[:2], other.held[name][:2])
