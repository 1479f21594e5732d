"""Preludes: what a layer's own module does with its input before its parameters come in.

Before:  an operator graph.
After:   the operators of preludes, and the parametrised operator that each leads to.

The noise and the ReLU of a pseudo-convolution stand in front of its weights. A ReLU behind a layer is, everywhere else,
the activation that the layer's region ends with; this one belongs to the layer that it leads to, whoever else reads
what stands before it. So does any non-linearity that a module without sub-modules applies before its own parameters.
What only moves or scales numbers there (a reshape, a permutation) makes no prelude: errors pass back over it.
"""

from __future__ import annotations

from reclra_graph.ir.operators import Operator, OperatorGraph
from reclra_graph.rules.operators import short
from reclra_graph.rules.table import NORMS, carry


def preludes(graph: OperatorGraph) -> dict[str, str]:
    """Operators of preludes → the parametrised operator that each serves, by name; "" where it serves others, too."""
    inside: dict[str, list[Operator]] = {}
    for operator in graph.operators:
        if operator.name in graph.reaching and operator.name not in graph.derived:
            inside.setdefault(operator.module, []).append(operator)
    found: dict[str, str] = {}
    for path, members in inside.items():
        if not any(other.startswith(f"{path}." if path else "") for other, _ in graph.modules):
            found.update(_of_module(graph, members))
    return found


def _of_module(graph: OperatorGraph, members: list[Operator]) -> dict[str, str]:
    """The preludes of a module without sub-modules, from its operators in order."""
    behind: set[str] = set()  # its parametrised operators, and what follows them
    ends = []
    for operator in members:
        if any(name in behind for name in operator.reads):
            behind.add(operator.name)
        elif any(name in graph.derived for name in operator.reads):
            behind.add(operator.name)
            if short(operator.target) not in NORMS:
                ends.append(operator)
    front = {operator.name: operator for operator in members if operator.name not in behind}
    found: dict[str, str] = {}
    for end in ends:
        before = _before(end, front)
        if not all(_straight(graph, operator) for operator in before):
            found.update((operator.name, "") for operator in before)
            found.update((name, end.name) for name in _own(graph, end, before))
    return found


def _before(end: Operator, front: dict[str, Operator]) -> list[Operator]:
    """The operators of ``front`` that an operator depends on, in order."""
    wanted = set(end.reads)
    for operator in reversed(front.values()):
        if operator.name in wanted:
            wanted.update(operator.reads)
    return [operator for operator in front.values() if operator.name in wanted]


def _own(graph: OperatorGraph, end: Operator, before: list[Operator]) -> set[str]:
    """Those that nothing else reads, directly or through others, and what the noise is made from."""
    own = {end.name}
    for operator in reversed(before):
        if set(graph.users[operator.name]) <= own:
            own.add(operator.name)
    return own - {end.name}


def _straight(graph: OperatorGraph, operator: Operator) -> bool:
    """Whether errors pass back over an operator, from its result to what it reads."""
    values = [name for name in operator.reads if name not in graph.without_data]
    return all(carry(operator, graph, value) is not None for value in values)
