"""ExportedProgram → ExportedProgram in the operators wanted, every draw of random numbers kept.

Before:  what torch.export made of a call of forward() on flat tensors, a draw that nobody reads still in it.
After:   the same program with operators written out as others. (ExportedProgram.run_decompositions alone drops a draw
         that no result is made of: dropout in a branch whose result the model does not return, say. All that is drawn
         after it would then be other numbers than forward() draws under the same seed.)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.fx import Node


def decomposed(program: ExportedProgram, decompositions: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    """``program``, which is changed, with the operators in ``decompositions`` written out and no draw left out."""
    aside = _aside(program)
    for node in aside:
        _returned(program, node)
    if aside:
        _count_results(program)
    result: ExportedProgram = program.run_decompositions(dict(decompositions))
    without_last_outputs(result, len(aside))
    return result


def draws(node: Node) -> bool:
    """Whether a node draws random numbers from torch's generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def without_last_outputs(program: ExportedProgram, count: int) -> None:
    """Take back the last results of a program; the operators that made them stay."""
    if not count:
        return
    output = program.graph.output_node()
    output.args = (tuple(output.args[0][:-count]),)
    del program.graph_signature.output_specs[-count:]
    program.graph_module.recompile()


def _aside(program: ExportedProgram) -> list[Node]:
    """The operators that draw and that no result is made of."""
    read: set[Node] = set()
    waiting = list(program.graph.output_node().all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node not in read:
            read.add(node)
            waiting.extend(node.all_input_nodes)
    return [node for node in program.graph.nodes if draws(node) and node not in read]


def _returned(program: ExportedProgram, node: Node) -> None:
    """Make what a node draws one more result."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        with program.graph.inserting_after(node):
            first = program.graph.call_function(operator.getitem, (node, 0))
        first.meta = {**node.meta, "val": value[0]}
        node = first
    output = program.graph.output_node()
    output.args = ((*output.args[0], node),)
    spec = OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None)
    program.graph_signature.output_specs.append(spec)


def _count_results(program: ExportedProgram) -> None:
    """Tell the program, whose results are a flat tuple, how many there are now."""
    program.graph_module.recompile()
    count = sum(spec.kind == OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs)
    whole = program.module_call_graph[0].signature
    assert whole is not None
    whole.out_spec = pytree.tree_structure((0,) * count)
