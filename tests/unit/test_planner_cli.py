"""The planner's options on the command line: budgets, wirings from files, kappa; what is said of idle GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.command import GOOD, Call, write


def test_a_plan_is_written_edited_and_compiled_again(reclra: Call) -> None:
    write(GOOD)
    assert reclra("compile", "net.py", "--out", "first", "--kappa", "1=0.5, 2=2").status == 0
    plan = json.loads(Path("first/plan.json").read_text(encoding="utf-8"))
    assert plan["rates"]["kappa"] == [{"region": 1, "value": 0.5}, {"region": 2, "value": 2.0}]
    assert len(plan["regions_digest"]) == 16
    assert plan["synapse_budget"] is None
    plan["edges"] = [{"source": 3, "target": 2}, {"source": 2, "target": 1, "form": "implicit"}]
    Path("edited.json").write_text(json.dumps(plan), encoding="utf-8")
    assert reclra("compile", "net.py", "--out", "second", "--wiring", "edited.json").status == 0
    again = json.loads(Path("second/plan.json").read_text(encoding="utf-8"))
    assert again["regions_digest"] == plan["regions_digest"]
    assert [(edge["source"], edge["target"], edge["form"]) for edge in again["edges"]] == [
        (2, 1, "implicit"),
        (3, 2, "dense"),
    ]


def test_a_budget_is_reported(reclra: Call) -> None:
    write(GOOD)
    result = reclra("compile", "net.py", "--out", "here", "--synapse-memory", "1KiB")
    assert result.status == 0
    report = Path("here/report.txt").read_text(encoding="utf-8")
    assert "budget" in report
    assert "1.0 KiB" in report
    assert "2 dense" in report
    assert json.loads(Path("here/plan.json").read_text(encoding="utf-8"))["synapse_budget"] == 1024


def test_more_gpus_than_regions_are_said_to_be_idle(reclra: Call) -> None:
    write(GOOD)
    result = reclra("compile", "net.py", "--out", "here", "--gpus", "40")
    assert result.status == 0
    wanted = "40 GPUs were asked for; the model has 3 regions, and the plan uses 3"
    assert wanted in result.out
    assert wanted in Path("here/report.txt").read_text(encoding="utf-8")
    assert wanted in reclra("compile", "net.py", "--out", "here", "--gpus", "40", "--json").json()["gpu_note"]


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        (("--kappa", "one=2"), ["RG405"]),
        (("--kappa", "1"), ["RG405"]),
        (("--kappa", "77=1"), ["RG405"]),
        (("--synapse-memory", "much"), ["RG405"]),
        (("--gpu-memory", "-3"), ["RG405"]),
        (("--synapse-memory", "5"), ["RG440"]),
        (("--wiring", "none.json"), ["RG101"]),
    ],
    ids=str,
)
def test_wrong_input(reclra: Call, options: tuple[str, ...], codes: list[str]) -> None:
    write(GOOD)
    result = reclra("compile", "net.py", "--json", *options)
    assert result.status != 0
    assert result.codes() == codes
