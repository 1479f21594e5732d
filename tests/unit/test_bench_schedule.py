"""``reclra bench schedule``: predicted against measured time by kind of task, and both traces."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import reclra_graph as rg
from reclra_graph.bench.schedule import measured, rank_correlation, usage_problems
from reclra_graph.errors import UsageError
from reclra_graph.ir.schedule import Run
from reclra_graph.runtime.probe import PROBE, probed, probed_source
from tests.models import batch_for, figure1, fresh, same, snapshot
from tests.unit.command import GOOD, Call, write


def test_traces_and_table(reclra: Call) -> None:
    write(GOOD)
    result = reclra("bench", "schedule", "net.py", "--gpus", "2", "--rounds", "2", "--warm-up", "1", "--out", "traces")
    assert result.status == 0, result.err
    for kind in ("forward", "loss", "target", "error", "update", "optimise", "all"):
        assert any(line.strip().startswith(kind) for line in result.out.splitlines()), kind
    predicted = json.loads(Path("traces/schedule.json").read_text(encoding="utf-8"))
    found = json.loads(Path("traces/schedule.measured.json").read_text(encoding="utf-8"))
    assert (predicted["otherData"]["kind"], found["otherData"]["kind"]) == ("predicted", "measured")
    assert predicted["otherData"]["digest"] == found["otherData"]["digest"]
    told = {name for event in predicted["traceEvents"] for name in event.get("args", {}).get("tasks", ())}
    ran = [event["name"] for event in found["traceEvents"] if event["ph"] == "X"]
    assert set(ran) == told
    assert len(set(ran)) == len(ran)
    lanes = {event["tid"] for event in predicted["traceEvents"]}
    assert lanes == {event["tid"] for event in found["traceEvents"]} == {0, 1}


def test_json(reclra: Call) -> None:
    write(GOOD)
    result = reclra("bench", "schedule", "net.py", "--json", "--device", "a100", "--rounds", "1", "--warm-up", "0")
    value = result.json()
    assert value["ok"]
    assert value["device"] == "a100"
    assert value["total"]["tasks"] == sum(row["tasks"] for row in value["kinds"])
    assert value["total"]["predicted"] == sum(row["predicted"] for row in value["kinds"])
    assert value["makespan"]["predicted"] > 0
    assert value["makespan"]["measured"] >= value["total"]["measured"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--device", "unit"), "RG405"),
        (("--device", "abacus"), "RG430"),
        (("--rounds", "0"), "RG405"),
        (("--warm-up", "-1"), "RG405"),
        (("--gpus", "0"), "RG401"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], code: str, reclra: Call) -> None:
    write(GOOD)
    result = reclra("bench", "schedule", "net.py", *arguments)
    assert result.status == 2
    assert code in result.err
    assert not Path("build").exists()


def test_a_probed_step_tells_every_task_and_does_the_same() -> None:
    step, twin = fresh(figure1()), fresh(figure1())
    inputs, target = batch_for(step)
    seen: list[str] = []
    twin.module = probed(twin.program, seen.append)
    assert same(step(inputs, target), twin(inputs, target))
    after, wanted = snapshot(twin), snapshot(step)
    assert all(same(value, after[key]) for key, value in wanted.items())
    assert seen == [*(action.task for action in step.schedule.actions if isinstance(action, Run)), ""]
    plain = [line for line in probed_source(step.program).splitlines() if PROBE not in line]
    assert plain == step.source.splitlines()


def test_measuring_teaches_the_model_nothing() -> None:
    step = fresh(figure1())
    normed = rg.compile(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), torch.zeros(5, 3))
    moments = [buffer.clone() for buffer in normed.model.buffers()]
    measured(normed, torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), None, 1, 1)
    assert all(same(value, before) for value, before in zip(normed.model.buffers(), moments, strict=True))
    before = snapshot(step)
    module = step.module
    inputs, target = batch_for(step)
    found = measured(step, inputs, target, None, 2, 1)
    assert step.module is module
    assert all(same(value, before[key]) for key, value in snapshot(step).items())
    for spans in found:
        assert spans[0].start == 0
        assert all(first.end == second.start for first, second in itertools.pairwise(spans))
    with pytest.raises(UsageError):
        measured(step, inputs, target, None, 0, 0)
    assert usage_problems("cpu", 1, 0) == ()


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == 1
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == -1
    assert rank_correlation([1, 1], [1, 2]) is None
    drawn = torch.arange(8).tolist()
    assert rank_correlation(drawn, [0, 0, 2, 2, 4, 4, 6, 6]) == pytest.approx(0.976, abs=1e-3)
