"""The rules that mirror forward weights, against numpy transcriptions of their formulas, and by their properties.

Own formulas in float64: an MLP 5-4-4-3 by hand, Kolen-Pollack, sign symmetry, Eq. 6 in the layout of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.operators import Ref
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.rules import adjoint as formulas
from reclra_graph.rules import rule
from reclra_graph.rules.table import ERROR
from reclra_graph.rules.way_back import (
    SYNAPSE,
    WEIGHTED,
    adjoint,
    fan_in,
    feeds,
    outer,
    positions,
    sign_scale,
    ways,
)
from tests.differential.reverse_nets import PlainConvs, Volumes
from tests.models import mlp, regions_of

Array = NDArray[np.float64]
LR, BETA, BATCH = 0.3, 0.2, 6


def array(value: Tensor) -> Array:
    found: Array = value.detach().numpy().copy()
    return found


class ByHand:
    """Three layers with tanh between them, errors against them, in numpy."""

    def __init__(self, step: rg.CompiledStep, gamma: float, decay: float) -> None:
        held = step.model.state_dict()
        self.W = [array(held[f"{index}.weight"]) for index in (0, 2, 4)]
        self.b = [array(held[f"{index}.bias"]) for index in (0, 2, 4)]
        self.E = {name: array(value) for name, value in step.synapses.items()}
        self.gamma, self.decay = gamma, decay

    def step(self, x: Array, target: Array, learning: str) -> None:
        h1 = x @ self.W[0].T + self.b[0]
        h2 = np.tanh(h1) @ self.W[1].T + self.b[1]
        z1, z2 = np.tanh(h1), np.tanh(h2)
        z3 = z2 @ self.W[2].T + self.b[2]
        e3 = np.exp(z3) / np.exp(z3).sum(1, keepdims=True) - np.eye(3)[target]
        E = dict(self.E)
        if learning == "sign":
            E = {"3->2": np.sqrt(2 / 3) * np.sign(self.W[2]), "2->1": np.sqrt(2 / 4) * np.sign(self.W[1])}
        d2 = e3 @ E["3->2"]
        e2 = z2 - np.tanh(h2 - BETA * d2)
        d1 = e2 @ E["2->1"]
        e1 = z1 - np.tanh(h1 - BETA * d1)
        dW = [e.T @ z / BATCH for e, z in ((e1, x), (e2, z1), (e3, z2))]
        db = [e.mean(0) for e in (e1, e2, e3)]
        dE: dict[str, Array] = {}
        if learning == "kp":
            dE = {"3->2": self.gamma * dW[2], "2->1": self.gamma * dW[1]}
        elif learning == "eq6":
            dE = {"3->2": self.gamma * e3.T @ d2 / BATCH, "2->1": self.gamma * e2.T @ d1 / BATCH}
        for values, deltas in ((self.W, dW), (self.b, db)):
            for index, delta in enumerate(deltas):
                values[index] = (1 - LR * self.decay) * values[index] - LR * delta
        for name, delta in dE.items():
            self.E[name] = (1 - LR * self.decay) * self.E[name] - LR * delta


@pytest.mark.parametrize("gamma", [None, 0.3])
@pytest.mark.parametrize("learning", ["kp", "sign", "eq6", "fixed"])
def test_three_layers_by_hand(learning: str, gamma: float | None) -> None:
    torch.manual_seed(5)
    net = mlp(5, 4, 4, 3).double()
    x, target = torch.randn(BATCH, 5, dtype=torch.float64), torch.randint(3, (BATCH,))
    decay = 0.0 if learning == "fixed" else 0.02
    step = rg.compile(net, x, wiring="reverse", rule=learning, lr=LR, beta=BETA, gamma=gamma, weight_decay=decay)
    usual = 0.01 if learning in ("eq6", "fixed") else 1.0
    assert step.plan.rates.gamma == (usual if gamma is None else gamma)
    mine = ByHand(step, step.plan.rates.gamma, decay)
    for _ in range(4):
        step(x, target)
        mine.step(array(x), target.numpy(), learning)
    for index, (W, b) in enumerate(zip(mine.W, mine.b, strict=True)):
        np.testing.assert_allclose(array(net[2 * index].weight), W, rtol=0, atol=1e-13)
        np.testing.assert_allclose(array(net[2 * index].bias), b, rtol=0, atol=1e-13)
    assert set(step.synapses) == (set() if learning == "sign" else set(mine.E))
    for name, value in step.synapses.items():
        np.testing.assert_allclose(array(value), mine.E[name], rtol=0, atol=1e-13)


def angle(first: Tensor, second: Tensor) -> float:
    """Degrees between two tensors as vectors."""
    cosine = (first * second).sum() / first.norm() / second.norm()
    return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


def angles(step: rg.CompiledStep) -> list[float]:
    weights = dict(step.model.named_parameters())
    return [
        angle(step.synapses[edge.synapse], weights[edge.weight].detach()) for edge in step.plan.edges if edge.weight
    ]


def gaps_of(step: rg.CompiledStep) -> list[float]:
    """|E − W| of every edge."""
    weights = dict(step.model.named_parameters())
    return [float((step.synapses[edge.synapse] - weights[edge.weight].detach()).norm()) for edge in step.plan.edges]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1, "weight_decay": 0.05},
        {"lr": 0.01, "weight_decay": 0.05, "optimizer": "momentum"},
        {"lr": 0.01, "weight_decay": 1.0, "optimizer": "adamw"},
    ],
    ids=lambda options: options.get("optimizer", "sgd"),
)
def test_kolen_pollack_aligns(options: dict[str, Any]) -> None:
    """E − W fades under decay, whatever the optimiser, so that the angle between the two falls."""
    torch.manual_seed(6)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3))
    x = torch.randn(32, 1, 6, 6)
    target = (x[:, 0, :3, :3].sum((1, 2)) > 1).long() + (x[:, 0, 3:, 3:].sum((1, 2)) > 0).long()
    step = rg.compile(net, x, rule="kp", gain=True, **options)
    assert step.plan.wiring == "reverse"
    before, gaps = angles(step), gaps_of(step)
    for _ in range(300):
        step(x, target)
    after = gaps_of(step)
    rate, decay = options["lr"], options["weight_decay"]
    if options.get("optimizer") != "momentum":  # exactly: both lose the same part of themselves, and move alike
        for gap, left in zip(gaps, after, strict=True):
            assert left == pytest.approx(gap * (1 - rate * decay) ** 300, rel=1e-2)
    assert all(b < 30 < 60 < a for a, b in zip(before, angles(step), strict=True)), (before, angles(step))


# -- every layer that has an adjoint ----------------------------------------------------------------------------------


class Products(nn.Module):
    """Dense layers in all the ways of writing them, over sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(3, 2)
        self.A, self.B = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6, 3))
        self.shift = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(torch.tanh(self.first(x)) @ self.A)
        z = torch.tanh(torch.addmm(self.shift, z.flatten(0, 1), self.B).unflatten(0, z.shape[:2]))
        logits: Tensor = self.last(z)
        return logits


