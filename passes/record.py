"""nn.Module → ExportedProgram by running it: one recorded path, for models that torch.export refuses.

Before:  an nn.Module in any mode and a batch.
After:   a functional program in train mode, of the operators that this batch passed; and in words, what in it holds for
         this batch alone: a path that Python chose by the data, numbers and arrays that were computed outside of torch.

To find that out the model is recorded again, on another batch with other random numbers, and the tapes are compared.
The model itself and the random numbers of the session are never touched.
"""

from __future__ import annotations

import contextlib
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
from reclra_graph.passes.opaque import OpaqueCall, watch, with_opaque
from reclra_graph.passes.places import first_line, module_of, source_line, user_line
from reclra_graph.passes.quiet import hushed
from reclra_graph.passes.replay import replay
from reclra_graph.passes.tape import Interrupted, Tape, clone, draws_aside, reads_number, skeleton, tape
from reclra_graph.passes.twin import twin, undisturbed

_SEED = 0


@dataclass(frozen=True)
class Recorded:
    """A program of one path, and what is true of it for the recorded batch alone."""

    program: ExportedProgram
    notes: tuple[str, ...]
    opaque: Mapping[str, OpaqueCall]
    """How the opaque sub-modules are called, by the first argument of ``reclra.opaque``; see ``opaque.py``."""


@dataclass(frozen=True)
class _Attempt:
    program: ExportedProgram
    notes: tuple[str, ...]
    calls: Mapping[str, OpaqueCall]
    baked: tuple[str, ...]
    """Modules that turned data into constants."""


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


def record(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], opaque: frozenset[str] = frozenset()
) -> Recorded:
    """The path that one batch takes through ``model`` in train mode, as a program with the batch's own shapes.

    Sub-modules at the paths in ``opaque`` are one operator each. So become, innermost first, sub-modules that cannot be
    recorded, and those that turn data into constants. Raises ModelError RG202 where nothing is left to try, or where
    the program does not give what the model gives.
    """
    with hushed(), mended(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _record(model, args, kwargs, opaque)


def _record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], opaque: frozenset[str]) -> Recorded:
    best: _Attempt | None = None
    while True:
        failure: Exception | None = None
        try:
            attempt = _attempt(model, args, kwargs, opaque)
            if attempt.baked:
                # What autograd computes inside of forward() looks like values from outside of torch, but is not.
                with contextlib.suppress(Interrupted, ModelError):
                    deep = _attempt(model, args, kwargs, opaque, deep=True)
                    attempt = attempt if deep.baked else deep
            best, blamed = attempt, list(attempt.baked)
        except (Interrupted, ModelError) as error:
            failure, blamed = error, [error.path] if isinstance(error, Interrupted) else []
        wider = next((path for path in (_uncovered(path, opaque) for path in blamed) if path), None)
        if wider is None:
            break
        opaque |= {wider}
    if best is not None:
        return Recorded(best.program, best.notes, best.calls)
    assert failure is not None
    if isinstance(failure, ModelError):
        raise failure
    cause = failure.__cause__ or failure
    text = f"recording raised {type(cause).__name__}: {first_line(cause)}"
    raise ModelError(Problem("RG202", text, user_line(cause) or type(model).__name__)) from cause


def _uncovered(path: str, opaque: frozenset[str]) -> str:
    """``path``, or the nearest path around it, that lies in no opaque sub-module; "" for the model itself."""
    while any(f"{path}.".startswith(f"{other}.") for other in opaque):
        path = path.rpartition(".")[0]
    return path


def _attempt(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], opaque: frozenset[str], deep: bool = False
) -> _Attempt:
    """Record with these sub-modules opaque, and find out what holds for this batch alone."""
    calls = watch(model, opaque, [(args, kwargs)]) if opaque else {}

    def run(args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int) -> Tape:
        with with_opaque(model, calls) as copied, undisturbed(seed):
            return tape(copied, args, kwargs, deep)

    first = run(args, kwargs, _SEED)
    with with_opaque(model, calls), undisturbed():
        program = replay(model, first, args, kwargs)
    if not draws_aside(first) and not _agrees(program, model, calls, args, kwargs):
        cause = "the recorded operators do not give what forward() gives: it changes tensors behind torch's back"
        raise ModelError(Problem("RG202", cause, type(model).__name__))
    found: list[_Finding] = []
    notes: list[str] = []
    for other_args, other_kwargs in _other_batches(args, kwargs):
        try:
            second = run(other_args, other_kwargs, _SEED + 1)
        except Interrupted:  # not every model takes every batch
            continue
        found.extend(_differences(first, second))
        if not found and not draws_aside(first) and not _agrees(program, model, calls, other_args, other_kwargs):
            notes.append("on another batch the recorded operators give other values than forward()")
        break
    else:
        notes.append("what of the recorded path depends on the data is not known: forward() took no other batch")
    baked = tuple(dict.fromkeys(item.path for item in found if item.kind in ("array", "number")))
    places = {(item.path, item.line) for item in found}
    found.extend(item for item in _reads(first) if (item.path, item.line) not in places)
    notes.extend(str(item) for item in dict.fromkeys(found))
    return _Attempt(program, tuple(notes), calls, baked)


def _agrees(
    program: ExportedProgram,
    model: nn.Module,
    calls: Mapping[str, OpaqueCall],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> bool:
    """Whether the program gives the outputs and the buffers that the model gives; False too where it cannot run."""
    copied = twin(model)
    copy_args, copy_kwargs = (pytree.tree_map(clone, item) for item in (args, dict(kwargs)))
    with undisturbed(_SEED):
        expected = [item.detach() for item in skeleton(copied(*copy_args, **copy_kwargs))[1]]
    wanted = _state(copied)
    state = {key: tensor.detach().clone() for key, tensor in _state(model).items()}
    try:
        with with_opaque(model, calls), undisturbed(_SEED), torch.no_grad():
            results, buffers = play(program, state, args, kwargs)
        torch.testing.assert_close(results, expected, equal_nan=True)
        for key, buffer in buffers.items():
            torch.testing.assert_close(buffer, wanted[key], equal_nan=True)
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
