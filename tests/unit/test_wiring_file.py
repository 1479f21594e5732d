"""Wirings from files: lists of edges, edges with forms, plans edited by hand; and all that can be wrong there."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import reclra_graph as rg
from reclra_graph.api import make_options
from reclra_graph.export.plan_json import plan_json
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.schedule import Run
from reclra_graph.ir.wiring import WiringPlan
from reclra_graph.passes.wire import wire
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.verify import verify
from tests.models import mlp
from tests.property.small_plans import graph_of
from tests.unit.refusals import refused

CHAIN = {1: set[int](), 2: {1}, 3: {2}, 4: {3}}


def regions() -> RegionGraph:
    return graph_of([(4, 3, 3), (6, 3, 3), 5, 3], CHAIN)


@cache
def compiled() -> CompiledStep:
    return rg.compile(mlp(5, 6, 4, 6, 3), torch.zeros(2, 5), gpus=2)


def planned(folder: Path, content: object, name: str = "wiring.json") -> WiringPlan:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return verify(wire(regions(), make_options(wiring=str(path))))


def test_a_list_of_edges(tmp_path: Path) -> None:
    plan = planned(tmp_path, ["4->3", [3, 2], " 3 -> 1 "])
    assert (plan.wiring, plan.depth, plan.relays) == ("explicit", 2, (3,))
    assert {edge.name for edge in plan.edges} == {"4->3", "3->2", "3->1"}


def test_edges_are_known_however_their_numbers_are_written(tmp_path: Path) -> None:
    content = {"edges": ["04->3", "4->2", "2->01"], "forms": {"4->02": "channel", "2->01": "lowrank(2)"}}
    plan = planned(tmp_path, content)
    assert {edge.name: edge.form for edge in plan.edges} == {"4->3": "dense", "4->2": "channel", "2->1": "lowrank(2)"}


def test_edges_with_forms(tmp_path: Path) -> None:
    content = {"edges": ["4->3", "4->2", "2->1"], "forms": {"4->2": "channel", "2 -> 1": "lowrank(2)"}}
    plan = planned(tmp_path, content)
    assert {edge.name: edge.form for edge in plan.edges} == {"4->3": "dense", "4->2": "channel", "2->1": "lowrank(2)"}


def test_a_plan_gives_its_own_wiring_again() -> None:
    step = compiled()
    text = plan_json(step.program)
    again = remade(text)
    assert again.edges == step.plan.edges
    assert (again.depth, again.relays) == (step.plan.depth, step.plan.relays)


def remade(text: str) -> WiringPlan:
    """The compiled model, wired as a plan.json says."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(text, encoding="utf-8")
        return verify(wire(compiled().plan.regions, make_options(wiring=str(path))))


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    value = json.loads(plan_json(compiled().program))
    change(value)
    return json.dumps(value)


def test_an_edited_plan_is_followed() -> None:
    def turn(value: dict[str, Any]) -> None:
        value["edges"] = [{"source": 4, "target": number} for number in (1, 2, 3)]
        value["edges"][0]["form"] = "implicit"

    plan = remade(edited(turn))
    assert {edge.name: edge.form for edge in plan.edges} == {"4->1": "implicit", "4->2": "dense", "4->3": "dense"}


def test_a_rule_in_the_plan_is_followed() -> None:
    plan = remade(edited(lambda value: [edge.update(rule="fixed") for edge in value["edges"]]))
    assert {edge.rule for edge in plan.edges} == {"fixed"}


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "cycle": (lambda value: value["edges"].append({"source": 1, "target": 2}), "RG408"),
    "dead region": (lambda value: value.update(edges=[{"source": 4, "target": 3}]), "RG407"),
    "wrong shape": (lambda value: value["edges"][0].update(shape=[9, 9]), "RG442"),
    "unknown form": (lambda value: value["edges"][0].update(form="star"), "RG442"),
    "form that does not fit": (lambda value: value["edges"][0].update(form="conv"), "RG442"),
    "unknown rule": (lambda value: value["edges"][0].update(rule="hope"), "RG442"),
    "different model": (lambda value: value.update(regions_digest="0" * 16), "RG605"),
    "no digest": (lambda value: value.pop("regions_digest"), "RG441"),
    "unknown region": (lambda value: value["edges"][0].update(source=77), "RG404"),
    "edge into the output": (lambda value: value["edges"].append({"source": 2, "target": 4}), "RG404"),
    "edges that are no list": (lambda value: value.update(edges="all"), "RG441"),
    "shape that is none": (lambda value: value["edges"][0].update(shape="large"), "RG441"),
    "form that is no text": (lambda value: value["edges"][0].update(form=3), "RG441"),
}


def relay(value: dict[str, Any]) -> None:
    """A plan in which 2 hears from 3 and sends to 1, so that more can go wrong."""
    value["edges"] = [{"source": 4, "target": 3}, {"source": 3, "target": 2}, {"source": 2, "target": 1}]


