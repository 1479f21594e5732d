"""A learner by the method's name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from reclra_graph.api import compile, make_options
from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.methods import equilibrium, target_propagation, traced
from reclra_graph.methods.backprop import BackpropLearner
from reclra_graph.methods.learner import Learner
from reclra_graph.methods.looped import LoopedLearner
from reclra_graph.methods.objective import objective
from reclra_graph.methods.optimizers import TORCH, optimizer_problems, outside, own
from reclra_graph.methods.registry import METHODS, Method, method_of
from reclra_graph.methods.step_learner import RUNS, StepLearner

_TP = (target_propagation.TargetPropagation, target_propagation.Settings)
_LOOPS: dict[str, tuple[type[LoopedLearner], type[Any]]] = {
    "tp": _TP,
    "dtp": _TP,
    "eprop": (equilibrium.EquilibriumPropagation, equilibrium.Settings),
}
"""What learns in a loop of its own, and the numbers that it has."""
_ELSEWHERE = ("device", "profile", "memory_format", "lr")
"""Options that say something of the machine, the data or the run: every method can be given them."""


def build(
    method: str,
    model: nn.Module,
    example_inputs: Any,
    options: Mapping[str, Any] | None = None,
    *,
    optimizer: str = "sgd",
    arguments: Mapping[str, Any] | None = None,
    run: str = "eager",
    progress: Callable[[str], None] | None = None,
    **more: Any,
) -> Learner:
    """A learner for ``model``, which it moves in place; move the model to its device before.

    method: a name of ``reclra_graph.methods.registry.METHODS``. options, or ``more`` by keyword: of rg.compile, or of
    the method's own loop (``options_of``); they win over the method's. ``bp`` reads those of the loss, of the optimiser
    and ``autocast``. optimizer: one of rg.compile's, or ``torch:NAME`` with ``arguments``. run: one of
    ``reclra_graph.methods.step_learner.RUNS``; compiled backprop where it is not "eager".

    Raises UsageError RG405 for an unknown method, option or value; ModelError, RG460 where the method cannot apply to
    the model, and what rg.compile has to say of it.
    """
    given = {**(options or {}), **more}
    problems = [*option_problems(method, given), *optimizer_problems(optimizer)]
    loop = METHODS[method].loop if method in METHODS else ""
    runs = RUNS[:1] if loop in _LOOPS else RUNS
    if run not in runs:
        advice = f"Choose {', '.join(map(repr, runs))}."
        problems.append(Problem("RG405", f"run is {run!r}, with the method {method}", "run", advice))
    if problems:
        raise UsageError(problems)
    chosen = {**method_of(method).options, **given}
    make = outside(optimizer, arguments or {}) if optimizer.startswith(TORCH) else None
    if loop in _LOOPS:
        kept = {name: chosen[name] for name in chosen if name not in _ELSEWHERE}
        return _LOOPS[loop][0](model, example_inputs, make or own(optimizer, chosen), **kept)
    if loop == "backprop":
        if not any(item.requires_grad for item in model.parameters()):
            raise ModelError(Problem("RG301", "the model has no parameters that learn", type(model).__name__))
        return BackpropLearner(
            model, objective(chosen).loss, make or own(optimizer, chosen), compiled=run != "eager",
            autocast=chosen.get("autocast"),
        )  # fmt: skip
    if make is None:
        chosen["optimizer"] = optimizer
    return StepLearner(compile(model, example_inputs, progress=progress, **chosen), run, make)


def options_of(method: Method) -> tuple[str, ...]:
    """The options that a method can be given."""
    if method.loop in _LOOPS:
        return (*_LOOPS[method.loop][1].__dataclass_fields__, *traced.OPTIONS, *_ELSEWHERE)
    given = ("model", "example_inputs", "example_kwargs", "progress")
    return tuple(name for name in inspect.signature(compile).parameters if name not in given)


def option_problems(method: str, options: Mapping[str, Any]) -> tuple[Problem, ...]:
    """What is wrong with a method's name, and with options for it (RG405, and whatever rg.compile's have)."""
    try:
        found = method_of(method)
    except UsageError as error:
        return error.problems
    known = options_of(found)
    problems = [
        Problem("RG405", f"{method} has no option {name}", name, f"It has {', '.join(known)}.")
        for name in options
        if name not in known
    ]
    chosen = {name: value for name, value in {**found.options, **options}.items() if name in known}
    if found.loop in _LOOPS:
        own_names = _LOOPS[found.loop][1].__dataclass_fields__
        try:
            _LOOPS[found.loop][1](**{name: chosen.pop(name) for name in tuple(chosen) if name in own_names})
        except UsageError as error:
            problems += error.problems
    return (*problems, *make_options(**chosen).problems())
