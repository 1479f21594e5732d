"""CUDA graphs without CUDA: on one GPU a step is two of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import reclra_graph as rg
from reclra_graph.errors import StepError, UsageError
from reclra_graph.runtime import graphed
from reclra_graph.runtime.graphed import GraphedStep
from tests.models import batch_for, build, dropouts, figure1_regions, fresh, mlp, same, snapshot, tagger
from tests.unit.fake_cuda import Cuda, OnCuda, Torch, on_cuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(graphed, "torch", Torch(made))
    return made


def step_of(cuda: Cuda, **options: Any) -> OnCuda:
    return on_cuda(build(*figure1_regions(), **options), cuda)


PLANS: list[dict[str, Any]] = [
    {"gpus": 1}, {"gpus": 5}, {"gpus": 3, "micro_batches": 2}, {"gpus": 5, "placement": "pipeline"},
]  # fmt: skip


@pytest.mark.parametrize("options", PLANS, ids=str)
def test_a_step_is_two_graphs_with_all_lanes_forked_and_joined(cuda: Cuda, options: dict[str, Any]) -> None:
    step = step_of(cuda, **options)
    run, twin = step.graphed(), fresh(build(*figure1_regions(), **options))
    for number in range(4):
        inputs, target = batch_for(step, seed=number)
        assert same(run(inputs, target), twin(inputs, target))
        assert bool(run.why) == (number < 2)
    assert all(same(value, snapshot(twin)[key]) for key, value in snapshot(step).items())
    ended = f"end, {len(step.schedule.lanes)} streams"
    assert cuda.log == ["begin", ended, "begin", ended, *["replay"] * 4]
    assert step.module.__dict__["check"].__name__ == "check", "the file is as it was"


def test_lanes_that_the_step_leaves_apart_are_joined_by_the_graph(cuda: Cuda) -> None:
    step = step_of(cuda, gpus=5)
    lines = step.source.splitlines()
    last = max(number for number, line in enumerate(lines) if line.strip().startswith("wait("))
    faked = {name: step.module.__dict__[name] for name in ("torch", "lane_device", "Lanes")}
    exec(compile("\n".join([*lines[:last], *lines[last + 1 :]]), "step", "exec"), step.module.__dict__)
    step.module.__dict__.update(faked)
    run, (inputs, target) = GraphedStep(step, warmup=0), batch_for(step)
    run(inputs, target)
    assert not run.why
    assert cuda.log.count("end, 5 streams") == 2


def test_shapes_and_rates_are_captured_apart(cuda: Cuda) -> None:
    step = step_of(cuda)
    run = GraphedStep(step, warmup=0, most=2)
    for size, begun in ((4, 2), (5, 4), (4, 4), (6, 4)):
        run(*batch_for(step, size))
        assert cuda.log.count("begin") == begun
    assert "more than 2 shapes" in run.why
    step.lr = 0.5
    run(*batch_for(step, 4))
    assert cuda.log.count("begin") == 6
    with torch.no_grad():
        for parameter in step.model.parameters():
            parameter.data = parameter.data.clone()
    run(*batch_for(step, 4))
    assert cuda.log.count("begin") == 8, "the parameters are elsewhere now"
    assert len(run.held) == 2


def test_a_loss_that_is_not_finite_is_refused_between_the_graphs(cuda: Cuda) -> None:
    step = step_of(cuda, gpus=2)
    run, (inputs, target) = GraphedStep(step, warmup=0), batch_for(step)
    run(inputs, target)
    (held,) = run.held.values()
    held.finite = torch.tensor(False)
    count = cuda.log.count("replay")
    with pytest.raises(StepError, match="RG604"):
        run(inputs, target)
    assert cuda.log.count("replay") == count + 1


def test_targets_go_by_their_labels_and_not_by_their_order(cuda: Cuda) -> None:
    made = tagger()
    step = on_cuda(fresh(made), cuda)
    inputs, target = batch_for(made)
    turned = dict(reversed(target.items()))
    first, second = step.arguments(inputs, target)[1], step.arguments(inputs, turned)[1]
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert list(first) == list(second)


def test_inputs_are_copied_into_the_graphs_own(cuda: Cuda) -> None:
    step = step_of(cuda)
    run = GraphedStep(step, warmup=0)
    for seed in (1, 2):
        inputs, target = batch_for(step, seed=seed)
        run(inputs, target)
        (held,) = run.held.values()
        assert [torch.equal(a, b) for a, b in zip(held.given, [*inputs, target], strict=True)] == [True, True]
        assert all(a is not b for a, b in zip(held.given, [*inputs, target], strict=True))


def test_what_cannot_be_captured_runs_as_it_is(cuda: Cuda) -> None:
    step = step_of(cuda, gpus=3, overlap_steps=True)
    run, (inputs, target) = GraphedStep(step, warmup=0), batch_for(step)
    assert isinstance(run(inputs, target), Tensor)
    assert "overlap" in run.why
    cuda.fail = "operation not permitted when stream is capturing"
    run = GraphedStep(step_of(cuda), warmup=0)
    assert isinstance(run(inputs, target), Tensor)
    assert run.why == f"the step cannot be captured: {cuda.fail}"
    assert "begin" in cuda.log


def test_random_numbers_do_not_hinder_a_graph(cuda: Cuda) -> None:
    step = on_cuda(dropouts(), cuda)
    run = GraphedStep(step, warmup=0)
    run(*batch_for(step))
    assert run.why == ""


def test_without_cuda_graphs_are_refused() -> None:
    step = rg.compile(mlp(4, 3), torch.zeros(2, 4))
    with pytest.raises(UsageError, match="RG606"):
        step.graphed()
