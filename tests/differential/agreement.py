"""An emitted step beside the reference interpreter, on any model, inputs and targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.reference import reference_step
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.structure import arguments, called

TOLERANCE = 1e-12


def held_by(step: CompiledStep) -> dict[str, Tensor]:
    """Copies of the parameters, buffers and constants that a step works on."""
    return {key: value.detach().clone() for key, value in step.storage().items()}


def assert_close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Equal keys, and tensors that differ by no more than the tolerance (NaN never does)."""
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        gap = (value.double() - wanted[key].double()).abs().max() if value.numel() else torch.zeros(())
        assert float(gap) <= tolerance, (key, float(gap))


def agrees(
    model: nn.Module, inputs: Any, target: Any, *, steps: int = 2, seed: int = 5, **options: Any
) -> CompiledStep:
    """Compile a float64 model and take steps with the emitted file and with the reference interpreter: loss,
    parameters, buffers and synapses must agree, and every parameter that is not frozen must have moved."""
    settings: dict[str, Any] = {"lr": 0.05, "beta": 0.3, "gamma": 0.2, **options}
    step = rg.compile(model, inputs, **settings)
    held, synapses = held_by(step), {key: value.clone() for key, value in step.synapses.items()}
    start = {key: value.clone() for key, value in held.items()}
    args, kwargs = called(inputs)
    given = [item for _, item in arguments(args, kwargs)]
    for number in range(steps):
        torch.manual_seed(seed + number)
        loss = step(inputs, target)
        torch.manual_seed(seed + number)
        wanted = reference_step(step.plan, held, synapses, given, target)
        assert abs(float(loss - wanted)) <= TOLERANCE, (number, float(loss), float(wanted))
    assert_close({key: value.detach() for key, value in step.storage().items()}, held)
    assert_close(step.synapses, synapses)
    frozen = dict(step.plan.regions.frozen)
    keys = {item.key for item in step.plan.regions.graph.parameters} - set(frozen)
    still = {key for key in keys if torch.equal(held[key], start[key])}
    assert still == set(), still
    return step
