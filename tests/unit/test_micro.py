"""Micro-batches and placed regions: the numbers are those of the ordinary step, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
import reclra_graph.api
from reclra_graph.errors import ModelError, StepError
from reclra_graph.ir.regions import RegionGraph
from tests.models import (
    Dropouts,
    LocalNet,
    ResidualCNN,
    Tagger,
    Tied,
    TwoInputs,
    batch_for,
    build,
    mlp,
    regions_of,
    snapshot,
)

BUILDS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], dict[str, Any]]] = {
    "mlp": (lambda: mlp(6, 8, 4, 8, 3), (torch.zeros(4, 6),), {"depth": 2}),
    "two_inputs": (TwoInputs, (torch.zeros(4, 1, 4, 4), torch.zeros(4, 5)), {"wiring": "chain", "loss": "mse"}),
    "tied": (Tied, (torch.zeros(4, 6),), {}),
    "local": (LocalNet, (torch.zeros(4, 6),), {}),
    "weights": (
        lambda: mlp(6, 8, 8, 3), (torch.zeros(4, 6),),
        {"class_weights": (1.0, 2.0, 0.5), "ignore_index": 1, "label_smoothing": 0.1},
    ),
    "tagger": (
        Tagger, (torch.zeros(4, 3, 4),),
        {"loss": {"logits": "cross-entropy", "value": "mse"}, "label_smoothing": 0.1, "ignore_index": 1},
    ),
}  # fmt: skip


@cache
def regions(name: str) -> tuple[nn.Module, RegionGraph]:
    make, inputs, usual = BUILDS[name]
    torch.manual_seed(3)
    model = make().double()
    loss = rg.api.make_options(loss=usual.get("loss", "cross-entropy")).loss
    return model, regions_of(model, *(item.double() for item in inputs), loss=loss)


def built(name: str, **options: Any) -> rg.CompiledStep:
    """A step over a copy of the model, which is captured once for all tests."""
    model, graph = regions(name)
    given = rg.api.make_options(**{"gamma": 0.5, **BUILDS[name][2], **options})
    return build(model, graph, **{field.name: getattr(given, field.name) for field in fields(given)})


def given(step: rg.CompiledStep, size: int, seed: int) -> tuple[Any, Any]:
    return batch_for(step, size, seed)


def apart(first: rg.CompiledStep, second: rg.CompiledStep) -> float:
    ours, theirs = snapshot(first), snapshot(second)
    assert ours.keys() == theirs.keys()
    return max((ours[key].double() - theirs[key].double()).abs().max().item() for key in ours)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", BUILDS)
def test_micro_batches_learn_what_the_whole_batch_does(name: str, count: int) -> None:
    whole, parts = built(name, gpus=2), built(name, gpus=2, micro_batches=count)
    for number in range(2):
        inputs, target = given(whole, 12, number)
        assert abs(whole(inputs, target).item() - parts(inputs, target).item()) < 1e-12
    assert apart(whole, parts) < 1e-12


@pytest.mark.parametrize("gpus", [1, 2, 3])
@pytest.mark.parametrize("name", BUILDS)
def test_placed_regions_compute_bitwise_the_same(name: str, gpus: int) -> None:
    together = built(name)
    options = {"overlap_steps": True} if gpus == 2 else {"placement": "pipeline"}
    placed = built(name, gpus=gpus, **options)
    assert len(placed.schedule.lanes) == min(gpus, 3)
    for number in range(2):
        inputs, target = given(together, 4, number)
        assert together(inputs, target).item() == placed(inputs, target).item()
    assert apart(together, placed) == 0


def test_a_part_without_counted_targets_adds_nothing() -> None:
    whole, parts = built("weights"), built("weights", micro_batches=2)
    inputs, target = given(whole, 4, 0)
    target[:2], target[2:] = 1, 2
    assert abs(whole(inputs, target).item() - parts(inputs, target).item()) < 1e-12
    assert apart(whole, parts) < 1e-12
    with pytest.raises(StepError, match="RG604"):
        parts(inputs, torch.ones_like(target))


def test_batch_norm_sees_one_micro_batch_after_the_other() -> None:
    torch.manual_seed(3)
    model = ResidualCNN().double()
    step = rg.compile(copy.deepcopy(model), torch.zeros(4, 1, 6, 6).double(), micro_batches=3, gpus=2)
    inputs, target = batch_for(step, 6)
    model.train()
    losses = [
        nn.functional.cross_entropy(model(x), t) for x, t in zip(inputs[0].chunk(3), target.chunk(3), strict=True)
    ]
    assert abs(step(inputs, target).item() - sum(item.item() for item in losses) / 3) < 1e-12
    for key, value in dict(model.named_buffers()).items():
        assert torch.allclose(dict(step.model.named_buffers())[key], value, rtol=0, atol=1e-12), key


@pytest.mark.parametrize("gpus", [1, 2, 3])
def test_random_numbers_are_drawn_micro_batch_by_micro_batch(gpus: int) -> None:
    torch.manual_seed(3)
    model = Dropouts().double()
    inputs = torch.zeros(4, 6).double()
    first = rg.compile(copy.deepcopy(model), inputs, micro_batches=3)
    step = rg.compile(copy.deepcopy(model), inputs, micro_batches=3, gpus=gpus)
    x, target = batch_for(step, 6)
    torch.manual_seed(8)
    model.train()
    losses = [nn.functional.cross_entropy(model(a), t) for a, t in zip(x[0].chunk(3), target.chunk(3), strict=True)]
    torch.manual_seed(8)
    assert abs(step(x, target).item() - sum(item.item() for item in losses) / 3) < 1e-12
    torch.manual_seed(8)
    first(x, target)
    assert apart(first, step) == 0


def test_a_batch_that_does_not_divide_is_refused() -> None:
    step = built("mlp", micro_batches=3)
    before = snapshot(step)
    with pytest.raises(StepError, match=r"RG601 .*a batch of 4 cannot be cut into 3"):
        step(*given(step, 4, 0))
    assert all(torch.equal(value, before[key]) for key, value in snapshot(step).items())


def test_a_fixed_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="RG450"):
        rg.compile(mlp(6, 8, 3), torch.zeros(4, 6), micro_batches=2, frontend="record")


def test_the_check_comes_before_anything_changes() -> None:
    step = built("mlp", micro_batches=2, gpus=3)
    inputs, target = given(step, 4, 0)
    before = snapshot(step)
    inputs[0][3, 0] = float("inf")
    with pytest.raises(StepError, match="RG604"):
        step(inputs, target)
    assert all(torch.equal(value, before[key]) for key, value in snapshot(step).items())


def test_gradients_are_those_of_the_whole_batch() -> None:
    whole, parts = built("mlp"), built("mlp", micro_batches=2)
    inputs, target = given(whole, 4, 0)
    (_, ours, ours_e), (_, theirs, theirs_e) = whole.deltas(inputs, target), parts.deltas(inputs, target)
    for first, second in ((ours, theirs), (ours_e, theirs_e)):
        assert first.keys() == second.keys()
        assert all(torch.allclose(first[key], second[key], rtol=0, atol=1e-13) for key in first)
