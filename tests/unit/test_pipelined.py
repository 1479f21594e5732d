"""Regions on GPUs of their own: placement, schedules of micro-batches, overlapping steps, simulation, threads."""

from __future__ import annotations

import copy
import itertools
import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import reclra_graph as rg
from reclra_graph.errors import StepError, VerificationError
from reclra_graph.ir.schedule import Record, Run, Schedule, Wait
from reclra_graph.passes.emit import emit
from reclra_graph.passes.lower import lower
from reclra_graph.passes.pipeline import placed
from reclra_graph.passes.place import divided
from reclra_graph.passes.schedule import schedule
from reclra_graph.passes.simulate import pipeline_units, simulate
from reclra_graph.passes.wire import wire
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.threads import run_on_threads
from reclra_graph.verify import verify
from reclra_graph.verify.schedule import schedule_problems
from tests.models import batch_for, build, figure1_regions, fresh, mlp, regions_of, snapshot
from tests.property.nets import net, wiring


@cache
def five() -> Any:
    torch.manual_seed(2)
    model = mlp(6, 6, 6, 6, 6, 3)
    return model, regions_of(model, torch.zeros(4, 6))


def pipeline(parts: int, lanes: int = 5, overlap: bool = False) -> CompiledStep:
    """Five equal stages in the unit costs of pipelines."""
    model, regions = five()
    options = rg.Options(
        gpus=lanes, wiring="flat", micro_batches=parts, placement="pipeline", overlap_steps=overlap, gamma=0.5
    )
    tasks = verify(placed(pipeline_units(lower(wire(regions, options))), options))
    return fresh(CompiledStep(model, verify(emit(verify(schedule(tasks, overlap)))), {}))


# -- placement --------------------------------------------------------------------------------------------------------


def best(work: list[int], crossing: list[int], parts: int) -> tuple[int, int, int]:
    """By trying every division: the largest stretch, the sum of squares, what crosses."""
    found = []
    for count in range(min(parts, len(work))):
        for cuts in itertools.combinations(range(1, len(work)), count):
            ends = [0, *cuts, len(work)]
            sums = [sum(work[first:last]) for first, last in itertools.pairwise(ends)]
            found.append((max(sums), sum(item**2 for item in sums), sum(crossing[cut - 1] for cut in cuts)))
    return min(found)


@pytest.mark.parametrize("seed", range(40))
def test_no_division_is_better(seed: int) -> None:
    chance = random.Random(seed)
    count, parts = chance.randint(1, 8), chance.randint(1, 5)
    work = [chance.randint(0, 6) for _ in range(count)]
    crossing = [chance.randint(0, 9) for _ in range(count)]
    stages = divided(work, crossing, parts)
    assert stages == sorted(stages)
    assert set(stages) == set(range(max(stages) + 1))
    sums = [sum(item for item, stage in zip(work, stages, strict=True) if stage == number) for number in set(stages)]
    over = sum(crossing[index] for index in range(count - 1) if stages[index] != stages[index + 1])
    assert len(set(stages)) <= parts
    assert (max(sums), sum(item**2 for item in sums), over) == best(work, crossing, parts)


def test_everything_of_a_region_runs_where_it_is_placed() -> None:
    step = build(*figure1_regions(), gpus=3, micro_batches=2)
    place = dict(step.plan.placement)
    assert set(place.values()) == {0, 1, 2}
    for action in step.schedule.actions:
        if isinstance(action, Run) and action.task not in ("inputs", "targets", "loss"):
            assert action.lane == place[step.schedule.tasks.by_name[action.task].region], action


def test_a_placement_of_ones_own_is_kept() -> None:
    model, regions = five()
    options = rg.Options(gpus=2, wiring="flat")
    own = ((0, 0), (1, 1), (2, 0), (3, 1), (4, 0), (5, 1))
    tasks = placed(lower(replace(wire(regions, options), placement=own)), options)
    step = fresh(CompiledStep(model, verify(emit(verify(schedule(tasks)))), {}))
    assert step.plan.placement == own
    usual = build(model, regions, wiring="flat")
    batch = batch_for(step)
    assert step(*batch).item() == usual(*batch).item()
    assert all(torch.equal(value, snapshot(usual)[key]) for key, value in snapshot(step).items())


# -- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "makespan"), [(1, 6), (5, 14), (20, 44)])
def test_a_pipeline_of_five_stages(parts: int, makespan: int) -> None:
    found = pipeline(parts).schedule
    assert found.makespan == makespan
    assert simulate(found).makespan == makespan


@pytest.mark.parametrize(("parts", "period"), [(1, 6), (5, 10), (20, 40)])
def test_overlapping_steps_leave_no_gap_between_them(parts: int, period: int) -> None:
    found = pipeline(parts, overlap=True).schedule
    times = [simulate(found, steps).makespan for steps in (1, 2, 3)]
    assert [second - first for first, second in itertools.pairwise(times)] == [period, period]


@pytest.mark.parametrize("number", range(8))
def test_random_nets_are_scheduled_without_races(number: int) -> None:
    """The verifier has been through each of these schedules; here the simulator agrees with the predicted times."""
    chance = random.Random(number)
    model, regions, _ = net(number)
    options: dict[str, Any] = {
        "gpus": chance.randint(1, 5), "wiring": wiring(regions, number), "micro_batches": chance.randint(1, 3),
        "placement": "pipeline", "overlap_steps": chance.random() < 0.5,
    }  # fmt: skip
    found = build(model, regions, **options).schedule
    assert simulate(found).makespan == found.makespan
    assert found.overlap == options["overlap_steps"]


