"""Backprop's gradients on the very model, batch and loss of a step: what its updates are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.diagnostics.inside import Inside
from reclra_graph.errors import Problem, StepError
from reclra_graph.structure import label, tensors

_POWERS = (16, 8, 0)
"""Powers of two that a loss in float16 is multiplied by, until no gradient overflows: without one most would vanish."""


def gradients(
    model: nn.Module, names: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], inside: Inside
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """(loss, the gradient of each parameter, None where it does not reach the loss), by autograd through the model's
    own forward(). ``names``: the parameters of the model by key. ``inside`` has the losses, and is not run.

    Raises StepError RG601 where forward() does not take the arguments, or returns no such results."""
    plan, wanted = inside.plan, {key: item for key, item in names.items() if item.requires_grad}
    with torch.enable_grad(), _precision(inside.graph.autocast, inside.device):
        try:
            results = {label(path): item for path, item in tensors(model(*args, **kwargs))}
        except Exception as error:  # forward() is the user's
            cause = f"forward() raised {type(error).__name__} on this batch: {str(error).splitlines()[:1]}"
            raise StepError(Problem("RG601", cause, "diagnostics()")) from error
        total: Tensor | None = None
        for output, kind, given in zip(plan.regions.outputs, plan.losses, inside.graph.outputs, strict=True):
            if given.label not in results:
                cause = f"forward() returned no {given.label}; it has {', '.join(results) or 'no tensors'}"
                raise StepError(Problem("RG601", cause, "diagnostics()"))
            y = inside.y[kind.label] if isinstance(inside.y, Mapping) else inside.y
            value = inside.loss_of(results[given.label], y, inside.regions[output], kind)
            total = value if total is None else total + value
        assert total is not None
    if not total.requires_grad:
        return total, dict.fromkeys(names)
    found: tuple[Tensor | None, ...] = ()
    for power in _POWERS if inside.graph.autocast == "float16" else (0,):
        scale = 2.0**power
        found = torch.autograd.grad(total * scale, list(wanted.values()), retain_graph=power > 0, allow_unused=True)
        found = tuple(None if item is None else item / scale for item in found) if power else found
        if all(item is None or bool(item.isfinite().all()) for item in found):
            break
    return total.detach(), {**dict.fromkeys(names), **dict(zip(wanted, found, strict=True))}


def _precision(autocast: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, getattr(torch, autocast)) if autocast else nullcontext()
