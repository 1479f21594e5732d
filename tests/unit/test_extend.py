"""Where error neurons stand: behind layers on whose output none fit, and before what only moves numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.ir.regions import LOCAL
from tests.differential.agreement import agrees
from tests.models import regions_of

EDGES = torch.tensor([[0, 1, 2, 0, 1, 3, 3], [1, 2, 0, 3, 1, 1, 2]])


class Messages(nn.Module):
    """Graph layers whose weights act on the edges; the messages are summed at the nodes."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.edges = nn.ModuleList(nn.Linear(8, 4) for _ in range(layers))
        self.gates = nn.ModuleList(nn.Linear(8, 1) for _ in range(layers))
        self.head = nn.Linear(4, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        for layer, gate in zip(self.edges, self.gates, strict=True):
            ends = torch.cat((nodes[edges[0]], nodes[edges[1]]), 1)
            sent = torch.tanh(layer(ends)) * torch.sigmoid(gate(ends))
            nodes = torch.zeros_like(nodes).index_add(0, edges[1], sent)
        logits: Tensor = self.head(nodes)
        return logits


def test_layers_over_the_edges_of_a_graph_learn_at_the_nodes() -> None:
    torch.manual_seed(0)
    model = Messages().double()
    nodes, target = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    step = agrees(model, (nodes, EDGES), target, gpus=2)
    regions = step.plan.regions
    assert regions.graph.batch == "B"
    assert regions.frozen == ()
    layers = [region for region in regions.regions if region.parameters]
    assert [region.parameters for region in layers] == [
        ("edges.0.weight", "edges.0.bias", "gates.0.weight", "gates.0.bias"),
        ("edges.1.weight", "edges.1.bias", "gates.1.weight", "gates.1.bias"),
        ("head.weight", "head.bias"),
    ]
    assert [region.shape for region in layers] == [(4,), (4,), (3,)]
    assert [step.plan.update_of[region.id] for region in layers] == [LOCAL, LOCAL, "analytic"]
    for region in layers[:2]:
        assert regions.graph.by_name[region.post].target.startswith("aten.index_add")
    # Another graph of another size goes through the same step.
    assert bool(step((torch.randn(4, 4, dtype=torch.float64), EDGES), torch.tensor([0, 1, 2, 0])).isfinite())


class Sorted(nn.Module):
    """Samples in another order than they came in: sorted by a score, mapped, put back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("order", torch.tensor([2, 0, 1, 2, 2]))

    def forward(self, x: Tensor) -> Tensor:
        picked = torch.tanh(self.inner(x[self.order]))
        back = torch.zeros_like(x).index_add(0, self.order, picked)
        logits: Tensor = self.head(back)
        return logits


def test_samples_picked_by_a_table() -> None:
    torch.manual_seed(0)
    x, target = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    step = agrees(Sorted().double(), x, target)
    (inner,) = [region for region in step.plan.regions.regions if "inner.weight" in region.parameters]
    assert inner.shape == (4,)
    assert step.plan.update_of[inner.id] == LOCAL


class Whole(nn.Module):
    """Nothing between the first layer and the result has a batch: the output's region takes it all in."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(4, 3), nn.Linear(3, 3)
        self.register_buffer("order", torch.tensor([2, 0, 1, 2, 2]))

    def forward(self, x: Tensor) -> Tensor:
        picked = self.mix(torch.tanh(self.inner(x[self.order])))
        return torch.zeros_like(x[:, :3]).index_add(0, self.order, picked)


def test_an_output_that_takes_in_every_layer_learns_as_backprop_does() -> None:
    torch.manual_seed(0)
    model = Whole().double()
    x, target = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    wanted: dict[str, Any] = {}
    nn.functional.cross_entropy(model(x), target).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None
        wanted[key] = value.detach() - 0.05 * value.grad
    step = agrees(model, x, target, steps=1)
    assert step.plan.edges == ()
    assert len(step.plan.regions.sites) == 1
    for key, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), wanted[key], rtol=0, atol=1e-13)


def test_error_neurons_stand_where_positions_are_told_apart() -> None:
    """Before a projection is split into heads, but behind the unfolding of a vector into a map."""

    class Unfolds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unfold, self.qkv, self.head = nn.Linear(6, 4 * 9), nn.Linear(4, 12), nn.Linear(9 * 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.unfold(x).view(-1, 9, 4)
            q, k, v = self.qkv(tokens).view(-1, 9, 3, 2, 2).permute(2, 0, 3, 1, 4)
            mixed = (q @ k.transpose(2, 3)).softmax(3) @ v
            scores: Tensor = self.head(mixed.transpose(1, 2).flatten(1))
            return scores

    regions = regions_of(Unfolds(), torch.zeros(5, 6)).regions
    assert [region.shape for region in regions if region.kind == "layer"] == [(9, 4), (9, 12), (3,)]
