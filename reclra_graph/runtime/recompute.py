"""A traced step that holds less: what is cheap to compute from other values is computed again where it is read late.

Before:  z = relu(h);  finite = …;  e = z - y;  dW = conv_backward(e2, z)
After:   z = relu(h);  finite = …;  g = where(finite, h, 0);  e = relu(g) - y;  dW = conv_backward(e2, relu(g))

The forward pass leaves its values to the targets and updates, which come after the loss. Of a layer with a
normalisation these are three: what is normalised (for the update of the scale), h and z. The last two follow from the
first by operators that work number by number, which Inductor computes inside the kernels that read them; so one value
of three is held. The same operators on the same numbers give the same results, but for normalisations: those are made
again of the statistics that the first pass found, and differ by rounding.

``where(finite, …)`` keeps the second computation behind the loss. Without it, Inductor would see that both read the
same, and make both at once. The step is what it was: when the loss is not finite, nothing that it computes is stored.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

SMALL = 1 << 16
"""Bytes up to which a value is held: computing it again would take a kernel, and save nothing to speak of."""
_ROOTS = 2
"""Values at most that another is computed from again; all of them are read for it."""
_WORK = 8
"""Operators at most between them."""

_aten: Any = torch.ops.aten
_VIEWS = {
    _aten.view.default, _aten._unsafe_view.default, _aten.reshape.default, _aten.permute.default, _aten.t.default,
    _aten.transpose.int, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.expand.default, _aten.alias.default,
    _aten.detach.default, _aten.clone.default,
}  # fmt: skip
_BATCH_NORM = _aten._native_batch_norm_legit_functional.default
_LAYER_NORM = _aten.native_layer_norm.default


@dataclass(frozen=True)
class _Way:
    """How a value is computed again: what its operator reads, the large values behind it, and how many operators."""

    reads: tuple[Node, ...]
    roots: frozenset[Node]
    work: int


def recompute(module: GraphModule) -> int:
    """Rewrite a graph that returns (loss, finite); returns how many values are no longer held."""
    graph = module.graph
    (results,) = next(node for node in graph.nodes if node.op == "output").args
    finite = results[1]
    early, late = _split(graph, finite)
    late -= _made_before(graph, early, late)
    ways: dict[Node, _Way] = {}
    held: set[Node] = set()
    again: list[Node] = []
    for node in early:
        wanted = any(user in late for user in node.users)
        way = _way(node, ways, held)
        if way is not None:
            ways[node] = way
            if wanted:
                again.append(node)
        elif wanted or node.op == "placeholder":
            held.add(node)
    for node in again:
        for user in [item for item in node.users if item in late]:
            with graph.inserting_before(user):
                made = _Again(graph, ways, finite).value(node)
            user.replace_input_with(node, made)
    graph.lint()
    module.recompile()
    return len(again)


def _split(graph: Graph, finite: Node) -> tuple[list[Node], set[Node]]:
    """What is computed up to the check of the loss, and what behind it."""
    nodes = list(graph.nodes)
    place = nodes.index(finite)
    return nodes[:place], {node for node in nodes[place + 1 :] if node.op == "call_function"}


def _made_before(graph: Graph, early: list[Node], late: set[Node]) -> set[Node]:
    """What is computed behind the loss as it was before, as in a step that was lowered with ``recompute``: removed, so
    that there is one way for both."""
    known = {_said(node): node for node in early if _reads(node) is not None}
    removed: set[Node] = set()
    for node in graph.nodes:
        if node in late and _reads(node) is not None and _said(node) in known:
            node.replace_all_uses_with(known[_said(node)])
            removed.add(node)
    for node in removed:
        graph.erase_node(node)
    return removed


def _said(node: Node) -> str:
    return f"{node.target} {node.args} {node.kwargs}"


def _way(node: Node, ways: dict[Node, _Way], held: set[Node]) -> _Way | None:
    """How to compute a value again from what is held; None where it cannot be, or had better not be."""
    reads = _reads(node)
    if reads is None or _bytes(node) <= SMALL:
        return None
    roots: set[Node] = set()
    work = 0 if node.target in _VIEWS else 1
    for read in reads:
        if read in ways:
            roots |= ways[read].roots
            work += ways[read].work
        elif read in held:
            roots.add(read)
        elif _bytes(read) > SMALL:
            return None
    found = bool(roots) and len(roots) <= _ROOTS and work <= _WORK
    return _Way(tuple(reads), frozenset(roots), work) if found else None


def _reads(node: Node) -> Sequence[Node] | None:
    """What a value is computed from number by number; None where it is not."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        source, part = node.args
        assert isinstance(source, Node)
        if part == 0 and (source.target is _LAYER_NORM or _by_its_own_statistics(source)):
            return [source.args[0]] if isinstance(source.args[0], Node) else None
        return None
    if node.target in _VIEWS:
        return node.all_input_nodes
    tags = getattr(node.target, "tags", ())
    return (
        node.all_input_nodes if torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags else None
    )


