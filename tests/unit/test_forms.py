"""Which forms of error synapse fit an edge, what each stores, and what is said of those that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.errors import UsageError
from reclra_graph.export.plan_json import plan_json, read_plan
from reclra_graph.export.report import report_text
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Edge, WiringPlan, total_bytes
from reclra_graph.options import Options, known_form, rank_of
from reclra_graph.passes.wire import wire
from reclra_graph.rules.forms import convolution, entries, fitting, new_edge, shape, stored, what_learns, work
from tests.models import build, regions_of
from tests.unit.broken import assert_named


class Net(nn.Module):
    """Maps, a pooling that keeps a convolution from its neighbour, and a sequence of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.c, self.row, self.head = nn.Conv2d(6, 5, 1), nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.b(torch.tanh(self.a(x))))
        z = torch.tanh(self.c(nn.functional.avg_pool2d(z, 2)))
        z = torch.tanh(self.row(z.flatten(2).mT))
        logits: Tensor = self.head(z.mean(1))
        return logits


@cache
def net() -> tuple[nn.Module, RegionGraph]:
    torch.manual_seed(0)
    model = Net()
    return model, regions_of(model, torch.zeros(3, 1, 8, 8))


def wired(**options: Any) -> WiringPlan:
    return wire(net()[1], Options(**options))


def test_the_forms_that_fit_richest_first() -> None:
    regions = net()[1]
    assert [region.shape for region in regions.regions[1:]] == [(4, 8, 8), (6, 4, 4), (5, 2, 2), (4, 7), (3,)]
    assert fitting(regions, 2, 1) == ("dense", "implicit", "lowrank(16)", "conv", "channel")
    assert fitting(regions, 3, 2) == ("dense", "implicit", "lowrank(16)", "channel")  # pooled in between
    assert fitting(regions, 4, 3) == ("dense", "implicit", "token")  # rank 16 would store more than dense
    assert fitting(regions, 5, 4, ranks=(1, 2, 3)) == ("dense", "implicit", "lowrank(2)", "lowrank(1)", "token")
    assert fitting(regions, 2, 1, largest=1) == ("lowrank(16)", "conv", "channel")
    assert fitting(regions, 2, 1, largest=1, rule="fixed", ranks=()) == ("implicit", "conv", "channel")
    assert fitting(regions, 5, 4, largest=9, ranks=()) == ("implicit", "token")


def test_what_each_form_stores() -> None:
    regions = net()[1]
    stores = {form: entries(regions, 2, 1, form) for form in ("dense", "implicit", "lowrank(3)", "conv", "channel")}
    assert stores == {"dense": 256 * 96, "implicit": 2, "lowrank(3)": 3 * (256 + 96), "conv": 6 * 2 * 9, "channel": 24}
    assert shape(regions, 2, 1, "conv") == (6, 2, 3, 3)
    assert shape(regions, 2, 1, "lowrank(3)") == shape(regions, 2, 1, "implicit") == (256, 96)
    edges = tuple(new_edge(regions, 5, target, "implicit", "eq6") for target in (4, 3, 2, 1))
    assert [edge.bytes for edge in edges] == [8] * 4
    assert total_bytes(regions, edges) == 4 * 8 + 9 * 4  # four keys and M of three classes
    fixed = tuple(replace(edge, rule="fixed") for edge in edges)
    assert total_bytes(regions, fixed) == 4 * 8
    assert work(regions, new_edge(regions, 2, 1, "conv", "eq6")) == 2 * 6 * 2 * 9 * 16
    assert work(regions, new_edge(regions, 2, 1, "lowrank(3)", "eq6")) == 2 * 3 * (256 + 96)
    assert work(regions, edges[0]) == 2 * 28 * 3


def test_a_convolution_knows_how_to_lead_back() -> None:
    found = convolution(net()[1], 2, 1)
    assert found is not None
    assert (found.weight, found.stride, found.padding, found.dilation) == ((6, 2, 3, 3), (2, 2), (1, 1), (1, 1))
    assert (found.output_padding, found.groups) == ((1, 1), 2)
    assert convolution(net()[1], 3, 1) is None  # no neighbours


