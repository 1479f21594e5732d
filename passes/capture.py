"""nn.Module → OperatorGraph, by a ladder of ways to trace that ends where the first one succeeds.

Before:  an nn.Module and the arguments of one call of its forward().
After:   a functional graph in train mode; every value has a shape, every operator its module path and source line,
         every mutation of a buffer is a value that replaces it at the end of the step.

The rungs: torch.export with a free batch, torch.export for the example's batch size alone, and the recording of the one
path that the example takes. ``frontend`` names the rung, ``notes`` say why those above it failed. The model itself is
never touched: a copy is traced, on the tensors among its arguments; all other arguments are constants.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from reclra_graph.check_model import check_model
from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import OperatorGraph
from reclra_graph.options import Options
from reclra_graph.passes.draws import decomposed
from reclra_graph.passes.mended import mended
from reclra_graph.passes.opaque import OpaqueCall, watch, with_opaque
from reclra_graph.passes.places import first_line, user_line
from reclra_graph.passes.quiet import hushed
from reclra_graph.passes.record import record
from reclra_graph.passes.translate import fixed, translate
from reclra_graph.passes.twin import one_name_each, outside_draws, twin, undisturbed, with_caches
from reclra_graph.structure import Path, arguments, identifier, label, replaced, tensors

EXPORT, STATIC, RECORD = "export", "export, static batch", "record, one path"
# What the next rung may do without.
_ANOTHER_WAY = {"RG204", "RG205"}
_UNROLLED = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class Traced:
    """A functional program, and what the user should know about it."""

    program: ExportedProgram
    notes: tuple[str, ...] = ()
    opaque: Mapping[str, OpaqueCall] = field(default_factory=dict)
    """How opaque sub-modules are called."""
    frontend: str = ""
    """The rung, where it is another than the one that was tried."""


@dataclass(frozen=True)
class FlatCall:
    """A call of forward() by the tensors among its arguments; ``batched`` says which of them lead with the batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    batched: tuple[bool, ...]

    def resized(self, batch: int) -> tuple[Tensor, ...]:
        """The tensors with another batch size, samples repeated as needed."""
        return tuple(
            torch.cat([item] * -(-batch // item.shape[0]))[:batch] if led else item
            for item, led in zip(self.tensors, self.batched, strict=True)
        )

    @property
    def batch(self) -> int:
        """The example's batch size."""
        return self.tensors[self.batched.index(True)].shape[0]

    def rebuilt(self, given: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) with other tensors in the places of the example's."""
        table = dict(zip(self.paths, given, strict=True))
        return replaced(self.args, table), replaced(self.kwargs, table)


def capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options
) -> tuple[OperatorGraph, dict[str, Tensor]]:
    """The operator graph of one forward pass in train mode, and the constants it needs beside ``state_dict()``.

    Raises ModelError: RG107 for arguments without a tensor, RG201 where the model rejects them, RG202 where it cannot
    be traced, RG203–RG205 for values that a compiled step cannot handle.
    """
    problems = check_model(model, args, kwargs)
    if problems:
        raise ModelError(problems)
    call = _flat(model, args, dict(kwargs))
    labels, ran = _run_once(model, call)
    model = with_caches(model, ran)
    rungs: tuple[tuple[str, Callable[[nn.Module, FlatCall], Traced | None]], ...] = (
        (EXPORT, _export_free),
        (STATIC, _export_static),
        (RECORD, _recorded),
    )
    if options.frontend != "auto":
        rungs = tuple(rung for rung in rungs if rung[0].startswith(options.frontend))
    failures: list[tuple[str, BaseException]] = []
    for name, trace in rungs:
        try:
            # Values of the generator that tracing draws must not change what the user's run draws afterwards.
            with hushed(), mended(), warnings.catch_warnings(), undisturbed():
                warnings.simplefilter("ignore")
                before = outside_draws()
                traced = trace(model, call)
                drawn = outside_draws() != before
            if traced is None:
                continue
            if drawn and name != RECORD and options.frontend == "auto":
                raise RuntimeError(
                    "forward() draws numbers by numpy or Python, which would be constants of the program"
                )
            notes = tuple(f"{rung} failed: {type(error).__name__}: {first_line(error)}" for rung, error in failures)
            notes += traced.notes
            frontend = traced.frontend or name
            names = (call.paths, call.names, labels)
            return translate(model, traced.program, frontend, *names, options, notes, traced.opaque)
        except Exception as error:  # whatever the tracer raises becomes one coded error below
            if isinstance(error, ModelError) and not set(error.codes) <= _ANOTHER_WAY:
                raise
            failures.append((name, error))
    name, failure = failures[-1]
    if isinstance(failure, ModelError):
        raise failure
    cause = f"{name} raised {type(failure).__name__}: {first_line(failure)}"
    raise ModelError(Problem("RG202", cause, user_line(failure) or type(model).__name__)) from failure


def _flat(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FlatCall:
    found = arguments(args, kwargs)
    if not found:
        raise ModelError(Problem("RG107", "there is no tensor among the example inputs", "example_inputs"))
    for path, item in found:
        if item.dim() and item.shape[0] == 0:
            cause = f"{label(path)} has no samples: its shape is {tuple(item.shape)}"
            raise ModelError(Problem("RG107", cause, "example_inputs"))
    led = [item.shape[0] for _, item in found if item.dim()]
    if not led:
        raise ModelError(Problem("RG107", "no example input has a batch dimension", "example_inputs"))
    try:
        signature = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        signature = []
    plain = [item.name for item in signature if item.kind is not inspect.Parameter.VAR_POSITIONAL]
    names: list[str] = []
    for path, _ in found:
        first = path[0]
        top = plain[first] if isinstance(first, int) and first < len(plain) else first
        name = identifier((top, *path[1:]))
        names.append(name if name not in names else f"{name}_{len(names)}")
    values = tuple(item.detach() for _, item in found)
    batched = tuple(item.dim() > 0 and item.shape[0] == led[0] for item in values)
    paths = tuple(path for path, _ in found)
    # Fresh tensors everywhere: on the caller's own, an earlier torch.export may have left marks that free its sizes.
    fresh = dict(zip(paths, values, strict=True))
    return FlatCall(replaced(args, fresh), replaced(kwargs, fresh), paths, tuple(names), values, batched)


def _run_once(model: nn.Module, call: FlatCall) -> tuple[tuple[str, ...], nn.Module]:
    """Run a copy of the model: what it says of its inputs itself is clearer than what the tracer would say. Returns the
    labels of its results, and the copy."""
    failure: Exception | None = None
    # Two samples are quicker where the batch is free; a model for one batch size wants the inputs as they are.
    for batch, grad in dict.fromkeys(((min(2, call.batch), False), (call.batch, False), (call.batch, True))):
        args, kwargs = call.rebuilt(call.resized(batch))
        try:
            # With derivatives, at last, for a forward() that takes one itself.
            with hushed(), torch.set_grad_enabled(grad), undisturbed():
                copied = twin(model)
                result = copied(*args, **kwargs)
            return tuple(label(path) for path, _ in tensors(result)), copied
        except Exception as error:  # whatever user code raises becomes one coded error
            failure = error
    assert failure is not None
    shapes = ", ".join("x".join(str(size) for size in item.shape) for item in call.tensors)
    cause = f"forward() raised {type(failure).__name__} on inputs {shapes}: {first_line(failure)}"
    raise ModelError(Problem("RG201", cause, user_line(failure) or type(model).__name__)) from failure


def flat_twin(model: nn.Module, call: FlatCall) -> nn.Module:
    """A copy of the model in train mode whose forward() takes the flat tensors and returns a flat tuple of tensors."""
    copied = one_name_each(twin(model))
    original = copied.forward

    def forward(*flat: Any) -> tuple[Tensor, ...]:
        args, kwargs = call.rebuilt(flat)
        return tuple(item for _, item in tensors(original(*args, **kwargs)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in call.names]
    )
    copied.forward = forward
    return copied


def _export_free(model: nn.Module, call: FlatCall) -> Traced | None:
    """Export with a free batch; None where the model allows one batch size only."""
    # torch.export takes a size of one for a constant.
    given = call.resized(max(2, call.batch))
    dims = tuple({0: ExportDim.AUTO} if led else None for led in call.batched)
    program = torch.export.export(flat_twin(model, call), given, dynamic_shapes=dims, strict=False)
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    free = all(
        fixed(nodes[name].meta["val"].shape[0]) is None
        for name, led in zip(names, call.batched, strict=True)
        if led and name in nodes
    )
    return Traced(decomposed(program, _decompositions())) if free else None


def _export_static(model: nn.Module, call: FlatCall) -> Traced:
    """Export for the example's own batch size."""
    program = torch.export.export(flat_twin(model, call), call.tensors, strict=False)
    return Traced(decomposed(program, _decompositions()))


def _recorded(model: nn.Module, call: FlatCall) -> Traced:
    """The one path that the example takes; where only some sub-modules are in the way of torch.export, its result with
    these opaque."""
    found = record(model, call.args, call.kwargs, decompositions=_decompositions())
    paths = frozenset(item.path for item in found.opaque.values())
    notes = tuple(f"{path} cannot be captured: it is one opaque region" for path in sorted(paths))
    if paths:
        batches = [call.rebuilt(call.resized(size)) for size in (call.batch, call.batch + 1)]
        for frontend, given in ((EXPORT, batches), (STATIC, batches[:1])):
            with contextlib.suppress(Exception):  # then the recorded path stands
                calls = watch(model, paths, given)
                with with_opaque(model, calls) as copied:
                    traced = (_export_free if frontend == EXPORT else _export_static)(copied, call)
                if traced is not None:
                    return replace(traced, notes=notes, opaque=calls, frontend=frontend)
    return Traced(found.program, (*notes, *found.notes), found.opaque)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Recurrent layers are unrolled over time; everything else stays the operator it is."""
    from torch._decomp import decomposition_table

    kinds = [getattr(torch.ops.aten, name).input for name in _UNROLLED]
    return {kind: decomposition_table[kind] for kind in kinds}
