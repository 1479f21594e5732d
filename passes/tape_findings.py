"""Two runs of one model, compared: what of the first holds for its batch alone.

Before:  the tapes of two batches, drawn with other random numbers.
After:   findings, each with its place: another path, other numbers, other arrays from outside of torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from reclra_graph.passes.places import module_of, source_line
from reclra_graph.passes.tape import Tape, reads_number


@dataclass(frozen=True)
class Finding:
    """What makes a tape right for its batch alone: its kind, and where it is."""

    kind: str  # "path", "read", "size", "array" or "number"
    path: str
    line: str

    def __str__(self) -> str:
        place = f"{self.path or 'forward'} ({self.line})" if self.line else self.path or "forward"
        return {
            "path": f"the path taken in {place} is that of the recorded batch; another batch took another",
            "read": f"{place} reads a value: the recorded path is right where it reads the same",
            "size": f"{place} picks as many elements as the data say: the recorded path is right where Python does the "
            "same with their number",
            "array": f"values computed outside of torch in {place} are constants of the recorded batch",
            "number": f"a number that {place} reads from the data is a constant of the recorded batch",
        }[self.kind]


def differences(first: Tape, second: Tape) -> Iterator[Finding]:
    """Where two tapes of one model differ; after a difference of the path there is nothing left to compare."""
    number: dict[Node, int] = {}
    read: Node | None = None  # the last value that Python was given
    for index, (left, right) in enumerate(itertools.zip_longest(first.graph.graph.nodes, second.graph.graph.nodes)):
        if left is None or right is None or not _same_operator(left, right, number):
            at = read or left or right
            yield _finding("path", at)
            return
        number[left] = number[right] = index
        if reads_number(left):
            read = left
        kind = ""
        if left.op == "get_attr":
            kind = "" if _same_constant(first, left, second, right) else "array"
        elif left.op == "call_function":
            kind = "" if _plain(left) == _plain(right) else "number"
        if kind:
            yield _finding(kind, left)


def _finding(kind: str, node: Node) -> Finding:
    return Finding(kind, module_of(node)[0], source_line(node))


def reads(recorded: Tape) -> Iterator[Finding]:
    """Where Python was handed a value, or a size that the data tell."""
    for node in recorded.graph.graph.nodes:
        if reads_number(node):
            yield _finding("read", node)
        elif node in recorded.unsized:
            yield _finding("size", node)


def _same_operator(left: Node, right: Node, number: Mapping[Node, int]) -> bool:
    """Whether two nodes are the same operator of the same values, numbers aside."""
    if left.op != right.op or (left.op == "call_function" and left.target is not right.target):
        return False
    return [number[node] for node in left.all_input_nodes] == [number[node] for node in right.all_input_nodes]


def _plain(node: Node) -> list[Any]:
    """The arguments that are no tensors; as text, so that NaN equals NaN."""
    leaves: list[Any] = []
    map_aggregate((node.args, node.kwargs), lambda leaf: leaves.append("" if isinstance(leaf, Node) else str(leaf)))
    return leaves


def _same_constant(first: Tape, left: Node, second: Tape, right: Node) -> bool:
    one, other = getattr(first.graph, str(left.target)), getattr(second.graph, str(right.target))
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return True  # the graph of an operator that takes one
    if any(torch._C._functorch.is_functorch_wrapped_tensor(item) for item in (one, other)):
        return False  # a value inside of vmap or of a derivative that forward() takes
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