@pytest.mark.parametrize("form", ["conv", "channel", "token", "magic", "lowrank(0)"])
def test_forms_that_do_not_fit_have_no_shape(form: str) -> None:
    regions = net()[1]
    if form in ("channel", "token"):  # a region without a dimension has no features to share
        regions = replace(regions, regions=tuple(replace(item, shape=()) for item in regions.regions))
    with pytest.raises(ValueError, match=r".*"):
        entries(regions, 3, 2, form)


@pytest.mark.parametrize(
    ("asked", "chain", "why"),
    [
        ("auto", ["token", "dense", "dense", "dense"], ""),
        ("conv", ["token", "dense", "dense", "conv"], "; conv synapses: asked for, and fit 1 of 4 edges; "),
        ("implicit", ["implicit"] * 4, "; implicit synapses: asked for"),
        ("channel", ["token", "dense", "channel", "channel"], "channel synapses: asked for, and fit 2 of 4 edges"),
        ("lowrank(2)", ["lowrank(2)"] * 4, "lowrank(2) synapses: asked for"),
        ("dense", ["dense"] * 4, "dense synapses: asked for"),
    ],
)
def test_a_form_is_taken_where_it_fits(asked: str, chain: list[str], why: str) -> None:
    plan = wired(wiring="chain", synapse=asked)
    assert [edge.form for edge in sorted(plan.edges, key=lambda item: -item.target)][1:] == chain[1:]
    assert why in plan.why
    assert ("asked for, and" in plan.why) == ("and fit" in why)


@pytest.mark.parametrize("form", ["", "magic", "lowrank", "lowrank(r)", "lowrank(0)", "lowrank(-1)", "lowrank(1.5)", 3])
def test_unknown_forms_are_refused(form: Any) -> None:
    assert not known_form(form)
    with pytest.raises(UsageError, match="synapse is") as caught:
        rg.compile(net()[0], torch.zeros(3, 1, 8, 8), synapse=form)
    assert [problem.code for problem in caught.value.problems] == ["RG405"]


def test_ranks() -> None:
    assert [rank_of(form) for form in ("lowrank(1)", "lowrank(128)", "dense", "lowrank(01)", "xlowrank(1)")] == [
        1, 128, 0, 0, 0,
    ]  # fmt: skip


# -- the verifier ----------------------------------------------------------------------------------------------------


def broken(asked: str, name: str = "2->1", **changes: Any) -> WiringPlan:
    plan = wired(wiring="chain", synapse=asked)
    edges = tuple(replace(edge, **changes) if edge.name == name else edge for edge in plan.edges)
    return replace(plan, edges=edges)


@pytest.mark.parametrize(
    ("plan", "cause"),
    [
        (lambda: broken("conv", form="lowrank(0)"), "unknown form 'lowrank"),
        (lambda: broken("conv", shape=(6, 4, 3, 3)), r"\(6, 4, 3, 3\); conv needs \(6, 2, 3, 3\)"),
        (lambda: broken("conv", bytes=8), "takes 8 bytes"),
        (lambda: broken("conv", form="dense"), r"dense needs \(256, 96\)"),
        (lambda: broken("implicit", shape=(6, 4)), r"implicit needs \(256, 96\)"),
        (lambda: broken("implicit", bytes=4 * 256 * 96), "takes 98304 bytes"),
        (lambda: broken("lowrank(2)", form="lowrank(3)"), "takes 2816 bytes"),
        (lambda: broken("dense", name="3->2", form="conv"), "'conv' does not fit"),
    ],
)
def test_broken_forms_are_refused(plan: Any, cause: str) -> None:
    edge = "3->2" if "does not fit" in cause else "2->1"
    assert_named(plan(), f"^edge {edge}$", cause)


