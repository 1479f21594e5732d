"""RegionGraph → RegionGraph: the casts that torch.autocast would make, as operators of the graph.

Before:  h1 = F.linear(x, P["0.weight"], P["0.bias"])                      # f32[B, 256]
         z1 = torch.tanh(h1)                                               # f32[B, 256]
After:   h1 = F.linear(x.to(torch.bfloat16), …)                            # bf16[B, 256]
         z1 = torch.tanh(h1)                                               # bf16[B, 256]

PyTorch's own policy decides, for the kind of device that the model is on: every operator is run under autocast on
tensors without data, and what its arguments were cast to is what they are cast to here. Parameters, buffers and
inputs stay as they are. Regions, their paths and their rules stay as well: an error passes over a cast as it is, for
errors are float32 everywhere (``RegionGraph.error_type``). Casts of a value belong to the region that makes it, those
of a parameter to each region that reads it.

Sub-modules that run as they are (opaque), and operators that want data even to say their dtype, get float32. So does
what comes of buffers and sizes alone: tables of positions, which models compute with autocast switched off; a captured
graph does not tell where that was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from reclra_graph.errors import Problem, UsageError
from reclra_graph.ir.operators import (
    CAST,
    LOW,
    OPAQUE,
    Argument,
    Operator,
    Ref,
    TensorType,
    TorchConstant,
    references,
)
from reclra_graph.ir.regions import Region, RegionGraph
from reclra_graph.passes.calls import sized
from reclra_graph.passes.quiet import hushed
from reclra_graph.rules.operators import function, resolve

Kinds = tuple[str | None, ...]
"""Dtypes of an operator's results, None for what is no tensor."""


def autocast(regions: RegionGraph, dtype: str, device: str, batch: int) -> RegionGraph:
    """The regions with products in ``dtype``, "bfloat16" or "float16", as autocast has it on a ``device`` ("cpu",
    "cuda"); float64 stays float64. ``batch``: a batch size that the graph takes. Raises UsageError RG405 where PyTorch
    has no autocast."""
    if not torch.amp.is_autocast_available(device):
        raise UsageError(Problem("RG405", f"PyTorch has no autocast for the device {device!r}", "autocast"))
    with hushed():
        return _Casting(regions, dtype, device, batch).run()


