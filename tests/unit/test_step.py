"""The step: what it moves, and that a refused one leaves parameters, buffers and synapses bitwise as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import (
    STEPS,
    Signum,
    batch_for,
    changed,
    dropouts,
    figure1,
    fresh,
    mlp,
    residual_cnn,
    snapshot,
    two_inputs,
)
from tests.unit.refusals import refused
from tests.unit.test_capture import Held


def test_a_step_needs_no_grad_mode_and_leaves_no_graph() -> None:
    step = fresh(figure1())
    x, target = batch_for(step)
    loss = step(x[0].requires_grad_(), target)
    assert loss.shape == ()
    assert not loss.requires_grad
    assert all(parameter.grad is None for parameter in step.model.parameters())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in step.model.parameters())
    with torch.inference_mode(False), torch.no_grad():
        step(x[0].detach(), target)


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_every_learning_parameter_moves(make: Callable[[], CompiledStep]) -> None:
    step = fresh(make())
    before = snapshot(step)
    step(*batch_for(step))
    assert changed(step, before) == set(before)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_any_batch_size(size: int) -> None:
    step = fresh(figure1())
    assert bool(step(*batch_for(step, size)).isfinite())


def test_buffers_after_steps_are_the_models_own() -> None:
    step = fresh(residual_cnn())
    twin = copy.deepcopy(step.model).train()
    for seed in range(3):
        x, target = batch_for(step, seed=seed)
        with torch.no_grad():
            twin.load_state_dict({**twin.state_dict(), **dict(step.model.named_parameters())})
            twin(*x)
        step(x, target)
        theirs, ours = dict(twin.named_buffers()), dict(step.model.named_buffers())
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value)
        assert int(ours["norm.num_batches_tracked"]) == seed + 1


def test_buffers_of_other_kinds() -> None:
    torch.manual_seed(0)
    model = Held()
    step = rg.compile(model, torch.zeros(3, 4))
    twin = copy.deepcopy(model)
    x = torch.randn(5, 4)
    with torch.no_grad():
        wanted = F.cross_entropy(twin(x), torch.tensor([0, 1, 2, 0, 1]))
    torch.testing.assert_close(step(x, torch.tensor([0, 1, 2, 0, 1])), wanted)
    torch.testing.assert_close(model.seen, twin.seen)
    assert bool(model.seen.abs().sum() > 0)
    # The model's own buffer counts, also where it is not saved.
    model.shift += 1.0
    twin.shift += 1.0
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        wanted = F.cross_entropy(twin(x), torch.tensor([0, 1, 2, 0, 1]))
    torch.testing.assert_close(step(x, torch.tensor([0, 1, 2, 0, 1])), wanted)


def test_dropouts_draw_from_torchs_generator() -> None:
    step = dropouts()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(fresh(step)(*batch_for(step))))
    assert losses[0] == losses[1] != losses[2]


@cache
def signum() -> CompiledStep:
    torch.manual_seed(0)
    return rg.compile(mlp(4, 6, 6, 3, activation=Signum), torch.zeros(2, 4), gpus=2)


@cache
def with_norm(loss: str) -> CompiledStep:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    return rg.compile(model, torch.zeros(2, 4), gpus=2, loss=loss)


def spoilt(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x.view(-1)[1] = value
    return x


GOOD = (torch.linspace(-1, 1, 12).reshape(3, 4), torch.tensor([0, 1, 2]))
VALUES = torch.linspace(0, 1, 9).reshape(3, 3)
CE, MSE, BCE = (lambda: with_norm("cross-entropy")), (lambda: with_norm("mse")), (lambda: with_norm("bce-with-logits"))

REFUSED_STEPS: dict[str, tuple[Callable[[], CompiledStep], Any, Any, str]] = {
    "two inputs": (CE, (GOOD[0], GOOD[0]), GOOD[1], "RG601"),
    "no inputs": (CE, (), GOOD[1], "RG601"),
    "inputs of None": (CE, None, GOOD[1], "RG601"),
    "a list of numbers": (CE, [1.0, 2.0], GOOD[1], "RG601"),
    "a target of None": (CE, GOOD[0], None, "RG602"),
    "too wide": (CE, torch.zeros(3, 5), GOOD[1], "RG601"),
    "too many dimensions": (CE, torch.zeros(3, 4, 1), GOOD[1], "RG601"),
    "input on another device": (CE, torch.zeros(3, 4, device="meta"), GOOD[1], "RG601"),
    "target on another device": (CE, GOOD[0], GOOD[1].to("meta"), "RG602"),
    "no dimensions": (CE, torch.tensor(1.0), GOOD[1], "RG601"),
    "an empty batch": (CE, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), "RG601"),
    "double": (CE, GOOD[0].double(), GOOD[1], "RG601"),
    "whole numbers": (CE, GOOD[0].long(), GOOD[1], "RG601"),
    "a short target": (CE, GOOD[0], GOOD[1][:2], "RG602"),
    "a target in columns": (CE, GOOD[0], GOOD[1][:, None], "RG602"),
    "a float target": (CE, GOOD[0], GOOD[1].float(), "RG602"),
    "an int32 target": (CE, GOOD[0], GOOD[1].int(), "RG602"),
    "probabilities": (CE, GOOD[0], VALUES, "RG602"),
    "a class too high": (CE, GOOD[0], torch.tensor([0, 1, 3]), "RG603"),
    "a negative class": (CE, GOOD[0], torch.tensor([0, -100, 1]), "RG603"),
    "NaN in the input": (CE, spoilt(GOOD[0], float("nan")), GOOD[1], "RG604"),
    "infinity in the input": (CE, spoilt(GOOD[0], -float("inf")), GOOD[1], "RG604"),
    "NaN into a signum net": (signum, spoilt(GOOD[0], float("nan")), GOOD[1], "RG604"),
    "infinity into a signum net": (signum, spoilt(GOOD[0], float("inf")), GOOD[1], "RG604"),
    "classes for mse": (MSE, GOOD[0], GOOD[1], "RG602"),
    "a narrow mse target": (MSE, GOOD[0], VALUES[:, :2], "RG602"),
    "an integer mse target": (MSE, GOOD[0], VALUES.long(), "RG602"),
    "a double mse target": (MSE, GOOD[0], VALUES.double(), "RG602"),
    "NaN in the mse target": (MSE, GOOD[0], spoilt(VALUES, float("nan")), "RG604"),
    "an mse target beyond reach": (MSE, GOOD[0], spoilt(VALUES, 1e30), "RG604"),
    "a bce target above one": (BCE, GOOD[0], VALUES * 1.1, "RG603"),
    "a negative bce target": (BCE, GOOD[0], VALUES - 0.1, "RG603"),
    "NaN in the bce target": (BCE, GOOD[0], spoilt(VALUES, float("nan")), "RG603"),
    "a flat bce target": (BCE, GOOD[0], VALUES.flatten(), "RG602"),
}


@pytest.mark.parametrize("name", REFUSED_STEPS)
def test_steps_that_are_refused_change_nothing(name: str) -> None:
    make, inputs, target, code = REFUSED_STEPS[name]
    step = fresh(make())
    step(GOOD[0], GOOD[1] if step.plan.losses[0].classes else VALUES)
    before = snapshot(step)
    error = refused(rg.StepError, lambda: step(inputs, target), code)
    assert isinstance(error, ValueError)
    assert changed(step, before) == set()
    # The same for gradients, which a user applies by hand.
    refused(rg.StepError, lambda: rg.assign_grads(step, inputs, target), code)
    assert changed(step, before) == set()
    assert all(parameter.grad is None for parameter in step.model.parameters())
    step(GOOD[0], GOOD[1] if step.plan.losses[0].classes else VALUES)
    assert len(changed(step, before)) > 2


def test_a_broken_parameter_is_reported() -> None:
    for make, key in ((signum, "4.weight"), (CE, "0.weight")):
        step = fresh(make())
        with torch.no_grad():
            dict(step.model.named_parameters())[key][0, 0] = float("nan")
        before = snapshot(step)
        refused(rg.StepError, lambda step=step: step(*GOOD), "RG604")  # type: ignore[misc]
        assert changed(step, before) == set()


def test_large_inputs_are_no_error() -> None:
    # Their sum does not fit into float32, each of them does.
    wide = rg.compile(mlp(4, 3, 2), torch.zeros(2, 4))
    assert bool(wide(torch.full((3, 4), 2e38), torch.tensor([0, 1, 1])).isfinite())


def test_batch_norm_over_one_sample_is_refused_as_pytorch_does() -> None:
    # PyTorch raises: the variance of one value is not a number, and running statistics would stay NaN for ever.
    step = fresh(CE())
    before = snapshot(step)
    with pytest.raises(ValueError, match=r"[Nn]orm|per channel|RG6"):
        step(GOOD[0][:1], GOOD[1][:1])
    assert changed(step, before) == set()


def test_a_target_of_the_wrong_shape_for_two_inputs() -> None:
    step = fresh(two_inputs())
    x, target = batch_for(step)
    before = snapshot(step)
    refused(rg.StepError, lambda: step((x[1], x[0]), target), "RG601")
    refused(rg.StepError, lambda: step((x[0], x[1][:2]), target), "RG601")
    refused(rg.StepError, lambda: step(x[0], target), "RG601")
    assert changed(step, before) == set()
    assert bool(step(list(x), target).isfinite())


def test_a_batch_may_lie_in_memory_in_another_order_than_the_example() -> None:
    """A view of the example's values, such as the flattened map of a convolution, is a copy where strides differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(1), nn.Linear(4 * 8 * 8, 3)).double()
    twin = copy.deepcopy(model)
    x, target = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    for update in ("analytic", "local_vjp"):
        rg.compile(model, x, update=update)(x, target)
        rg.compile(twin, x, update=update)(x.to(memory_format=torch.channels_last), target)
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_local_derivatives_take_errors_of_any_strides() -> None:
    """An error behind a transposed map, as of the patches of an image, is no view of a matrix."""
    torch.manual_seed(0)
    patches, mix = nn.Conv2d(1, 6, 4, 4), nn.Linear(6, 6)

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.mix, self.head = patches, mix, nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.head((x + self.mix(x)).mean(1))

    step = rg.compile(Patches(), torch.rand(4, 1, 8, 8), update="local_vjp", wiring="flat")
    before = mix.weight.clone()
    step(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    assert not torch.equal(before, mix.weight)
