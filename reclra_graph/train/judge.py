"""The error of a model on samples that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reclra_graph.errors import Problem, ReclraError
from reclra_graph.methods.objective import Objective, axis_of
from reclra_graph.train.parts import Part

_TOP = 5
_MANY = 20
"""Classes from which on the five with the highest scores are looked at, too."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without derivatives; each of its modules is then in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def judge(
    model: nn.Module,
    objective: Objective,
    part: Part,
    size: int,
    classes: int,
    predict: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """``error``: the share of targets that are classified wrongly, in evaluation mode; for losses without classes the
    loss. ``top5_error``: the share of those not among the five highest scores, where there are many classes. predict:
    what gives the scores, where that is not the model."""
    tops = {"error": 1, **({"top5_error": _TOP} if objective.classes and classes >= _MANY else {})}
    wrong, count = dict.fromkeys(tops, 0.0), 0
    with evaluating(model):
        for inputs, labels, valid in part.judged(size):
            scores = objective.result(model(inputs)) if predict is None else predict(inputs)
            z, target = scores[:valid], labels[:valid]
            counted = 0
            for name, top in tops.items():
                missed, counted = objective.wrong(z, target, top)
                wrong[name] += float(missed)
            count += counted
    return {name: round(value / max(1, count), 6) for name, value in wrong.items()}


def check_classes(model: nn.Module, objective: Objective, part: Part, size: int, classes: int, place: str) -> None:
    """Raise ReclraError RG713 where the model tells fewer classes apart than the data have, or fails on a batch of that
    size."""
    with evaluating(model):
        inputs, labels, _ = next(iter(part.judged(size)))
        try:
            result = objective.result(model(inputs))
        except ReclraError:
            raise
        except Exception as error:  # a model fails in any way
            said = (str(error).splitlines() or [""])[0][:200]
            cause = f"the model fails on {size} samples in evaluation mode: {type(error).__name__}: {said}"
            advice = "Call the model by itself in model.eval(); a model for batches of one size needs --eval-batch."
            raise ReclraError(Problem("RG713", cause, place, advice)) from None
    if not objective.classes or not classes:
        return
    have = result.shape[axis_of(result, labels)]
    if have < classes:
        cause = f"its labels reach {classes - 1}; the model tells {have} classes apart"
        raise ReclraError(Problem("RG713", cause, place))
