"""nn.Module → ExportedProgram by running it: one recorded path, for models that torch.export refuses.

Before:  an nn.Module in any mode and a batch.
After:   a functional program in train mode, of the operators that this batch passed; and in words, what in it holds for
         this batch alone: a path that Python chose by the data, numbers and arrays that were computed outside of torch.

To find that out the model is recorded again, on another batch with other random numbers, and the tapes are compared.
The model itself and the random numbers of the session are never touched.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx.node import map_aggregate

from reclra_graph.errors import ModelError, Problem
from reclra_graph.passes.mended import mended
from reclra_graph.passes.places import module_of, source_line
from reclra_graph.passes.quiet import hushed
from reclra_graph.passes.replay import replay
from reclra_graph.passes.tape import Interrupted, Tape, reads_number, tape, undisturbed

_SEED = 0


@dataclass(frozen=True)
class Recorded:
    """A program of one path, and what is true of it for the recorded batch alone."""

    program: ExportedProgram
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Finding:
    """A difference between two tapes: its kind, and where it is."""

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


def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recorded:
    """The path that one batch takes through ``model`` in train mode, as a program with the batch's own shapes.

    Raises ModelError RG202 where even that fails, or where the program does not give what the model gives.
    """
    with hushed(), mended(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _record(model, args, kwargs)


def _record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recorded:
    first = _run(model, args, kwargs, _SEED)
    with undisturbed():
        program = replay(model, first, args, kwargs)
    if not _agrees(program, model, args, kwargs, first, _SEED):
        cause = "the recorded operators do not give what forward() gives: it changes tensors behind torch's back"
        raise ModelError(Problem("RG202", cause, type(model).__name__))
    found: list[_Finding] = []
    notes: list[str] = []
    for other_args, other_kwargs in _other_batches(args, kwargs):
        try:
            second = _run(model, other_args, other_kwargs, _SEED + 1)
        except Interrupted:  # not every model takes every batch
            continue
        found.extend(_differences(first, second))
        if not found and not _agrees(program, model, other_args, other_kwargs, second, _SEED + 1):
            notes.append("on another batch the recorded operators give other values than forward()")
        break
    else:
        notes.append("what of the recorded path depends on the data is not known: forward() took no other batch")
    places = {(item.path, item.line) for item in found}
    found.extend(item for item in _reads(first) if (item.path, item.line) not in places)
    notes.extend(str(item) for item in dict.fromkeys(found))
    return Recorded(program, tuple(notes))


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int) -> Tape:
    with undisturbed(seed):
        return tape(copy.deepcopy(model).train(), args, kwargs)


def _agrees(
    program: ExportedProgram,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    expected: Tape,
    seed: int,
) -> bool:
    """Whether the program gives the outputs and the buffers of a tape's run; False too where it cannot run at all."""
    state = {key: tensor.detach().clone() for key, tensor in _state(model).items()}
    try:
        with undisturbed(seed), torch.no_grad():
            results, buffers = play(program, state, args, kwargs)
        torch.testing.assert_close(results, list(expected.results), equal_nan=True)
        for key, buffer in buffers.items():
            torch.testing.assert_close(buffer, expected.state[key], equal_nan=True)
    except Exception:  # a size that is another one in this batch, an index out of range, a value that differs
        return False
    return True


def _state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def play(
    program: ExportedProgram, state: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Run a program with ``state`` (parameters and buffers by key): its tensor outputs, and the buffers' new values."""
    signature = program.graph_signature
    batch = iter(pytree.tree_leaves((args, dict(kwargs))))
    given: list[Any] = []
    for source in signature.input_specs:
        key = str(source.target)
        if source.kind == InputKind.USER_INPUT:
            given.append(next(batch))
        else:
            given.append(state[key] if key in state else program.constants[key].detach().clone())
    results: list[Tensor] = []
    buffers: dict[str, Tensor] = {}
    for sink, value in zip(signature.output_specs, program.graph_module(*given), strict=True):
        if sink.kind == OutputKind.BUFFER_MUTATION:
            buffers[str(sink.target)] = value
        elif sink.kind == OutputKind.USER_OUTPUT and isinstance(value, Tensor):
            results.append(value)
    return results, buffers


def _other_batches(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Other batches of the same shapes that the model may take: the samples in reverse and paler, class indices and
    flags in reverse, or at least paler."""

    def paler(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach() * 0.9 if leaf.is_floating_point() or leaf.is_complex() else leaf

    def reversed_and_paler(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        whole = not (leaf.is_floating_point() or leaf.is_complex())
        return paler(leaf.flip(tuple(range(leaf.dim() if whole else min(leaf.dim(), 1)))))

    for change in (reversed_and_paler, paler):
        leaves, form = pytree.tree_flatten((args, dict(kwargs)))
        yield pytree.tree_unflatten([change(leaf) for leaf in leaves], form)


def _differences(first: Tape, second: Tape) -> Iterator[_Finding]:
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
            kind = "" if _equal(_attribute(first, left), _attribute(second, right)) else "array"
        elif left.op == "call_function":
            kind = "" if _plain(left) == _plain(right) else "number"
        if kind:
            yield _finding(kind, left)


def _finding(kind: str, node: Node) -> _Finding:
    return _Finding(kind, module_of(node)[0], source_line(node))


def _reads(recorded: Tape) -> Iterator[_Finding]:
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


def _attribute(recorded: Tape, node: Node) -> Tensor:
    value = getattr(recorded.graph, str(node.target))
    assert isinstance(value, Tensor)
    return value


def _equal(left: Tensor, right: Tensor) -> bool:
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and torch.allclose(left.nan_to_num(), right.nan_to_num(), 0, 0)
    )
