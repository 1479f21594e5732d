"""RegionGraph: the operators grouped into the pieces that learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from reclra_graph.ir.layouts import BATCH_FIRST, Layout
from reclra_graph.ir.operators import OperatorGraph, TensorType
from reclra_graph.ir.text import digest, register

LOCAL = "local_vjp"
"""Rule of a parameter for which no closed form is known."""


@register
@dataclass(frozen=True)
class Update:
    """How one parameter learns from its region's error.

    ``operator`` reads the parameter as argument number ``position`` (-1: through values derived from it); ``rule``
    names the closed form in ``reclra_graph.rules.updates``, or is ``LOCAL``. ``path`` lists the operators between that
    operator and the pre-activation, nearest to the pre-activation first: the error is carried back over them by
    ``reclra_graph.rules.carry``.
    """

    parameter: str
    operator: str
    position: int
    rule: str
    path: tuple[str, ...] = ()


@register
@dataclass(frozen=True)
class Region:
    """A piece of the operator graph whose output carries error neurons.

    ``pre`` is h_i, ``post`` is z_i, both value names; ``activation`` lists the operators of φ_i from one to the other
    (none: the identity). ``operators`` holds all of the region's operators in order, also those behind z_i that carry
    no error neurons (pooling, reshapes). ``shape`` is h_i's, without the batch. Region 0 is the input: it has no error
    neurons. ``name`` is the module path of the parametrised operator; ``block`` the module that repeats and holds it.
    ``kind``: ``"input"``, ``"layer"`` (has parameters) or ``"output"`` (has none; carries the loss's error).
    ``layout`` says where the batch stands in h_i and z_i, ``axis`` which size of ``shape`` counts features (0: the
    first, as for a convolution; -1: the last, as for a linear layer over a sequence).
    """

    id: int
    name: str
    kind: str
    operators: tuple[str, ...]
    pre: str
    activation: tuple[str, ...]
    post: str
    shape: tuple[int, ...]
    updates: tuple[Update, ...] = ()
    block: str = ""
    ends_block: bool = False
    line: str = ""
    layout: Layout = BATCH_FIRST
    axis: int = 0

    @property
    def features(self) -> int:
        """Features per position."""
        return self.shape[self.axis] if self.shape else 1

    @property
    def learns(self) -> bool:
        """Whether a parameter of the region is updated."""
        return bool(self.updates)

    @cached_property
    def units(self) -> int:
        """Number of error neurons per sample."""
        return prod(self.shape)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Keys of the parameters that learn here."""
        return tuple(dict.fromkeys(update.parameter for update in self.updates))


@register
@dataclass(frozen=True)
class RegionGraph:
    """All operators of ``graph``, each in exactly one region; ids follow an order in which the regions can run.

    ``outputs`` are the regions that carry a loss's error, in the order of the graph's outputs. ``frozen`` lists
    (parameter key, reason) for every parameter that is not updated.
    """

    graph: OperatorGraph
    regions: tuple[Region, ...]
    outputs: tuple[int, ...]
    frozen: tuple[tuple[str, str], ...] = ()

    def error_type(self, number: int) -> TensorType:
        """Shape of z_i and dtype of e_i, d_i and y_i: z_i's own, but float32 where autocast leaves z_i fewer digits. A
        displacement can be smaller than the last digit of h_i, and would be lost there."""
        post = self.regions[number].post
        kind = self.graph.types[post]
        return TensorType(kind.shape, "float32") if self.graph.is_low(post) else kind

    @property
    def low(self) -> str:
        """The precision in which errors are sent and synapses learn, where autocast lowers float32; else ""."""
        return self.graph.autocast if self.synapse_dtype == "float32" else ""

    @property
    def synapse_dtype(self) -> str:
        """The dtype of all error synapses: that of the first output's error."""
        return self.error_type(self.output).dtype

    @property
    def output(self) -> int:
        """The first output, where only one is meant."""
        return self.outputs[0]

    @cached_property
    def region_of(self) -> dict[str, int]:
        """Region id of every operator; model inputs belong to region 0."""
        table = {operator: region.id for region in self.regions for operator in region.operators}
        table.update({item.name: 0 for item in self.graph.inputs})
        return table

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(producer, consumer) pairs of the quotient graph, sorted."""
        owner = self.region_of
        pairs = {
            (owner[name], owner[operator.name])
            for operator in self.graph.operators
            for name in operator.reads
            if name in owner and owner[name] != owner[operator.name]
        }
        return tuple(sorted(pairs))

    @cached_property
    def core(self) -> dict[str, int]:
        """Region id of every operator on the way to its region's representation; what stands behind it is left out."""
        found: dict[str, int] = {}
        for region in self.regions[1:]:
            inside, waiting = set(region.operators), [region.post]
            while waiting:
                name = waiting.pop()
                if name in inside and name not in found:
                    found[name] = region.id
                    waiting.extend(self.graph.by_name[name].reads)
        return found

    @cached_property
    def flow(self) -> tuple[tuple[int, int], ...]:
        """(i, j) pairs, sorted: z_i is read on the way to z_j, directly or through operators that carry no error
        neurons. Unlike ``edges`` this tells a region's own representation from what merely stands behind it."""
        core = self.core
        holds: dict[str, frozenset[int]] = {}
        pairs: set[tuple[int, int]] = set()
        for operator in self.graph.operators:
            sources = frozenset(source for name in operator.reads for source in holds.get(name, ()))
            region_id = core.get(operator.name)
            if region_id is None:
                holds[operator.name] = sources
            else:
                pairs.update((source, region_id) for source in sources if source != region_id)
                if operator.name == self.regions[region_id].post:
                    holds[operator.name] = frozenset({region_id})
        return tuple(sorted(pairs))

    @cached_property
    def digest(self) -> str:
        """Digest of what a wiring depends on: each region's name, kind, shape and parameters, the flow and the outputs.
        Moving the model's file, or changing a line that changes none of these, keeps it."""
        regions = tuple(
            (item.id, item.name, item.kind, item.shape, item.axis, item.parameters) for item in self.regions
        )
        return digest((regions, self.flow, self.outputs))

    @cached_property
    def sites(self) -> tuple[int, ...]:
        """Ids of the regions with error neurons: all but the input, in order."""
        return tuple(region.id for region in self.regions if region.kind != "input")
