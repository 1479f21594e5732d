"""The errors of a step as tasks: the losses and the errors that they cause at the outputs, then, region by region, what
arrives over the synapses, the target and the mismatch (Eqs. 3 and 4), and what the region sends on."""

from __future__ import annotations

from reclra_graph.ir.operators import Argument, Ref, TensorType
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge, Loss
from reclra_graph.passes.batch import SMALL, send_batches
from reclra_graph.passes.lower_state import Lowering
from reclra_graph.passes.straight import direct, is_straight, needs_error
from reclra_graph.passes.synapse_calls import FEW, displaced, sent_on
from reclra_graph.rules.forms import work
from reclra_graph.rules.operators import is_exact

LOSSES = {
    "cross-entropy": "cross_entropy",
    "causal-lm": "cross_entropy",
    "mse": "mse",
    "bce-with-logits": "bce_with_logits",
}


# -- outputs ----------------------------------------------------------------------------------------------------------


def losses(state: Lowering) -> None:
    """One task: the losses, their sum, its check, and the error of every output."""
    outputs = [state.regions[number] for number in state.plan.regions.outputs]
    several = len(outputs) > 1
    values: list[Call] = []
    errors: list[Call] = []
    parts: list[str] = []
    for output, loss in zip(outputs, state.plan.losses, strict=True):
        parts.append(_output_error(state, output, loss, several, values, errors))
    if several:
        kind = TensorType((), state.type_of(outputs[0]).dtype)
        values.append(Call("rules.target.total", tuple(Ref(part) for part in parts), (), ("loss",), (kind,)))
    inputs = tuple(Ref(state.names[item.name]) for item in state.graph.inputs)
    calls = [*values, Call("check", (Ref("loss"), *inputs)), *errors]
    units = sum(output.units for output in outputs)
    state.add("loss", "loss", outputs[0].id, f"target:{outputs[0].id}", calls, 1, 2 * units)


def _output_error(
    state: Lowering, output: Region, loss: Loss, several: bool, values: list[Call], errors: list[Call]
) -> str:
    """Append the calls of one output's loss to ``values``, those of its error to ``errors``; returns the loss's name.
    ``several``: there are other outputs."""
    name, kind, plain = LOSSES[loss.kind], state.type_of(output), output.layout.plain
    z, y = Ref(state.names[output.post]), Ref(f"T[{loss.label}]" if several else "target")
    if state.graph.is_low(output.post):
        raised = state.namer.new(f"z{output.id}_{kind.short}")
        values.append(Call("rules.layout.cast", (z, kind.dtype), (), (raised,), (kind,)))
        z = Ref(raised)
    if not plain:
        z = Ref(_to_samples(state, output, z.name, "z", values))
        if not loss.classes or len(output.shape) > 1:
            y = Ref(_to_samples(state, output, y.name, "target", values))
    value = state.namer.new(f"loss{output.id}") if several else "loss"
    form, rest = loss_arguments(output, loss)
    values.append(Call(f"rules.loss.{name}", (z, y, *form), (), (value,), (TensorType((), kind.dtype),)))
    kappa = state.plan.rates.kappa_of(output.id)
    error = state.errors[output.id] = state.namer.new(f"e{output.id}")
    first = error if kappa == 1.0 and plain else state.namer.new(f"m{output.id}")
    errors.append(Call(f"rules.loss.{name}_error", (z, y, *rest), (), (first,), (kind if plain else None,)))
    if not plain:
        placed = error if kappa == 1.0 else state.namer.new(f"m{output.id}")
        errors.append(_from_samples(output, first, placed, kind))
        first = placed
    if kappa != 1.0:
        errors.append(Call("rules.discrepancy.scaled", (Ref(first), kappa), (), (error,), (kind,)))
    _send(state, output, errors)
    return value


