"""A learner by the method's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from reclra_graph.api import compile
from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.methods.backprop import BackpropLearner
from reclra_graph.methods.learner import Learner
from reclra_graph.methods.names import METHODS
from reclra_graph.methods.objective import objective
from reclra_graph.methods.optimizers import TORCH, outside, own
from reclra_graph.methods.step_learner import RUNS, StepLearner


def build(
    method: str,
    model: nn.Module,
    example_inputs: Any,
    options: Mapping[str, Any],
    *,
    optimizer: str = "sgd",
    arguments: Mapping[str, Any] | None = None,
    run: str = "eager",
    progress: Callable[[str], None] | None = None,
) -> Learner:
    """A learner for ``model``. options: rg.compile's; of them ``bp`` reads those of the loss, of the optimiser and
    ``autocast``. optimizer: one of rg.compile's, or ``torch:NAME`` with ``arguments``. run: one of
    ``reclra_graph.methods.step_learner.RUNS``; compiled backprop where it is not "eager".

    Raises UsageError and ModelError as rg.compile does.
    """
    make = outside(optimizer, arguments or {}) if optimizer.startswith(TORCH) else None
    wrong = [("method", method, METHODS), ("run", run, RUNS)]
    problems = [
        Problem("RG405", f"{name} is {value!r}", name, f"Choose one of {', '.join(map(repr, allowed))}.")
        for name, value, allowed in wrong
        if value not in allowed
    ]
    if problems:
        raise UsageError(problems)
    if method == "bp":
        if not any(item.requires_grad for item in model.parameters()):
            raise ModelError(Problem("RG301", "the model has no parameters that learn", type(model).__name__))
        return BackpropLearner(
            model, objective(options).loss, make or own(optimizer, options), compiled=run != "eager",
            autocast=options.get("autocast"),
        )  # fmt: skip
    given = dict(options) if make is not None else {**options, "optimizer": optimizer}
    return StepLearner(compile(model, example_inputs, progress=progress, **given), run, make)
