"""Budgets for synapses and for each GPU: read, held, and refused with the smallest that would do."""

from __future__ import annotations

import re

import pytest
import torch

import reclra_graph as rg
from reclra_graph.api import make_options
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import WiringPlan
from reclra_graph.options import Options, byte_count
from reclra_graph.passes.wire import wire
from reclra_graph.verify import verify
from tests.models import mlp
from tests.property.small_plans import graph_of


def maps() -> RegionGraph:
    """Four maps of 4x8x8 to 16x4x4, then 32 units, then ten classes."""
    shapes: list[int | tuple[int, ...]] = [(4, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4), 32, 10]
    return graph_of(shapes, {number: {number - 1} if number > 1 else set() for number in range(1, 7)})


def planned(**options: object) -> WiringPlan:
    return verify(wire(maps(), make_options(**options)))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2 << 30),
        ("512 MiB", 512 << 20),
        ("1.5kB", 1500),
        ("80GB", 80 * 10**9),
        ("17", 17),
        ("8b", 8),
        (99, 99),
        ("much", "much"),
        ("2XB", "2XB"),
        ("-1GiB", "-1GiB"),
    ],
)
def test_sizes_are_read(text: int | str, count: int | str) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("name", ["synapse_memory", "gpu_memory"])
@pytest.mark.parametrize("value", ["much", 0, -5, "0", True])
def test_what_is_no_size_is_refused(name: str, value: object) -> None:
    (problem,) = make_options(**{name: value}).problems()
    assert problem.code == "RG405"
    assert problem.place == name


def test_without_a_budget_nothing_changes() -> None:
    plan = planned()
    assert {edge.form for edge in plan.edges} == {"dense"}
    assert plan.budget == 0
    assert plan.placement == ()
    assert {row.name for row in plan.candidates} <= {"bottlenecks", "flat", "chain"}
    assert all(row.forms == () and row.fits for row in plan.candidates)


@pytest.mark.parametrize("budget", [200_000, 50_000, 20_000, 10_000, 5_000, 2_000])
def test_a_budget_is_held(budget: int) -> None:
    plan = planned(wiring="flat", synapse_memory=budget)
    assert plan.synapse_bytes <= budget
    assert plan.budget == budget
    (chosen,) = (row for row in plan.candidates if row.chosen)
    assert sum(count for _, count in chosen.forms) == len(plan.edges)


def test_few_synapses_give_way_and_the_largest_first() -> None:
    # 6 to 2 takes 8x8x8 x 10 x 4 = 20,480 bytes, more than any other.
    rich = planned(wiring="flat", synapse_memory=10**6)
    assert {edge.form for edge in rich.edges} == {"dense"}
    less = planned(wiring="flat", synapse_memory=rich.synapse_bytes - 1)
    assert [edge.name for edge in less.edges if edge.form != "dense"] == ["6->2"]


def test_other_forms_come_only_where_the_usual_cannot_hold_the_budget() -> None:
    shared = planned(wiring="flat", synapse_memory=3_000)
    assert {edge.form for edge in shared.edges} <= {"dense", "channel"}
    other = planned(wiring="flat", synapse_memory=1_000)
    assert other.synapse_bytes <= 1_000
    assert {edge.form for edge in other.edges} - {"dense", "channel"}


def test_a_form_that_was_asked_for_is_kept() -> None:
    plan = planned(wiring="flat", synapse="implicit", synapse_memory="1MiB")
    assert {edge.form for edge in plan.edges} == {"implicit"}


@pytest.mark.parametrize(
    ("name", "options"),
    [("synapse_memory", {}), ("synapse_memory", {"wiring": "flat"}), ("gpu_memory", {}), ("gpu_memory", {"gpus": 3})],
)
def test_an_impossible_budget_names_the_smallest_that_would_do(name: str, options: dict[str, object]) -> None:
    with pytest.raises(rg.ModelError) as error:
        planned(**{name: 1}, **options)
    assert error.value.codes == ("RG440",)
    (problem,) = error.value.problems
    found = re.search(rf"Give {name} (\d+) or more", problem.advice)
    assert found is not None
    least = int(found.group(1))
    planned(**{name: least}, **options)
    with pytest.raises(rg.ModelError):
        planned(**{name: least - 1}, **options)


def test_regions_that_do_not_fit_one_gpu_are_placed_in_stretches() -> None:
    plan = planned(gpus=2, gpu_memory=4_000)
    gpus = [gpu for _, gpu in plan.placement]
    assert [region for region, _ in plan.placement] == list(range(7))
    assert gpus == sorted(gpus)
    assert set(gpus) == {0, 1}


def test_with_room_for_all_nothing_is_placed() -> None:
    assert planned(gpus=2, gpu_memory="80GB").placement == ()


def test_of_equally_fast_wirings_the_one_that_needs_least_wins() -> None:
    # In units all are equally fast on one GPU. Without relays of its own, a model gets what needs least memory.
    regions = graph_of(
        [64, 48, 32, 16, 12, 100], {number: {number - 1} if number > 1 else set() for number in range(1, 7)}
    )
    plan = verify(wire(regions, Options(synapse_memory=10**6)))
    (chosen,) = (row for row in plan.candidates if row.chosen)
    assert chosen.bytes == min(row.bytes for row in plan.candidates)
    assert plan.wiring not in ("flat", "chain")
    assert "KiB, not" in plan.why


def test_options_hold_bytes() -> None:
    assert make_options(synapse_memory="1KiB", gpu_memory=None) == Options(synapse_memory=1024)


def test_the_report_says_what_speaks_against_a_faster_wiring() -> None:
    regions = graph_of(
        [64, 48, 32, 16, 12, 100], {number: {number - 1} if number > 1 else set() for number in range(1, 7)}
    )
    plan = verify(wire(regions, Options(gpus=8, depth=3)))
    assert "flat with 3 is not what was asked for" in plan.why
    assert "budget" not in plan.why


def test_makespans_of_regions_that_are_placed_later_are_said_to_be_of_others() -> None:
    assert "before each gets a GPU of its own" in planned(gpus=2, placement="pipeline").why
    assert "of its own" not in planned(gpus=2).why


def test_makespans_under_gpu_memory_are_those_of_the_placed_regions() -> None:
    # In units, where hand-overs cost nothing, the plan's makespan is the schedule's own.
    model = mlp(32, 64, 48, 64, 48, 64, 10)
    step = rg.compile(model, torch.zeros(50, 32), gpus=3, gpu_memory=100_000)
    (chosen,) = (row for row in step.plan.candidates if row.chosen)
    assert step.plan.placement
    assert chosen.makespan == step.schedule.makespan
    assert "of its own" not in step.plan.why


def test_work_is_shared_out_evenly_where_memory_allows_it() -> None:
    # Memory in even stretches would leave the first GPU with one region: a wide input layer.
    model = mlp(400, 20, 20, 20, 20, 20, 20, 10)
    inputs = torch.zeros(4, 400)
    tight = rg.compile(model, inputs, gpus=2, gpu_memory=75_000, wiring="flat")
    assert [gpu for _, gpu in tight.plan.placement].count(0) == 2
    (chosen,) = (row for row in tight.plan.candidates if row.chosen)
    assert chosen.makespan == tight.schedule.makespan
    roomy = rg.compile(model, inputs, gpus=2, gpu_memory=90_000, wiring="flat")
    assert roomy.schedule.makespan < tight.schedule.makespan