def loss_arguments(output: Region, loss: Loss) -> tuple[tuple[Argument, ...], tuple[Argument, ...]]:
    """What a loss takes behind z and the target, and what its error takes there."""
    if not loss.classes:
        return (), ()
    form = (loss.axis, loss.smoothing, loss.ignore, loss.weights or None, loss.kind == "causal-lm")
    return form, (output.features, output.units // output.features, *form, Ref("B"))


# -- regions that hear from others ------------------------------------------------------------------------------------


def region_error(state: Lowering, region: Region) -> None:
    """e_i of a region from the errors that arrive: its target (Eq. 3), and how far its output is from that (Eq. 4)."""
    if is_straight(state, region):
        _straight_error(state, region)
        return
    rates, kind, number = state.plan.rates, state.type_of(region), region.id
    y = _target(state, region)
    error = state.errors[number] = state.namer.new(f"e{number}")
    first = state.namer.new(f"m{number}") if rates.gain else error
    z = Ref(state.names[region.post])
    calls: list[Call] = []
    if state.graph.is_low(region.post) and not is_exact(region, state.graph):
        z = Ref(state.namer.new(f"z{number}_{kind.short}"))
        args: tuple[Argument, ...] = (Ref(state.names[region.pre]), _phi(state, region))
        calls.append(Call("rules.target.representation", args, (), (z.name,), (kind,)))
    args = (z, Ref(y), rates.norm, rates.kappa_of(number))
    calls.append(Call("rules.discrepancy.mismatch", args, (), (first,), (kind,)))
    if rates.gain:
        calls.append(Call("rules.discrepancy.gained", (Ref(first), Ref("beta")), (), (error,), (kind,)))
    _send(state, region, calls)
    state.add(f"error:{number}", "error", number, f"target:{number}", calls, 0, 2 * region.units)


def _straight_error(state: Lowering, region: Region) -> None:
    """e_i where φ_i is the identity: no target is made, and no error either where nothing takes one."""
    number, kind, rates = region.id, state.type_of(region), state.plan.rates
    shift = (Ref("beta"), rates.kappa_of(number))
    edge = direct(state, region)
    calls: list[Call] = []
    if edge is None:
        error = state.errors[number] = state.namer.new(f"e{number}")
        args = (Ref(_displacement(state, region)), *shift)
        calls.append(Call("rules.discrepancy.straight", args, (), (error,), (kind,)))
        _send(state, region, calls)
        flops = region.units
    else:
        source = state.regions[edge.source]
        s = state.shifts[number] = state.namer.new(f"s{number}")
        sent = state.type_of(source) if source.layout.plain and kind.dtype == state.type_of(source).dtype else None
        args = (Ref(state.heard(edge)), *shift)
        calls.append(Call("rules.discrepancy.straight", args, (), (s,), (sent,)))
        flops = source.units
        if needs_error(state, region):
            error = state.errors[number] = state.namer.new(f"e{number}")
            calls.append(displaced(state.plan, edge, s, error, kind))
            _send(state, region, calls)
            flops += work(state.plan.regions, edge)
    state.add(f"target:{number}", "target", number, f"target:{number}", calls, 1, flops)


def _target(state: Lowering, region: Region) -> str:
    """y_i = φ(h_i − β d_i), and d_i where that is written down; returns the target's name."""
    kind, number = state.type_of(region), region.id
    h, y = Ref(state.names[region.pre]), state.namer.new(f"y{number}")
    chain = _phi(state, region)
    if _at_once(state, region):
        (edge,) = state.plan.incoming[number]
        source = state.regions[edge.source]
        e, synapse = Ref(state.heard(edge)), Ref(f"E[{edge.synapse}]")
        last = (True,) if state.plan.rows_by_position(region) else ()
        args = (h, e, synapse, Ref("beta"), source.shape, region.shape, chain, *last)
        shift = Call("rules.target.target_at_once", args, (), (y,), (kind,))
        flops = work(state.plan.regions, edge)
    else:
        d = _displacement(state, region)
        shift = Call("rules.target.target", (h, Ref(d), Ref("beta"), chain), (), (y,), (kind,))
        flops = 0
    state.add(f"target:{number}", "target", number, f"target:{number}", [shift], 1, flops + 3 * region.units)
    return y


def _phi(state: Lowering, region: Region) -> tuple[Argument, ...]:
    """φ_i as data."""
    return tuple(_link(state, region, place) for place in range(len(region.activation)))


def _link(state: Lowering, region: Region, place: int) -> Argument:
    """One operator of φ as data: target, arguments with ``Ref("_")`` for what comes before, keyword arguments."""
    operator = state.graph.by_name[region.activation[place]]
    before = region.pre if place == 0 else region.activation[place - 1]

    def put(argument: Argument) -> Argument:
        if isinstance(argument, tuple):
            return tuple(put(item) for item in argument)
        return Ref("_") if argument == Ref(before) else argument

    return (operator.target, put(operator.args), put(operator.kwargs))


def _at_once(state: Lowering, region: Region) -> bool:
    """Whether a target needs no displacement of its own: a large map that hears from one source with few units."""
    edges = state.plan.incoming[region.id]
    few = len(edges) == 1 and edges[0].form == "dense" and state.regions[edges[0].source].units <= FEW
    alike = state.type_of(region).dtype == state.synapse_dtype
    low = bool(state.graph.autocast)  # one product in a low precision would round h_i off, and d_i with it
    return few and region.units >= SMALL and region.layout.plain and alike and not low


def _displacement(state: Lowering, region: Region) -> str:
    """d_i, the sum over all synapses that arrive, in the region's own layout and dtype; returns its name. Over adjoint
    edges it arrives so."""
    number, kind = region.id, state.type_of(region)
    edges = tuple(edge for edge in state.plan.incoming[number] if edge.form != "adjoint")
    back = [name for (_, target), name in state.back.items() if target == number]
    if not edges and len(back) == 1:
        return back[0]
    if back:
        parts = [_arrived(state, region, edges, f"d{number}_others")] if edges else []
        displacement = state.namer.new(f"d{number}")
        args = tuple(Ref(name) for name in (*parts, *back))
        calls = [Call("rules.target.total", args, (), (displacement,), (kind,))]
        state.add(f"displace:{number}:all", "displace", number, f"target:{number}", calls, 0, region.units * len(args))
        return displacement
    return _arrived(state, region, edges, f"d{number}")


def _arrived(state: Lowering, region: Region, edges: tuple[Edge, ...], label: str) -> str:
    """The sum over synapses that are not adjoint, in the region's own layout and dtype; returns its name."""
    number, kind = region.id, state.type_of(region)
    same_dtype = kind.dtype == state.synapse_dtype
    plain, single = region.layout.plain and same_dtype, len(edges) == 1
    if plain and single and edges[0].name in state.parts and len(region.shape) == 1:
        state.moved[edges[0].name] = state.parts[edges[0].name]
        return state.parts[edges[0].name]
    displacement = state.namer.new(label)
    arrived = displacement if plain else state.namer.new(f"d{number}_samples")
    moved, calls = [], []
    for edge in edges:
        if edge.name in state.parts and len(region.shape) == 1:
            moved.append(state.parts[edge.name])
            continue
        moved.append(arrived if single else state.namer.new(f"d{number}_{edge.source}"))
        calls.append(_moved(state, edge, moved[-1], kind if plain else None))
    if not single:
        total = kind if plain else None
        calls.append(Call("rules.target.total", tuple(Ref(name) for name in moved), (), (arrived,), (total,)))
    placed = arrived = moved[0] if single else arrived
    if not region.layout.plain:
        placed = displacement if same_dtype else state.namer.new(f"d{number}_placed")
        calls.append(_from_samples(region, arrived, placed, kind))
    if not same_dtype:
        calls.append(Call("rules.layout.cast", (Ref(placed), kind.dtype), (), (displacement,), (kind,)))
    state.moved.update({edge.name: name for edge, name in zip(edges, moved, strict=True)})
    flops = sum(work(state.plan.regions, edge) for edge in edges)
    state.add(f"displace:{number}", "displace", number, f"target:{number}", calls, 0, flops)
    return displacement


def _moved(state: Lowering, edge: Edge, result: str, kind: TensorType | None) -> Call:
    """E e_j of one edge."""
    if edge.name in state.parts:
        region = state.regions[edge.target]
        args = (Ref(state.parts[edge.name]), region.shape, state.plan.rows_by_position(region))
        return Call("rules.synapse.placed", args, (), (result,), (kind,))
    return displaced(state.plan, edge, state.heard(edge), result, kind)


# -- between a region's own form and that of its synapses -------------------------------------------------------------


def _send(state: Lowering, region: Region, calls: list[Call]) -> None:
    """Bring a region's error into the form in which its synapses take it, and through the matrices that they share."""
    error, kind = state.errors[region.id], state.type_of(region)
    sends = any(edge.form != "adjoint" for edge in state.plan.outgoing.get(region.id, ()))
    if sends and not region.layout.plain:
        error = _to_samples(state, region, error, "e", calls)
    if sends and kind.dtype != state.synapse_dtype:
        name = state.namer.new(f"e{region.id}_{state.synapse_dtype}")
        calls.append(Call("rules.layout.cast", (Ref(error), state.synapse_dtype), (), (name,), (None,)))
        error = name
    state.sampled[region.id] = error
    for item in state.matrices_from(region.id):
        name = state.sent[item.name] = state.namer.new(f"s{region.id}")
        sent = TensorType((kind.shape[0], item.units), state.synapse_dtype)
        calls.append(sent_on(state.plan, item, error, name, sent if region.layout.plain else None))
    send_batches(state, region, calls)


def _to_samples(state: Lowering, region: Region, value: str, label: str, calls: list[Call]) -> str:
    """A value in a region's layout, or targets of its positions, with the batch in front; returns its name."""
    name = state.namer.new(f"{label}{region.id}_samples")
    dim, before, after = region.layout.dim, region.layout.before, region.layout.after
    calls.append(Call("rules.layout.to_samples", (Ref(value), dim, before, after), (), (name,), (None,)))
    return name


def _from_samples(region: Region, value: str, result: str, kind: TensorType) -> Call:
    """A value with the batch in front, in a region's own layout."""
    dim, before, after = region.layout.dim, region.layout.before, region.layout.after
    return Call("rules.layout.from_samples", (Ref(value), dim, before, after), (), (result,), (kind,))
