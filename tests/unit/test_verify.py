"""Each verifier names what is broken and where, for values that are broken on purpose.

Every test starts from a good compile and breaks one thing with ``dataclasses.replace``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networkx as nx
import pytest
import torch

from reclra_graph.ir.operators import OperatorGraph, Output, Ref
from reclra_graph.ir.regions import RegionGraph, Update
from reclra_graph.ir.tasks import Call, TaskGraph
from reclra_graph.ir.wiring import Edge, WiringPlan
from reclra_graph.options import Options
from reclra_graph.passes.wire import wire
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.verify import verify
from tests.models import STEPS, mlp, regions_of, residual_cnn, tied
from tests.unit.broken import assert_named, graph, plan, problems, regions, tasks, with_one


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_good_values_pass(make: Callable[[], CompiledStep]) -> None:
    program = make().program
    timetable = program.schedule
    for value in (program, timetable, timetable.tasks, timetable.tasks.plan, timetable.tasks.plan.regions):
        assert verify(value) is value
    assert verify(timetable.tasks.plan.regions.graph)


# -- OperatorGraph ---------------------------------------------------------------------------------------------------


def broken_operator(index: int, **changes: Any) -> OperatorGraph:
    return replace(graph(), operators=with_one(graph().operators, index, **changes))


GRAPHS: dict[str, tuple[Callable[[], OperatorGraph], str, str]] = {
    "a mutating operator": (lambda: broken_operator(3, target="aten.tanh_.default"), r"^tanh_1", "in place"),
    "an unknown operator": (lambda: broken_operator(3, target="aten.nothing.default"), r"^tanh_1", "."),
    "no shape": (lambda: broken_operator(4, type=None), r"^linear_2", "no shape"),
    "read before it is made": (
        lambda: replace(graph(), operators=(graph().operators[1], graph().operators[0], *graph().operators[2:])),
        r"^tanh",
        "reads linear",
    ),
    "a value from nowhere": (lambda: broken_operator(1, args=(Ref("ghost"),)), r"^tanh", "reads ghost"),
    "bound twice": (lambda: broken_operator(5, name="tanh"), r"^tanh", "bound twice"),
    "an input bound twice": (lambda: replace(graph(), inputs=graph().inputs * 2), r"^input$", "bound twice"),
    "no output": (lambda: replace(graph(), outputs=(Output("output", "ghost"),)), r"^ghost$", "output ghost"),
    "a key held twice": (
        lambda: replace(graph(), parameters=with_one(graph().parameters, 0, key="2.weight")),
        r"^2\.weight$",
        "held twice",
    ),
    "a buffer updated from nowhere": (
        lambda: replace(
            residual_cnn().plan.regions.graph,
            buffers=with_one(residual_cnn().plan.regions.graph.buffers, 0, updated="ghost"),
        ),
        r"^norm\.running_mean$",
        "ghost",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_broken_operator_graphs(name: str) -> None:
    make, place, cause = GRAPHS[name]
    assert_named(make(), place, cause)


def test_a_part_of_a_tuple_without_shape() -> None:
    held = residual_cnn().plan.regions.graph
    index = next(i for i, operator in enumerate(held.operators) if operator.target == "operator.getitem")
    assert_named(
        replace(held, operators=with_one(held.operators, index, type=None)), held.operators[index].name, "no shape"
    )


# -- RegionGraph -----------------------------------------------------------------------------------------------------


def broken_region(number: int, **changes: Any) -> RegionGraph:
    return replace(regions(), regions=with_one(regions().regions, number, **changes))


def moved_operator() -> RegionGraph:
    """tanh of region 3 put into region 5, which makes the two wait for each other."""
    third, fifth = regions().regions[3], regions().regions[5]
    changed = with_one(regions().regions, 3, operators=third.operators[:1], activation=(), post=third.pre)
    return replace(regions(), regions=with_one(changed, 5, operators=(*fifth.operators, third.operators[1])))


def swapped_regions() -> RegionGraph:
    held = list(regions().regions)
    held[3], held[4] = replace(held[4], id=3), replace(held[3], id=4)
    return replace(regions(), regions=tuple(held))


REGIONS: dict[str, tuple[Callable[[], RegionGraph], str, str]] = {
    "an operator in two regions": (
        lambda: broken_region(4, operators=(*regions().regions[4].operators, "tanh")),
        "tanh",
        "in 2 regions",
    ),
    "an operator in no region": (
        lambda: broken_region(4, operators=regions().regions[4].operators[:1]),
        "tanh_3",
        "in 0 regions",
    ),
    "a strange operator": (
        lambda: broken_region(4, operators=(*regions().regions[4].operators, "ghost")),
        "ghost",
        "not in the graph",
    ),
    "a wrong id": (lambda: broken_region(4, id=7), "region 7", "at place 4"),
    "regions that wait for each other": (moved_operator, "region", "the regions wait for each other"),
    "regions in a wrong order": (swapped_regions, "region 3", "later region 4"),
    "a foreign pre-activation": (
        lambda: broken_region(4, pre="linear_5"),
        r"region 4",
        "linear_5 is not in the region",
    ),
    "an activation of something else": (lambda: broken_region(4, pre="tanh_3"), r"region 4", "does not apply"),
    "an activation that leads elsewhere": (lambda: broken_region(4, activation=()), r"region 4", "leads to linear_3"),
    "a wrong shape": (lambda: broken_region(4, shape=(17,)), r"region 4", r"shape \(17,\)"),
    "a wrong output": (lambda: replace(regions(), outputs=(8,)), "region 8", "does not make the output"),
    "a parameter unaccounted for": (
        lambda: broken_region(4, updates=regions().regions[4].updates[:1]),
        r"^6\.bias$",
        "not updated, and no reason",
    ),
    "a parameter with two updates": (
        lambda: broken_region(4, updates=regions().regions[4].updates * 2),
        r"^6\.",
        "updated 2 times",
    ),
    "frozen and updated": (lambda: replace(regions(), frozen=(("6.bias", "a whim"),)), r"^6\.bias$", "a whim"),
    "an update of nothing": (
        lambda: broken_region(
            4, updates=(*regions().regions[4].updates, Update("ghost", "linear_3", 1, "rules.updates.added"))
        ),
        r"^ghost$",
        "no parameter",
    ),
}


@pytest.mark.parametrize("name", REGIONS)
def test_broken_regions(name: str) -> None:
    make, place, cause = REGIONS[name]
    assert_named(make(), place, cause)


# -- WiringPlan ------------------------------------------------------------------------------------------------------


def broken_edge(name: str, **changes: Any) -> WiringPlan:
    index = next(i for i, edge in enumerate(plan().edges) if edge.name == name)
    return replace(plan(), edges=with_one(plan().edges, index, **changes))


def without_edge(name: str) -> WiringPlan:
    return replace(plan(), edges=tuple(edge for edge in plan().edges if edge.name != name))


def added(*edges: Edge) -> WiringPlan:
    return replace(plan(), edges=(*plan().edges, *edges))


PLANS: dict[str, tuple[Callable[[], WiringPlan], str, str]] = {
    "a region cut off": (lambda: without_edge("8->7"), "region 7", r"no error reaches region 7 \(12\)"),
    "a relay cut off": (lambda: without_edge("9->5"), "region [345]", "no error reaches region [345]"),
    "a wrong shape": (lambda: broken_edge("9->5", shape=(10, 4)), r"^edge 9->5$", r"\(10, 4\).*\(4, 10\)"),
    "a wrong channel shape": (lambda: broken_edge("9->5", form="channel", shape=(1, 10)), r"^edge 9->5$", r"\(1, 10\)"),
    "an unknown form": (lambda: broken_edge("9->5", form="magic"), r"^edge 9->5$", "magic"),
    "a cycle": (lambda: added(Edge(7, 8, "dense", "eq6", (4, 16), 256)), r"^region [78]$", "cycle: (7 -> 8|8 -> 7)"),
    "an error for itself": (lambda: added(Edge(7, 7, "dense", "eq6", (16, 16), 1024)), r"^region 7$", "cycle"),
    "into the output": (
        lambda: added(Edge(8, 9, "dense", "eq6", (10, 4), 160)),
        r"^edge 8->9$",
        "leads into the output",
    ),
    "to the input": (lambda: added(Edge(8, 0, "dense", "eq6", (20, 4), 320)), r"^edge 8->0$", "without error neurons"),
    "to nowhere": (lambda: added(Edge(8, 77, "dense", "eq6", (20, 4), 320)), r"^edge 8->77$", "without error neurons"),
    "twice the same edge": (lambda: added(plan().edges[0]), r"^edge ", "there 2 times"),
    "a wrong depth": (lambda: replace(plan(), depth=3), r"^depth$", "2 edges, not 3"),
    "wrong relays": (lambda: replace(plan(), relays=(2, 5)), r"^relays$", r"\(2, 5, 8\), not \(2, 5\)"),
    "no update rule": (lambda: replace(plan(), update=plan().update[1:]), r"^region 1$", "learn without a rule"),
    "an update rule too many": (
        lambda: replace(plan(), update=(*plan().update, (0, "analytic"))),
        r"^region 0$",
        "do not learn",
    ),
    "a wrong size": (lambda: broken_edge("9->5", bytes=7), r"^edge 9->5$", "7"),
    "an unknown rule": (lambda: broken_edge("9->5", rule="magic"), r"^edge 9->5$", "magic"),
    "an unknown update": (lambda: replace(plan(), update=((1, "magic"), *plan().update[1:])), r"^region 1$", "magic"),
}


@pytest.mark.parametrize("name", PLANS)
def test_broken_plans(name: str) -> None:
    make, place, cause = PLANS[name]
    assert_named(make(), place, cause)


def test_a_region_that_sends_on_what_it_never_got() -> None:
    model = mlp(3, 4, 4, 2)
    model[2].requires_grad_(False)
    good = wire(regions_of(model, torch.zeros(2, 3)), Options(wiring=("3->1",)))
    broken = replace(good, edges=(*good.edges, Edge(2, 1, "dense", "eq6", (4, 4), 64)), relays=(2,))
    assert_named(broken, "^region 2$", "sends an error on, but none reaches it")


# -- TaskGraph -------------------------------------------------------------------------------------------------------


def broken_task(name: str, **changes: Any) -> TaskGraph:
    index = next(i for i, task in enumerate(tasks().tasks) if task.name == name)
    return replace(tasks(), tasks=with_one(tasks().tasks, index, **changes))


def without_edge_between(before: str, after: str) -> TaskGraph:
    assert (before, after) in tasks().edges
    return replace(tasks(), edges=tuple(edge for edge in tasks().edges if edge != (before, after)))


def without_task(name: str) -> TaskGraph:
    kept = tuple(task for task in tasks().tasks if task.name != name)
    return replace(tasks(), tasks=kept, edges=tuple(edge for edge in tasks().edges if name not in edge))


def two_writers() -> TaskGraph:
    """Region 3's optimiser also writes a parameter of region 4."""
    task = tasks().by_name["optimise:3"]
    call = Call("optimise", (Ref("P[6.weight]"), Ref("dW4"), Ref("lr")))
    broken = broken_task("optimise:3", calls=(*task.calls, call), writes=(*task.writes, "P[6.weight]"))
    return replace(broken, edges=(*tasks().edges, ("optimise:4", "optimise:3")))


