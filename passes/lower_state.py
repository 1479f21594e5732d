"""What the parts of the lowering share: the tasks so far, and the names of the values that they compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from reclra_graph.ir.operators import LOW, Operator, OperatorGraph, Ref, TensorType, references
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import Call, Task
from reclra_graph.ir.wiring import Edge, Matrix, WiringPlan
from reclra_graph.passes.names import Namer
from reclra_graph.passes.storage import stored_by
from reclra_graph.rules.operators import short

# What a call may name beside storage: the place in a chain of operators, the batch size, and the rule's numbers.
_NO_STORAGE = ("_", "B", "beta", "gamma", "lr")


@dataclass
class Lowering:
    """A step while it is being lowered; every part adds its tasks. All names are those of the emitted file."""

    plan: WiringPlan
    names: dict[str, str]
    """Name of every value of the operator graph."""
    namer: Namer
    """Hands out names for everything else."""
    shared: dict[str, list[str]]
    """Every parameter (``P[key]``) and synapse (``E[name]``) that learns from a sum, with the contributions so far."""
    without: tuple[str, ...] = ()
    """Optimisations that are left out."""
    tasks: list[Task] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    """e_i by region, in the region's own layout and dtype."""
    sampled: dict[int, str] = field(default_factory=dict)
    """e_i by region as synapses take it: the batch in front, in their dtype."""
    shifts: dict[int, str] = field(default_factory=dict)
    """s by region, where e_i = E s: the source's error, as it shifts a region without an activation."""
    matrices: dict[str, Matrix] = field(default_factory=dict)
    """The matrix M_j that learns in place of an edge's own synapse, by the edge's name."""
    sent: dict[str, str] = field(default_factory=dict)
    """M_j e_j by the name of the matrix M_j, which synapses send on."""
    batches: dict[int, list[Any]] = field(default_factory=dict)
    """The batches (``passes.batch.Batch``) in which a region sends its error, by region."""
    parts: dict[str, str] = field(default_factory=dict)
    """What a batch gives to an edge, [B, units of the target], by the edge's name."""
    groups: dict[int, Any] = field(default_factory=dict)
    """Layers that are updated together (``passes.group.Member``), by the region that is updated last of them."""
    readouts: dict[str, str] = field(default_factory=dict)
    """The error of its own that an edge with the rule "readout" carries, by the edge's name."""
    noises: dict[int, str] = field(default_factory=dict)
    """n_i, the noise of mirrors, by region, in the layout and the dtype of z_i."""
    mirrored: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    """(what learns, name of its delta) of the mirrors at a region, by region."""
    back: dict[tuple[int, int], str] = field(default_factory=dict)
    """What arrives at z_i over all adjoint edges from one region, by (source, target), in the target's own layout."""
    uses: dict[int, list[Any]] = field(default_factory=dict)
    """The weighted operators that errors went back over (``passes.send_back.Use``), by source."""
    deltas: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """All contributions to what is learned, as (name, the region that made it), by store: ``P[key]``, ``E[name]``."""
    moved: dict[str, str] = field(default_factory=dict)
    """An edge's share of d_i by the edge's name, where it is written down."""

    @property
    def graph(self) -> OperatorGraph:
        """The operators that the regions are made of."""
        return self.plan.regions.graph

    @property
    def regions(self) -> tuple[Region, ...]:
        """All regions by id."""
        return self.plan.regions.regions

    @property
    def synapse_dtype(self) -> str:
        """The dtype of all error synapses: the first output's."""
        return self.plan.regions.synapse_dtype

    def type_of(self, region: Region) -> TensorType:
        """Shape of z_i, dtype of e_i."""
        return self.plan.regions.error_type(region.id)

    def raised(self, kind: TensorType | None) -> TensorType | None:
        """The type of an error at a value of this type."""
        low = self.graph.autocast and kind is not None and kind.dtype in LOW
        return TensorType(kind.shape, "float32") if low and kind is not None else kind

    def matrices_from(self, source: int) -> list[Matrix]:
        """The matrices that learn in place of the synapses that leave a region."""
        edges = self.plan.outgoing.get(source, ())
        return list(dict.fromkeys(self.matrices[edge.name] for edge in edges if edge.name in self.matrices))

    def heard(self, edge: Edge) -> str:
        """What an edge carries: its source's error, or what a matrix makes of it; or the error of its own readout."""
        if edge.name in self.readouts:
            return self.readouts[edge.name]
        matrix = self.matrices.get(edge.name)
        return self.sent[matrix.name] if matrix else self.sampled[edge.source]

    def renamed(self, argument: Any) -> Any:
        """An argument, or a tuple of arguments, with the values of the operator graph under their emitted names."""
        if isinstance(argument, Ref):
            return Ref(self.names.get(argument.name, argument.name))
        return tuple(self.renamed(item) for item in argument) if isinstance(argument, tuple) else argument

    def add(
        self, name: str, kind: str, region: int, group: str, calls: list[Call], cost: int = 0, flops: int = 0
    ) -> None:
        """Append a task. What it reads and writes is read off its calls; ``flops`` are per sample."""
        made = dict.fromkeys(result for call in calls for result in call.results if result)
        stored = dict.fromkeys(item for item in map(stored_by, calls) if item)
        named = dict.fromkeys(item for call in calls for item in references(call.args) + references(call.kwargs))
        reads = tuple(item for item in named if item not in made and item not in _NO_STORAGE)
        self.tasks.append(Task(name, kind, region, group, tuple(calls), reads, tuple(made | stored), cost, flops))


def operator_flops(graph: OperatorGraph, operator: Operator) -> int:
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
