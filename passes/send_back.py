"""Adjoint edges as tasks: an error carried back over the connections that lead to its region, and how E learns there.

Before:  edges 5->4 against blocks.1.conv2 and 5->3 against blocks.1.skip
After:   d4 = F.conv_transpose2d(e5, E["5->4"], None, (1, 1), (1, 1), (0, 0), 1, (1, 1))
         d3_5 = F.conv_transpose2d(e5, E["5->3"], None, (1, 1), (0, 0), (0, 0), 1, (1, 1))

One task carries an error back to all regions that hear it over such edges, so that what several have in common, as the
parts of a concatenation have their convolution, is computed once. Operators without a closed form are passed by
PyTorch's own derivative of them (``derive``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import Argument, Operator, Ref, TensorType
from reclra_graph.ir.regions import LOCAL, Region
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge
from reclra_graph.options import AS_WEIGHT
from reclra_graph.passes.derive import NoDerivative, derive
from reclra_graph.passes.local import FRESH
from reclra_graph.passes.lower_state import Lowering, operator_flops
from reclra_graph.passes.synapse_calls import low
from reclra_graph.rules.operators import short
from reclra_graph.rules.table import ERROR, NORMS
from reclra_graph.rules.way_back import (
    CARRIED,
    PART,
    SYNAPSE,
    WEIGHTED,
    Link,
    adjoint,
    carried,
    outer,
    positions,
    sign_scale,
    ways,
    weight_value,
)

Arrived = dict[int | None, list[str]]
"""Names of the errors at a value, or at the parts of a tuple."""


@dataclass(frozen=True)
class Use:
    """A weighted operator that an error went back over: ``error`` at its output, ``displacement`` at its data."""

    edge: Edge
    operator: str
    value: str
    error: str
    displacement: str


def send_back(state: Lowering, region: Region) -> None:
    """One task: the error of a region at the z_i of all regions that hear it over adjoint edges.

    Raises ModelError RG303 where an operator on the way has no derivative, or one that is zero everywhere."""
    edges = [edge for edge in state.plan.outgoing.get(region.id, ()) if edge.form == "adjoint"]
    if not edges:
        return
    back = _Back(state, region, edges)
    back.run()
    if not back.calls:
        return  # over additions and normalisations alone it arrives as it is
    outputs = state.plan.regions.outputs
    group = f"target:{outputs[0] if region.id in outputs else region.id}"
    state.add(f"back:{region.id}", "displace", region.id, group, back.calls, 0, back.flops)


class _Back:
    """The calls of one way back. Names made here are marked FRESH until they are written down; those of the operator
    graph are its own."""

    def __init__(self, state: Lowering, region: Region, edges: list[Edge]) -> None:
        self.state, self.region, self.graph = state, region, state.graph
        self.way = ways(state.plan.regions).of(region.id)
        self.edges = {edge.weight: edge for edge in edges if edge.weight}
        self.targets = {state.regions[edge.target].post: edge.target for edge in edges}
        self.links = self.way.towards(self.targets)
        self.local = state.plan.update_of.get(region.id) == LOCAL
        self.at: dict[str, Arrived] = {}
        self.dtypes: dict[str, str] = {}
        self.signs: dict[str, str] = {}
        self.calls: list[Call] = []
        self.flops = 0

    def run(self) -> None:
        """Append the calls, and note in the state what arrives where, and what synapses can learn from."""
        kind = self.state.type_of(self.region)
        error = FRESH + self.state.errors[self.region.id]
        self.dtypes[error] = kind.dtype
        self.at[self.region.pre] = {None: [error]}
        for name, members in groupby(self.links, key=lambda link: link.operator):
            arrived = self.at.pop(name, None)
            if arrived is not None:
                self._over(self.graph.by_name[name], list(members), arrived)
        for value, target in self.targets.items():
            found = self.at.get(value, {}).get(None)
            if not found:
                cause = f"the derivative on the way from region {self.region.id} back to region {target} is zero"
                raise ModelError(Problem("RG303", cause, self.region.line or self.region.name))
            wanted = self.state.type_of(self.state.regions[target])
            name = self._as(self._total(found, wanted, self._label(target)), wanted.dtype, wanted)
            self.state.back[self.region.id, target] = name.removeprefix(FRESH)

    def _over(self, operator: Operator, links: list[Link], arrived: Arrived) -> None:
        """Over one operator, to every value that it reads on the way."""
        kinds = _kinds(operator)
        errors = {
            part: self._total(names, self.state.raised(kinds.get(part)), f"e{self.region.id}_sum")
            for part, names in arrived.items()
        }
        traced = []
        for link in links:
            if link.how == PART:
                index = operator.args[1]
                assert isinstance(index, int)
                self._arrive(link.value, errors[None], index)
            elif link.how == WEIGHTED:
                self._arrive(link.value, self._weighted(operator, link, errors[None]))
            elif link.how == CARRIED and not (self.local and short(operator.target) in NORMS):
                call = carried(operator, self.graph, link.value)
                assert call is not None
                self._arrive(link.value, self._carried(operator, link.value, call, errors.get(None) or errors[0]))
            else:
                traced.append(link.value)
        if traced:
            self._traced(operator, tuple(traced), errors)

    def _arrive(self, value: str, error: str, part: int | None = None) -> None:
        self.at.setdefault(value, {}).setdefault(part, []).append(error)

    # -- over one operator --------------------------------------------------------------------------------------------

    def _weighted(self, operator: Operator, link: Link, error: str) -> str:
        """The adjoint with E in the weight's place."""
        state, edge = self.state, self.edges[link.weight]
        call = adjoint(operator, self.graph)
        assert call is not None
        error = self._as(error, state.synapse_dtype)
        synapse = self._sign(operator, link) if edge.rule == "sign" else f"{FRESH}E[{edge.synapse}]"
        given = {ERROR: Ref(error), SYNAPSE: Ref(synapse)}
        args = tuple(given.get(item, item) if isinstance(item, Ref) else item for item in call.args)
        found = self._made(link.value, operator, Call(call.function, args, low(state.plan)))
        self.flops += operator_flops(self.graph, operator)
        state.uses.setdefault(self.region.id, []).append(
            Use(edge, operator.name, link.value, error.removeprefix(FRESH), found.removeprefix(FRESH))
        )
        return found

    def _sign(self, operator: Operator, link: Link) -> str:
        """E = s sign(W), once for each weight."""
        if link.weight not in self.signs:
            weight = weight_value(self.graph, operator, link.value)
            kind = TensorType(self.graph.types[weight].shape, self.state.synapse_dtype)
            args: tuple[Argument, ...] = (Ref(weight), sign_scale(operator, self.graph))
            name = self.signs[link.weight] = self._fresh(f"E{self.region.id}", kind.dtype)
            self.calls.append(self._emitted(Call("rules.adjoint.signed", args, (), (name,), (kind,))))
        return self.signs[link.weight]

    def _carried(self, operator: Operator, value: str, call: Call, error: str) -> str:
        """The closed form of an operator without a weight."""
        if call.function == "rules.carry.same":
            return error
        args = tuple(Ref(error) if item == ERROR else item for item in call.args)
        return self._made(value, operator, Call(call.function, args, call.kwargs))

    def _traced(self, operator: Operator, wanted: tuple[str, ...], errors: dict[int | None, str]) -> None:
        """PyTorch's derivative of an operator, in the operator's own precision."""
        kinds = _kinds(operator)
        unlike = [part for part, name in errors.items() if self.dtypes[name] != getattr(kinds[part], "dtype", "")]
        given = list(errors.items())
        for some in [[item] for item in given] if unlike else [given]:
            unit, lowered = "", some
            if unlike:
                ((part, name),) = some
                kind = kinds[part]
                assert kind is not None
                name, unit = self._lowered(name, kind)
                lowered = [(part, name)]
            try:
                made, found = derive(
                    operator, self.graph, lowered, wanted, lambda text: self._fresh(f"{text}{self.region.id}", "")
                )
            except NoDerivative as failure:
                place = operator.line or operator.module or operator.name
                cause = f"{operator.target} has no local derivative: {failure}"
                raise ModelError(Problem("RG303", cause, place)) from None
            self.calls += [self._emitted(call) for call in made]
            for value, name in found.items():
                self.dtypes[name] = self.graph.types[value].dtype
                self._arrive(value, self._raised(name, value, unit) if unlike else name)

    # -- dtypes -------------------------------------------------------------------------------------------------------

    def _as(self, error: str, dtype: str, kind: TensorType | None = None) -> str:
        """An error in a dtype."""
        if self.dtypes[error] == dtype:
            return error
        name = self._fresh(f"e{self.region.id}_{dtype}", dtype)
        self.calls.append(self._emitted(Call("rules.layout.cast", (Ref(error), dtype), (), (name,), (kind,))))
        return name

    def _lowered(self, error: str, kind: TensorType) -> tuple[str, str]:
        """An error in the dtype of an operator's own result; in float16 multiplied by a power of two, whose name comes
        second, so that nothing vanishes or overflows."""
        unit = ""
        if kind.dtype == "float16":
            unit = self._fresh(f"unit{self.region.id}", "float32")
            scaled = self._fresh(f"e{self.region.id}_scaled", "float32")
            args = (Ref(error), Ref("B"), self.region.units // self.region.features)
            number = TensorType((), "float32")
            self.calls.append(self._emitted(Call("rules.precision.local_unit", args, (), (unit,), (number,))))
            raised = self.state.raised(kind)
            call = Call("rules.carry.scaled", (Ref(error), Ref(unit)), (), (scaled,), (raised,))
            self.calls.append(self._emitted(call))
            error = scaled
        return self._as(error, kind.dtype, kind), unit

    def _raised(self, error: str, value: str, unit: str) -> str:
        """The reverse, in the dtype of the errors at a value."""
        kind = self.state.raised(self.graph.types[value])
        assert kind is not None
        error = self._as(error, kind.dtype, kind)
        if unit:
            name = self._fresh(f"e{self.region.id}_unscaled", kind.dtype)
            call = Call("rules.carry.divided", (Ref(error), Ref(unit)), (), (name,), (kind,))
            self.calls.append(self._emitted(call))
            error = name
        return error

    # -- names --------------------------------------------------------------------------------------------------------

    def _made(self, value: str, operator: Operator, call: Call) -> str:
        """Append a call that gives the error at a value, float32 or more; returns its name."""
        kind = self.state.raised(self.graph.types.get(value))
        target = self.targets.get(value)
        alone = sum(link.value == value for link in self.links) == 1
        text = f"e{self.region.id}_{short(operator.target).strip('_')}"
        name = self._fresh(text if target is None or not alone else self._label(target), "")
        source = next((item.name for item in call.args if isinstance(item, Ref) and item.name in self.dtypes), "")
        self.dtypes[name] = self.dtypes.get(source, kind.dtype if kind else "")
        if kind is not None and kind.dtype != self.dtypes[name]:
            kind = TensorType(kind.shape, self.dtypes[name])
        self.calls.append(self._emitted(Call(call.function, call.args, call.kwargs, (name,), (kind,))))
        return name

    def _total(self, errors: list[str], kind: TensorType | None, text: str) -> str:
        """The sum of errors that arrive at one value."""
        if len(errors) == 1:
            return errors[0]
        name = self._fresh(text, self.dtypes[errors[0]])
        args = tuple(Ref(error) for error in errors)
        self.calls.append(self._emitted(Call("rules.target.total", args, (), (name,), (kind,))))
        return name

    def _label(self, target: int) -> str:
        """What is said of an error that arrives: the displacement itself, where no other comes."""
        senders = {edge.source for edge in self.state.plan.incoming[target]}
        return f"d{target}" if len(senders) == 1 else f"d{target}_{self.region.id}"

    def _fresh(self, text: str, dtype: str) -> str:
        name = FRESH + self.state.namer.new(text)
        self.dtypes[name] = dtype
        return name

    def _emitted(self, call: Call) -> Call:
        """A call under the names of the emitted file."""

        def put(argument: Any) -> Any:
            if isinstance(argument, tuple):
                return tuple(put(item) for item in argument)
            if isinstance(argument, Ref) and argument.name.startswith(FRESH):
                return Ref(argument.name.removeprefix(FRESH))
            return self.state.renamed(argument)

        results = tuple(name.removeprefix(FRESH) for name in call.results)
        return Call(call.function, put(call.args), put(call.kwargs), results, call.types, call.unpack)


def _kinds(operator: Operator) -> dict[int | None, TensorType | None]:
    """Type of an operator's result, or of each part of its tuple."""
    found: dict[int | None, TensorType | None] = {None: operator.type}
    found.update(enumerate(operator.types))
    return found


# -- what synapses learn ----------------------------------------------------------------------------------------------


def learn_back(state: Lowering, region: Region, calls: list[Call]) -> tuple[list[tuple[str, str]], int]:
    """Append Eq. 6 for the adjoint edges that leave a region; (what learns, name of its delta), and operations."""
    found: dict[str, list[str]] = {}
    flops = 0
    kinds: dict[str, TensorType] = {}
    for use in state.uses.get(region.id, ()):
        if use.edge.rule != "eq6":
            continue
        operator = state.graph.by_name[use.operator]
        call = outer(operator, state.graph, use.value, Ref(FRESH))
        assert call is not None
        given = {ERROR: Ref(use.error), Ref(FRESH): Ref(use.displacement)}
        args = tuple(given[item] if item in given else state.renamed(item) for item in call.args)
        kind = kinds[use.edge.synapse] = TensorType(use.edge.shape, state.synapse_dtype)
        product, delta = state.namer.new(f"ed{region.id}"), state.namer.new(f"dE{region.id}")
        calls.append(Call(call.function, args, low(state.plan), (product,), (kind,)))
        rate = (Ref("gamma"), positions(operator, state.graph), state.plan.rates.sign == "descend")
        calls.append(Call("rules.adjoint.outer_eq6", (Ref(product), *rate), (), (delta,), (kind,)))
        found.setdefault(use.edge.synapse, []).append(delta)
        flops += operator_flops(state.graph, operator)
    deltas = []
    for store, parts in found.items():
        total = parts[0]
        if len(parts) > 1:
            total = state.namer.new(f"dE{region.id}")
            args = tuple(Ref(part) for part in parts)
            calls.append(Call("rules.target.total", args, (), (total,), (kinds[store],)))
        deltas.append((f"E[{store}]", total))
    return deltas, flops


def mirror_weights(state: Lowering) -> None:
    """Synapses that move as their weights do (``options.AS_WEIGHT``), from the same deltas, once all are there."""
    done = set[str]()
    for edge in state.plan.edges:
        if edge.form != "adjoint" or edge.rule not in AS_WEIGHT or edge.synapse in done:
            continue
        done.add(edge.synapse)
        deltas = state.deltas[f"P[{edge.weight}]"]
        home = next(item for item in state.plan.edges if item.name == edge.synapse).home
        delta = state.namer.new(f"dE{home}")
        kind = TensorType(edge.shape, state.synapse_dtype)
        args = (Ref("gamma"), *(Ref(name) for name, _ in deltas))
        calls = [
            Call("rules.adjoint.mirrored", args, (), (delta,), (kind,)),
            Call("optimise", (Ref(f"E[{edge.synapse}]"), Ref(delta), Ref("lr"))),
        ]
        # What other regions learn too is there last of all.
        group = f"synapses:{home}" + ("" if {number for _, number in deltas} == {home} else ":shared")
        state.add(f"optimise:synapses:{edge.synapse}", "optimise", home, group, calls)