def _by_its_own_statistics(node: Node) -> bool:
    """Whether a batch norm is in train mode."""
    return node.target is _BATCH_NORM and node.args[5] is True


def _bytes(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


class _Again:
    """Computes values a second time for one reader, in front of it."""

    def __init__(self, graph: Graph, ways: dict[Node, _Way], finite: Node) -> None:
        self.graph, self.ways, self.finite = graph, ways, finite
        self.made: dict[Node, Node] = {}

    def value(self, node: Node) -> Node:
        """The value again, or as it is where it is small."""
        if node not in self.made:
            self.made[node] = self._value(node)
        return self.made[node]

    def _value(self, node: Node) -> Node:
        way = self.ways.get(node)
        if way is None:
            return node
        for root in way.roots & set(way.reads):
            if root not in self.made:
                self.made[root] = self._behind_the_loss(root)
        if node.target is operator.getitem:
            return self._normalised(node)
        return self.graph.node_copy(node, self.value)

    def _behind_the_loss(self, root: Node) -> Node:
        nothing = torch.zeros((), dtype=root.meta["val"].dtype).item()
        return self.graph.call_function(_aten.where.ScalarOther, (self.finite, root, nothing))

    def _normalised(self, node: Node) -> Node:
        """(x - mean) * scale + shift, with the statistics that the first pass found."""
        source = node.args[0]
        assert isinstance(source, Node)
        channels = source.target is _BATCH_NORM
        rank = node.meta["val"].dim()
        weight, bias = (source.args[1], source.args[2]) if channels else (source.args[2], source.args[3])

        def spread(value: Node) -> Node:
            """One number for each channel, beside a map."""
            if not channels:
                return value
            return self.graph.call_function(_aten.view.default, (value, [-1] + [1] * (rank - 2)))

        def times(first: Node, second: Node) -> Node:
            return self.graph.call_function(_aten.mul.Tensor, (first, second))

        assert isinstance(source.args[0], Node)
        made = self.graph.call_function(_aten.sub.Tensor, (self.value(source.args[0]), spread(self._part(source, 1))))
        made = times(made, spread(self._part(source, 2)))
        if isinstance(weight, Node):
            made = times(made, spread(weight))
        if isinstance(bias, Node):
            made = self.graph.call_function(_aten.add.Tensor, (made, spread(bias)))
        kind, statistics = node.meta["val"].dtype, self._part(source, 1).meta["val"].dtype
        if kind != statistics:  # of a half precision map they are float32
            made = self.graph.call_function(_aten._to_copy.default, (made,), {"dtype": kind})
        return made

    def _part(self, source: Node, number: int) -> Node:
        """Result of an operator by its number."""
        found = [node for node in source.users if node.target is operator.getitem and node.args[1] == number]
        if found:
            return found[0]
        with self.graph.inserting_after(source):
            made = self.graph.call_function(operator.getitem, (source, number))
        made.meta["val"] = source.meta["val"][number]
        return made
