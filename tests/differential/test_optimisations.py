"""Every combination of optimisations gives the step that none of them gives, and that the reference interpreter takes.

Steps are planned for one GPU or several, where all optimisations apply; they run here. Combinations that emit the same
step, as most do, are run once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.device import DEVICES
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import WiringPlan
from reclra_graph.options import OPTIMISATIONS
from reclra_graph.passes.emit import emit
from reclra_graph.passes.lower import lower
from reclra_graph.passes.pipeline import placed
from reclra_graph.passes.price import price
from reclra_graph.passes.schedule import schedule
from reclra_graph.passes.wire import wire
from reclra_graph.reference import reference_step
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.verify import verify
from tests.models import ResidualCNN, batch_for, mlp, regions_of
from tests.unit.test_straight import Classifier

STEPS = 2
SETTINGS: dict[str, Any] = {"lr": 0.05, "beta": 0.3, "gamma": 0.2, "eps": 1e-6, "device": "h200"}
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(6, 8, 8, 8, 8, 3), (4, 6)),
    "wide mlp": (lambda: mlp(6, 8, 8, 34), (4, 6)),
    "cnn": (ResidualCNN, (3, 1, 6, 6)),
    "transformer": (Classifier, (3, 4, 5)),
}
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mlp", {"wiring": "flat"}),
    ("mlp", {"wiring": "chain", "weight_decay": 0.1, "sign": "printed"}),
    ("mlp", {"wiring": "flat", "optimizer": "momentum", "weight_decay": 0.1}),
    ("mlp", {"wiring": ("5->4", "5->3", "5->2", "5->1", "4->2", "4->1"), "optimizer": "adamw"}),
    ("mlp", {"wiring": "flat", "rule": "fixed", "kappa": ((2, 0.5),), "gain": True}),
    ("mlp", {"wiring": "flat", "gpus": 3}),
    ("mlp", {"wiring": "flat", "micro_batches": 2}),
    ("mlp", {"wiring": "flat", "rule": "dkp", "optimizer": "momentum"}),
    ("mlp", {"wiring": ("5->4", "5->3", "4->2", "4->1"), "rule": "readout"}),
    ("mlp", {"wiring": "chain", "rule": "mirror", "optimizer": "adamw"}),
    ("wide mlp", {"wiring": "flat", "optimizer": "momentum"}),
    ("cnn", {"wiring": "flat", "synapse": "dense"}),
    ("cnn", {"wiring": "blocks", "gpus": 2}),
    ("transformer", {"wiring": "flat", "synapse": "dense"}),
    ("transformer", {"wiring": "flat", "synapse": "dense", "rule": "readout"}),
    ("transformer", {"wiring": "flat", "synapse": "token", "optimizer": "adamw"}),
    ("transformer", {"wiring": "chain", "gpus": 3, "rule": "fixed", "synapse": "dense"}),
)


@cache
def captured(net: str) -> tuple[nn.Module, RegionGraph]:
    """A model in float64, and its regions."""
    make, shape = NETS[net]
    torch.manual_seed(3)
    model = make().double()
    return model, regions_of(model, torch.zeros(shape, dtype=torch.float64))


def planned(net: str, given: dict[str, Any]) -> tuple[nn.Module, rg.Options, WiringPlan]:
    """A model, and its plan for the device of ``SETTINGS``."""
    model, regions = captured(net)
    options = rg.Options(**{**SETTINGS, **given})
    plan = verify(wire(regions, options))
    return model, options, replace(plan, device=DEVICES[options.device], batch=NETS[net][1][0])


def programs(options: rg.Options, plan: WiringPlan) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What is left out, and the program, of all combinations that differ."""
    seen = set()
    for count in range(len(OPTIMISATIONS), -1, -1):
        for without in combinations(OPTIMISATIONS, count):
            tasks = verify(lower(plan, without))
            if tasks in seen:
                continue
            seen.add(tasks)
            tasks = verify(placed(price(tasks, plan.device), options))
            yield without, verify(emit(verify(schedule(tasks))))


def after(model: nn.Module, program: Any, size: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses of some steps, and all that they have changed."""
    step = CompiledStep(copy.deepcopy(model), program, {})
    losses = []
    for seed in range(STEPS):
        torch.manual_seed(seed)  # of the noise of mirrors
        losses.append(step(*batch_for(step, size, seed)))
    return losses, {**step.storage(), **{f"E.{key}": value for key, value in step.synapses.items()}}


def by_reference(model: nn.Module, program: Any, size: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same from the reference interpreter, whose deltas torch.optim's own optimiser takes."""
    step = CompiledStep(copy.deepcopy(model), program, {})
    plan, rates = step.plan, step.plan.rates
    plain = replace(plan, rates=replace(rates, optimizer="sgd", lr=1.0, weight_decay=0.0))
    P, E = step.storage(), step.synapses
    learned = {store[2:-1] for store in step.schedule.tasks.learned}
    moving = [(held, key) for held in (P, E) for key in held if key in learned]
    optimisers: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
        "sgd": lambda values: torch.optim.SGD(values, rates.lr, weight_decay=rates.weight_decay),
        "momentum": lambda values: torch.optim.SGD(values, rates.lr, rates.momentum, weight_decay=rates.weight_decay),
        "adamw": lambda values: torch.optim.AdamW(values, rates.lr, rates.betas, rates.eps, rates.weight_decay),
    }
    optimiser = optimisers[rates.optimizer]([held[key] for held, key in moving])
    losses = []
    for seed in range(STEPS):
        inputs, target = batch_for(step, size, seed)
        moved = [{key: value.clone() for key, value in held.items()} for held in (P, E)]
        torch.manual_seed(seed)
        losses.append(reference_step(plain, *moved, inputs, target))
        for held, key in moving:
            held[key].grad = held[key] - moved[held is E][key]
        optimiser.step()
        for buffer in plan.regions.graph.buffers:
            P[buffer.key].copy_(moved[0][buffer.key])
    return losses, {**P, **{f"E.{key}": value for key, value in E.items()}}


def assert_close(found: tuple[list[Tensor], dict[str, Tensor]], wanted: tuple[list[Tensor], dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-9, atol=0)
    assert found[1].keys() == wanted[1].keys()
    for key, value in found[1].items():
        torch.testing.assert_close(
            value, wanted[1][key], rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key} {text}"
        )


@pytest.mark.parametrize(("net", "given"), CASES, ids=lambda item: item if isinstance(item, str) else str(item))
def test_every_combination_is_the_same_step(net: str, given: dict[str, Any]) -> None:
    model, options, plan = planned(net, given)
    size = plan.batch
    found = list(programs(options, plan))
    assert found[0][0] == OPTIMISATIONS
    plain = after(model, found[0][1], size)
    if options.micro_batches == 1:
        assert_close(plain, by_reference(model, found[0][1], size))
    for _, program in found[1:]:
        assert_close(after(model, program, size), plain)


def test_every_optimisation_changes_some_step() -> None:
    changing = set()
    for net, given in (CASES[0], ("transformer", {"wiring": "flat", "synapse": "dense"})):
        _, _, plan = planned(net, given)
        whole = lower(plan)
        changing |= {name for name in OPTIMISATIONS if lower(plan, (name,)) != whole}
    assert changing == set(OPTIMISATIONS)
