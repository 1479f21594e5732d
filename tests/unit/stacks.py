"""Runs to stack: copies of a compiled step with numbers of their own, and batches for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from reclra_graph.runtime.compiled import CompiledStep
from tests.models import batch_for, snapshot


def runs_of(step: CompiledStep, count: int = 3) -> list[CompiledStep]:
    """Steps of one program, each with other parameters and synapses; the same ones every time."""
    runs = []
    for number in range(count):
        model = copy.deepcopy(step.model)
        draw = torch.Generator().manual_seed(100 + number)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn(value.shape, generator=draw, dtype=value.dtype) / 10)
        held = {name: value.clone() for name, value in step.constants.items()}
        runs.append(CompiledStep(model, step.program, held, (), number))
    return runs


def batches(step: CompiledStep, count: int = 3, size: int = 4, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Inputs and targets of each run."""
    found = [batch_for(step, size, seed + number) for number in range(count)]
    return [inputs for inputs, _ in found], [target for _, target in found]


def together(inputs: list[Any], targets: list[Any]) -> tuple[tuple[Tensor, ...], Any]:
    """The batches of all runs as a stacked step takes them."""
    given = tuple(torch.stack(items) for items in zip(*inputs, strict=True))
    if isinstance(targets[0], Tensor):
        return given, torch.stack(targets)
    return given, {label: torch.stack([item[label] for item in targets]) for label in targets[0]}


def gap(first: CompiledStep, second: CompiledStep) -> float:
    """The largest difference between what two runs have learned and remember."""
    both = [{**snapshot(step), **step.optimiser_state} for step in (first, second)]
    assert both[0].keys() == both[1].keys()
    return max(float((value.double() - both[1][key].double()).abs().max()) for key, value in both[0].items())
