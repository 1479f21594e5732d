"""Optimisers by name: those that a compiled step has itself, and any of torch.optim as ``torch:NAME``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from reclra_graph.errors import Problem, UsageError
from reclra_graph.options import OPTIMIZERS

Make: TypeAlias = Callable[[Iterable[Tensor], float], torch.optim.Optimizer]
"""Makes an optimiser of some tensors, with a rate."""

TORCH = "torch:"
_CLOSED = ("Optimizer", "LBFGS", "SparseAdam")  # the base class, one that calls back, one for sparse gradients alone


def own(name: str, options: Mapping[str, Any]) -> Make:
    """torch.optim's fused form of one of ``reclra_graph.options.OPTIMIZERS``, with the numbers of rg.compile."""
    decay = float(options.get("weight_decay", 0.0))
    if name == "adamw":
        betas, eps = tuple(options.get("betas", (0.9, 0.999))), float(options.get("eps", 1e-8))
        return lambda tensors, lr: torch.optim.AdamW(
            tensors, lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True
        )
    momentum = float(options.get("momentum", 0.9)) if name == "momentum" else 0.0
    return lambda tensors, lr: torch.optim.SGD(tensors, lr=lr, momentum=momentum, weight_decay=decay, fused=True)


def others() -> tuple[str, ...]:
    """Names of torch.optim's optimisers that learn from one gradient a step."""
    found = vars(torch.optim).items()
    return tuple(
        sorted(
            name
            for name, item in found
            if isinstance(item, type) and issubclass(item, torch.optim.Optimizer) and name not in _CLOSED
        )
    )


def outside(name: str, arguments: Mapping[str, Any]) -> Make:
    """torch.optim's NAME of ``torch:NAME``, with arguments of its own.

    Raises UsageError RG405 for an unknown name, and for arguments that it does not take."""
    short = name.removeprefix(TORCH)
    if short not in others():
        cause = f"torch.optim has no optimiser {short!r} that learns from one gradient a step"
        advice = f"Choose one of {', '.join([*OPTIMIZERS, *(TORCH + item for item in others())])}."
        raise UsageError(Problem("RG405", cause, "optimizer", advice))
    kind: Any = getattr(torch.optim, short)
    taken = [item for item in inspect.signature(kind).parameters if item not in ("params", "lr")]
    unknown = [item for item in arguments if item not in taken]
    if unknown:
        cause = f"{short} takes no {', '.join(unknown)}"
        raise UsageError(Problem("RG405", cause, "optimizer-args", f"It takes {', '.join(taken)}."))

    def make(tensors: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        try:
            made: torch.optim.Optimizer = kind(tensors, lr=lr, **arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(Problem("RG405", f"{short}: {said}", "optimizer-args")) from None
        return made

    make([torch.nn.Parameter(torch.zeros(2, 2))], 0.1)  # wrong arguments are told before anything is compiled
    return make


def optimizer_problems(name: str) -> tuple[Problem, ...]:
    """What is wrong with an optimiser's name (RG405)."""
    if name in OPTIMIZERS or name.startswith(TORCH):
        return ()
    choices = ", ".join(repr(item) for item in OPTIMIZERS)
    advice = f"Choose one of {choices}, or one of torch.optim as 'torch:RMSprop'."
    return (Problem("RG405", f"optimizer is {name!r}", "optimizer", advice),)


def read_arguments(texts: Sequence[str], place: str = "optimizer-args") -> dict[str, Any]:
    """``["alpha=0.9", "centered=True"]`` as a dict; values are read as Python's constants, else taken as words.

    Raises UsageError RG405 for what has no "="."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(Problem("RG405", f"{text!r} is no name=value", place, "Write alpha=0.9."))
        try:
            found[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[name.strip()] = value.strip()
    return found
