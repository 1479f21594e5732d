"""RegionGraph → WiringPlan: which region sends its error to which, for every way of asking."""

from __future__ import annotations

from collections import Counter
from functools import cache

import networkx as nx
import pytest
import torch
from torch import nn

import reclra_graph as rg
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Loss, Rates, WiringPlan
from reclra_graph.passes.lower import lower
from reclra_graph.passes.schedule import schedule
from reclra_graph.passes.wire import wire
from reclra_graph.verify import verify
from tests.models import SkipMLP, figure1_regions, mlp, regions_of, residual_cnn, two_inputs


@cache
def chain_of(layers: int) -> RegionGraph:
    """An MLP of this many layers, all equally wide."""
    return regions_of(mlp(*(5,) * layers, 3), torch.zeros(2, 5))


def wired(regions: RegionGraph, **options: object) -> WiringPlan:
    return verify(wire(regions, rg.Options(**options)))  # type: ignore[arg-type]


def names(plan: WiringPlan) -> set[str]:
    return {edge.name for edge in plan.edges}


def refused(regions: RegionGraph, **options: object) -> tuple[str, ...]:
    with pytest.raises(rg.ModelError) as error:
        wire(regions, rg.Options(**options))  # type: ignore[arg-type]
    for problem in error.value.problems:
        assert problem.cause
        assert problem.place
        assert problem.advice
    return error.value.codes


def test_flat_and_chain() -> None:
    flat = wired(chain_of(5), wiring="flat")
    assert names(flat) == {"5->4", "5->3", "5->2", "5->1"}
    assert (flat.wiring, flat.depth, flat.relays) == ("flat", 1, ())
    chain = wired(chain_of(5), wiring="chain")
    assert names(chain) == {"5->4", "4->3", "3->2", "2->1"}
    assert (chain.wiring, chain.depth, chain.relays) == ("chain", 4, (2, 3, 4))
    assert chain.level == {5: 0, 4: 1, 3: 2, 2: 3, 1: 4}


def test_the_chain_follows_the_model_and_not_the_numbers() -> None:
    # In the two-input model conv (1) feeds side (2) through the sum.
    assert names(two_inputs().plan) == {"3->2", "2->1"}

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left = torch.tanh(self.b(torch.tanh(self.a(x))))
            logits: torch.Tensor = self.d(left * torch.tanh(self.c(x)))
            return logits

    assert names(wired(regions_of(Parallel(), torch.zeros(2, 4)), wiring="chain")) == {"4->3", "4->2", "2->1"}


def test_blocks_hang_on_their_outputs() -> None:
    plan = wired(residual_cnn().plan.regions, wiring="blocks")
    assert names(plan) == {"6->5", "6->3", "6->1", "5->4", "3->2"}
    assert (plan.wiring, plan.depth, plan.relays) == ("blocks", 2, (3, 5))


def test_without_blocks_of_its_own_a_model_is_cut_into_groups() -> None:
    plan = wired(chain_of(9), wiring="blocks")
    assert (plan.wiring, plan.depth) == ("groups", 2)
    assert plan.relays


@pytest.mark.parametrize("layers", range(2, 12))
def test_every_depth_that_fits_is_met_exactly(layers: int) -> None:
    regions = chain_of(layers)
    for depth in range(1, layers):
        plan = wired(regions, depth=depth)
        assert plan.depth == depth
        assert len(plan.edges) == layers - 1
        assert Counter(edge.target for edge in plan.edges) == Counter(range(1, layers))
    assert refused(regions, depth=layers) == ("RG402",)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8])
def test_depths_of_figure_1(depth: int) -> None:
    plan = wired(figure1_regions()[1], depth=depth)
    assert plan.depth == depth
    if depth == 2:
        assert plan.relays == (2, 5, 8)


def test_relays() -> None:
    plan = wired(chain_of(7), relays=(5, 2))
    assert (plan.wiring, plan.depth, plan.relays) == ("relays", 2, (2, 5))
    assert names(plan) == {"7->2", "7->5", "7->6", "5->4", "5->3", "2->1"}
    deep = wired(chain_of(7), relays=(5, 2), depth=3)
    assert (deep.depth, deep.relays) == (3, (2, 5))
    named = wired(regions_of(SkipMLP(4, 5, (), (nn.Tanh,)), torch.zeros(2, 4)), relays=("layers.1", "layers.3"))
    assert named.relays == (2, 4)
    block = wired(residual_cnn().plan.regions, relays=("blocks.1",))
    assert block.relays == (5,)
    assert wired(chain_of(4), relays=()).relays == ()


