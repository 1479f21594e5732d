"""Weight updates of layers of one size, in one batched product.

Before:  dW3 = e3.T @ z2 / B;  db3 = e3.sum(0) / B;  dW2 = e2.T @ z1 / B;  db2 = e2.sum(0) / B
After:   errors2 = torch.stack((e3, e2))
         dW2_all = errors2.mT @ torch.stack((z2, z1)) / B;  dW3, dW2 = dW2_all.unbind(0)
         db2_all = errors2.sum(1) / B;  db3, db2 = db2_all.unbind(0)

Errors and inputs are copied side by side; the parameters stay where they are, and the optimiser takes each change as
before. The group is updated when the last of its errors is there; until then the others wait, and so does their memory.
The numbers are the same but for rounding. Off with ``without=("group",)``.

Only where the step is planned for one GPU (``device``), without autocast, and for weights of at most ``MOST`` entries:
there a layer's four kernels wait for their launch. On several lanes the updates run side by side. On a CPU the copies
cost what the launches save.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from reclra_graph.ir.operators import Ref, TensorType
from reclra_graph.ir.regions import LOCAL, Region, Update
from reclra_graph.ir.tasks import Call
from reclra_graph.passes.lower_state import Lowering
from reclra_graph.passes.straight import as_it_is, without_error
from reclra_graph.rules.table import update

MOST = 1 << 18
"""Entries of a weight, from which on its own product keeps a GPU busy: 512 x 512."""
_WEIGHT, _BIAS = "rules.updates.linear_weight", "rules.updates.linear_bias"


@dataclass(frozen=True)
class Member:
    """A dense layer: its region, the update of its weight, and that of its bias where it has one."""

    region: int
    weight: Update
    bias: Update | None


def groups(state: Lowering, order: list[Region]) -> dict[int, tuple[Member, ...]]:
    """Layers that are updated together, by the number of the region that is updated last of them; ``order`` is that of
    the updates."""
    if "group" in state.without or state.plan.gpus > 1 or not state.plan.device.is_gpu or state.graph.autocast:
        return {}
    alike: dict[tuple[object, ...], list[Member]] = {}
    for region in order:
        found = _member(state, region)
        if found is not None:
            source, weight = _rule(state, found.weight)
            made = state.graph.by_name[found.weight.operator].type
            alike.setdefault((weight, state.graph.types[source.name], made, found.bias is None), []).append(found)
    return {members[-1].region: tuple(members) for members in alike.values() if len(members) > 1}


def grouped(state: Lowering, members: tuple[Member, ...]) -> tuple[list[Call], list[tuple[str, str]]]:
    """The calls that update a group, and (what learns, name of its delta)."""
    last = members[-1].region
    errors = state.namer.new(f"errors{last}")
    given = tuple(Ref(state.errors[item.region]) for item in members)
    calls = [Call("rules.updates.stacked", given, (), (errors,), (None,))]
    inputs = tuple(state.renamed(_rule(state, item.weight)[0]) for item in members)
    args = (Ref(errors), Ref("B"), *inputs)
    deltas = _parts(state, "dW", Call("rules.updates.linear_weights", args), [item.weight for item in members], calls)
    biases = [item.bias for item in members if item.bias is not None]
    if biases:
        deltas += _parts(state, "db", Call("rules.updates.linear_biases", (Ref(errors), Ref("B"))), biases, calls)
    return calls, deltas


def _parts(state: Lowering, label: str, made: Call, updates: list[Update], calls: list[Call]) -> list[tuple[str, str]]:
    """Append a call for a group and what takes its result apart."""
    owner = {item.parameter: region.id for region in state.regions for item in region.updates}
    whole = state.namer.new(f"{label}{owner[updates[-1].parameter]}_all")
    names = tuple(state.namer.new(f"{label}{owner[item.parameter]}") for item in updates)
    calls.append(Call(made.function, made.args, (), (whole,), (None,)))
    calls.append(Call("aten.unbind.int", (Ref(whole), 0), (), names, (None,) * len(names), unpack=True))
    return [(f"P[{item.parameter}]", name) for item, name in zip(updates, names, strict=True)]


def _member(state: Lowering, region: Region) -> Member | None:
    """A region as a member of a group, where all that it learns is one small dense layer, from its error as it is."""
    if not region.learns or state.plan.update_of[region.id] == LOCAL or region.id not in state.errors:
        return None
    by_rule: dict[str, Update] = {}
    for item in region.updates:
        call = update(state.graph.by_name[item.operator], state.graph, item.position)
        if call is None or call.args[-1] != 2 or f"P[{item.parameter}]" in state.shared or call.function in by_rule:
            return None
        if not as_it_is(state, item) or without_error(state, region, item):
            return None
        by_rule[call.function] = item
    if _WEIGHT not in by_rule or set(by_rule) - {_WEIGHT, _BIAS}:
        return None
    found = Member(region.id, by_rule[_WEIGHT], by_rule.get(_BIAS))
    source, weight = _rule(state, found.weight)
    small = prod(int(size) for size in weight.shape) <= MOST
    return found if small and source.name in state.graph.types else None


def _rule(state: Lowering, item: Update) -> tuple[Ref, TensorType]:
    """The input of a dense layer, and the type of its weight."""
    call = update(state.graph.by_name[item.operator], state.graph, item.position)
    assert call is not None
    source = call.args[1]
    assert isinstance(source, Ref)
    return source, next(held.type for held in state.graph.parameters if held.key == item.parameter)
