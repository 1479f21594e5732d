"""The paper's Figure 1: a 9-layer MLP with narrow layers 2, 5 and 8, on five GPUs."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import reclra_graph as rg
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.passes.lower import lower
from reclra_graph.passes.schedule import schedule
from reclra_graph.passes.trees import bottlenecks
from reclra_graph.passes.wire import wire
from reclra_graph.verify import verify
from tests.golden.nets import figure_1
from tests.models import regions_of

TREE = (("9->8", "9->5", "9->2"), ("8->7", "8->6", "5->4", "5->3", "2->1"))
GPUS = (1, 2, 3, 5, 8, 9)
MAKESPANS = {
    "chain": (18, 10, 10, 10, 10, 10),
    "bottlenecks": (18, 10, 7, 5, 4, 4),
    "flat": (18, 10, 7, 5, 4, 3),
}
"""FINDINGS: unit-cost model, by the number of GPUs above."""


def widths(wide: int, narrow: int, fan_in: int = 20, fan_out: int = 10) -> tuple[int, ...]:
    return (fan_in, wide, narrow, wide, wide, narrow, wide, wide, narrow, fan_out)


CHOICES = (
    widths(128, 32),
    widths(256, 32, 784),
    widths(16, 4),
    widths(16, 6),
    widths(256, 32, 784, 1000),
    widths(32, 31),
    widths(48, 8, 20, 200),
    # Widths that differ from block to block, and from layer to layer.
    (64, 40, 12, 90, 30, 20, 70, 64, 33, 10),
)


@cache
def regions(chosen: tuple[int, ...]) -> RegionGraph:
    return regions_of(figure_1(*chosen), torch.zeros(2, chosen[0]))


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_five_gpus_give_depth_2_and_relays_2_5_8(chosen: tuple[int, ...]) -> None:
    plan = verify(wire(regions(chosen), rg.Options(gpus=5)))
    assert (plan.depth, plan.relays, plan.regions.output) == (2, (2, 5, 8), 9)
    assert {edge.name for edge in plan.edges} == {*TREE[0], *TREE[1]}
    for edge in plan.edges:
        source, target = chosen[edge.source], chosen[edge.target]
        assert (edge.form, edge.rule, edge.shape, edge.bytes) == ("dense", "eq6", (target, source), 4 * target * source)


def test_waves() -> None:
    timetable = verify(schedule(verify(lower(wire(regions(widths(16, 4)), rg.Options(gpus=5))))))
    first, second = timetable.waves
    assert [region for region, _ in first] == [8, 5, 2]
    assert [region for region, _ in second] == [7, 6, 4, 3, 1]
    assert len({lane for _, lane in first}) == 3
    assert sorted(lane for _, lane in second) == [0, 1, 2, 3, 4]
    # The output's own target, e_9, is the first unit of time; each wave is one more, the updates fill what is left.
    slots = {slot.group: slot for slot in timetable.slots}
    assert slots["target:9"].start == 0
    assert {slots[f"target:{region}"].start for region, _ in first} == {1}
    assert {slots[f"target:{region}"].start for region, _ in second} == {2}
    for region, lane in (*first, *second):
        assert slots[f"target:{region}"].lane == lane
    assert timetable.makespan == 5
    assert len(timetable.lanes) == 5
    updates = [slot for slot in timetable.slots if slot.group.startswith("update")]
    assert sorted(slot.group for slot in updates) == [f"update:{region}" for region in range(1, 10)]
    for slot in updates:
        assert slot.start >= slots[slot.group.replace("update", "target")].end
    assert sum(slot.end - slot.start for slot in timetable.slots) == 18


@pytest.mark.parametrize(("gpus", "makespan"), [(1, 18), (2, 10), (3, 7), (5, 5)])
def test_makespans_of_depth_2(gpus: int, makespan: int) -> None:
    plan = wire(regions(widths(16, 4)), rg.Options(gpus=gpus))
    assert (plan.wiring, plan.depth, plan.relays) == ("bottlenecks", 2, (2, 5, 8))
    timetable = schedule(lower(plan))
    assert timetable.makespan == makespan
    assert len(timetable.lanes) == gpus


@pytest.mark.parametrize("name", MAKESPANS)
def test_makespan_table(name: str) -> None:
    compared = []
    scheduled = []
    for gpus in GPUS:
        plan = wire(regions(widths(16, 4)), rg.Options(gpus=gpus))
        (row,) = [item for item in plan.candidates if item.name == name]
        compared.append(row.makespan)
        assert row.makespan_one == 18
        options = (
            rg.Options(gpus=gpus, relays=(2, 5, 8)) if name == "bottlenecks" else rg.Options(gpus=gpus, wiring=name)
        )
        own = verify(schedule(lower(verify(wire(regions(widths(16, 4)), options)))))
        assert own.tasks.plan.depth == {"chain": 8, "bottlenecks": 2, "flat": 1}[name]
        scheduled.append(own.makespan)
    assert tuple(compared) == MAKESPANS[name]
    assert tuple(scheduled) == MAKESPANS[name]


def test_the_choice_follows_the_makespan() -> None:
    # Up to 8 GPUs depth 2 is as fast as flat and keeps the model's own relays; with 9 only flat takes 3 units.
    chosen = {gpus: wire(regions(widths(16, 4)), rg.Options(gpus=gpus)).wiring for gpus in GPUS}
    assert chosen == {
        1: "bottlenecks",
        2: "bottlenecks",
        3: "bottlenecks",
        5: "bottlenecks",
        8: "bottlenecks",
        9: "flat",
    }
    for gpus in GPUS:
        plan = wire(regions(widths(16, 4)), rg.Options(gpus=gpus))
        assert [row.name for row in plan.candidates if row.chosen] == [plan.wiring]
        assert plan.wiring in plan.why
        assert str(gpus) in plan.why


def test_relays_by_hand_give_the_same_plan() -> None:
    by_hand = wire(regions(widths(16, 4)), rg.Options(gpus=5, relays=(8, 2, 5)))
    automatic = wire(regions(widths(16, 4)), rg.Options(gpus=5))
    assert by_hand.edges == automatic.edges
    assert by_hand.relays == automatic.relays == (2, 5, 8)
    edges = wire(regions(widths(16, 4)), rg.Options(gpus=5, wiring=(*TREE[0], *TREE[1])))
    assert set(edges.edges) == set(automatic.edges)
    assert schedule(lower(edges)).waves == schedule(lower(automatic)).waves


def test_without_narrow_layers_there_are_no_relays() -> None:
    same = wire(regions((20, *(16,) * 8, 10)), rg.Options(gpus=5))
    narrowing = wire(regions((20, 18, 16, 14, 12, 10, 8, 6, 4, 3)), rg.Options(gpus=5))
    assert (same.depth, same.relays) == (1, ())
    assert (narrowing.depth, narrowing.relays) == (1, ())


def test_a_plateau_is_no_bottleneck() -> None:
    # Narrower than the layers before and behind: of two equally narrow neighbours neither is.
    assert bottlenecks(regions((20, 16, 4, 16, 10))) == (2,)
    assert bottlenecks(regions((20, 16, 4, 4, 16, 10))) == ()