WIRINGS: tuple[str | tuple[str, ...], ...] = ("auto", "flat", "chain", "blocks", ("4->3", "4->2", "4->1"))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("wiring", WIRINGS, ids=str)
def test_a_depth_is_met_or_refused(wiring: str | tuple[str, ...], depth: int) -> None:
    # Never forgotten in silence: a user who asks for two things that exclude each other is told so.
    for regions in (chain_of(4),) if isinstance(wiring, tuple) else (chain_of(4), residual_cnn().plan.regions):
        try:
            plan = wired(regions, wiring=wiring, depth=depth)
        except rg.ReclraError as error:
            assert set(error.codes) <= {"RG402", "RG404"}  # noqa: PT017
        else:
            assert plan.depth == depth


@pytest.mark.parametrize("relays", [(1,), (2,), (1, 3)], ids=str)
@pytest.mark.parametrize("wiring", WIRINGS, ids=str)
def test_relays_are_used_or_refused(wiring: str | tuple[str, ...], relays: tuple[int, ...]) -> None:
    # Nothing lies below region 1 whose error it could pass on.
    try:
        plan = wired(chain_of(4), wiring=wiring, relays=relays)
    except rg.ReclraError as error:
        assert set(error.codes) <= {"RG403", "RG404"}  # noqa: PT017
    else:
        assert plan.relays == relays


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_relays_and_a_depth_are_met_or_refused(depth: int) -> None:
    try:
        plan = wired(chain_of(6), relays=(2, 4), depth=depth)
    except rg.ReclraError as error:
        assert set(error.codes) <= {"RG402", "RG403"}  # noqa: PT017
    else:
        assert (plan.depth, plan.relays) == (depth, (2, 4))


def test_explicit_edges() -> None:
    plan = wired(chain_of(4), wiring=("4->3", " 3 -> 1 ", "4->2", "2->1"))
    assert (plan.wiring, plan.depth, plan.relays) == ("explicit", 2, (2, 3))
    assert [edge.name for edge in plan.incoming[1]] == ["3->1", "2->1"]
    assert [edge.name for edge in plan.outgoing[4]] == ["4->3", "4->2"]
    assert names(wired(chain_of(3), wiring="3->2,2->1")) == {"3->2", "2->1"}
    assert names(wired(chain_of(3), wiring="3->2;3->1")) == {"3->2", "3->1"}
    # Upwards is allowed: an error may go to a later region first.
    assert names(wired(chain_of(4), wiring=("4->1", "1->3", "3->2"))) == {"4->1", "1->3", "3->2"}


def test_the_form_follows_the_memory() -> None:
    regions = residual_cnn().plan.regions
    dense = wired(regions, wiring="chain")
    assert {edge.form for edge in dense.edges} == {"dense"}
    assert {edge.name: edge.shape for edge in dense.edges}["3->2"] == (36, 36)
    channel = wired(regions, wiring="chain", synapse_entries=100)
    forms = {edge.name: (edge.form, edge.shape, edge.bytes) for edge in channel.edges}
    assert forms["3->2"] == ("channel", (4, 4), 64)
    assert forms["5->4"] == ("channel", (6, 6), 144)
    # 6 → 5: 54 × 3 = 162 entries; the target has positions to share over.
    assert forms["6->5"] == ("channel", (6, 3), 72)
    double = regions_of(mlp(3, 4, 2).double(), torch.zeros(2, 3, dtype=torch.float64))
    assert wired(double).edges[0].bytes == 4 * 2 * 8


def test_every_candidate_is_compared() -> None:
    plan = wired(residual_cnn().plan.regions, gpus=3)
    rows = {row.name: row for row in plan.candidates}
    assert set(rows) == {"blocks", "flat", "chain"}
    assert [row.name for row in plan.candidates if row.chosen] == [plan.wiring]
    for row in rows.values():
        # One GPU has to do it all: a target for each region that an error reaches, an update for each that learns.
        assert row.makespan_one == 12
        assert 0 < row.makespan <= row.makespan_one
    assert rows["flat"].path == 5
    assert rows["chain"].path == 15
    assert rows["flat"].bytes == sum(edge.bytes for edge in wired(residual_cnn().plan.regions, wiring="flat").edges)


@pytest.mark.parametrize("gpus", [1, 2, 4])
@pytest.mark.parametrize("wiring", ["auto", "flat", "chain", "blocks"])
def test_the_predicted_makespan_is_the_scheduled_one(wiring: str, gpus: int) -> None:
    for regions in (chain_of(6), figure1_regions()[1], residual_cnn().plan.regions, two_inputs().plan.regions):
        plan = wired(regions, wiring=wiring, gpus=gpus)
        (chosen,) = (row for row in plan.candidates if row.chosen)
        assert verify(schedule(lower(plan))).makespan == chosen.makespan


