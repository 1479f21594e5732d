"""Sub-modules that cannot be captured, as one operator each.

Before:  a model, and the paths of sub-modules whose inside tracing cannot follow.
After:   a copy of the model in which each of them calls ``reclra::opaque(path, tensors, parameters) -> tensors``. Both
         torch.export, also with a free batch, and recording keep such a call as one operator.

What the sub-module takes and returns besides tensors, and the sizes of its results, are learned by watching it at work.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._dispatch.python import no_python_dispatcher
from torch.fx import _symbolic_trace

from reclra_graph.errors import ModelError, Problem
from reclra_graph.passes.patched import patched
from reclra_graph.passes.tape import clone, followed
from reclra_graph.passes.twin import bare_twin, twin, undisturbed

Batch = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of forward()."""

Size = int | tuple[int, int, Fraction]
"""A size of a result: a number, or (tensor, dimension, factor): a multiple of a size of what goes in."""


@dataclass(frozen=True)
class Structure:
    """Nested containers with tensors in some places and constants in the others."""

    form: Any
    constants: tuple[tuple[int, Any], ...]
    """(place among the leaves, value) of each leaf that is no tensor."""
    count: int
    """Number of leaves."""

    @staticmethod
    def of(value: Any) -> tuple[Structure, list[Tensor]]:
        """The structure of a value, and its tensors in order."""
        leaves, form = pytree.tree_flatten(value)
        constants = tuple((place, leaf) for place, leaf in enumerate(leaves) if not isinstance(leaf, Tensor))
        return Structure(form, constants, len(leaves)), [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def fill(self, tensors: Sequence[Any]) -> Any:
        """The value with these tensors."""
        fixed, rest = dict(self.constants), iter(tensors)
        return pytree.tree_unflatten(
            [fixed[place] if place in fixed else next(rest) for place in range(self.count)], self.form
        )


@dataclass(frozen=True)
class OpaqueCall:
    """How one sub-module is called: ``takes`` is the structure of (args, kwargs), ``gives`` that of its result."""

    path: str
    takes: Structure
    gives: Structure
    sizes: tuple[tuple[Size, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    devices: tuple[torch.device, ...]


@dataclass
class _Seen:
    takes: Structure
    given: list[list[torch.Size]]
    gives: Structure
    results: list[list[Tensor]]


def watch(model: nn.Module, paths: frozenset[str], batches: Sequence[Batch]) -> dict[str, OpaqueCall]:
    """How the sub-modules at ``paths`` are called, by the name of the call: the path, for further ways ``path#1``, ….

    With one batch all sizes are numbers; with several, of different sizes, those that follow the batch are found.
    Raises ModelError RG202 for a result that is neither tensor nor constant, or a size that follows no input.
    """
    seen: dict[str, list[_Seen]] = {path: [] for path in outermost(paths)}
    for args, kwargs in batches:
        copied = twin(model)
        for path, ways in seen.items():
            module = copied.get_submodule(path)
            module.forward = _watched(module.forward, ways)
        with undisturbed(0), torch.no_grad():
            copied(*pytree.tree_map(clone, args), **pytree.tree_map(clone, dict(kwargs)))
    calls: dict[str, OpaqueCall] = {}
    for path, ways in seen.items():
        for number, way in enumerate(ways):
            calls[f"{path}#{number}" if number else path] = _call(path, way)
    return calls


def own_derivatives(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The sub-modules (by path) that run a torch.autograd.Function of the user's, with the names of these classes.

    Tracing writes down what such a function computes, and loses the derivative that it defines itself (straight
    through a step function, say). As an opaque sub-module it keeps it.
    """
    found: dict[str, dict[str, None]] = {}
    apply = torch.autograd.Function.__dict__["apply"]
    with followed(copied := twin(model)) as trail:

        def applied(kind: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
            if not kind.__module__.startswith("torch.") and trail.stack:
                found.setdefault(trail.stack[-1][0], {})[kind.__name__] = None
            return apply.__get__(None, kind)(*args, **kwargs)

        with patched(torch.autograd.Function, apply=classmethod(applied)), undisturbed(0):
            copied(*pytree.tree_map(clone, args), **pytree.tree_map(clone, dict(kwargs)))
    return {path: tuple(names) for path, names in found.items()}


def outermost(paths: frozenset[str]) -> tuple[str, ...]:
    """The paths that lie in no other, sorted."""
    return tuple(sorted(path for path in paths if not any(path.startswith(f"{other}.") for other in paths)))


def _watched(forward: Callable[..., Any], ways: list[_Seen]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        takes, given = Structure.of((args, kwargs))
        shapes = [tensor.shape for tensor in given]
        result = forward(*args, **kwargs)
        gives, results = Structure.of(result)
        way = next((way for way in ways if (way.takes, way.gives) == (takes, gives)), None)
        if way is None:
            way = _Seen(takes, [], gives, [])
            ways.append(way)
        way.given.append(shapes)
        way.results.append(results)
        return result

    return watched


def _call(path: str, way: _Seen) -> OpaqueCall:
    strange = [value for _, value in way.gives.constants if not isinstance(value, (bool, int, float, str, type(None)))]
    if strange:
        raise ModelError(Problem("RG202", f"{path} returns a {type(strange[0]).__name__}, and cannot be traced", path))
    first = way.results[0]
    sizes = tuple(
        tuple(_size(path, way, place, dimension) for dimension in range(result.dim()))
        for place, result in enumerate(first)
    )
    dtypes, devices = tuple(result.dtype for result in first), tuple(result.device for result in first)
    return OpaqueCall(path, way.takes, way.gives, sizes, dtypes, devices)


def _size(path: str, way: _Seen, place: int, dimension: int) -> Size:
    """The rule that gave one size in every call that was watched."""
    sizes = [results[place].shape[dimension] for results in way.results]
    if len(set(sizes)) == 1:
        return sizes[0]
    for tensor, shape in enumerate(way.given[0]):
        for position in range(len(shape)):
            found = [given[tensor][position] for given in way.given]
            factors = {Fraction(size, whole) if whole else None for size, whole in zip(sizes, found, strict=True)}
            (factor, *others) = factors
            if factor is not None and not others:
                return tensor, position, factor
    raise ModelError(Problem("RG202", f"the size of what {path} returns follows from no size of its inputs", path))


_calls: ContextVar[dict[str, tuple[OpaqueCall, nn.Module]]] = ContextVar("calls")

_library: Any = torch.library.Library("reclra", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("opaque(str path, Tensor[] inputs, Tensor[] parameters) -> Tensor[]")


def _opaque(path: str, inputs: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """Runs the sub-module itself. It holds its parameters; as arguments they say who depends on them."""
    call, module = _calls.get()[path]
    args, kwargs = call.takes.fill([item.detach().clone() for item in inputs])
    with torch.no_grad(), _untraced():
        result = module(*args, **kwargs)
    # An operator's result may share no memory with what it was given.
    return [item.detach().clone() for item in Structure.of(result)[1]]


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Inside, nothing shows that somebody is tracing."""
    untold = patched(_symbolic_trace, _is_fx_tracing_flag=False)
    with untold, torch._C.DisableTorchFunction(), no_python_dispatcher():
        yield


def _opaque_sizes(path: str, inputs: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    call, _ = _calls.get()[path]
    return [
        torch.empty([_resolved(size, inputs) for size in sizes], dtype=dtype, device=device)
        for sizes, dtype, device in zip(call.sizes, call.dtypes, call.devices, strict=True)
    ]


def _resolved(size: Size, inputs: list[Tensor]) -> int:
    if isinstance(size, int):
        return size
    tensor, dimension, factor = size
    return inputs[tensor].shape[dimension] * factor.numerator // factor.denominator


_library.impl("opaque", _opaque, "CompositeExplicitAutograd")
torch.library.register_fake("reclra::opaque", _opaque_sizes, lib=_library)


@contextlib.contextmanager
def with_opaque(model: nn.Module, calls: Mapping[str, OpaqueCall]) -> Iterator[nn.Module]:
    """A copy of the model in train mode whose opaque sub-modules are calls of ``reclra::opaque``; it works inside only.

    Programs that were captured from such a copy run inside as well.
    """
    copied = twin(model)
    live: dict[str, tuple[OpaqueCall, nn.Module]] = {}
    shells: dict[nn.Module, nn.Module] = {}
    for path in dict.fromkeys(call.path for call in calls.values()):
        original = copied.get_submodule(path)
        own = {name: call for name, call in calls.items() if call.path == path}
        live |= {name: (call, original) for name, call in own.items()}
        shells[original] = _shell(original, own)
    for module in list(copied.modules()):
        for name, child in module._modules.items():
            if child in shells:
                module._modules[name] = shells[child]
    token = _calls.set(live)
    try:
        yield copied
    finally:
        _calls.reset(token)


def _shell(original: nn.Module, calls: Mapping[str, OpaqueCall]) -> nn.Module:
    """A module of the same class name, parameters and attributes, whose forward() is one operator."""
    behind: list[nn.Module] = []

    class Shell(nn.Module):
        def called(self, *args: Any, **kwargs: Any) -> Any:
            takes, tensors = Structure.of((args, kwargs))
            for name, call in calls.items():
                if call.takes == takes:
                    results = torch.ops.reclra.opaque(name, tensors, list(self.parameters()))
                    return call.gives.fill(results)
            path = next(iter(calls.values())).path
            raise ModelError(Problem("RG202", f"{path} is called in a way it was not called in before", path))

        forward = called  # stack traces begin at functions called forward: this one has no place in them

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if not behind:
                    raise
                return getattr(behind[0], name)

    Shell.__module__, Shell.__qualname__ = type(original).__module__, type(original).__qualname__
    Shell.__name__ = type(original).__name__
    shell = bare_twin(original, Shell())
    behind.append(original)
    return shell
