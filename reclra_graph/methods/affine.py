"""The layers of an equilibrium model: an affine map between two states, its adjoint, and what its parameters learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from reclra_graph.errors import Problem
from reclra_graph.ir.operators import Operator, OperatorGraph, Ref
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import Call
from reclra_graph.methods.chain import Link
from reclra_graph.methods.traced import TracedModel, called_rule, chain_of
from reclra_graph.rules.equilibrium import conv_down, dense_down, matmul_down
from reclra_graph.rules.operators import Chain, short
from reclra_graph.rules.table import MOVES, carry, data_read, derived_read, parameters_read, update

Adjoint: TypeAlias = Callable[[Tensor, Mapping[str, Any], int], Tensor]
"""From a state at an operator's output to what it says to the operator's input, for the values of a way up and the
batch size."""

RISING = {
    "tanh", "sigmoid", "hardtanh", "clamp", "hardsigmoid", "relu", "relu6", "leaky_relu", "elu", "celu", "selu",
    "softplus",
}  # fmt: skip
"""Activations that rise, so that each is the inverse of some energy's derivative."""
_AFFINE = {*MOVES, "add", "sub", "rsub", "mul", "div", "neg", "alias", "detach", "avg_pool2d", "adaptive_avg_pool2d"}
"""Operators whose ``carry`` is their exact adjoint, whatever they are given."""
_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "rules.updates.linear_weight": dense_down,
    "rules.updates.matmul_weight": matmul_down,
    "rules.updates.conv_weight": conv_down,
}
"""The adjoint of a product with a weight, by the closed form of the weight's own update."""
_REMEDY = "Use dense layers or convolutions, average pooling, and an activation that rises, such as nn.Hardtanh(0, 1)."


@dataclass(frozen=True)
class Layer:
    """A_l and φ_l: ``operators`` lead from the state ``start`` to h_l, each with its adjoint. ``updates``: (parameter,
    the operator that reads it, closed form of its Hebbian product) for every parameter that learns."""

    region: Region
    start: str
    operators: tuple[Operator, ...]
    adjoints: tuple[Adjoint, ...]
    activation: Chain
    updates: tuple[tuple[str, str, Call], ...]

    def up(self, traced: TracedModel, below: Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
        """A_l s_{l−1} and all values on the way, beside those given, of a forward pass. below: s_{l−1}."""
        table = {**values, self.start: below}
        for operator in self.operators:
            table[operator.name] = traced.run(operator, table)
        return table

    def down(self, s: Tensor, values: Mapping[str, Any], batch: int) -> Tensor:
        """A_lᵀ s_l. values: of ``up``, of which shapes and weights are read."""
        for adjoint in reversed(self.adjoints):
            s = adjoint(s, values, batch)
        return s

    def hebbian(self, s: Tensor, values: Mapping[str, Any], batch: int) -> dict[str, Tensor]:
        """s_l s_{l−1}ᵀ in the form of every parameter, by key: the derivative of ⟨s_l, A_l s_{l−1}⟩, mean over the
        batch. values: of ``up``."""
        waiting = list(self.updates)
        found: dict[str, Tensor] = {}
        for operator, adjoint in zip(reversed(self.operators), reversed(self.adjoints), strict=True):
            for key, _, call in (item for item in waiting if item[1] == operator.name):
                delta = called_rule(call, s, values, batch)
                found[key] = found[key] + delta if key in found else delta
            waiting = [item for item in waiting if item[1] != operator.name]
            if not waiting:
                break
            s = adjoint(s, values, batch)
        return found


def layer_of(traced: TracedModel, link: Link, method: str) -> tuple[Layer | None, list[Problem]]:
    """The layer that a link is, or everything that keeps it from being one (RG460)."""
    region, graph = link.end, traced.graph
    problems = [
        _refused(method, region, graph.by_name[name], "is no activation that rises")
        for name in region.activation
        if short(graph.by_name[name].target) not in RISING
    ]
    operators = tuple(item for item in link.operators if item.name not in region.activation)
    learning = {item.name: item.key for item in graph.parameters if item.key in traced.learning()}
    starts = {item.name for item in graph.inputs} if link.before.kind == "input" else {link.start}
    adjoints: list[Adjoint] = []
    updates: list[tuple[str, str, Call]] = []
    at = starts
    for operator in operators:
        read = data_read(operator, graph)
        adjoint = _adjoint(operator, graph, read[0]) if len(read) == 1 and read[0] in at else None
        if adjoint is None:
            why = "is no dense layer, convolution or other linear map of one state"
            return None, [*problems, _refused(method, region, operator, why)]
        adjoints.append(adjoint)
        at = {operator.name}
        for position, name in parameters_read(operator, graph):
            found = update(operator, graph, position)
            if name in learning and found is None:
                why = f"has no closed form for {learning[name]}"
                problems.append(_refused(method, region, operator, why))
            elif name in learning and found is not None:
                updates.append((learning[name], operator.name, found))
    if problems:
        return None, problems
    start = next(name for name in operators[0].reads if name in starts)
    return Layer(region, start, operators, tuple(adjoints), chain_of(traced, region), tuple(updates)), []


def _adjoint(operator: Operator, graph: OperatorGraph, source: str) -> Adjoint | None:
    for position, weight in parameters_read(operator, graph):
        found = update(operator, graph, position)
        if found is not None and found.function in _PRODUCTS:
            # Behind the error come the layer's input and the batch size; for a convolution, its weight between the two
            # and its numbers behind them.
            return partial(_product, found, weight) if found.args[1] == Ref(source) else None
    if short(operator.target) not in _AFFINE or derived_read(operator, graph):
        return None
    call = carry(operator, graph, source)
    return None if call is None else partial(_carried, call)


def _product(update: Call, weight: str, s: Tensor, values: Mapping[str, Any], batch: int) -> Tensor:
    """Wᵀ s. update: the closed form of the weight's own update, which knows the numbers of the product."""
    rule = _PRODUCTS[update.function]
    if rule is not conv_down:
        return rule(s, values[weight])
    source = update.args[1]
    assert isinstance(source, Ref)
    return conv_down(s, values[source.name], values[weight], *update.args[4:])  # type: ignore[arg-type]


def _carried(call: Call, s: Tensor, values: Mapping[str, Any], batch: int) -> Tensor:
    return called_rule(call, s, values, batch)


def _refused(method: str, region: Region, operator: Operator, why: str) -> Problem:
    cause = f"{method} cannot apply: {operator.target} in region {region.id} ({region.name}) {why}"
    return Problem("RG460", cause, operator.line or operator.module or region.name, _REMEDY)
