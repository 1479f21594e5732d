"""What is cheap is computed again behind the loss: the step is the same, and less is held until then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import reclra_graph as rg
from reclra_graph.bench.step_memory import added_bytes
from reclra_graph.runtime import recompute as under_test
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.fused import FusedStep
from reclra_graph.runtime.traced import Traced, flat_tensors, traced
from tests.bench.memory import LIMIT, measured_peak
from tests.models import STEPS, ResidualCNN, batch_for, fresh, mlp, same, snapshot
from tests.unit.test_fused import needs_compiler


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets for tests hold little."""
    monkeypatch.setattr(under_test, "SMALL", 0)


def graphs(step: CompiledStep, inputs: Any, target: Any, *kinds: bool) -> list[tuple[Traced, list[Tensor]]]:
    """The traced step, lean or not, and what it takes on this batch."""
    given, goal = step.arguments(inputs, target)
    goals = [goal] if isinstance(goal, Tensor) else list(goal.values())
    rate = torch.tensor(step.lr, dtype=torch.float64)
    flat = flat_tensors(step, given, goals, rate)
    found = [traced(step, given, goal, rate, lean) for lean in kinds]
    return [(item, [flat[index] for index in item.used]) for item in found]


def normalised() -> CompiledStep:
    """Layer norms with parameters and without, over activations of several kinds, in two dtypes."""
    layers = [nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8, elementwise_affine=False)]
    model = nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 3)).double()
    return rg.compile(model, torch.zeros(4, 5, 6, dtype=torch.float64), wiring="flat")


def images() -> CompiledStep:
    torch.manual_seed(0)
    return rg.compile(ResidualCNN().double(), torch.randn(4, 1, 28, 28, dtype=torch.float64), wiring="flat")


@pytest.mark.parametrize("make", [*STEPS, normalised, images], ids=lambda make: make.__name__)
def test_the_step_is_the_same(make: Callable[[], CompiledStep]) -> None:
    step = fresh(make())
    twin = copy.deepcopy(snapshot(step))
    inputs, target = batch_for(step)
    exact = next(step.model.parameters()).dtype == torch.float64
    if exact:
        inputs = tuple(item.double() for item in inputs)
    (plain, tensors), (lean, others) = graphs(step, inputs, target, False, True)
    others = [item.clone() for item in others]
    with torch.no_grad():
        torch.manual_seed(5)
        wanted, _ = plain.module(*tensors)
        torch.manual_seed(5)
        loss, finite = lean.module(*others)
    assert finite
    assert same(loss, wanted)
    for value, other in zip(tensors, others, strict=True):
        torch.testing.assert_close(other, value, rtol=1e-9 if exact else 1e-5, atol=1e-12 if exact else 1e-6)
    assert any(not same(value, twin[key]) for key, value in snapshot(step).items())


def held(module: GraphModule) -> dict[str, int]:
    """What is read behind the loss of what is made before it, with the number of its readers; views, results of several
    and what is given are not told."""
    nodes = list(module.graph.nodes)
    (results,) = nodes[-1].args
    early = nodes[: nodes.index(results[1])]
    late = set(nodes[len(early) + 1 : -1])
    return {
        node.name: count
        for node in early
        if node.op == "call_function" and (count := sum(user in late for user in node.users))
    }


def test_of_an_mlp_pre_activations_are_held_alone() -> None:
    step = rg.compile(mlp(6, 7, 7, 7, 3), torch.zeros(4, 6), wiring="flat")
    (plain, _), (lean, _) = graphs(step, torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64), False, True)
    products = ["addmm", "addmm_1", "addmm_2", "addmm_3"]
    assert sorted(held(plain.module)) == [*products, "tanh", "tanh_1", "tanh_2"]
    assert sorted(held(lean.module)) == products


def test_of_a_normalised_layer_what_is_normalised_is_held_alone() -> None:
    step = images()
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    (plain, _), (lean, _) = graphs(step, x, torch.zeros(4, dtype=torch.int64), False, True)
    convolutions = {name for name in held(plain.module) if name.startswith("conv")}
    before = {name for name in held(plain.module) if name.startswith(("relu", "add"))}
    behind = {name for name in held(lean.module) if name.startswith(("relu", "add"))}
    assert {name for name in held(lean.module) if name.startswith("conv")} == convolutions
    assert behind < before


def test_random_numbers_are_drawn_once() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))
    step = rg.compile(model, torch.zeros(4, 4), wiring="flat")
    (plain, _), (lean, _) = graphs(step, torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64), False, True)

    def drawn(module: GraphModule) -> int:
        return sum("bernoulli" in str(node.target) or "dropout" in str(node.target) for node in module.graph.nodes)

    assert drawn(plain.module) == drawn(lean.module) == 1


@needs_compiler
def test_a_fused_step_takes_less_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, target = mlp(64, *(256,) * 6, 10), torch.randn(512, 64), torch.randint(10, (512,))
    peaks = []
    for lean in (False, True):
        step = rg.compile(copy.deepcopy(model), x, wiring="flat")
        fused = FusedStep(step, folder=tmp_path / str(lean), recompute=lean)
        fused(x, target)
        assert fused.why == ""
        peaks.append(added_bytes(lambda run=fused: run(x, target)))
    assert peaks[1] < 0.75 * peaks[0]


# -- in the emitted step -----------------------------------------------------------------------------------------------


def layers() -> nn.Module:
    """Activations with and without an inverse, behind convolutions and pools."""
    first = [nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(
        *first,
        nn.Conv2d(4, 4, 3),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.ELU(),
        nn.Dropout(0.2),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize(
    "options",
    [{"wiring": "flat"}, {"wiring": "chain"}, {"gpus": 3}, {"micro_batches": 2, "gpus": 2}, {"update": "local_vjp"}],
    ids=str,
)
def test_the_emitted_step_is_the_same_bit_by_bit(options: dict[str, Any]) -> None:
    x, target = torch.randn(8, 2, 8, 8), torch.randint(3, (8,))
    torch.manual_seed(1)
    model = layers()
    plain, again = (rg.compile(copy.deepcopy(model), x, recompute=item, **options) for item in (False, True))
    for _ in range(2):
        torch.manual_seed(3)
        wanted = plain(x, target)
        torch.manual_seed(3)
        assert same(again(x, target), wanted)
    after = snapshot(again)
    assert all(same(value, after[key]) for key, value in snapshot(plain).items())
    assert again.source.count("torch.tanh(h1") > plain.source.count("torch.tanh(h1")


def test_a_deep_net_holds_half() -> None:
    x = torch.randn(64, 32)
    peaks = []
    for item in (False, True):
        step = rg.compile(mlp(32, *(32,) * 16, 10), x, wiring="chain", recompute=item)
        before, added = measured_peak(step, (x,), torch.randint(10, (64,)))
        assert step.schedule.peak == (pytest.approx(before + added, rel=LIMIT),)
        peaks.append(added)
    assert peaks[1] < 0.7 * peaks[0]


def test_a_step_without_activations_has_nothing_to_compute_again() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    plain, again = (rg.compile(model, torch.zeros(4, 4), recompute=item) for item in (False, True))
    assert plain.source == again.source


def test_fused_both_kinds_of_step_are_the_same_graph() -> None:
    x, target = torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)
    steps = [rg.compile(mlp(6, 7, 7, 3), x, wiring="flat", recompute=item) for item in (False, True)]
    plain, again = (graphs(step, x, target, True)[0][0].module for step in steps)
    assert [node.target for node in plain.graph.nodes if node.op == "call_function"] == [
        node.target for node in again.graph.nodes if node.op == "call_function"
    ]
