"""report.txt says what was compiled, and the wiring tree holds every edge."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reclra_graph as rg
from reclra_graph.export.coverage import coverage
from reclra_graph.export.report import report_text, wiring_lines, wiring_tree
from reclra_graph.ir.program import StepProgram
from tests.unit.programs import MAKERS, branches, figure1, mlp


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def program(request: pytest.FixtureRequest) -> StepProgram:
    made: StepProgram = request.param().program
    return made


@pytest.fixture(scope="module")
def paper() -> StepProgram:
    return figure1().program


def test_report_of_figure_1(paper: StepProgram) -> None:
    text = report_text(paper, (("capture", 1.25), ("wire", 0.5)))
    for wanted in (
        "17 of 17 operators, 100 %, without a derivative (17 analytic)",
        "9 of 9 regions learn",
        "18 of 18 parameter tensors are updated",
        "wave 1 on 3 lanes",
        "wave 2 on 5 lanes",
        "makespan on 5 GPUs: 5",
        "same wiring on one GPU: 18, so 3.6x as fast",
        "chain wiring on 5 GPUs: 10, so 2.0x as fast",
        "unit-cost model",
        "relays 2, 5, 8",
        "why: ",
        paper.digest,
        "|- 8 (14)  [9->8 dense 4x10]",
        "|  `- 6 (10)  [8->6 dense 16x4]",
        "   -> 1 (0)  [2->1 dense 16x4]",
    ):
        assert wanted in text, wanted
    assert text.endswith("capture     1.250\nwire        0.500\ntotal       1.750\n")
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert text.isascii()


def test_the_seconds_are_the_only_difference(program: StepProgram) -> None:
    slow, fast = report_text(program, (("wire", 9.0),)), report_text(program, (("wire", 0.1),))
    assert slow.partition("Seconds per pass")[0] == fast.partition("Seconds per pass")[0]
    assert "Seconds per pass" not in report_text(program)


def test_report_names_frozen_parameters() -> None:
    made = branches().program
    text = report_text(made)
    for key, reason in made.schedule.tasks.plan.regions.frozen:
        assert f"frozen: {key}: {reason}" in text
    assert "x f32" in text or "image f32" in text


def test_coverage_counts_every_operator_and_parameter(program: StepProgram) -> None:
    regions = program.schedule.tasks.plan.regions
    found = coverage(regions)
    graph = regions.graph
    computing = [
        item
        for item in graph.operators
        if item.name in graph.reaching and item.name not in graph.without_data and item.target != "operator.getitem"
        if item.type is not None or item.types
    ]
    assert len(computing) <= found.total <= len(graph.operators)
    assert found.covered == found.total - sum(count for way, count in found.operators if way in ("local", "opaque"))
    assert sum(count for *_, count in found.special) == found.total - found.covered
    assert found.updated + len(found.frozen) == found.parameters
    assert sum(tensors for _, tensors, _ in found.rules) == found.updated
    assert sum(entries for *_, entries in found.rules) == found.entries_updated


def test_coverage_tells_the_ways_apart() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 5), nn.Linear(5, 3), nn.PReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.a(x))
            return self.b(self.act(h.cumsum(1)))

    found = coverage(rg.compile(Mixed(), torch.zeros(2, 4)).plan.regions)
    assert dict(found.operators) == {"analytic": 3, "not differentiated": 1, "local": 1, "opaque": 0}
    assert found.special[0][:3] == ("aten.prelu.default", "local", "act")
    assert found.lines()[0] == (
        "4 of 5 operators, 80 %, without a derivative (3 analytic, 1 not differentiated, 1 local)"
    )


def test_the_tree_has_every_edge_once(program: StepProgram) -> None:
    plan = program.schedule.tasks.plan
    nodes = wiring_tree(plan)
    assert [node.edge for node in nodes].count(None) == len(plan.regions.outputs)
    assert sorted(node.edge.name for node in nodes if node.edge) == sorted(edge.name for edge in plan.edges)


def test_a_long_chain_is_a_column() -> None:
    step = rg.compile(mlp(*[3] * 61), (torch.zeros(2, 3),), wiring="chain")
    lines = wiring_lines(step.plan)
    assert len(lines) == 60
    assert all(line.startswith("-> ") for line in lines[1:])


def test_a_region_reached_twice_points_back() -> None:
    step = rg.compile(mlp(4, 4, 4, 4, 2), (torch.zeros(2, 4),), wiring=("4->3", "4->2", "3->2", "2->1"))
    text = "\n".join(wiring_lines(step.plan))
    assert text.count("(see above)") == 1
    assert text.count("2->1") == 1
