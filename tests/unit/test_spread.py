"""CUDA graphs over several GPUs, without one: each graph on one device, hand-overs between them, the eager numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from reclra_graph.errors import StepError
from reclra_graph.runtime import graphed, spread
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.graphed import GraphedStep
from reclra_graph.runtime.spread import Spread
from tests.models import STEPS, batch_for, build, changed, figure1_regions, fresh, residual_cnn, same, snapshot
from tests.unit.fake_cuda import Cuda, Torch, on_cuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(graphed, "torch", Torch(made))
    monkeypatch.setattr(spread, "torch", Torch(made))
    return made


def follows_the_step(step: CompiledStep, cuda: Cuda, gpus: int, **options: Any) -> Spread:
    """Train a step by graphs and its twin eagerly; bitwise the same, and every graph on one device."""
    twin, run = fresh(step), GraphedStep(on_cuda(step, cuda, gpus), warmup=1, **options)
    for number in range(4):
        inputs, target = batch_for(step, seed=number)
        torch.manual_seed(number)
        wanted = twin(inputs, target)
        torch.manual_seed(number)
        assert same(run(inputs, target), wanted)
        assert bool(run.why) == (number < 1)
    after = snapshot(run.step)
    assert all(same(value, after[key]) for key, value in snapshot(twin).items())
    (held,) = run.held.values()
    assert isinstance(held, Spread)
    return held


PLANS: list[dict[str, Any]] = [
    {"gpus": 2}, {"gpus": 5}, {"gpus": 3, "micro_batches": 2}, {"gpus": 5, "placement": "pipeline"},
    {"gpus": 3, "optimizer": "adamw"}, {"gpus": 3, "micro_batches": 2, "optimizer": "momentum", "weight_decay": 0.01},
]  # fmt: skip


@pytest.mark.parametrize("gpus", [2, 5])
@pytest.mark.parametrize("options", PLANS, ids=str)
def test_replayed_graphs_do_what_the_step_does(cuda: Cuda, options: dict[str, Any], gpus: int) -> None:
    held = follows_the_step(build(*figure1_regions(), **options), cuda, gpus)
    assert len({launch.stream.device.index for launch in held.launches}) == min(gpus, options["gpus"])
    assert cuda.log.count("begin") == len(held.launches)


@pytest.mark.parametrize("make", [make for make in STEPS if make is not STEPS[4]], ids=lambda make: make.__name__)
def test_steps_of_every_kind(cuda: Cuda, make: Callable[[], CompiledStep]) -> None:
    follows_the_step(make(), cuda, 2)


def test_graphs_of_a_device_share_their_memory_and_no_others(cuda: Cuda) -> None:
    follows_the_step(build(*figure1_regions(), gpus=5), cuda, 2)
    pools: dict[int, set[object]] = {}
    for graph in cuda.graphs:
        pools.setdefault(graph.stream.device.index, set()).add(graph.pool)
    assert [len(found) for found in pools.values()] == [1, 1]
    assert not set.intersection(*pools.values())


def test_lanes_on_one_gpu_can_be_taken_apart(cuda: Cuda) -> None:
    step = build(*figure1_regions(), gpus=3, micro_batches=2)
    held = follows_the_step(step, cuda, 1, places={0: 0, 1: 1, 2: 2})
    assert len(held.launches) > 2


def test_what_is_not_finite_changes_nothing(cuda: Cuda) -> None:
    step = on_cuda(residual_cnn(), cuda, 2)
    run, (inputs, target) = GraphedStep(step, warmup=0), batch_for(step)
    run(inputs, target)
    before = snapshot(step)
    broken = [item.clone() for item in inputs]
    broken[0][0, 0, 0, 0] = float("nan")
    with pytest.raises(StepError, match="RG604"):
        run(tuple(broken), target)
    assert changed(step, before) == set()
    assert torch.isfinite(run(inputs, target))


def test_a_step_from_files_is_captured_on_one_gpu_alone(cuda: Cuda) -> None:
    step = on_cuda(build(*figure1_regions(), gpus=2), cuda, 2)
    object.__setattr__(step.program, "lines", ())
    run = GraphedStep(step, warmup=0)
    run(*batch_for(step))
    assert "from files" in run.why


def test_what_cannot_be_captured_runs_as_it_is(cuda: Cuda) -> None:
    step = build(*figure1_regions(), gpus=2)
    cuda.fail = "operation not permitted when stream is capturing"
    run, twin, batch = GraphedStep(on_cuda(step, cuda, 2), warmup=0), fresh(step), batch_for(step)
    for _ in range(2):
        assert same(run(*batch), twin(*batch))
        assert run.why == f"the step cannot be captured: {cuda.fail}"
