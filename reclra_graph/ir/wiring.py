"""WiringPlan: which region sends its error to which, and how everything learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from reclra_graph.ir.device import UNIT, Device
from reclra_graph.ir.regions import Region, RegionGraph
from reclra_graph.ir.text import register
from reclra_graph.options import rank_of


@register
@dataclass(frozen=True)
class Edge:
    """An error synapse E_{source→target}.

    ``form`` ``"dense"``: shape (units of target, units of source). ``"channel"``: (channels of target, channels of
    source), shared over positions. ``"token"``: the same with the features last. ``"conv"``: the weight's shape of the
    convolution that reads z of the target on the way to h of the source. ``"lowrank(r)"`` and ``"implicit"``: the shape
    of the dense synapse that they stand for. ``"adjoint"``: the adjoint of the connection from z of the target to h of
    the source, E in the place of ``weight``, whose shape it has; () where the connection has no weight, and so no E.
    ``bytes`` counts what is stored for this edge alone; see ``matrices`` for what implicit synapses share. ``rule`` is
    the synapse's own learning rule. ``shared`` names the edge whose synapse this one uses too: a layer that runs
    several times, as over the steps of a sequence, hears its errors through the same synapse each time; so do all
    adjoint edges of one weight.

    ``weight``: of an adjoint edge, the key of the forward weight that it mirrors; "" for none. ``branch``: its number,
    from 1, where several adjoint edges join the same two regions, as against a layer and against the skip around it; 0
    where it is alone.
    """

    source: int
    target: int
    form: str
    rule: str
    shape: tuple[int, ...]
    bytes: int
    shared: str = ""
    branch: int = 0
    weight: str = ""

    @property
    def synapse(self) -> str:
        """Name of the synapse: the edge's own, or that of the edge it shares it with."""
        return self.shared or self.name

    @property
    def name(self) -> str:
        """``"9->5"``, or ``"9->5.2"`` for a branch: the key of the synapse everywhere."""
        return f"{self.source}->{self.target}" + (f".{self.branch}" if self.branch else "")

    @property
    def stored(self) -> bool:
        """Whether the edge has numbers of its own: it shares them with no other, and has some."""
        return not self.shared and not (self.form == "adjoint" and (not self.weight or self.rule == "sign"))

    @property
    def home(self) -> int:
        """The region on whose lane the synapse lives and learns. Over adjoint edges an error is carried back where it
        was made."""
        return self.source if self.form == "adjoint" else self.target

    @property
    def words(self) -> str:
        """Form and shape, for people: ``"dense 16x10"``."""
        return f"{self.form} {'x'.join(map(str, self.shape)) or 'without weights'}"


@dataclass(frozen=True)
class Matrix:
    """M_j, [units, units] of region ``source``: what the implicit synapses E(0) that leave j learn in common, since
    Eq. 6 makes each of them E(t) = E(0) M_j(t). ``runs``: how often each is used in a step; a layer that runs k times
    gives its synapse k times the change."""

    name: str
    source: int
    units: int
    runs: int = 1


def matrices(edges: Iterable[Edge]) -> dict[str, Matrix]:
    """The matrix through which each implicit edge that learns sends, by the edge's name."""
    learning = [edge for edge in edges if edge.form == "implicit" and edge.rule == "eq6"]
    runs = Counter(edge.synapse for edge in learning)
    found = {}
    for edge in learning:
        times = runs[edge.synapse]
        name = f"{edge.source}->*" if times == 1 else f"{edge.source}->*{times}"
        found[edge.name] = Matrix(name, edge.source, edge.shape[1], times)
    return found


def dense_matrix(edge: Edge) -> Matrix:
    """The matrix M_j of the dense synapses that leave a region, where a step lets them learn through one."""
    return Matrix(f"{edge.source}->dense", edge.source, edge.shape[1])


def matrix_bytes(regions: RegionGraph, matrix: Matrix) -> int:
    """What a matrix M_j takes: synapses have the dtype of the first output."""
    dtype = regions.synapse_dtype
    return matrix.units**2 * (8 if dtype == "float64" else 4)


def total_bytes(regions: RegionGraph, edges: Sequence[Edge]) -> int:
    """Bytes of all that is stored for these edges, what several of them share counted once."""
    common = sum(matrix_bytes(regions, item) for item in dict.fromkeys(matrices(edges).values()))
    return common + sum(edge.bytes for edge in edges if not edge.shared)


@register
@dataclass(frozen=True)
class Candidate:
    """A wiring that was considered. ``makespan`` and ``makespan_one`` are on the GPUs asked for and on one, in the
    plan's clock (``WiringPlan.device``)."""

    name: str
    depth: int
    relays: tuple[int, ...]
    makespan: int
    makespan_one: int
    bytes: int
    path: int
    """Sum over all regions of the length of their error path, in edges."""
    chosen: bool = False
    forms: tuple[tuple[str, int], ...] = ()
    """(form, how many synapses have it), where forms were chosen under a budget."""
    fits: bool = True
    """Whether it holds the budgets asked for."""


@register
@dataclass(frozen=True)
class Loss:
    """The loss of one result: its label, the kind (``reclra_graph.options.LOSSES``), and for classes which dimension
    counts them, smoothing, the class index that is ignored, and weights of the classes (none: equal)."""

    label: str
    kind: str
    axis: int = 1
    smoothing: float = 0.0
    ignore: int | None = None
    weights: tuple[float, ...] = ()

    @property
    def classes(self) -> bool:
        """Whether targets are class indices."""
        return self.kind in ("cross-entropy", "causal-lm")


