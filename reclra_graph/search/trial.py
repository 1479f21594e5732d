"""One short run of one setting: compile a copy of the model, train it, and judge it on what is held out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reclra_graph import api
from reclra_graph.errors import StepError
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.search.samples import Samples
from reclra_graph.structure import label, tensors


@dataclass(frozen=True)
class Budget:
    """How long a run may be: ``steps`` of ``batch`` samples, judged at ``rungs``, ascending, the last at the end."""

    steps: int
    batch: int
    rungs: tuple[int, ...]


def budget(steps: int, batch: int, reduction: int = 3, rungs: int = 3) -> Budget:
    """Rungs of successive halving: each has ``reduction`` times the steps of the one before."""
    marks = sorted({max(1, steps // reduction**power) for power in range(rungs)})
    return Budget(steps, batch, tuple(marks))


class Diverged(Exception):
    """The loss stopped being a finite number."""


def run(
    model: nn.Module,
    example_inputs: Any,
    options: Mapping[str, Any],
    samples: Samples,
    limits: Budget,
    seed: int,
    reached: Callable[[int, float], bool],
    tick: Callable[[int], None] = lambda step: None,
) -> CompiledStep:
    """Train a copy of ``model``; ``reached(rung, error)`` is told the held-out error at every rung and says whether
    to go on. Returns the trained step.

    The learning rate falls linearly to a tenth. Raises Diverged; ModelError where the setting does not fit the model.
    """
    step = api.compile(copy.deepcopy(model), example_inputs, seed=seed, **options)
    order = torch.Generator().manual_seed(seed)
    rate = step.lr
    torch.manual_seed(seed)  # dropout
    for number in range(limits.steps):
        chosen = torch.randint(len(samples.inputs), (limits.batch,), generator=order)
        step.lr = rate * (1 - 0.9 * number / limits.steps)
        try:
            step(samples.inputs[chosen], samples.targets[chosen])
        except StepError as error:
            if error.codes == ("RG604",):
                raise Diverged from None
            raise
        tick(number + 1)
        if number + 1 in limits.rungs:
            error_now = held_out_error(step, samples)
            if error_now != error_now:
                raise Diverged
            if not reached(limits.rungs.index(number + 1), error_now):
                break
    step.lr = rate
    return step


@torch.no_grad()
def held_out_error(step: CompiledStep, samples: Samples) -> float:
    """On the held-out samples: the share of classes told wrongly, or half the mean squared distance."""
    loss = step.plan.losses[0]
    model = step.model.eval()
    try:
        wrong, count = 0.0, 0
        for start in range(0, len(samples.held_inputs), 500):
            target = samples.held_targets[start : start + 500]
            results = tensors(model(samples.held_inputs[start : start + 500]))
            result = next(value for path, value in results if label(path) == loss.label)
            if loss.kind == "causal-lm":
                result, target = result[:, :-1], target[:, 1:]
            if loss.classes:
                wrong += float((result.argmax(loss.axis) != target).sum())
                count += target.numel()
            elif loss.kind == "mse":
                wrong += float(0.5 * (result - target).square().sum())
                count += len(target)
            else:
                wrong += float(F.binary_cross_entropy_with_logits(result, target, reduction="sum"))
                count += target.numel()
    finally:
        step.model.train()
    return wrong / count