@pytest.mark.parametrize("name", EDITS)
def test_a_plan_edited_wrongly_is_refused(name: str) -> None:
    change, code = EDITS[name]
    text = edited(lambda value: (relay(value), change(value)))
    with pytest.raises(rg.ModelError) as error:
        remade(text)
    assert code in error.value.codes
    for problem in error.value.problems:
        assert problem.place
        assert problem.advice


@pytest.mark.parametrize(
    ("content", "causes"),
    [
        ("{", ["it is not JSON"]),
        ("7", ["neither a list of edges nor an object"]),
        ({"forms": {}}, ["it has no edges"]),
        ({"edges": ["4->3"], "gpus": 3}, ["'gpus' is none of"]),
        ({"edges": ["4->3"], "forms": []}, ["its forms are not an object"]),
        ({"edges": ["4->3"], "forms": {"3->2": "dense"}}, ["none of its edges"]),
        ({"edges": ["4->3"], "forms": {"4->3": 1}}, ["not a text"]),
        ([1, [1, 2, 3], {"source": "a", "target": 2}, None], ["is not an edge"] * 4),
        ("[" * 100_000, ["it is not JSON"]),
    ],
    ids=str,
)
def test_files_that_hold_no_wiring(tmp_path: Path, content: object, causes: list[str]) -> None:
    with pytest.raises(rg.ModelError) as error:
        planned(tmp_path, content)
    assert set(error.value.codes) == {"RG441"}
    for problem, cause in zip(error.value.problems, causes, strict=True):
        assert cause in problem.cause


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(rg.ModelError) as error:
        make_options(wiring=str(tmp_path / "none.json"))
    assert error.value.codes == ("RG101",)
    with pytest.raises(rg.ModelError) as error:
        make_options(wiring=str(tmp_path / ".json"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(rg.ModelError) as error:
        make_options(wiring=str(tmp_path / "folder.json"))
    assert error.value.codes == ("RG441",)


def test_edges_in_any_order_give_one_plan(tmp_path: Path) -> None:
    edges = ["4->3", "3->2", "3->1", "2->1"]
    assert planned(tmp_path, edges) == planned(tmp_path, edges[::-1])


PLACED = [[number, min(number // 3, 1)] for number in range(5)]


def test_regions_live_where_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "wiring.json"
    path.write_text(json.dumps({"edges": ["5->4", "5->3", "3->2", "3->1"], "placement": [[0, 1], *PLACED[1:], [5, 0]]}))
    step = rg.compile(mlp(5, 6, 4, 6, 4, 3), torch.zeros(2, 5), gpus=2, wiring=str(path))
    assert dict(step.plan.placement) == {0: 1, 1: 0, 2: 0, 3: 1, 4: 1, 5: 0}
    lane = {action.task: action.lane for action in step.schedule.actions if isinstance(action, Run)}
    placed = dict(step.plan.placement)
    assert all(lane[task.name] == placed[task.region] for task in step.schedule.tasks.tasks if task.kind != "loss")
    again = tmp_path / "plan.json"
    again.write_text(plan_json(step.program), encoding="utf-8")
    saved = rg.compile(mlp(5, 6, 4, 6, 4, 3), torch.zeros(2, 5), gpus=2, wiring=str(again))
    assert saved.plan.placement == step.plan.placement
    assert saved.source == step.source


BAD_PLACEMENTS: dict[str, tuple[object, str]] = {
    "no list": ({"1": 0}, "RG441"),
    "no pair": ([[1, 0, 0]], "RG441"),
    "no number": ([["one", 0]], "RG441"),
    "a region left out": (PLACED[:-1], "RG443"),
    "a region twice": ([*PLACED, [1, 0]], "RG443"),
    "an unknown region": ([*PLACED, [9, 0]], "RG443"),
    "an unknown GPU": ([*PLACED[:-1], [4, 2]], "RG443"),
    "a GPU below 0": ([*PLACED[:-1], [4, -1]], "RG443"),
}


@pytest.mark.parametrize("name", BAD_PLACEMENTS)
def test_a_placement_that_cannot_be(name: str, tmp_path: Path) -> None:
    placement, code = BAD_PLACEMENTS[name]
    path = tmp_path / "wiring.json"
    path.write_text(json.dumps({"edges": ["4->3", "4->2", "4->1"], "placement": placement}), encoding="utf-8")
    refused(rg.ModelError, lambda: wire(regions(), make_options(gpus=2, wiring=str(path))), code)


def test_what_is_wrong_with_edges_names_the_file(tmp_path: Path) -> None:
    for edges in (["4->3"], ["4->3", "2->1", "1->2"], ["4->3", "4->9"]):
        with pytest.raises(rg.ModelError) as error:
            planned(tmp_path, edges)
        assert not [problem for problem in error.value.problems if problem.place == "wiring"]
