"""The methods that are compiled steps: what their plans hold, that they learn, and what is known of their numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reclra_graph.methods.build import build
from reclra_graph.methods.registry import METHODS
from reclra_graph.methods.step_learner import StepLearner
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import ResidualCNN, mlp

STEPS = [name for name, method in METHODS.items() if method.loop == "step"]
WIDTHS = (6, 8, 7, 5, 3)


def step_of(name: str, model: nn.Module, x: Tensor, **options: Any) -> CompiledStep:
    learner = build(name, model, (x,), **options)
    assert isinstance(learner, StepLearner)
    return learner.step


def batch(*shape: int, count: int = 16) -> tuple[Tensor, Tensor]:
    """Samples of three classes that can be told apart."""
    y = torch.arange(count) % 3
    x = 0.3 * torch.randn(count, *shape)
    x.flatten(1)[torch.arange(count), y] += 2
    return x, y


@pytest.mark.parametrize("name", STEPS)
def test_a_plan_is_what_the_method_says(name: str) -> None:
    x, _ = batch(6)
    options = METHODS[name].options
    plan = step_of(name, mlp(*WIDTHS), x).plan
    rules = {edge.rule for edge in plan.edges}
    if name == "local":  # readouts hear from the target; what hangs on a relay cannot
        rules.discard("dkp")
    assert rules == {options.get("rule", "eq6")}
    if options.get("wiring", "auto") != "blocks":  # a chain of layers has none
        assert plan.wiring in (options.get("wiring", plan.wiring), "chain")
    assert getattr(plan.rates, "errors", "difference") == options.get("errors", "difference")
    assert {kind for _, kind in plan.update} == {options.get("update", "analytic")}
    assert plan.rates.gamma == options.get("gamma", plan.rates.gamma)


@pytest.mark.parametrize("name", STEPS)
def test_it_learns(name: str) -> None:
    x, y = batch(6)
    learner = build(name, mlp(*WIDTHS), (x,), optimizer="adamw")
    losses = [float(learner.learn(x, y, 3e-3)) for _ in range(200)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("name", STEPS)
def test_it_learns_a_residual_net(name: str) -> None:
    x, y = batch(1, 8, 8)
    learner = build(name, ResidualCNN(), (x,), optimizer="adamw")
    losses = [float(learner.learn(x, y, 1e-2)) for _ in range(100)]
    assert losses[-1] < 0.9 * losses[0]


def test_own_options_win_over_the_methods() -> None:
    x, _ = batch(6)
    assert step_of("reclra-dkp", mlp(*WIDTHS), x, wiring="chain").plan.wiring == "chain"
    assert step_of("lra-e", mlp(*WIDTHS), x, gamma=0.5).plan.rates.gamma == 0.5


def test_kolen_pollack_synapses_come_to_lie_along_the_weights() -> None:
    torch.manual_seed(1)
    x, y = batch(6, count=60)
    model = mlp(*WIDTHS)
    learner = build("lra-e", model, (x,), weight_decay=0.01)
    assert isinstance(learner, StepLearner)

    def alignment() -> float:
        cosines = []
        for synapse, value in learner.step.synapses.items():
            weight = model[2 * (int(synapse.split("->")[0]) - 1)].weight.detach()  # type: ignore[operator]
            held = value if value.shape == weight.shape else value.T
            cosines.append(float(nn.functional.cosine_similarity(held.flatten(), weight.flatten(), dim=0)))
        return sum(cosines) / len(cosines)

    before = alignment()
    for _ in range(300):
        learner.learn(x, y, 0.5)
    assert alignment() > max(0.8, before + 0.3)
