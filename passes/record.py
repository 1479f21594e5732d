"""nn.Module → ExportedProgram by running it: one recorded path, for models that torch.export refuses.

Before:  an nn.Module in any mode and a batch.
After:   a functional program in train mode, of the operators that this batch passed; and in words, what in it holds for
         this batch alone: a path that Python chose by the data, numbers and arrays that were computed outside of torch.

To find that out the model is recorded again, on another batch with other random numbers, and the tapes are compared.
The model itself and the random numbers of the session are never touched.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from reclra_graph.errors import ModelError, Problem
from reclra_graph.passes.mended import mended
from reclra_graph.passes.opaque import Batch, OpaqueCall, watch, with_opaque
from reclra_graph.passes.places import first_line, user_line
from reclra_graph.passes.quiet import hushed
from reclra_graph.passes.replay import NONE, replay
from reclra_graph.passes.tape import Interrupted, Tape, clone, skeleton, tape
from reclra_graph.passes.tape_findings import Finding, differences, reads
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
class _Taped:
    """A model's run on a batch, and what was found as it ran on another (None where it took no other)."""

    tape: Tape
    calls: Mapping[str, OpaqueCall]
    other: Batch | None
    found: tuple[Finding, ...]

    @property
    def baked(self) -> tuple[str, ...]:
        """Modules that turned data into constants."""
        return tuple(dict.fromkeys(item.path for item in self.found if item.kind in ("array", "number")))


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    opaque: frozenset[str] = frozenset(),
    decompositions: Mapping[Any, Callable[..., Any]] = NONE,
) -> Recorded:
    """The path that one batch takes through ``model`` in train mode, as a program with the batch's own shapes.

    ``decompositions`` write out operators as others. (ExportedProgram.run_decompositions must not be called on the
    result: it would trace the program again, and not find the sizes that only the data tell.)
    Sub-modules at the paths in ``opaque`` are one operator each. So become, innermost first, sub-modules that cannot be
    recorded, and those that turn data into constants. Raises ModelError RG202 where nothing is left to try, or where
    the program does not give what the model gives.
    """
    try:
        with hushed(), mended(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _record(model, (args, dict(kwargs)), opaque, decompositions)
    except Interrupted as error:
        cause = error.__cause__ or error
        text = f"recording raised {type(cause).__name__}: {first_line(cause)}"
        raise ModelError(Problem("RG202", text, user_line(cause) or type(model).__name__)) from cause


def _record(
    model: nn.Module, batch: Batch, opaque: frozenset[str], decompositions: Mapping[Any, Callable[..., Any]]
) -> Recorded:
    best: _Taped | None = None
    while True:
        try:
            taped = _taped(model, batch, opaque)
            wider = _wider(taped.baked, opaque)
            if not wider:
                return _recorded(model, batch, taped, decompositions)
            best = taped
        except (Interrupted, ModelError) as error:
            wider = _wider((error.path,), opaque) if isinstance(error, Interrupted) else ""
            if not wider and best is None:
                raise
        if not wider:  # what more there is to make opaque cannot be: the last tape stands, with its constants
            assert best is not None
            return _recorded(model, batch, best, decompositions)
        opaque |= {wider}


def _wider(paths: tuple[str, ...], opaque: frozenset[str]) -> str:
    """The first of ``paths``, or the nearest path around it, that lies in no opaque sub-module; "" if there is none."""
    for path in paths:
        while any(f"{path}.".startswith(f"{other}.") for other in opaque):
            path = path.rpartition(".")[0]
        if path:
            return path
    return ""


def _taped(model: nn.Module, batch: Batch, opaque: frozenset[str]) -> _Taped:
    """Record with these sub-modules opaque, and again on another batch."""
    calls = watch(model, opaque, [batch]) if opaque else {}
    shallow = _taped_twice(model, batch, calls, deep=False)
    if not shallow.baked:
        return shallow
    # What autograd computes inside of forward() looks like values from outside of torch, but is not.
    with contextlib.suppress(Interrupted):
        deep = _taped_twice(model, batch, calls, deep=True)
        if not deep.baked:
            return deep
    return shallow


def _taped_twice(model: nn.Module, batch: Batch, calls: Mapping[str, OpaqueCall], deep: bool) -> _Taped:
    def run(batch: Batch, seed: int) -> Tape:
        with with_opaque(model, calls) as copied, undisturbed(seed):
            return tape(copied, *batch, deep)

    first = run(batch, _SEED)
    for other in _other_batches(batch):
        with contextlib.suppress(Interrupted):  # not every model takes every batch
            return _Taped(first, calls, other, tuple(differences(first, run(other, _SEED + 1))))
    return _Taped(first, calls, None, ())


def _recorded(
    model: nn.Module, batch: Batch, taped: _Taped, decompositions: Mapping[Any, Callable[..., Any]]
) -> Recorded:
    """The program of a tape, found to give what the model gives, with its notes."""
    with with_opaque(model, taped.calls), undisturbed():
        program = replay(model, taped.tape, *batch)
    if not _agrees(program, model, taped.calls, batch):
        cause = "the recorded operators do not give what forward() gives: it changes tensors behind torch's back"
        raise ModelError(Problem("RG202", cause, type(model).__name__))
    notes: list[str] = []
    if taped.other is None:
        notes.append("what of the recorded path depends on the data is not known: forward() took no other batch")
    elif not taped.found and not _agrees(program, model, taped.calls, taped.other):
        notes.append("on another batch the recorded operators give other values than forward()")
    if any(node.target in decompositions for node in taped.tape.graph.graph.nodes):
        with with_opaque(model, taped.calls), undisturbed():
            program = replay(model, taped.tape, *batch, decompositions)
    places = {(item.path, item.line) for item in taped.found}
    found = [*taped.found, *(item for item in reads(taped.tape) if (item.path, item.line) not in places)]
    return Recorded(program, (*notes, *(str(item) for item in dict.fromkeys(found))), taped.calls)


def _agrees(program: ExportedProgram, model: nn.Module, calls: Mapping[str, OpaqueCall], batch: Batch) -> bool:
    """Whether the program gives the outputs and the buffers that the model gives; False too where it cannot run."""
    copied = twin(model)
    args, kwargs = pytree.tree_map(clone, batch)
    with undisturbed(_SEED):
        expected = [item.detach() for item in skeleton(copied(*args, **kwargs))[1]]
    wanted = _state(copied)
    state = {key: tensor.detach().clone() for key, tensor in _state(model).items()}
    try:
        with with_opaque(model, calls), undisturbed(_SEED), torch.no_grad():
            results, buffers = play(program, state, *batch)
    except Exception:  # a size that is another one in this batch, an index out of range
        return False
    return len(results) == len(expected) and all(
        _near(result, want)
        for result, want in [*zip(results, expected, strict=True), *((buffers[key], wanted[key]) for key in buffers)]
    )


def _near(result: Tensor, want: Tensor) -> bool:
    """Whether two tensors are equal, but for rounding in operators that compute the same in another order."""
    if result.shape != want.shape or result.dtype != want.dtype:
        return False
    if not (want.is_floating_point() or want.is_complex()):
        return torch.equal(result, want)
    finite = want[want.isfinite()]
    size = 1 + float(finite.abs().max()) if finite.numel() else 1.0
    return torch.allclose(result, want, rtol=0, atol=torch.finfo(want.dtype).eps ** 0.5 * size, equal_nan=True)


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


def _other_batches(batch: Batch) -> Iterator[Batch]:
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
        leaves, form = pytree.tree_flatten(batch)
        yield pytree.tree_unflatten([change(leaf) for leaf in leaves], form)