# -- what is stored --------------------------------------------------------------------------------------------------


def test_names_shapes_and_first_values() -> None:
    plan = wired(wiring="chain", synapse="conv")
    found = {item.name: item for item in stored(plan)}
    # Each displacement adds 3 of 6 channels at 9 taps, of which a quarter meets an error: 6.75 errors.
    assert (found["2->1"].shape, found["2->1"].start) == ((6, 2, 3, 3), round((3 * 9 / 4) ** -0.5, 6))
    low = {item.name: item for item in stored(wired(wiring="chain", synapse="lowrank(2)"))}
    assert (low["2->1.A"].shape, low["2->1.B"].shape) == ((256, 2), (2, 96))
    assert (low["2->1.A"].start, low["2->1.B"].start) == (round(2**-0.5, 6), round(96**-0.5, 6))
    plan = wired(wiring="chain", synapse="implicit")
    assert [item.name for item in stored(plan)][:2] == ["5->*", "5->4"]
    assert {what_learns(plan, edge) for edge in plan.edges} == {"5->*", "4->*", "3->*", "2->*"}
    assert {item.start for item in stored(plan)} == {"identity", "key"}
    assert [item.region for item in stored(plan)] == [5, 4, 4, 3, 3, 2, 2, 1]


@pytest.mark.parametrize("form", ["dense", "conv", "lowrank(2)", "implicit"])
def test_owners_are_those_of_what_is_stored(form: str) -> None:
    for wiring in ("flat", "chain"):
        plan = wired(wiring=wiring, synapse=form)
        assert plan.owners == {item.name: item.region for item in stored(plan)}


def test_first_values_and_the_seed() -> None:
    model, regions = net()
    step = build(model, regions, wiring="flat", synapse="implicit", gpus=2)
    assert torch.equal(step.synapses["5->*"], torch.eye(3))
    other, same = step.module.synapses(1), step.module.synapses(0)
    assert all(torch.equal(value, step.synapses[name]) for name, value in same.items())
    assert not torch.equal(other["5->1"], step.synapses["5->1"])
    keys = [tuple(value.tolist()) for name, value in step.synapses.items() if "*" not in name]
    assert len(set(keys)) == 4
    low = build(model, regions, wiring="chain", synapse="lowrank(2)").synapses
    product = low["2->1.A"] @ low["2->1.B"]
    assert abs(float(product.std()) * 96**0.5 - 1) < 0.3


def test_no_implicit_synapse_no_word_of_it() -> None:
    model, regions = net()
    assert "implicit" not in build(model, regions, wiring="flat").source
    assert "def implicit(" in build(model, regions, wiring="flat", synapse="implicit").source


def test_the_report_and_plan_json(root: Path) -> None:
    model, regions = net()
    schema = json.loads((root / "docs" / "plan.schema.json").read_text(encoding="utf-8"))
    for form, words in (("implicit", "3x3 (what implicit synapses learn)"), ("conv", "conv 6x2x3x3")):
        step = build(model, regions, wiring="chain", synapse=form)
        text = report_text(step.program)
        assert words in text
        assert f"{form} synapses: asked for" in text
        saved = read_plan(plan_json(step.program))
        jsonschema.validate(saved.data, schema, cls=jsonschema.Draft202012Validator)
        assert saved.edges == step.plan.edges
        assert saved.data["synapse_bytes"] == step.plan.synapse_bytes
        assert step.plan.synapse_bytes == sum(item.numel() * item.element_size() for item in step.synapses.values())


def test_a_matrix_is_shared_only_by_edges_that_learn() -> None:
    plan = wired(wiring="flat", synapse="implicit", rule="fixed")
    assert plan.matrix_of == {}
    assert {item.start for item in stored(plan)} == {"key"}
    edges = (Edge(5, 4, "implicit", "eq6", (28, 3), 8), Edge(5, 3, "implicit", "fixed", (20, 3), 8))
    assert set(replace(plan, edges=edges).matrix_of) == {"5->4"}
