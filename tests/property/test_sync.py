"""The fewest records and waits: against the minimum equivalent graph, and against every smaller set of waits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence

import networkx as nx
import pytest

from reclra_graph.ir.schedule import Record, Wait
from reclra_graph.passes.sync import fewest_waits
from tests.property.happens_before import faults, without
from tests.property.nets import SCHEDULES, random_schedule

Queues = dict[int, list[str]]
Edges = list[tuple[str, str]]
Pairs = frozenset[tuple[str, str]]


def drawn(seed: int, most: int) -> tuple[Queues, Edges]:
    """Tasks in an order in which they can run, spread over two to four lanes."""
    chance = random.Random(seed)
    names = [f"t{number}" for number in range(chance.randint(3, most))]
    queues: Queues = {lane: [] for lane in range(chance.randint(2, 4))}
    for name in names:
        queues[chance.randrange(len(queues))].append(name)
    pairs = list(itertools.combinations(names, 2))
    return queues, chance.sample(pairs, k=min(len(pairs), chance.randint(1, 2 * len(names))))


def chains(queues: Queues) -> nx.DiGraph:
    order = nx.DiGraph()
    for queue in queues.values():
        order.add_nodes_from(queue)
        order.add_edges_from(itertools.pairwise(queue))
    return order


def closure(queues: Queues, pairs: Iterable[tuple[str, str]]) -> Pairs:
    """(before, after) that lanes and waits alone enforce."""
    order = chains(queues)
    order.add_edges_from(pairs)
    return frozenset(nx.transitive_closure_dag(order).edges)


def found(queues: Queues, edges: Edges) -> tuple[list[tuple[str, str]], Sequence[str]]:
    waits, joined = fewest_waits(queues, edges)
    return [(event, task) for task, events in waits.items() for event in events], joined


@pytest.mark.parametrize("seed", range(120))
def test_waits_are_the_minimum_equivalent_graph(seed: int) -> None:
    queues, edges = drawn(seed, 24)
    pairs, joined = found(queues, edges)
    lane_of = {name: lane for lane, queue in queues.items() for name in queue}
    order = chains(queues)
    order.add_edges_from(edges)
    least = [edge for edge in nx.transitive_reduction(order).edges if lane_of[edge[0]] != lane_of[edge[1]]]
    # In the reduction, an edge between tasks that are not neighbours on a lane is one between lanes.
    assert sorted(pairs) == sorted(least)
    assert closure(queues, pairs) == closure(queues, edges)
    # Lane 0 waits at the end for what nothing else follows.
    closed = nx.transitive_closure_dag(order)
    ends = {queue[-1] for queue in queues.values() if queue}
    assert set(joined) == {n for n in ends if lane_of[n] != 0 and not any(closed.has_edge(n, o) for o in ends - {n})}


@pytest.mark.parametrize("seed", range(200, 230))
def test_no_smaller_set_of_waits_keeps_the_order_and_adds_none(seed: int) -> None:
    queues, edges = drawn(seed, 6)
    pairs, _ = found(queues, edges)
    wanted = closure(queues, edges)
    lane_of = {name: lane for lane, queue in queues.items() for name in queue}
    possible = [edge for edge in wanted if lane_of[edge[0]] != lane_of[edge[1]]]
    for count in range(len(pairs)):
        for tried in itertools.combinations(possible, count):
            assert closure(queues, tried) != wanted
    # Nor do fewer events do: each recorded task is the start of a wait in every set that is enough.
    for event in {event for event, _ in pairs}:
        assert closure(queues, [edge for edge in possible if edge[0] != event]) != wanted


@pytest.mark.parametrize("number", SCHEDULES)
def test_without_any_record_or_wait_the_schedule_is_wrong(number: int) -> None:
    schedule = random_schedule(number)
    for place, action in enumerate(schedule.actions):
        if isinstance(action, (Record, Wait)):
            assert faults(without(schedule, place)), action