def shared() -> Schedule:
    """Overlapping steps in which a parameter, made one by hand, is touched on two lanes."""
    found = build(*figure1_regions(), gpus=3, overlap_steps=True, wiring="flat").schedule
    first = next(task for task in found.tasks.tasks if task.kind == "forward" and task.region == 9)
    key = next(name for name in first.reads if name.startswith("P["))
    other = next(task for task in found.tasks.tasks if task.name == "forward:1")
    tasks = tuple(
        replace(task, reads=(*task.reads, key)) if task.name == other.name else task for task in found.tasks.tasks
    )
    optimise = next(task.name for task in tasks if task.kind == "optimise" and key in task.writes)
    edges = (*found.tasks.edges, (other.name, optimise))
    return replace(found, tasks=replace(found.tasks, tasks=tasks, edges=edges))


def test_a_race_between_two_steps_is_found() -> None:
    problems = [str(problem) for problem in schedule_problems(shared())]
    assert any("of the next step" in text and "touch P[16.weight] in no order" in text for text in problems), problems


def test_what_several_lanes_touch_is_waited_for_from_step_to_step() -> None:
    made = schedule(shared().tasks, overlap=True)
    assert not list(schedule_problems(made))
    earlier = [action for action in made.actions if isinstance(action, Wait) and action.earlier]
    assert earlier
    for action in earlier:
        place = made.actions.index(action)
        broken = replace(made, actions=(*made.actions[:place], *made.actions[place + 1 :]))
        assert any("of the next step" in str(problem) for problem in schedule_problems(broken))
    event = earlier[0].event
    unmarked = tuple(action for action in made.actions if action != Record(event, action.lane))
    problems = [str(problem) for problem in schedule_problems(replace(made, actions=unmarked))]
    assert any("never recorded" in text for text in problems)


def test_only_the_loss_is_joined_where_steps_overlap() -> None:
    found = build(*figure1_regions(), gpus=3, overlap_steps=True).schedule
    assert found.actions[-1] == Wait("loss", 0)
    broken = replace(found, actions=found.actions[:-1])
    if not any("loss" in str(problem) for problem in schedule_problems(broken)):
        assert Wait("loss", 0) in broken.actions


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "overlap"), [(1, False), (2, False), (4, True)])
def test_threads_compute_what_the_step_does(parts: int, overlap: bool) -> None:
    alone, apart = pipeline(parts, 1), pipeline(parts, 5, overlap)
    batches = [batch_for(alone, 8, seed) for seed in range(3)]
    expected = [alone(*batch) for batch in batches]
    found = run_on_threads(apart, batches)
    assert [loss.item() for loss in found.losses] == [loss.item() for loss in expected]
    assert all(torch.equal(value, snapshot(alone)[key]) for key, value in snapshot(apart).items())
    assert len(found.runs) == 3 * len(apart.schedule.tasks.tasks)


def test_threads_keep_the_order_of_the_schedule() -> None:
    step = pipeline(3, overlap=True)
    found = run_on_threads(step, [batch_for(step, 6)] * 2, lambda task: 0.002 * task.cost)
    ended = {(number, name): end for number, name, _, _, end in found.runs}
    started = {(number, name): start for number, name, _, start, _ in found.runs}
    for number in (0, 1):
        for before, after in step.schedule.tasks.edges:
            assert ended[number, before] <= started[number, after]
    assert found.seconds >= 0.002 * simulate(step.schedule, 2).makespan


def test_threads_stop_where_the_step_is_refused() -> None:
    step = pipeline(2)
    inputs, target = batch_for(step, 4)
    inputs[0][1, 1] = float("nan")
    before = snapshot(step)
    with pytest.raises(StepError, match="RG604"):
        run_on_threads(step, [(inputs, target)])
    assert all(torch.equal(value, before[key]) for key, value in snapshot(step).items())
    with pytest.raises(StepError, match="RG601"):
        run_on_threads(step, [batch_for(step, 3)])


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_placed_step_is_saved_and_loaded(tmp_path: Path) -> None:
    step = fresh(build(*figure1_regions(), gpus=3, micro_batches=2, overlap_steps=True))
    step(*batch_for(step))
    plan = json.loads((step.save(tmp_path / "out") / "plan.json").read_text(encoding="utf-8"))
    assert plan["micro_batches"] == 2
    assert plan["overlap_steps"] is True
    assert {item["gpu"] for item in plan["placement"]} == {0, 1, 2}
    twin = rg.load(tmp_path / "out", copy.deepcopy(step.model))
    assert twin(*batch_for(step, seed=1)).item() == step(*batch_for(step, seed=1)).item()
    with pytest.raises(ValueError, match="lines"):
        run_on_threads(twin, [batch_for(step)])


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (((0, 0), (1, 2)), "placed on GPU 2; there are GPUs 0 to 1"),
        (((0, 0), (1, 0), (1, 1)), "region 1 is placed 2 times"),
        (((0, 0), (99, 1)), "no region 99"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(own: tuple[tuple[int, int], ...], said: str) -> None:
    plan = wire(five()[1], rg.Options(gpus=2, wiring="flat"))
    with pytest.raises(VerificationError, match=said):
        verify(replace(plan, placement=own))