def weighted(model: nn.Module, *sizes: int) -> list[tuple[RegionGraph, str, str]]:
    """(regions, operator, its data) of every weight that an error can go back over."""
    regions = regions_of(model.double(), torch.zeros(2, *sizes, dtype=torch.float64))
    found = ways(regions)
    links = [link for number in regions.sites for link in found.of(number).links if link.how == WEIGHTED]
    return [(regions, link.operator, link.value) for link in links]


def cases() -> list[tuple[RegionGraph, str, str]]:
    return [*weighted(PlainConvs(), 2, 8, 8), *weighted(Volumes(), 1, 3, 5, 4), *weighted(Products(), 3, 4)]


CASES = cases()


@pytest.mark.parametrize(
    ("regions", "name", "value"), CASES, ids=[f"{name}-{index}" for index, (_, name, _) in enumerate(CASES)]
)
def test_adjoints_and_outer_products(regions: RegionGraph, name: str, value: str) -> None:
    """d = adjoint(e) is PyTorch's input gradient with E for W; d eᵀ on E's entries is the derivative of ⟨d, E e⟩."""
    graph = regions.graph
    operator = graph.by_name[name]
    call, product = adjoint(operator, graph), outer(operator, graph, value, Ref("d"))
    assert call is not None
    assert product is not None
    assert operator.type is not None

    def sized(shape: tuple[int | str, ...]) -> list[int]:
        return [{"B": 2, "3*B": 6}.get(str(item)) or int(item) for item in shape]

    torch.manual_seed(1)
    x = torch.randn(sized(graph.types[value].shape), dtype=torch.float64, requires_grad=True)
    e = torch.randn(sized(operator.type.shape), dtype=torch.float64)
    weight = next(item for item in operator.args if isinstance(item, Ref) and item.name in graph.parameter_names
                  and len(graph.types[item.name].shape) > 1)  # fmt: skip
    E = torch.randn(sized(graph.types[weight.name].shape), dtype=torch.float64, requires_grad=True)

    def run(call: Any, **values: Any) -> Tensor:
        given = {ERROR.name: e, SYNAPSE.name: E, "B": 2, weight.name: E, **values}

        def put(item: Any) -> Any:
            return given[item.name] if isinstance(item, Ref) else item

        found: Tensor = rule(call.function)(*map(put, call.args), **dict(call.kwargs))
        return found

    target: Any = torch.ops
    for part in operator.target.split("."):
        target = getattr(target, part)
    bias = {item.name: torch.zeros(sized(graph.types[item.name].shape), dtype=torch.float64) for item in operator.args
            if isinstance(item, Ref) and item != weight and item.name in graph.parameter_names}  # fmt: skip
    given: dict[str, Any] = {value: x, weight.name: E, **bias}
    args = [given[item.name] if isinstance(item, Ref) else list(item) if isinstance(item, tuple) else item
            for item in operator.args]  # fmt: skip
    (wanted,) = torch.autograd.grad(target(*args), x, e)
    d = run(call)
    torch.testing.assert_close(d, wanted, rtol=0, atol=1e-12)
    (derivative,) = torch.autograd.grad((d.detach() * d).sum(), E)
    found = formulas.outer_eq6(run(product, d=d.detach()), 0.3, positions(operator, graph), True)
    samples = 2 if positions(operator, graph) > 1 or x.shape[0] == 2 else x.shape[0]
    count = samples * positions(operator, graph)
    torch.testing.assert_close(found, 0.3 * derivative / count, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        formulas.outer_eq6(run(product, d=d.detach()), 0.3, positions(operator, graph), False), -found, rtol=0, atol=0
    )
    # How many outputs a weight connects with an input: with ones for weights, what one unit in the middle is worth.
    ones = [torch.ones_like(item) if item is E else torch.zeros_like(item) if item is x else item for item in args]
    counted = [
        torch.ones_like(item).requires_grad_() if item is x else other for item, other in zip(args, ones, strict=True)
    ]
    made = target(*counted)
    (uses,) = torch.autograd.grad(
        made, next(item for item in counted if isinstance(item, Tensor) and item.requires_grad), torch.ones_like(made)
    )
    assert float(uses.max()) <= feeds(operator, graph)
    assert fan_in(operator, graph) >= float(uses.mean()) - 1e-9  # but for what falls into the padding
    assert sign_scale(operator, graph) == pytest.approx((2 / feeds(operator, graph)) ** 0.5, rel=1e-6)


def test_sign_symmetry_of_a_convolution() -> None:
    weight = torch.tensor([[[[-0.3, 0.0], [2.0, 1e-9]]]], dtype=torch.float64)
    np.testing.assert_array_equal(array(formulas.signed(weight, 0.5)), [[[[-0.5, 0.0], [0.5, 0.5]]]])
    # k² C_out / groups of the strided, grouped one: 3 × 3 × 3; of the transposed one 3 × 3 × 2.
    scales = {name: sign_scale(regions.graph.by_name[name], regions.graph) for regions, name, _ in CASES[:7]}
    assert scales["conv2d_1"] == pytest.approx(np.sqrt(2 / 27), rel=1e-8)
    assert scales["conv_transpose2d"] == pytest.approx(np.sqrt(2 / 18), rel=1e-8)
