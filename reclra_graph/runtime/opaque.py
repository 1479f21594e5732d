"""Opaque sub-modules in a training step: run as they are, with their own local derivative taken inside.

The only place where a compiled step uses autograd, and only from a sub-module's results back to its own parameters and
inputs: nothing flows through from other layers. An emitted step carries the same lines (``SOURCE``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

Held = tuple[list[Tensor], list[Tensor]]
"""A run that waits for its errors: inputs and results of the sub-module, with what autograd keeps between them."""


def opaque_forward(call: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[list[Tensor], Held]:
    """Run ``call(*inputs)``, which calls the sub-module: the tensors of its result, and what opaque_vjp needs.

    The sub-module runs once a step, so that its dropout masks and batch statistics are those of this run.
    """
    with torch.enable_grad():
        leaves = [item.detach().requires_grad_(item.is_floating_point()) for item in inputs]
        results = [item for item in pytree.tree_leaves(call(*leaves)) if isinstance(item, Tensor)]
    return [item.detach() for item in results], (leaves, results)


def opaque_vjp(
    module: nn.Module, held: Held, errors: Sequence[Tensor | None]
) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    """The errors of a run's results, carried to its inputs and to the parameters (by their name in the sub-module).

    ``errors`` has the shapes of the results; None stands for zero. An input that nothing flows back to gets None, a
    parameter zeros; frozen parameters are left out. Can be called once for each run.
    """
    leaves, results = held
    ends = [
        (result, error)
        for result, error in zip(results, errors, strict=True)
        if result.requires_grad and error is not None
    ]
    named = {name: item for name, item in module.named_parameters() if item.requires_grad}
    wanted = [item for item in leaves if item.requires_grad] + list(named.values())
    found: list[Tensor | None] = [None] * len(wanted)
    if ends and wanted:
        found = list(torch.autograd.grad([end for end, _ in ends], wanted, [by for _, by in ends], allow_unused=True))
    back = iter(found)
    into = [next(back) if item.requires_grad else None for item in leaves]
    deltas = {}
    for (name, item), delta in zip(named.items(), back, strict=True):
        deltas[name] = torch.zeros_like(item) if delta is None else delta
    return into, deltas


SOURCE = "\n\n".join(inspect.getsource(part) for part in (opaque_forward, opaque_vjp))
