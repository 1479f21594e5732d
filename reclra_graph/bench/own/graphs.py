"""Graph nets: nodes first, edges as a table [2, edges] that does not lead with the batch; experts chosen by index."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.own.draw import Builder, normal, words


class GraphConvolution(nn.Module):
    """Neighbours summed with symmetric normalisation (Kipf and Welling 2017)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Linear(inner, outer, bias=False)
        self.bias = nn.Parameter(torch.zeros(outer))

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        ones = nodes.new_ones(edges.shape[1])
        degree = nodes.new_ones(nodes.shape[0]).index_add(0, target, ones)
        scale = degree.rsqrt()
        sent = self.weight(nodes)
        messages = sent[source] * (scale[source] * scale[target]).unsqueeze(1)
        return (sent / degree.unsqueeze(1)).index_add(0, target, messages) + self.bias


class GCN(nn.Module):
    """Two graph convolutions; a class for every node."""

    def __init__(self, features: int = 6, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.first = GraphConvolution(features, width)
        self.second = GraphConvolution(width, classes)

    def forward(self, nodes: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(F.dropout(F.relu(self.first(nodes, edge_index)), 0.2, self.training), edge_index)


class GraphAttention(nn.Module):
    """Edges weighted by attention, softmax over each node's incoming edges (Veličković et al. 2018)."""

    def __init__(self, features: int = 6, width: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width, bias=False)
        self.score = nn.Linear(2 * width, 1)
        self.classify = nn.Linear(width, classes)

    def forward(self, nodes: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        x = self.embed(nodes)
        scores = F.leaky_relu(self.score(torch.cat([x[source], x[target]], dim=1)).squeeze(1), 0.2)
        weights = torch.exp(scores - scores.max())
        total = x.new_zeros(x.shape[0]).index_add(0, target, weights)
        shares = weights / (total[target] + 1e-9)
        mixed = torch.zeros_like(x).index_add(0, target, shares.unsqueeze(1) * x[source])
        return self.classify(F.elu(mixed + x))


class MessagePassing(nn.Module):
    """An MLP on every edge, with the edge's own features (Gilmer et al. 2017); one value for every node."""

    def __init__(self, features: int = 6, edge_features: int = 2, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.message = nn.Sequential(nn.Linear(2 * width + edge_features, width), nn.ReLU(), nn.Linear(width, width))
        self.update = nn.GRUCell(width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, nodes: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        source, target = edge_index[0], edge_index[1]
        x = torch.tanh(self.embed(nodes))
        for _ in range(2):
            sent = self.message(torch.cat([x[source], x[target], edge_attr], dim=1))
            received = torch.zeros_like(x).scatter_add(0, target.unsqueeze(1).expand_as(sent), sent)
            x = self.update(received, x)
        return self.out(x)


class MixtureOfExperts(nn.Module):
    """Each sample goes to its two best experts, gathered with nonzero() (Shazeer et al. 2017)."""

    def __init__(self, features: int = 8, width: int = 16, experts: int = 4, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )
        self.classify = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        shares, chosen = self.router(x).softmax(dim=-1).topk(2, dim=-1)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            mixed.index_add_(0, rows, expert(x[rows]) * shares[rows, places].unsqueeze(1))
        return self.classify(x + mixed)


def ring(nodes: int) -> Tensor:
    """Edges both ways around a ring, with a few chords: [2, edges]."""
    here = torch.arange(nodes)
    there = (here + 1) % nodes
    chords = torch.stack([here[::3], (here[::3] + 4) % nodes])
    return torch.cat([torch.stack([here, there]), torch.stack([there, here]), chords], dim=1)


def _messages() -> ZooModel:
    edges = ring(9)
    inputs = (normal(9, 6), edges, normal(edges.shape[1], 2))
    return ZooModel("edge_mlp_gnn", MessagePassing(), inputs, "mse", normal(9, 1))


MODELS: dict[str, Builder] = {
    "gcn": lambda: ZooModel("gcn", GCN(), (normal(9, 6), ring(9)), "cross-entropy", words(3, 9)),
    "gat": lambda: ZooModel("gat", GraphAttention(), (normal(9, 6), ring(9)), "cross-entropy", words(3, 9)),
    "edge_mlp_gnn": _messages,
    "moe_nonzero": lambda: ZooModel("moe_nonzero", MixtureOfExperts(), (normal(12, 8),), "cross-entropy", words(4, 12)),
}
