"""WiringPlan → TaskGraph: one training step as tasks, each with what it reads and writes.

Before:  regions and error edges.
After:   forward tasks region by region, the loss with e_L, and for every region that an error reaches: displace
         (d = E e_j, Eq. 3), target (y = φ(h − β d), Eq. 3), error (e = mismatch(z, y), Eq. 4), update (ΔW, Eq. 5, and
         ΔE, Eq. 6) and optimise. A parameter that several regions share is optimised once, from the sum. Two tasks
         that touch the same storage, one of them writing, are ordered by an edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby, pairwise
from math import prod
from typing import Any

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import OPAQUE, Argument, Operator, OperatorGraph, Ref, TensorType, references
from reclra_graph.ir.regions import LOCAL, Region
from reclra_graph.ir.tasks import Call, Task, TaskGraph
from reclra_graph.ir.wiring import Edge, Matrix, WiringPlan
from reclra_graph.passes.local import FRESH, local_derivatives
from reclra_graph.passes.names import value_names
from reclra_graph.passes.storage import storage_order, stored_by
from reclra_graph.passes.synapse_calls import FEW, displaced, matrix_learned, sent_on
from reclra_graph.passes.synapse_calls import learned as learned_by
from reclra_graph.rules.forms import stored, what_learns, work
from reclra_graph.rules.operators import is_random, short
from reclra_graph.rules.table import ERROR, carry, update

_LOSSES = {
    "cross-entropy": "cross_entropy",
    "causal-lm": "cross_entropy",
    "mse": "mse",
    "bce-with-logits": "bce_with_logits",
}

# From this many units of a region on, writing its displacement down costs more than the product that makes it.
_LARGE = 2048


def lower(plan: WiringPlan) -> TaskGraph:
    """The task graph of one step: tasks in an order in which they can run."""
    return _Lowering(plan).result()


@dataclass
class _Lowering:
    plan: WiringPlan
    tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph: OperatorGraph = self.plan.regions.graph
        self.regions = self.plan.regions.regions
        self.names, self.namer = value_names(self.plan.regions)
        self.users = self.graph.users
        self.errors: dict[int, str] = {}
        self.sampled: dict[int, str] = {}
        self.moved: dict[str, str] = {}
        self.shared: dict[str, list[str]] = {}
        owners: dict[str, int] = {}
        for region in self.regions:
            # Closed forms give one contribution per use, a local derivative one per region.
            local = self.plan.update_of.get(region.id) == LOCAL
            for key in region.parameters if local else [item.parameter for item in region.updates]:
                owners[key] = owners.get(key, 0) + 1
        self.tied = {f"P[{key}]" for key, count in owners.items() if count > 1}
        # What implicit synapses learn counts their runs already.
        self.tied |= {f"E[{what_learns(self.plan, edge)}]" for edge in self.plan.edges
                      if edge.shared and edge.form != "implicit"}  # fmt: skip
        self.sent: dict[str, str] = {}

    def result(self) -> TaskGraph:
        late = self._bookkeeping()
        for number, names in self._pieces(late):
            self._forward(self.regions[number], names)
        self._loss()
        levels = self.plan.level
        order = sorted(levels, key=lambda number: (levels[number], -number))
        for number in order:
            if number not in self.plan.regions.outputs:
                self._target(self.regions[number])
        for number in order:
            self._update(self.regions[number])
        self._tied()
        self._buffers(late)
        return TaskGraph(self.plan, tuple(self.tasks), storage_order(self.tasks))

    # -- values -----------------------------------------------------------------------------------------------------

    def _renamed(self, argument: Any) -> Argument:
        if isinstance(argument, Ref):
            return Ref(self.names.get(argument.name, argument.name))
        if isinstance(argument, tuple):
            return tuple(self._renamed(item) for item in argument)
        return argument  # type: ignore[no-any-return]

    def _add(
        self, name: str, kind: str, region: int, group: str, calls: list[Call], cost: int = 0, flops: int = 0
    ) -> None:
        written = [result for call in calls for result in call.results if result]
        stored = [stored_by(call) for call in calls]
        written += [item for item in stored if item]
        read = dict.fromkeys(name for call in calls for name in references(call.args) + references(call.kwargs))
        made = {result for call in calls for result in call.results}
        reads = tuple(item for item in read if item not in made and item not in ("_", "B", "beta", "gamma", "lr"))
        self.tasks.append(
            Task(name, kind, region, group, tuple(calls), reads, tuple(dict.fromkeys(written)), cost, flops)
        )

    def _bookkeeping(self) -> set[str]:
        """Operators that only turn an old buffer into its new value (counting batches): done after the loss's check."""
        updated = {buffer.updated for buffer in self.graph.buffers if buffer.updated}
        buffers = {buffer.name for buffer in self.graph.buffers}
        return {
            operator.name
            for operator in self.graph.operators
            if operator.name in updated and set(operator.reads) <= buffers and not self.users.get(operator.name)
        }

    # -- forward ----------------------------------------------------------------------------------------------------

    def _operator_calls(self, names: tuple[str, ...]) -> list[Call]:
        calls: list[Call] = []
        parts: dict[str, dict[int, str]] = {}
        for name in names:
            operator = self.graph.by_name[name]
            if operator.target == "operator.getitem" and self._tuple(operator.reads[0]):
                index = operator.args[1]
                assert isinstance(index, int)
                parts.setdefault(operator.reads[0], {})[index] = self.names[name]
        for name in names:
            operator = self.graph.by_name[name]
            if self.names.get(name) == "B" or (
                operator.target == "operator.getitem" and self._tuple(operator.reads[0])
            ):
                continue
            args, kwargs = self._renamed(operator.args), self._renamed(operator.kwargs)
            assert isinstance(args, tuple)
            if operator.target == OPAQUE:
                used = parts.get(name, {})
                made = tuple(used.get(index, "") for index in range(len(operator.types)))
                owner = self.plan.regions.region_of
                through = any(owner.get(read) == owner[name] for read in references(operator.args[1:3]))
                given = (*args[:3], through)
                calls.append(Call("opaque", given, (), (*made, self.names[name]), (*operator.types, None)))
                continue
            if operator.types:
                used = parts.get(name, {})
                results = tuple(used.get(index, "") for index in range(len(operator.types)))
                calls.append(Call(operator.target, args, kwargs, results, operator.types, True))  # type: ignore[arg-type]
            else:
                calls.append(Call(operator.target, args, kwargs, (self.names[name],), (operator.type,)))  # type: ignore[arg-type]
        return calls

    def _tuple(self, name: str) -> bool:
        return name in self.graph.by_name and bool(self.graph.by_name[name].types)

    def _pieces(self, late: set[str]) -> list[tuple[int, tuple[str, ...]]]:
        """(region, operators) in the order of the forward pass: region by region; in the model's own order where random
        numbers would else be drawn in another, as by dropouts in two branches."""
        whole = [(region.id, tuple(name for name in region.operators if name not in late)) for region in self.regions]
        drawn = [name for _, names in whole for name in names if is_random(self.graph.by_name[name])]
        if drawn == [item.name for item in self.graph.operators if item.name in set(drawn)]:
            return whole
        owner = self.plan.regions.region_of
        ordered = [item.name for item in self.graph.operators if item.name not in late]
        return [(number, tuple(names)) for number, names in groupby(ordered, key=owner.__getitem__)]

    def _forward(self, region: Region, names: tuple[str, ...]) -> None:
        calls = self._operator_calls(names)
        if calls:
            flops = sum(_flops(self.graph, self.graph.by_name[name]) for name in names)
            piece = sum(task.kind == "forward" and task.region == region.id for task in self.tasks)
            name = f"forward:{region.id}" + (f":{piece + 1}" if piece else "")
            self._add(name, "forward", region.id, "forward", calls, 0, flops)

    def _type(self, region: Region) -> TensorType:
        return self.graph.types[region.post]

    def _loss(self) -> None:
        """The losses, their sum, its check, and the error of every output."""
        outputs = [self.regions[number] for number in self.plan.regions.outputs]
        several = len(outputs) > 1
        values: list[Call] = []
        errors: list[Call] = []
        parts: list[str] = []
        for output, loss in zip(outputs, self.plan.losses, strict=True):
            name, kind, plain = _LOSSES[loss.kind], self._type(output), output.layout.plain
            z, y = Ref(self.names[output.post]), Ref(f"T[{loss.label}]" if several else "target")
            if not plain:
                z = Ref(self._to_samples(output, z.name, "z", values))
                if not loss.classes or len(output.shape) > 1:
                    y = Ref(self._to_samples(output, y.name, "target", values, loss.classes))
            parts.append(self.namer.new(f"loss{output.id}") if several else "loss")
            form: tuple[Argument, ...] = ()
            sizes: tuple[Argument, ...] = ()
            if loss.classes:
                form = (loss.axis, loss.smoothing, loss.ignore, loss.weights or None, loss.kind == "causal-lm")
                sizes = (output.features, output.units // output.features)
            values.append(Call(f"rules.loss.{name}", (z, y, *form), (), (parts[-1],), (TensorType((), kind.dtype),)))
            kappa = self.plan.rates.kappa_of(output.id)
            error = self.errors[output.id] = self.namer.new(f"e{output.id}")
            first = error if kappa == 1.0 and plain else self.namer.new(f"m{output.id}")
            rest = (*sizes, *form, Ref("B")) if loss.classes else ()
            errors.append(Call(f"rules.loss.{name}_error", (z, y, *rest), (), (first,), (None if not plain else kind,)))
            if not plain:
                placed = error if kappa == 1.0 else self.namer.new(f"m{output.id}")
                back = (output.layout.dim, output.layout.before, output.layout.after)
                errors.append(Call("rules.layout.from_samples", (Ref(first), *back), (), (placed,), (kind,)))
                first = placed
            if kappa != 1.0:
                errors.append(Call("rules.discrepancy.scaled", (Ref(first), kappa), (), (error,), (kind,)))
            self._sampled(output, errors)
        if several:
            kind = TensorType((), self._type(outputs[0]).dtype)
            values.append(Call("rules.target.total", tuple(Ref(part) for part in parts), (), ("loss",), (kind,)))
        inputs = tuple(Ref(self.names[item.name]) for item in self.graph.inputs)
        calls = [*values, Call("check", (Ref("loss"), *inputs)), *errors]
        units = sum(output.units for output in outputs)
        self._add("loss", "loss", outputs[0].id, f"target:{outputs[0].id}", calls, 1, 2 * units)

    def _to_samples(self, region: Region, value: str, label: str, calls: list[Call], classes: bool = False) -> str:
        """A value in a region's layout, or targets of its positions, with the batch in front; returns its name."""
        name = self.namer.new(f"{label}{region.id}_samples")
        dim, before, after = region.layout.dim, region.layout.before, region.layout.after
        calls.append(Call("rules.layout.to_samples", (Ref(value), dim, before, after), (), (name,), (None,)))
        return name

    def _sampled(self, region: Region, calls: list[Call]) -> None:
        """Bring a region's error into the form in which its synapses take it."""
        error = self.errors[region.id]
        sends = bool(self.plan.outgoing.get(region.id))
        if sends and not region.layout.plain:
            error = self._to_samples(region, error, "e", calls)
        if sends and self._type(region).dtype != self._synapse_dtype:
            name = self.namer.new(f"e{region.id}_{self._synapse_dtype}")
            calls.append(Call("rules.layout.cast", (Ref(error), self._synapse_dtype), (), (name,), (None,)))
            error = name
        self.sampled[region.id] = error
        for item in self._matrices(region.id):
            name = self.sent[item.name] = self.namer.new(f"s{region.id}")
            kind = TensorType((self._type(region).shape[0], item.units), self._synapse_dtype)
            calls.append(sent_on(self.plan, item, error, name, kind if region.layout.plain else None))

    def _matrices(self, source: int) -> list[Matrix]:
        """The matrices that learn in place of the implicit synapses that leave a region."""
        edges = self.plan.outgoing.get(source, ())
        return list(dict.fromkeys(self.plan.matrix_of[edge.name] for edge in edges if edge.name in self.plan.matrix_of))

    @property
    def _synapse_dtype(self) -> str:
        """The dtype of all error synapses: the first output's."""
        return self._type(self.regions[self.plan.regions.output]).dtype

    # -- targets ----------------------------------------------------------------------------------------------------

    def _target(self, region: Region) -> None:
        rates, kind, number = self.plan.rates, self._type(region), region.id
        group = f"target:{number}"
        h, z, y = self.names[region.pre], self.names[region.post], self.namer.new(f"y{number}")
        chain = tuple(self._link(region, place) for place in range(len(region.activation)))
        edges = self.plan.incoming[number]
        flops = sum(work(self.plan.regions, edge) for edge in edges)
        if self._at_once(region):
            (edge,) = edges
            source = self.regions[edge.source]
            sent = (Ref(h), Ref(self.sampled[source.id]), Ref(f"E[{edge.synapse}]"), Ref("beta"))
            args = (*sent, source.shape, region.shape, chain)
            shift = Call("rules.target.target_at_once", args, (), (y,), (kind,))
        else:
            displacement = self._displacement(region, kind)
            shift = Call("rules.target.target", (Ref(h), Ref(displacement), Ref("beta"), chain), (), (y,), (kind,))
            flops = 0
        self._add(f"target:{number}", "target", number, group, [shift], 1, flops + 3 * region.units)
        error = self.errors[number] = self.namer.new(f"e{number}")
        first = self.namer.new(f"m{number}") if rates.gain else error
        calls = [
            Call(
                "rules.discrepancy.mismatch",
                (Ref(z), Ref(y), rates.norm, rates.kappa_of(number)),
                (),
                (first,),
                (kind,),
            )
        ]
        if rates.gain:
            calls.append(Call("rules.discrepancy.gained", (Ref(first), Ref("beta")), (), (error,), (kind,)))
        self._sampled(region, calls)
        self._add(f"error:{number}", "error", number, group, calls, 0, 2 * region.units)

    def _at_once(self, region: Region) -> bool:
        """Whether a target needs no displacement of its own: a large map that hears from one source with few units."""
        edges = self.plan.incoming[region.id]
        few = len(edges) == 1 and edges[0].form == "dense" and self.regions[edges[0].source].units <= FEW
        alike = self._type(region).dtype == self._type(self.regions[self.plan.regions.output]).dtype
        return few and region.units >= _LARGE and region.layout.plain and alike

    def _displacement(self, region: Region, kind: TensorType) -> str:
        """d_i, the sum over all synapses that arrive; returns its name."""
        number, plain = region.id, region.layout.plain
        edges = self.plan.incoming[number]
        displacement = self.namer.new(f"d{number}")
        single = len(edges) == 1
        plain = plain and kind.dtype == self._synapse_dtype
        arrived = displacement if plain else self.namer.new(f"d{number}_samples")
        moved = [arrived if single else self.namer.new(f"d{number}_{edge.source}") for edge in edges]
        calls = [self._displaced(edge, name, kind if plain else None) for edge, name in zip(edges, moved, strict=True)]
        if not single:
            total = kind if plain else None
            calls.append(Call("rules.target.total", tuple(Ref(name) for name in moved), (), (arrived,), (total,)))
        if not plain:
            first = displacement if kind.dtype == self._synapse_dtype else arrived
            if not region.layout.plain:
                back = (region.layout.dim, region.layout.before, region.layout.after)
                first = displacement if first == displacement else self.namer.new(f"d{number}_placed")
                calls.append(Call("rules.layout.from_samples", (Ref(arrived), *back), (), (first,), (kind,)))
            if first != displacement:
                calls.append(Call("rules.layout.cast", (Ref(first), kind.dtype), (), (displacement,), (kind,)))
        self.moved.update({edge.name: name for edge, name in zip(edges, moved, strict=True)})
        flops = sum(work(self.plan.regions, edge) for edge in edges)
        self._add(f"displace:{number}", "displace", number, f"target:{number}", calls, 0, flops)
        return displacement

    def _displaced(self, edge: Edge, result: str, kind: TensorType | None) -> Call:
        matrix = self.plan.matrix_of.get(edge.name)
        sent = self.sent[matrix.name] if matrix else ""
        return displaced(self.plan, edge, self.sampled[edge.source], sent, result, kind)

    def _link(self, region: Region, place: int) -> Argument:
        """One operator of φ as data: target, arguments with ``Ref("_")`` for what comes before, keyword arguments."""
        operator = self.graph.by_name[region.activation[place]]
        before = region.pre if place == 0 else region.activation[place - 1]

        def put(argument: Argument) -> Argument:
            if isinstance(argument, tuple):
                return tuple(put(item) for item in argument)
            return Ref("_") if argument == Ref(before) else argument

        return (operator.target, put(operator.args), put(operator.kwargs))

    # -- updates ----------------------------------------------------------------------------------------------------

    def _update(self, region: Region) -> None:
        number = region.id
        if region.learns:
            calls, learned = self._weights(region)
            read = {item.operator for item in region.updates}
            flops = sum(_flops(self.graph, self.graph.by_name[name]) for name in read)
            self._add(f"update:{number}", "update", number, f"update:{number}", calls, 1, flops)
            self._optimise(f"optimise:{number}", region, f"update:{number}", learned)
        calls, learned, flops = [], [], 0
        for edge in self.plan.incoming.get(number, ()):
            if edge.rule == "eq6" and edge.form != "implicit":
                delta = self.namer.new(f"dE_{edge.source}_{edge.target}")
                e, d = self.sampled[edge.source], self.moved.get(edge.name, "")
                calls.append(learned_by(self.plan, edge, e, d, delta, self._type(region).dtype))
                self._owned(f"E[{what_learns(self.plan, edge)}]", delta, learned)
                flops += work(self.plan.regions, edge)
        for item in self._matrices(number):
            delta = self.namer.new(f"dM{number}")
            e, sent = self.sampled[number], self.sent[item.name]
            calls.append(matrix_learned(self.plan, item, e, sent, delta, self._synapse_dtype))
            learned.append((f"E[{item.name}]", delta))
            flops += 2 * item.units**2
        if calls:
            # A group of its own: it runs on the lane that owns the synapses, wherever the weights are updated.
            self._add(f"synapses:{number}", "synapse", number, f"synapses:{number}", calls, 0, flops)
            self._optimise(f"optimise:synapses:{number}", region, f"synapses:{number}", learned)

    def _optimise(self, name: str, region: Region, group: str, learned: list[tuple[str, str]]) -> None:
        if learned:
            steps = [Call("optimise", (Ref(store), Ref(delta), Ref("lr"))) for store, delta in learned]
            self._add(name, "optimise", region.id, group, steps)

    def _weights(self, region: Region) -> tuple[list[Call], list[tuple[str, str]]]:
        """Eq. 5 for every parameter of a region: the calls, and (parameter, delta) for those owned alone."""
        if self.plan.update_of[region.id] == LOCAL:
            return self._local(region)
        calls: list[Call] = []
        learned: list[tuple[str, str]] = []
        at = {region.pre: self.errors[region.id]}
        values = {item.key: item for item in self.graph.parameters}
        for item in region.updates:
            route = (*item.path, item.operator)
            for over, value in pairwise(route):
                if value not in at:
                    at[value] = self._carried(region, over, value, at[over], calls)
            operator = self.graph.by_name[item.operator]
            call = update(operator, self.graph, item.position)
            assert call is not None, item
            delta = self._delta(item.parameter, region)
            args = self._placed(call.args, at[item.operator])
            calls.append(Call(call.function, args, (), (delta,), (values[item.parameter].type,)))
            self._owned(f"P[{item.parameter}]", delta, learned)
        return calls, learned

    def _delta(self, key: str, region: Region) -> str:
        label = {"weight": "dW", "bias": "db"}.get(key.rpartition(".")[2], "dP")
        return self.namer.new(f"{label}{region.id}")

    def _owned(self, store: str, delta: str, learned: list[tuple[str, str]]) -> None:
        """Note a contribution to a parameter or a synapse: optimised right away where it is the only one."""
        if store in self.tied:
            self.shared.setdefault(store, []).append(delta)
        else:
            learned.append((store, delta))

    def _local(self, region: Region) -> tuple[list[Call], list[tuple[str, str]]]:
        """Updates of a region by local derivatives, means over the batch."""
        made, found = local_derivatives(self.graph, region, self.errors[region.id], self.namer.new)
        calls = [
            Call(call.function, self._local_names(call.args), self._local_names(call.kwargs),
                 tuple(name.removeprefix(FRESH) for name in call.results), call.types, call.unpack)
            for call in made
        ]  # fmt: skip
        learned: list[tuple[str, str]] = []
        values = {item.key: item for item in self.graph.parameters}
        for key, result in found.items():
            delta = self._delta(key, region)
            mean = Call(
                "rules.carry.divided", (self._local_names(Ref(result)), Ref("B")), (), (delta,), (values[key].type,)
            )
            calls.append(mean)
            self._owned(f"P[{key}]", delta, learned)
        zero = [key for key in region.parameters if key not in found]
        if zero:
            cause = f"the derivative by {zero[0]} is zero everywhere, as behind a step function"
            raise ModelError(Problem("RG303", cause, region.line or region.name))
        return calls, learned

    def _local_names(self, argument: Any) -> Any:
        if isinstance(argument, Ref):
            return Ref(
                argument.name.removeprefix(FRESH)
                if argument.name.startswith(FRESH)
                else self.names.get(argument.name, argument.name)
            )
        return tuple(self._local_names(item) for item in argument) if isinstance(argument, tuple) else argument

    def _placed(self, args: tuple[Argument, ...], error: str) -> tuple[Argument, ...]:
        renamed = self._renamed(tuple(Ref(error) if argument == ERROR else argument for argument in args))
        assert isinstance(renamed, tuple)
        return renamed

    def _carried(self, region: Region, over: str, value: str, error: str, calls: list[Call]) -> str:
        """The error at ``value``, carried back over the operator ``over``."""
        operator = self.graph.by_name[over]
        call = carry(operator, self.graph, value)
        assert call is not None
        if call.function == "rules.carry.same":
            return error
        result = self.namer.new(f"e{region.id}_{short(operator.target).strip('_')}")
        kind = self.graph.types.get(value)
        calls.append(Call(call.function, self._placed(call.args, error), (), (result,), (kind,)))
        return result

    def _tied(self) -> None:
        """What has several contributions learns from their sum, once all regions that use it are done; a synapse on the
        lane that owns it."""
        types = {f"P[{held.key}]": held.type for held in self.graph.parameters}
        lanes = {}
        for item in stored(self.plan):
            types[f"E[{item.name}]"] = TensorType(item.shape, self._type(self.regions[item.region]).dtype)
            lanes[f"E[{item.name}]"] = item.region
        for number, (store, deltas) in enumerate(sorted(self.shared.items()), start=1):
            total = self.namer.new(f"dS{number}")
            calls = [
                Call("rules.target.total", tuple(Ref(delta) for delta in deltas), (), (total,), (types[store],)),
                Call("optimise", (Ref(store), Ref(total), Ref("lr"))),
            ]
            name = store[2:-1] if store.startswith("P") else f"synapses:{store[2:-1]}"
            group = f"optimise:{name}" if store.startswith("P") else f"synapses:{lanes[store]}:shared"
            region = self.plan.regions.output if store.startswith("P") else lanes[store]
            self._add(f"optimise:{name}", "optimise", region, group, calls)

    def _buffers(self, late: set[str]) -> None:
        calls = self._operator_calls(tuple(item.name for item in self.graph.operators if item.name in late))
        for buffer in self.graph.buffers:
            if buffer.updated is not None:
                calls.append(
                    Call("aten.copy_.default", (Ref(self.names[buffer.name]), Ref(self.names[buffer.updated])))
                )
        if calls:
            # Read of the loss: running statistics move only after the loss was found finite.
            calls.append(Call("after", (Ref("loss"),)))
            self._add("buffers", "buffer", 0, "buffers", calls)


def _flops(graph: OperatorGraph, operator: Operator) -> int:
    """Floating-point operations per sample: two per weight and output for products, one per output otherwise."""
    kind = operator.type or next((item for item in operator.types if item is not None), None)
    if kind is None or not all(isinstance(size, int) for size in kind.shape[1:]):
        return 0
    outputs = prod(int(size) for size in kind.shape[1:])
    name = short(operator.target)
    if name == "linear" or name.startswith("conv"):
        weight = operator.args[1]
        if isinstance(weight, Ref) and weight.name in graph.types:
            return 2 * outputs * prod(int(size) for size in graph.types[weight.name].shape[1:])
    return outputs
