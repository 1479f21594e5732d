"""The displacements of all dense synapses that leave one region, in one matrix product.

Before:  d5 = e6 @ E["6->5"].T;  d4 = e6 @ E["6->4"].T
         dE_6_5 = gamma / B * (E["6->5"] @ (e6.T @ e6));  dE_6_4 = gamma / B * (E["6->4"] @ (e6.T @ e6))
After:   E6 = beside(E["6->5"], E["6->4"])
         D6 = e6 @ E6.T;  d5, d4 = D6.split_with_sizes([256, 256], 1)
         dE6 = gamma / B * (E6 @ (e6.T @ e6));  dE_6_5, dE_6_4 = dE6.split_with_sizes([256, 256])

The synapses are views of one buffer, one behind the other, and the parts of a product are views of it, so that nothing
is copied. Eq. 6 is one product too, where the synapses do not learn through a matrix of their source already
(``shared``). The numbers are the same but for rounding. Off with ``without=("batch",)``.

Only where the step is planned for one GPU (``device``): kernels that are too small for it wait for their launch. On
several lanes the targets of one region are computed side by side, which one product would end. On a CPU the product
gains nothing, and reading its parts costs a little more.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from reclra_graph.ir.operators import Ref, TensorType
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge
from reclra_graph.passes.lower_state import Lowering
from reclra_graph.passes.straight import direct, is_straight
from reclra_graph.passes.synapse_calls import FEW, low, rate

SMALL = 2048
"""From this many units on a target is no small kernel, and its displacement is better not kept beside others."""
MOST = 8192
"""Units of all targets of one product: their displacements live at the same time."""


@dataclass(frozen=True)
class Batch:
    """Synapses that are used together: their edges, all with one source, and the names of E6 and D6."""

    edges: tuple[Edge, ...]
    synapses: str
    product: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of the targets."""
        return tuple(edge.shape[0] for edge in self.edges)


def batched(state: Lowering, source: Region) -> tuple[tuple[Edge, ...], ...]:
    """The edges that leave a region, in batches of at least two."""
    plan = state.plan
    if "batch" in state.without or plan.gpus > 1 or not plan.device.is_gpu or len(source.shape) != 1:
        return ()
    uses = [edge.synapse for edge in plan.edges]
    found: list[list[Edge]] = [[]]
    for edge in plan.outgoing.get(source.id, ()):
        target = state.regions[edge.target]
        never = is_straight(state, target) and direct(state, target) is not None
        if (
            edge.form != "dense"
            or edge.rule == "readout"
            or uses.count(edge.synapse) > 1
            or never
            or target.units >= SMALL
        ):
            continue
        if sum(item.shape[0] for item in found[-1]) + target.units > MOST:
            found.append([])
        found[-1].append(edge)
    return tuple(tuple(edges) for edges in found if len(edges) > 1)


def send_batches(state: Lowering, source: Region, calls: list[Call]) -> None:
    """Append the products by which a region sends its error, and note what they give to each edge."""
    for edges in batched(state, source):
        made = Batch(edges, state.namer.new(f"E{source.id}"), state.namer.new(f"D{source.id}"))
        samples = state.type_of(source).shape[0] if source.layout.plain else None
        calls.append(_beside(state, made, made.synapses))
        args = (Ref(state.heard(edges[0])), Ref(made.synapses), source.shape, (sum(made.sizes),))
        kind = None if samples is None else TensorType((samples, sum(made.sizes)), state.synapse_dtype)
        calls.append(Call("rules.synapse.dense_displace", args, low(state.plan), (made.product,), (kind,)))
        names = tuple(_part(state, edge) for edge in edges)
        calls.append(_split(made.product, made.sizes, 1, names))
        state.parts.update({edge.name: name for edge, name in zip(edges, names, strict=True)})
        state.batches.setdefault(source.id, []).append(made)


def learn_batch(state: Lowering, batch: Batch) -> tuple[list[Call], list[tuple[str, str]]]:
    """Eq. 6 for all synapses of a batch, as calls, and (what learns, name of its delta)."""
    source = state.regions[batch.edges[0].source]
    e, whole, calls = Ref(state.sampled[source.id]), state.namer.new(f"dE{source.id}"), []
    if source.units <= FEW:
        synapses = state.namer.new(f"E{source.id}")  # once more: the step may have waited in between
        calls.append(_beside(state, batch, synapses))
        args = (Ref(synapses), e, *rate(state.plan), source.shape)
        name = "dense_eq6_few"
    else:
        args = (Ref(batch.product), e, *rate(state.plan), source.shape, (sum(batch.sizes),))
        name = "dense_eq6"
    kind = TensorType((sum(batch.sizes), source.units), state.synapse_dtype)
    calls.append(Call(f"rules.synapse.{name}", args, low(state.plan), (whole,), (kind,)))
    deltas = [(f"E[{edge.synapse}]", state.namer.new(f"dE_{edge.source}_{edge.target}")) for edge in batch.edges]
    calls.append(_split(whole, batch.sizes, 0, tuple(name for _, name in deltas)))
    return calls, deltas


def learns(state: Lowering, batch: Batch) -> bool:
    """Whether the synapses of a batch all learn, and each by itself."""
    return all(edge.rule == "eq6" and edge.name not in state.matrices for edge in batch.edges)


def work_of(batch: Batch) -> int:
    """Floating-point operations per sample of its product."""
    return sum(2 * prod(edge.shape) for edge in batch.edges)


def _part(state: Lowering, edge: Edge) -> str:
    """A name for what arrives over an edge: the displacement itself, where nothing has to be done to it."""
    target = state.regions[edge.target]
    whole = len(state.plan.incoming[edge.target]) == 1 and len(target.shape) == 1
    alike = target.layout.plain and state.type_of(target).dtype == state.synapse_dtype
    return state.namer.new(f"d{edge.target}" if whole and alike else f"d{edge.target}_{edge.source}")


def _beside(state: Lowering, batch: Batch, name: str) -> Call:
    parts = tuple(Ref(f"E[{edge.synapse}]") for edge in batch.edges)
    kind = TensorType((sum(batch.sizes), batch.edges[0].shape[1]), state.synapse_dtype)
    return Call("beside", parts, (), (name,), (kind,))


def _split(whole: str, sizes: tuple[int, ...], dim: int, names: tuple[str, ...]) -> Call:
    args = (Ref(whole), sizes, dim)
    return Call("aten.split_with_sizes.default", args, (), names, (None,) * len(names), unpack=True)
