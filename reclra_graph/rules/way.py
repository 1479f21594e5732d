"""The way from a region's representation z_i to another region's pre-activation h_j: the operators that run again when
z_i is moved a little, as weight mirrors do.

Random numbers stay those that the forward pass drew: a dropout is its mask (``mask_of``), and what else draws without
looking at its input is not on the way. Statistics over the batch are taken anew.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from reclra_graph.ir.operators import OPAQUE, Operator, OperatorGraph
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.rules.operators import function, is_random, short

_BLIND = {"bernoulli", "rand_like", "randn_like", "randint_like"}
"""Operators that draw, and whose draws stay what they were wherever their input moves."""


def way(regions: RegionGraph, target: int, sources: Iterable[int]) -> tuple[Operator, ...]:
    """The operators on which the pre-activations of ``sources`` hang that read the representation of ``target``,
    directly or through others, in the order of the graph."""
    graph = regions.graph
    moving = {regions.regions[target].post}
    found = []
    for operator in graph.operators:
        if _moves(operator, graph, moving):
            found.append(operator)
            moving.add(operator.name)
    wanted = {regions.regions[number].pre for number in sources}
    kept = []
    for operator in reversed(found):
        if operator.name in wanted:
            kept.append(operator)
            wanted.update(operator.reads)
    return tuple(reversed(kept))


def _moves(operator: Operator, graph: OperatorGraph, moving: set[str]) -> bool:
    """Whether an operator's result depends on values that move, as numbers and not by their sizes."""
    if operator.size is not None or not any(name in moving for name in operator.reads):
        return False
    if operator.target == "operator.getitem" and mask_of(graph.by_name.get(operator.reads[0]), graph) == operator.name:
        return False
    return not (is_random(operator) and short(operator.target) in _BLIND)


def mask_of(operator: Operator | None, graph: OperatorGraph) -> str:
    """The value that holds the mask which a dropout drew; "" for every other operator."""
    if operator is None or short(operator.target) != "native_dropout" or operator.args[2] is False:
        return ""
    parts = (graph.by_name[name] for name in graph.users.get(operator.name, ()))
    return next((part.name for part in parts if part.args[1] == 1), "")


def obstacle(regions: RegionGraph, source: int, target: int) -> str:
    """Why z of ``target`` cannot be moved to see how h of ``source`` responds, to be read behind "edge 9->5"; "" where
    it can."""
    graph, found = regions.graph, way(regions, target, (source,))
    if not found:
        return f"mirrors nothing: region {source} does not read what region {target} puts out"
    for operator in found:
        if operator.target == OPAQUE:
            return f"cannot mirror what lies between its regions: {operator.args[0]} is a sub-module that runs as it is"
        wrong = ""
        if is_random(operator) and not mask_of(operator, graph) and not _settled(operator):
            wrong = "draws other numbers anew"
        elif _finds_its_size(operator.target):
            wrong = "gives another number of values anew"
        if wrong:
            place = operator.line or operator.module or operator.name
            return f"cannot mirror what lies between its regions: {operator.target} {wrong} ({place})"
    return ""


def _settled(operator: Operator) -> bool:
    """Whether an operator that may draw random numbers draws none: attention without dropout, dropout out of train."""
    if short(operator.target) == "scaled_dot_product_attention":
        given = dict(operator.kwargs)
        return (operator.args[4] if len(operator.args) > 4 else given.get("dropout_p", 0.0)) == 0.0
    return short(operator.target) == "native_dropout" and operator.args[2] is False


def _finds_its_size(target: str) -> bool:
    """Whether the size of an operator's result depends on the numbers that it is given, as that of nonzero() does."""
    return torch.Tag.dynamic_output_shape in getattr(function(target), "tags", ())
