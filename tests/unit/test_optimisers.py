"""The emitted optimisers: equal to torch.optim's, saved and resumed exactly, and a part of the traced step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.traced import flat_tensors, traced
from tests.models import mlp, same, snapshot
from tests.unit.refusals import refused

Make = Callable[[list[Tensor]], torch.optim.Optimizer]
CASES: dict[str, tuple[dict[str, Any], Make]] = {
    "sgd": ({"lr": 0.1}, lambda held: torch.optim.SGD(held, lr=0.1)),
    "sgd, decay": ({"weight_decay": 0.1}, lambda held: torch.optim.SGD(held, lr=0.1, weight_decay=0.1)),
    "momentum": ({"optimizer": "momentum"}, lambda held: torch.optim.SGD(held, lr=0.1, momentum=0.9)),
    "momentum, decay": (
        {"optimizer": "momentum", "momentum": 0.5, "weight_decay": 0.1},
        lambda held: torch.optim.SGD(held, lr=0.1, momentum=0.5, weight_decay=0.1),
    ),
    "adamw": (
        {"optimizer": "adamw", "lr": 0.01},
        lambda held: torch.optim.AdamW(held, lr=0.01, weight_decay=0.0),
    ),
    "adamw, decay": (
        {"optimizer": "adamw", "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
        lambda held: torch.optim.AdamW(held, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    ),
}


def net() -> nn.Module:
    torch.manual_seed(3)
    return mlp(6, 5, 4, 3).double()


def batch(number: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(number)
    return torch.randn(8, 6, generator=draw, dtype=torch.float64), torch.randint(3, (8,), generator=draw)


def compiled(**options: Any) -> CompiledStep:
    return rg.compile(net(), batch()[0], **options)


def alike(first: CompiledStep, second: CompiledStep) -> bool:
    held = snapshot(second)
    return all(torch.allclose(value, held[key], rtol=1e-12, atol=1e-14) for key, value in snapshot(first).items())


@pytest.mark.parametrize("name", CASES)
def test_it_is_torchs_own(name: str) -> None:
    options, make = CASES[name]
    step, plain = compiled(**options), compiled()
    optimizer = make([*plain.model.parameters(), *plain.synapses.values()])
    for number in range(5):
        step(*batch(number))
        rg.assign_grads(plain, *batch(number))
        optimizer.step()
    assert alike(step, plain)


@pytest.mark.parametrize(
    ("options", "decayed"),
    [({}, False), ({"weight_decay": 0.2}, True), ({"optimizer": "momentum", "weight_decay": 0.2}, True),
     ({"optimizer": "adamw", "lr": 0.01}, False), ({"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.2}, True)],
    ids=str,
)  # fmt: skip
def test_synapses_may_have_a_decay_of_their_own(options: dict[str, Any], decayed: bool) -> None:
    """(1 - lr decay) E takes E's place, whatever the optimiser; parameters go on as without, and so does the traced
    step."""
    plain, step, twin = (compiled(**options, synapse_decay=decay, rule="dkp") for decay in (None, 0.3, 0.3))
    rate = torch.tensor(step.lr, dtype=torch.float64)
    found = traced(twin, [batch()[0]], batch()[1], rate)
    start = {name: value.clone() for name, value in step.synapses.items()}
    inputs, target = batch()
    for one in (plain, step):
        one(inputs, target)
    flat = flat_tensors(twin, [inputs], [target], rate)
    with torch.no_grad():
        found.module(*[flat[index] for index in found.used])
    assert alike(step, twin)
    for (key, mine), theirs in zip(step.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, msg=key)
    for name, value in step.synapses.items():
        moved = plain.synapses[name] - start[name]
        if decayed:  # by torch.optim's own way, the same in a first step
            moved += step.lr * 0.2 * start[name]
        torch.testing.assert_close(value, (1 - step.lr * 0.3) * start[name] + moved, rtol=1e-12, atol=1e-14)
    again = compiled(**options, synapse_decay=0.3, rule="fixed")
    again(inputs, target)
    assert all(same(value, start[name]) for name, value in again.synapses.items()), "what never learns never decays"


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_part_of_the_traced_step(name: str) -> None:
    step, twin = compiled(**CASES[name][0]), compiled(**CASES[name][0])
    rate = torch.tensor(step.lr, dtype=torch.float64)
    found = traced(twin, [batch()[0]], batch()[1], rate)
    for number in range(3):
        step(*batch(number))
        inputs, target = batch(number)
        flat = flat_tensors(twin, [inputs], [target], rate)
        with torch.no_grad():
            found.module(*[flat[index] for index in found.used])
    assert alike(step, twin)
    memory = step.optimiser_state
    for key, value in twin.optimiser_state.items():
        torch.testing.assert_close(value, memory[key], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_saved_step_goes_on_as_it_would_have(name: str, tmp_path: Path) -> None:
    step = compiled(**CASES[name][0])
    step(*batch())
    step.save(tmp_path / "saved")
    model = copy.deepcopy(step.model)
    wanted = [step(*batch(number)) for number in (1, 2)]
    again = rg.load(tmp_path / "saved", model)
    assert all(same(again(*batch(number)), loss) for number, loss in zip((1, 2), wanted, strict=True))
    assert alike(step, again)
    for key, value in again.optimiser_state.items():
        assert same(value, step.optimiser_state[key])


def test_synapses_alone_are_a_state_too() -> None:
    step = compiled(optimizer="adamw")
    synapses = {key: value.clone() for key, value in step.state_dict().items()}
    step(*batch())
    assert step.optimiser_state
    step.load_state_dict(synapses)
    assert not step.optimiser_state  # which begins anew


WRONG: dict[str, dict[str, Tensor]] = {
    "an unknown slot": {"optimizer.0.weight|m": torch.zeros(5, 6)},
    "an unknown parameter": {"optimizer.9.weight|v": torch.zeros(5, 6)},
    "another shape": {"optimizer.0.weight|v": torch.zeros(5)},
    "no slot": {"optimizer.0.weight": torch.zeros(5, 6)},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_state_that_is_not_the_optimisers(name: str) -> None:
    step = compiled(optimizer="momentum")
    step(*batch())
    before = {key: value.clone() for key, value in step.state_dict().items()}
    refused(rg.ModelError, lambda: step.load_state_dict({**step.state_dict(), **WRONG[name]}), "RG605")
    assert all(same(value, before[key]) for key, value in step.state_dict().items())
    plain = compiled()
    refused(rg.ModelError, lambda: plain.load_state_dict({**plain.state_dict(), **WRONG[name]}), "RG605")


@pytest.mark.parametrize(
    "options",
    [{"momentum": -0.1}, {"betas": (0.9,)}, {"betas": (0.9, 1.0)}, {"betas": 0.9}, {"betas": None},
     {"betas": "ab"}, {"eps": -1.0}, {"weight_decay": float("nan")}, {"optimizer": "adam"}],
    ids=str,
)  # fmt: skip
def test_numbers_that_cannot_be(options: dict[str, Any]) -> None:
    refused(rg.UsageError, lambda: compiled(**options), "RG405")
