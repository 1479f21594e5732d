"""TaskGraph: one training step as tasks with declared reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from reclra_graph.ir.operators import Argument, Ref, TensorType
from reclra_graph.ir.text import register
from reclra_graph.ir.wiring import Matrix, WiringPlan, dense_matrix

KINDS = ("forward", "loss", "displace", "target", "error", "update", "synapse", "optimise", "buffer")

SEEN = "rules.micro.seen"
"""The rule that boils an input down to one number, nan where it is not finite: the check can do with that."""


@register
@dataclass(frozen=True)
class Call:
    """One line of the step: ``results = function(args, kwargs)``.

    ``function`` is an operator's target (``"aten.linear.default"``) or a rule's name (``"rules.target"``).
    An empty name in ``results`` is a part of a tuple that nobody reads; no results: it writes in place.
    """

    function: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...] = ()
    results: tuple[str, ...] = ()
    types: tuple[TensorType | None, ...] = ()
    unpack: bool = False
    """Whether the function returns a tuple that ``results`` takes apart."""


@register
@dataclass(frozen=True)
class Task:
    """A piece of work that runs on one lane without interruption.

    ``reads`` and ``writes`` name storage: a value (``"z3"``), ``P[key]`` for a parameter or buffer, ``E[9->5]`` for a
    synapse. ``group`` names the tasks that belong on one lane together. ``cost`` is in units of the plan's clock
    (``WiringPlan.device``). In unit costs ``flops`` are per sample where they grow with the batch, ``bytes`` are not
    counted; a priced graph has both for its batch.
    """

    name: str
    kind: str
    region: int
    group: str
    calls: tuple[Call, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    cost: int = 0
    flops: int = 0
    bytes: int = 0


@register
@dataclass(frozen=True)
class TaskGraph:
    """All tasks of a step, in an order in which they can run, and the order they must keep.

    With ``micro_batches`` the tasks of one micro-batch ``k`` end in ``@k``; their ``B`` is the size of a micro-batch.
    """

    plan: WiringPlan
    tasks: tuple[Task, ...]
    edges: tuple[tuple[str, str], ...]
    """(before, after) pairs: every pair of tasks that touch the same storage, one of them writing, is ordered."""
    micro_batches: int = 1
    shared: tuple[int, ...] = ()
    """Regions whose dense synapses learn through one matrix (``reclra_graph.passes.shared``)."""

    @cached_property
    def matrices(self) -> dict[str, Matrix]:
        """The matrix through which each of these synapses learns, by the edge's name."""
        return {edge.name: dense_matrix(edge) for number in self.shared for edge in self.plan.alone[number]}

    @cached_property
    def beside(self) -> tuple[tuple[str, ...], ...]:
        """Names of synapses that are used together, as views of one buffer (``reclra_graph.passes.batch``)."""
        used = [call.args for task in self.tasks for call in task.calls if call.function == "beside"]
        names = [tuple(item.name[2:-1] for item in args if isinstance(item, Ref)) for args in used]
        return tuple(dict.fromkeys(names))

    @cached_property
    def by_name(self) -> dict[str, Task]:
        """Tasks by name."""
        return {task.name: task for task in self.tasks}

    @cached_property
    def learned(self) -> tuple[str, ...]:
        """Storage that the optimiser changes, each once: ``"P[0.weight]"``, ``"E[9->5]"``."""
        stores = [call.args[0] for task in self.tasks for call in task.calls if call.function == "optimise"]
        return tuple(dict.fromkeys(store.name for store in stores if isinstance(store, Ref)))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the step's inputs: what the loss's check looks at beside the loss, or what stands behind it."""
        calls = [call for task in self.tasks for call in task.calls]
        seen = {call.results[0]: call.args[0] for call in calls if call.function == SEEN}
        checked = [item for call in calls if call.function == "check" for item in call.args[1:]]
        named = [item for item in checked if isinstance(item, Ref)]
        behind = [seen.get(item.name, item) for item in named]
        return tuple(item.name for item in behind if isinstance(item, Ref))