class _Casting:
    def __init__(self, regions: RegionGraph, dtype: str, device: str, batch: int) -> None:
        self.regions, self.graph = regions, regions.graph
        self.dtype, self.device, self.batch = dtype, device, batch
        self.held = {item.name for item in self.graph.held}
        self.types = {item.name: item.type for item in self.graph.given}
        self.parts: dict[str, tuple[TensorType | None, ...]] = {}
        self.sizes: dict[str, int] = {}
        self.known: dict[Any, tuple[dict[int, str], Kinds]] = {}
        self.names = set(self.types) | {item.name for item in self.graph.operators}
        self.behind: dict[str, list[Operator]] = {}
        """Casts that stand behind the operator, or the input, that makes their value."""
        self.before: dict[str, list[Operator]] = {}
        """Casts of parameters and buffers, by the operator that they stand before."""
        self.done: dict[tuple[str, str, int], str] = {}
        """The name of each cast, by value, dtype and region."""

    def run(self) -> RegionGraph:
        """The regions with casts."""
        made = [self._operator(operator) for operator in self.graph.operators]
        owner = self.regions.region_of
        order: list[Operator] = []
        members: dict[int, list[str]] = {region.id: [] for region in self.regions.regions}

        def put(operator: Operator, region: int) -> None:
            order.append(operator)
            members[region].append(operator.name)

        for item in self.graph.inputs:
            for cast in self.behind.get(item.name, ()):
                put(cast, 0)
        for operator in made:
            number = owner[operator.name]
            for cast in self.before.get(operator.name, ()):
                put(cast, number)
            put(operator, number)
            for cast in self.behind.get(operator.name, ()):
                put(cast, number)
        graph = replace(self.graph, operators=tuple(order), autocast=self.dtype)
        regions = []
        for region in self.regions.regions:
            # Within a region the order of its operators stays what it was.
            place = {name: index for index, name in enumerate(members[region.id])}
            assert [name for name in region.operators if name in place] == list(region.operators)
            names = tuple(sorted(place, key=place.__getitem__))
            regions.append(replace(region, operators=names, activation=self._chain(region, graph.by_name)))
        return replace(self.regions, graph=graph, regions=tuple(regions))

    def _chain(self, region: Region, operators: dict[str, Operator]) -> tuple[str, ...]:
        """φ with the casts between its operators."""
        at, chain = region.pre, list[str]()
        for name in region.activation:
            read = operators[name].args[0]
            assert isinstance(read, Ref)
            chain += [name] if read.name == at else [read.name, name]
            at = name
        return tuple(chain)

    def _operator(self, operator: Operator) -> Operator:
        """The operator on casted values, its types as they are then; notes casts and types."""
        if operator.size is not None:
            self.sizes[operator.name] = sized(operator.size, self.batch)
        if operator.target == "operator.getitem" and operator.reads[0] in self.parts:
            index = operator.args[1]
            assert isinstance(index, int)
            found = replace(operator, type=self.parts[operator.reads[0]][index])
        elif operator.type is None and not operator.types:
            return operator
        else:
            places = [name for name in operator.reads if name in self.types]
            casts, kinds = self._policy(operator, places)
            changed = {places[index]: dtype for index, dtype in casts.items()}
            names = {name: self._cast(name, dtype, operator) for name, dtype in changed.items()}
            found = replace(operator, args=_renamed(operator.args, names), kwargs=_renamed(operator.kwargs, names))
            if operator.types:
                types = tuple(_as(kind, dtype) for kind, dtype in zip(operator.types, kinds, strict=True))
                found = replace(found, types=types)
                self.parts[operator.name] = types
            else:
                found = replace(found, type=_as(operator.type, kinds[0]))
        if found.type is not None:
            self.types[operator.name] = found.type
        return found

    def _cast(self, name: str, dtype: str, reader: Operator) -> str:
        """The name of a value in another dtype."""
        own = name in self.held
        region = self.regions.region_of[reader.name] if own else -1
        key = (name, dtype, region)
        if key not in self.done:
            label = f"{name}_{dtype}" + (f"_{region}" if own else "")
            while label in self.names:
                label += "_"
            self.names.add(label)
            kind = TensorType(self.types[name].shape, dtype)
            source = self.graph.by_name.get(name, reader)
            cast = Operator(
                label, CAST, (Ref(name),), (("dtype", TorchConstant(dtype)),), kind,
                module=source.module, module_class=source.module_class, line=source.line,
            )  # fmt: skip
            (self.before if own else self.behind).setdefault(reader.name if own else name, []).append(cast)
            self.types[label] = kind
            self.done[key] = label
        return self.done[key]

    # -- the policy -------------------------------------------------------------------------------------------------

    def _policy(self, operator: Operator, places: list[str]) -> tuple[dict[int, str], Kinds]:
        """What autocast casts of an operator's tensors, by their number in ``places``, and the dtypes of its results.
        Operators that differ in names alone are asked once."""
        short = {name: f"a{index}" for index, name in enumerate(places)}
        sizes = {name: self.sizes[name] for name in operator.reads if name in self.sizes}
        shapes = tuple(self.types[name] for name in places)
        args, kwargs = _renamed(operator.args, short), _renamed(operator.kwargs, short)
        table = operator.name in self.graph.without_data and operator.name not in self.graph.derived
        key = (operator.target, args, kwargs, shapes, tuple(sizes.items()), table)
        if key not in self.known:
            asked = operator.target != OPAQUE and not table
            self.known[key] = self._asked(operator, args, kwargs, [*shapes], sizes, asked)
        return self.known[key]

    def _asked(
        self, operator: Operator, args: Any, kwargs: Any, kinds: list[TensorType], sizes: dict[str, int], casts: bool
    ) -> tuple[dict[int, str], Kinds]:
        floats = [index for index, kind in enumerate(kinds) if kind.dtype in ("float32", *LOW)]
        raised = {index: "float32" for index in floats if kinds[index].dtype != "float32"}
        usual: Kinds = tuple(kind.dtype if kind else None for kind in operator.types or (operator.type,))
        if not casts or not floats:
            return raised, usual

        def run(made: dict[int, str], under: bool) -> tuple[dict[int, str], Kinds] | None:
            """What is cast under autocast of tensors that are cast already, and the dtypes of the results; None where
            the operator does not take them."""
            shapes = [tuple(sized(size, self.batch) for size in kind.shape) for kind in kinds]
            dtypes = [getattr(torch, made.get(index, kind.dtype)) for index, kind in enumerate(kinds)]
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                given = [torch.empty(s, dtype=d, device=self.device) for s, d in zip(shapes, dtypes, strict=True)]
                values = {f"a{index}": value for index, value in enumerate(given)} | sizes
                try:
                    plain = [resolve(item, values, torch.device(self.device)) for item in args]
                    named = {name: resolve(item, values, torch.device(self.device)) for name, item in kwargs}
                    with _Seen() as seen, _casting(self.device, self.dtype, under):
                        result = function(operator.target)(*plain, **named)
                except Exception:  # every operator has its own way to refuse; the caller asks for something else then
                    return None
                results = result if isinstance(result, (tuple, list)) else (result,)
                found = {index: seen.casts[id(value)] for index, value in enumerate(given) if id(value) in seen.casts}
            return found, tuple(
                str(item.dtype).removeprefix("torch.") if isinstance(item, Tensor) else None for item in results
            )

        asked = run({}, True)
        if asked is not None:
            # Composite operators (einsum) cast what they make of their arguments: casting these comes to the same. That
            # no cast was seen counts where the dtypes of the results agree: tensors without data mix dtypes that others
            # do not.
            lowered = {index: self.dtype for index in floats if kinds[index].dtype != self.dtype}
            tries: tuple[dict[int, str], ...] = (asked[0], lowered, raised)
            for made in ({},) if operator.target == CAST else tries:
                plain = run(made, False)
                if plain is not None and plain[1] == asked[1]:
                    return made, plain[1]
        plain = run(raised, False)
        return raised, usual if plain is None else plain[1]


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, notes which tensors are brought into which dtype."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.casts: dict[int, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is not None:
            self.casts[id(args[0])] = str(kwargs["dtype"]).removeprefix("torch.")
        return func(*args, **kwargs)


@contextmanager
def _casting(device: str, dtype: str, on: bool) -> Iterator[None]:
    """Autocast on or off for a kind of device, whether there is such a device or not: torch.autocast wants one."""
    was = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), torch.is_autocast_cache_enabled()
    torch.set_autocast_enabled(device, on)
    torch.set_autocast_dtype(device, getattr(torch, dtype))
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, was[0])
        torch.set_autocast_dtype(device, was[1])
        torch.set_autocast_cache_enabled(was[2])


def _as(kind: TensorType | None, dtype: str | None) -> TensorType | None:
    return kind if kind is None or dtype is None else TensorType(kind.shape, dtype)


def _renamed(argument: Argument | tuple[Any, ...], names: dict[str, str]) -> Any:
    if isinstance(argument, Ref):
        return Ref(names.get(argument.name, argument.name))
    if isinstance(argument, tuple) and references(argument):
        return tuple(_renamed(item, names) for item in argument)
    return argument
