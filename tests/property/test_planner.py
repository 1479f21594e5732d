"""The planner against exhaustive search, and what must hold of every plan it makes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random

import pytest

from reclra_graph.ir.text import to_text
from reclra_graph.ir.wiring import total_bytes
from reclra_graph.options import Options
from reclra_graph.passes.synapse_forms import OVER, SynapseForms, downgraded
from reclra_graph.passes.trees import flat
from reclra_graph.passes.wire import wire
from reclra_graph.verify import verify
from tests.property.small_plans import (
    compared,
    graph_of,
    jobs_of,
    random_costs,
    random_graph,
    shorter,
    shortest,
    trees,
)

CHUNK = 50


@pytest.mark.parametrize("chunk", range(4))
def test_plans_are_nearly_always_the_best_there_are(chunk: int) -> None:
    found = [compared(Random(seed), 300_000) for seed in range(CHUNK * chunk, CHUNK * (chunk + 1))]
    for row in found:
        assert row.near  # proven: no step is shorter by more than 5 %
        assert row.planned >= row.shortest.bound
        assert row.planned <= 1.05 * row.shortest.makespan
    best = [row for row in found if row.shortest.proven and row.planned == row.shortest.makespan]
    assert len(best) >= 0.9 * CHUNK


def test_the_exhaustive_search_finds_what_is_known() -> None:
    regions = graph_of([2, 2, 2], {1: set(), 2: {1}, 3: {2}})
    costs = replace(random_costs(Random(0), regions), target=(0, 2, 2, 1), update=(0, 3, 3, 3), per_entry=0.0, kernel=0)
    assert len(list(trees(regions))) == 2
    jobs = jobs_of(regions, costs, {1: 3, 2: 3})
    assert jobs.work == 1 + 2 + 2 + 9
    assert jobs.bound(2) == 7
    # The other lane has nothing to do until 1; then 1 + 2 + 2 + 3 and 3 + 3 fill the two.
    assert shorter(jobs, 2, 7) is None
    assert shorter(jobs, 2, 8) == 8
    assert shortest(regions, costs, 2, 14).makespan == 8


@pytest.mark.parametrize("seed", range(8))
def test_the_same_input_gives_the_same_plan(seed: int) -> None:
    random = Random(seed)
    regions = random_graph(random)
    costs = random_costs(random, regions)
    options = Options(gpus=3, synapse_memory=20_000)
    again = random_graph(Random(seed))
    assert again is not regions
    assert to_text(wire(again, options, costs)) == to_text(wire(regions, options, costs))


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_holds_or_nothing_would(seed: int) -> None:
    random = Random(seed)
    shapes = [random.choice([(8,), (16,), (4, 6, 6), (8, 3, 3), (32,)]) for _ in range(5)]
    regions = graph_of([*shapes, (10,)], {number: {number - 1} if number > 1 else set() for number in range(1, 7)})
    forms = SynapseForms(regions, Options(synapse_memory=random.choice((200, 2000, 8000, 30000))))
    found = forms.fitted(flat(regions))
    assert total_bytes(regions, found.edges) == found.bytes
    least = forms.fitted(flat(regions), 0).bytes
    assert least <= found.bytes
    assert (found.rank == OVER) == (least > forms.budget)
    assert found.rank == OVER or found.bytes <= forms.budget
    # The smallest is enough, and one byte less is not.
    for budget, fits in ((least, True), (least - 1, False)):
        again = SynapseForms(regions, Options(synapse_memory=budget)).fitted(flat(regions))
        assert (again.rank != OVER) == fits


@pytest.mark.parametrize("seed", range(30))
def test_as_few_synapses_as_possible_give_way(seed: int) -> None:
    random = Random(seed)
    steps = []
    for _ in range(random.randint(1, 7)):
        large = random.randint(1, 100)
        steps.append([large, random.randint(0, large - 1)] if random.random() < 0.8 else [large])
    budget = random.randint(0, sum(step[0] for step in steps))
    levels = downgraded(steps, budget)
    total = sum(step[level] for step, level in zip(steps, levels, strict=True))
    fitting = [
        sum(choice)
        for choice in itertools.product(*(range(len(step)) for step in steps))
        if sum(step[level] for step, level in zip(steps, choice, strict=True)) <= budget
    ]
    assert (total <= budget) == bool(fitting)
    if fitting:
        assert sum(levels) == min(fitting)


@pytest.mark.parametrize("seed", range(6))
def test_plans_pass_the_verifier(seed: int) -> None:
    random = Random(seed)
    regions = random_graph(random)
    plan = verify(wire(regions, Options(gpus=random.randint(1, 4)), random_costs(random, regions)))
    assert [item.name for item in plan.candidates if item.chosen] == [plan.wiring]
    assert plan.depth == max(plan.level.values())