@pytest.mark.parametrize("gpus", [1, 3, 40])
def test_more_gpus_are_never_slower(gpus: int) -> None:
    for regions in (chain_of(11), figure1_regions()[1]):
        fewer, more = wired(regions, gpus=gpus), wired(regions, gpus=gpus + 1)
        best = [min(row.makespan for row in plan.candidates) for plan in (fewer, more)]
        assert best[1] <= best[0]
        levels = more.level
        assert best[1] >= max(levels.values()) + 1


def test_a_million_gpus_cost_nothing() -> None:
    assert wired(chain_of(3), gpus=10**9).gpus == 10**9


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({"depth": 9}, ("RG402",)),
        ({"relays": (9,)}, ("RG403",)),
        ({"relays": (0,)}, ("RG403",)),
        ({"relays": (4,)}, ("RG403",)),
        ({"relays": ("nowhere", 1.5, -1)}, ("RG403", "RG403", "RG403")),
        ({"relays": (77, 88), "depth": 99}, ("RG403", "RG403", "RG402")),
        ({"wiring": ("4->9", "x->1", "4", "4->3", "4->3", "3->4", "0->1")}, ("RG404",) * 6),
        ({"wiring": ("4->3", "2->1", "1->2")}, ("RG408",)),
        ({"wiring": ("3->3", "4->2", "4->1")}, ("RG408",)),
        ({"wiring": ("4->3",)}, ("RG407", "RG407")),
        ({"wiring": ()}, ("RG407",) * 3),
        ({"wiring": "4->"}, ("RG404",)),
        ({"wiring": ("²->1", "9" * 5000 + "->1")}, ("RG404",) * 2),
        ({"relays": ("²", "9" * 5000)}, ("RG403",) * 2),
        ({"wiring": ("3->2", "3->1")}, ("RG407",) * 3),
    ],
    ids=str,
)
def test_impossible_wirings(options: dict[str, object], codes: tuple[str, ...]) -> None:
    assert refused(chain_of(4), **options) == codes


def test_a_dead_end_among_regions_that_do_not_learn() -> None:
    model = mlp(3, 4, 4, 2)
    model[2].requires_grad_(False)
    regions = regions_of(model, torch.zeros(2, 3))
    assert names(wired(regions)) == {"3->1"}
    # It may pass errors on, if one reaches it.
    assert names(wired(regions, wiring=("3->2", "2->1"))) == {"3->2", "2->1"}
    assert refused(regions, wiring=("3->1", "2->1")) == ("RG407",)


def test_plans_are_trees_or_dags_from_the_output() -> None:
    for regions in (chain_of(8), figure1_regions()[1], residual_cnn().plan.regions):
        for options in (
            {},
            {"wiring": "flat"},
            {"wiring": "chain"},
            {"wiring": "blocks"},
            {"depth": 3},
            {"relays": (3,)},
        ):
            plan = wired(regions, **options)
            wires = nx.DiGraph([(edge.source, edge.target) for edge in plan.edges])
            assert nx.is_arborescence(wires)
            assert nx.dag_longest_path_length(wires) == plan.depth
            lengths = nx.single_source_shortest_path_length(wires, plan.regions.output)
            assert {number: level for number, level in plan.level.items() if level} == {
                k: v for k, v in lengths.items() if v
            }


def test_rates_reach_the_plan() -> None:
    plan = wired(
        chain_of(3),
        beta=0.3,
        gamma=0.2,
        kappa=((2, 0.5),),
        norm=1,
        sign="printed",
        gain=True,
        loss="mse",
        lr=0.7,
        seed=9,
    )
    rates = plan.rates
    assert rates == Rates(0.3, 0.2, ((2, 0.5),), 1, "printed", True, "sgd", 0.7)
    assert plan.losses == (Loss("output", "mse"),)
    assert plan.seed == 9
    assert {edge.rule for edge in wired(chain_of(3), rule="fixed").edges} == {"fixed"}
    assert plan.update == ((1, "analytic"), (2, "analytic"), (3, "analytic"))


def test_the_prediction_counts_a_relay_that_does_not_learn() -> None:
    # Its parameters are frozen, its incoming synapse still learns by Eq. 6: that is an update too.
    model = mlp(3, 4, 4, 2)
    model[2].requires_grad_(False)
    plan = wired(regions_of(model, torch.zeros(2, 3)), wiring=("3->2", "2->1"))
    (chosen,) = (row for row in plan.candidates if row.chosen)
    assert verify(schedule(lower(plan))).makespan == chosen.makespan == chosen.makespan_one
