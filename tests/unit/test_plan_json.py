"""plan.json fits its schema, says what the plan says, and reads back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from reclra_graph.errors import ModelError
from reclra_graph.export.plan_json import plan_json, plan_value, read_plan
from reclra_graph.ir.program import StepProgram
from tests.unit.programs import MAKERS, branches, figure1


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def program(request: pytest.FixtureRequest) -> StepProgram:
    made: StepProgram = request.param().program
    return made


@pytest.fixture(scope="module")
def paper() -> StepProgram:
    return figure1().program


@pytest.fixture(scope="module")
def schema(root: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((root / "docs" / "plan.schema.json").read_text(encoding="utf-8"))
    return value


def test_the_schema_is_a_schema_and_closed(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)

    def visit(value: object) -> None:
        if isinstance(value, dict):
            if value.get("type") == "object":
                assert value["additionalProperties"] is False
                assert value["required"] == list(value["properties"])
            for item in value.values():
                visit(item)
        elif isinstance(value, list):
            for item in value:
                visit(item)

    visit(schema)


def test_plans_fit_the_schema(program: StepProgram, schema: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(plan_json(program)), schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda plan: plan.pop("digest"),
        lambda plan: plan.update(version=1),
        lambda plan: plan.update(seconds=1.0),
        lambda plan: plan["edges"][0].update(shape=[3]),
        lambda plan: plan["edges"][0].pop("bytes"),
        lambda plan: plan["edges"].append(plan["edges"][0]),
        lambda plan: plan["regions"][1].update(update=None),
        lambda plan: plan["regions"][1].update(kind="relay"),
        lambda plan: plan["rates"].update(beta=0),
    ],
)
def test_the_schema_refuses_what_is_no_plan(
    paper: StepProgram, schema: dict[str, Any], break_it: Callable[[dict[str, Any]], object]
) -> None:
    value = json.loads(plan_json(paper))
    break_it(value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)


def test_plan_of_figure_1(paper: StepProgram) -> None:
    plan = json.loads(plan_json(paper))
    assert plan["version"] == 2
    assert plan["gpus"] == 5
    assert plan["depth"] == 2
    assert plan["relays"] == [2, 5, 8]
    assert plan["makespan"] == 5
    assert plan["makespan_one"] == 18
    assert plan["makespan_chain"] == 10
    assert plan["digest"] == paper.digest
    assert [len(wave) for wave in plan["waves"]] == [3, 5]
    assert sum(candidate["chosen"] for candidate in plan["candidates"]) == 1
    pairs = {(edge["source"], edge["target"]) for edge in plan["edges"]}
    assert pairs == {(9, 8), (9, 5), (9, 2), (8, 7), (8, 6), (5, 4), (5, 3), (2, 1)}
    assert plan["regions"][1]["parameters"] == ["0.weight", "0.bias"]
    assert plan["regions"][0] == {
        "id": 0, "name": "input", "kind": "input", "shape": [20], "parameters": [], "update": None, "learns": False,
        "block": "", "line": "",
    }  # fmt: skip


def test_frozen_parameters_have_their_reason() -> None:
    frozen = {item["parameter"]: item["reason"] for item in json.loads(plan_json(branches().program))["frozen"]}
    assert {"side.bias", "unused.weight", "unused.bias"} <= set(frozen)
    assert all(frozen.values())


def test_reading_a_plan_back(program: StepProgram) -> None:
    saved = read_plan(plan_json(program))
    assert saved.digest == program.digest
    assert saved.edges == program.schedule.tasks.plan.edges
    assert saved.model == program.schedule.tasks.plan.regions.graph.model
    assert saved.data == plan_value(program)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "{}", '{"version": 1}', '{"version": true}', '{"version": "2"}', "[" * 100_000]
)
def test_reading_what_is_no_plan(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_plan(text)
    assert caught.value.codes == ("RG702",)


@pytest.mark.parametrize(
    ("break_it", "place"),
    [
        (lambda plan: plan.update(digest=""), "plan.json: digest"),
        (lambda plan: plan.update(model=None), "plan.json: model"),
        (lambda plan: plan.pop("edges"), "plan.json: edges"),
        (lambda plan: plan.update(regions=[1]), "plan.json: regions"),
        (lambda plan: plan["edges"].append(plan["edges"][0]), "plan.json: edges"),
        (lambda plan: plan["edges"][1].update(source=99), "plan.json: edges[1]"),
        (lambda plan: plan["edges"][1].update(source=True), "plan.json: edges[1]"),
        (lambda plan: plan["edges"][1].update(bytes=-1), "plan.json: edges[1]"),
        (lambda plan: plan["edges"][1].update(form=3), "plan.json: edges[1]"),
        (lambda plan: plan["edges"][1].update(shape=[0, 4]), "plan.json: edges[1]"),
        (lambda plan: plan["edges"][1].update(shape="4x4"), "plan.json: edges[1]"),
        (lambda plan: plan["edges"].__setitem__(1, "9->5"), "plan.json: edges[1]"),
    ],
)
def test_reading_a_damaged_plan(paper: StepProgram, break_it: Callable[[dict[str, Any]], object], place: str) -> None:
    value = json.loads(plan_json(paper))
    break_it(value)
    with pytest.raises(ModelError) as caught:
        read_plan(json.dumps(value))
    assert [(problem.code, problem.place) for problem in caught.value.problems] == [("RG702", place)]


def test_all_damage_is_found_at_once(paper: StepProgram) -> None:
    value = json.loads(plan_json(paper))
    value["digest"] = 7
    value["edges"][0]["source"] = -1
    value["edges"][2] = None
    with pytest.raises(ModelError) as caught:
        read_plan(json.dumps(value))
    assert len(caught.value.problems) == 3