@register
@dataclass(frozen=True)
class Rates:
    """The numbers and choices of the rule (ALGORITHM: β, γ, κ, p = q, sign of Eq. 6), and the optimiser."""

    beta: float = 0.1
    gamma: float = 0.01
    kappa: tuple[tuple[int, float], ...] = ()
    """(region id, κ_i) where κ_i is not 1."""
    norm: int = 2
    """p = q of Eq. 2: 2 gives z − y, 1 gives sign(z − y)."""
    sign: str = "descend"
    """Sign of the Eq. 6 update of E: ``"descend"`` shrinks D, ``"printed"`` is the paper's other reading."""
    gain: bool = False
    """Divide e_i by β before it is passed on and used (keeps errors from shrinking with depth)."""
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    synapse_decay: float | None = None
    """What every synapse that learns loses per step, times lr, whatever the optimiser; None: ``weight_decay``, as
    parameters."""
    mirror_noise: float = 0.1
    """σ of the noise of the rule "mirror"."""

    def kappa_of(self, region: int) -> float:
        """κ of a region; 1 unless set."""
        return dict(self.kappa).get(region, 1.0)


@register
@dataclass(frozen=True)
class WiringPlan:
    """The error pathway over a region graph.

    ``losses`` belong to the outputs in order. ``relays`` are the regions that pass their error on (the outputs apart),
    ascending; ``depth`` is the longest error path from the output in edges. ``update`` has one entry per learning
    region: ``"analytic"`` or ``"local_vjp"``. ``device`` is what the plan was made for; its ``clock`` is that of every
    cost and makespan. ``batch`` is the batch size of those costs; 0 in unit costs, which know none. ``placement`` says
    on which GPU each region lives, as (region, GPU) pairs; with none, the forward pass runs on the first GPU and the
    rest wherever there is room.
    """

    regions: RegionGraph
    gpus: int
    wiring: str
    depth: int
    relays: tuple[int, ...]
    edges: tuple[Edge, ...]
    update: tuple[tuple[int, str], ...]
    rates: Rates
    losses: tuple[Loss, ...]
    candidates: tuple[Candidate, ...] = ()
    why: str = ""
    seed: int = 0
    device: Device = UNIT
    batch: int = 0
    placement: tuple[tuple[int, int], ...] = ()
    """(region, GPU) of every region; empty: the forward pass runs on lane 0."""
    budget: int = 0
    """Bytes that the synapses may take together, where that was asked for."""
    memory_format: str = "contiguous"
    """How maps stand in memory, as PyTorch calls it; "channels_last" has rows of dense synapses in that order."""

    def rows_by_position(self, region: Region) -> bool:
        """Whether the rows of dense synapses that end here follow its map position by position."""
        return self.memory_format == "channels_last" and region.axis == 0 and len(region.shape) > 2

    @cached_property
    def incoming(self) -> dict[int, tuple[Edge, ...]]:
        """Error edges that arrive at each region, by source, highest first."""
        table: dict[int, list[Edge]] = {}
        for edge in sorted(self.edges, key=lambda item: (-item.source, item.target)):
            table.setdefault(edge.target, []).append(edge)
        return {region: tuple(edges) for region, edges in table.items()}

    @cached_property
    def matrix_of(self) -> dict[str, Matrix]:
        """The matrix through which each implicit edge that learns sends, by the edge's name."""
        return matrices(self.edges)

    @cached_property
    def alone(self) -> dict[int, tuple[Edge, ...]]:
        """Dense edges under Eq. 6 whose synapse is theirs alone, by source, highest target first."""
        uses = Counter(edge.synapse for edge in self.edges)
        found: dict[int, tuple[Edge, ...]] = {}
        for source, edges in self.outgoing.items():
            found[source] = tuple(
                edge for edge in edges if edge.form == "dense" and edge.rule == "eq6" and uses[edge.synapse] == 1
            )
        return found

    @cached_property
    def owners(self) -> dict[str, int]:
        """Every tensor of E by name, with the region on whose lane it lives: where a synapse ends; where a matrix M_j
        begins, and an adjoint edge."""
        found = {item.name: item.source for item in self.matrix_of.values()}
        for edge in self.edges:
            if edge.stored:
                parts = (".A", ".B") if rank_of(edge.form) else ("",)
                found.update({f"{edge.name}{part}": edge.home for part in parts})
        return found

    @cached_property
    def synapse_bytes(self) -> int:
        """Bytes of all that is stored for the error synapses."""
        return total_bytes(self.regions, self.edges)

    @cached_property
    def outgoing(self) -> dict[int, tuple[Edge, ...]]:
        """Error edges that leave each region, by target, highest first."""
        table: dict[int, list[Edge]] = {}
        for edge in sorted(self.edges, key=lambda item: -item.target):
            table.setdefault(edge.source, []).append(edge)
        return {region: tuple(edges) for region, edges in table.items()}

    @cached_property
    def level(self) -> dict[int, int]:
        """Longest error path from an output to each region that is reached, in edges; outputs are at 0."""
        levels = dict.fromkeys(self.regions.outputs, 0)
        waiting = dict.fromkeys((edge.target for edge in self.edges), 0)
        for edge in self.edges:
            waiting[edge.target] += 1
        ready = list(self.regions.outputs)
        while ready:
            source = ready.pop()
            for edge in self.outgoing.get(source, ()):
                levels[edge.target] = max(levels.get(edge.target, 0), levels[source] + 1)
                waiting[edge.target] -= 1
                if waiting[edge.target] == 0:
                    ready.append(edge.target)
        return levels

    @cached_property
    def update_of(self) -> dict[int, str]:
        """Update rule of each learning region."""
        return dict(self.update)
