"""The whole step as one graph of operators: run as it stands, it does what the emitted step does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.plain_sums import plain_sums
from reclra_graph.runtime.traced import Traced, batch_size, flat_tensors, traced
from tests.models import STEPS, batch_for, figure1, fresh, residual_cnn, same, snapshot


def graph_of(step: CompiledStep, inputs: Any, target: Any) -> tuple[Traced, list[Tensor]]:
    """The traced step, and what it takes on this batch."""
    given, goal = step.arguments(inputs, target)
    rate = torch.tensor(step.lr, dtype=torch.float64)
    found = traced(step, given, goal, rate)
    flat = flat_tensors(step, given, [goal] if isinstance(goal, Tensor) else list(goal.values()), rate)
    return found, [flat[index] for index in found.used]


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_the_graph_does_what_the_step_does(make: Callable[[], CompiledStep]) -> None:
    step, twin = fresh(make()), fresh(make())
    inputs, target = batch_for(step)
    found, tensors = graph_of(twin, inputs, target)
    assert all(same(value, snapshot(step)[key]) for key, value in snapshot(twin).items())  # tracing changes nothing
    for _ in range(2):
        torch.manual_seed(5)
        wanted = step(inputs, target)
        torch.manual_seed(5)
        with torch.no_grad():
            loss, finite = found.module(*tensors)
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)  # the rate is a tensor: its product rounds apart
        assert bool(finite)
    after = snapshot(twin)
    for key, value in snapshot(step).items():
        torch.testing.assert_close(after[key], value, rtol=1e-6, atol=1e-7)


def test_a_rate_is_an_input_of_the_graph() -> None:
    step = fresh(figure1())
    found, tensors = graph_of(step, *batch_for(step))
    before = snapshot(step)
    tensors[-1].zero_()
    with torch.no_grad():
        found.module(*tensors)
    assert all(same(value, before[key]) for key, value in snapshot(step).items())
    tensors[-1].fill_(0.5)
    with torch.no_grad():
        found.module(*tensors)
    assert not all(same(value, before[key]) for key, value in snapshot(step).items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_changes_nothing(bad: float) -> None:
    step = fresh(residual_cnn())  # with running statistics
    inputs, target = batch_for(step)
    inputs[0][0, 0, 0, 0] = bad
    found, tensors = graph_of(step, inputs, target)
    before = snapshot(step)
    with torch.no_grad():
        _, finite = found.module(*tensors)
    assert not finite
    assert all(same(value, before[key]) for key, value in snapshot(step).items())


def test_the_graph_has_no_derivative_and_one_store_for_each_thing_that_learns() -> None:
    step = fresh(residual_cnn())
    found, _ = graph_of(step, *batch_for(step))
    names = [str(node.target) for node in found.module.graph.nodes if node.op == "call_function"]
    stores = names.count("aten.copy_.default")
    assert stores == names.count("aten.where.self")
    learned = len(step.schedule.tasks.learned)
    assert stores == learned + sum(1 for _ in step.model.buffers())
    assert not [name for name in names if name.endswith("_.default") and name != "aten.copy_.default"]


def test_what_is_repeated_is_computed_once() -> None:
    step = fresh(figure1())  # every synapse learns from its source's error times itself
    found, _ = graph_of(step, *batch_for(step))
    products = [node for node in found.module.graph.nodes if node.target is torch.ops.aten.mm.default]
    squares = [node for node in products if node.meta["val"].shape == (10, 10)]
    assert len(step.synapses) > 1
    assert len(squares) == 1
    assert len({(node.target, repr(node.args)) for node in products}) == len(products)


def test_no_product_is_added_to_a_map() -> None:
    # It would have to be written down first; a bias is no map.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(2048, 3))
    step = rg.compile(net, torch.zeros(2, 1, 16, 16))
    assert "torch.addmm" in step.source  # as it is fastest operator by operator
    twin = fresh(step)
    inputs, target = batch_for(step)
    found, tensors = graph_of(twin, inputs, target)
    added = [node for node in found.module.graph.nodes if node.target is torch.ops.aten.addmm.default]
    assert [node.args[0].meta["val"].dim() for node in added] == [1]
    step(inputs, target)
    with torch.no_grad():
        found.module(*tensors)
    after = snapshot(twin)
    for key, value in snapshot(step).items():
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-7)


def test_batches_are_checked_before_they_are_traced() -> None:
    step = fresh(figure1())
    inputs, target = batch_for(step)
    given, goal = step.arguments(inputs, target)
    assert batch_size(step, given, goal) == 4
    for wrong, code in (
        (([given[0][:, 1:]], goal), "RG601"),
        (([given[0].double()], goal), "RG601"),
        ((given, goal[1:]), "RG602"),
        ((given, goal + 100), "RG603"),
    ):
        with pytest.raises(ValueError, match=code):
            batch_size(step, *wrong)  # type: ignore[arg-type]
    assert same(step(inputs, target), fresh(figure1())(inputs, target))  # the file's own checks are back


def test_a_factor_of_a_sum_is_a_product_of_its_own() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sub(
                self.last(torch.add(x, torch.tanh(self.first(x)) @ x.T @ x, alpha=0.25)), x[:, :3], alpha=2
            )

    torch.manual_seed(0)
    step = rg.compile(Scaled(), torch.randn(4, 6))
    found, tensors = graph_of(step, torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    plain_sums(found.module)
    sums = [node for node in found.module.graph.nodes if "add" in str(node.target) or "sub" in str(node.target)]
    assert sums
    assert not any(node.kwargs for node in sums)
    assert len(tensors) == len(found.used)