TASKS: dict[str, tuple[Callable[[], TaskGraph], str, str]] = {
    "a task there twice": (
        lambda: replace(tasks(), tasks=(*tasks().tasks, tasks().tasks[3])),
        "task forward:4",
        "twice",
    ),
    "two writers of one parameter": (two_writers, "task optimise:[34]", r"P\[6\.weight\] is written by"),
    "a cycle": (
        lambda: replace(tasks(), edges=(*tasks().edges, ("error:5", "displace:5"))),
        "task (displace|target|error):5",
        "wait for each other",
    ),
    "an edge to nowhere": (
        lambda: replace(tasks(), edges=(*tasks().edges, ("error:5", "ghost"))),
        "task ghost",
        "no task",
    ),
    "a read without a writer": (lambda: broken_task("error:5", reads=("z5", "ghost")), "task error:5", "reads ghost"),
    "a missing order": (lambda: without_edge_between("target:5", "error:5"), "task (target|error):5", "y5 in no order"),
    "a parameter that nobody updates": (
        lambda: without_task("optimise:5"),
        r"^8\.(weight|bias)$",
        "no task updates it",
    ),
    "a synapse that nobody updates": (
        lambda: without_task("optimise:synapses:5"),
        r"^edge 9->5$",
        "no task updates it",
    ),
    "a task that hides what it reads": (lambda: broken_task("error:5", reads=("z5",)), "task error:5", "y5"),
    "a task that hides what it writes": (lambda: broken_task("error:5", writes=()), "task ", "e5"),
    "an order the wrong way round": (
        lambda: replace(
            tasks(),
            edges=tuple(("error:4", "target:4") if edge == ("target:4", "error:4") else edge for edge in tasks().edges),
        ),
        "task (error|target):4",
        "y4",
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_broken_tasks(name: str) -> None:
    make, place, cause = TASKS[name]
    assert_named(make(), place, cause)


def test_every_order_between_tasks_is_needed_or_follows_from_others() -> None:
    held = tied().schedule.tasks
    for edge in held.edges:
        rest = nx.DiGraph(other for other in held.edges if other != edge)
        rest.add_nodes_from(edge)
        broken = replace(held, edges=tuple(other for other in held.edges if other != edge))
        if nx.has_path(rest, *edge):
            verify(broken)
        else:
            assert any(edge[0] in p.cause and edge[1] in p.cause for p in problems(broken)), edge
