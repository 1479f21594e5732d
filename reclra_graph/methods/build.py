"""From a method's name to a learner."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from torch import nn

from reclra_graph import api
from reclra_graph.errors import Problem, UsageError
from reclra_graph.methods import equilibrium, target_propagation, traced
from reclra_graph.methods.learner import Learner
from reclra_graph.methods.registry import Method, method_of

_MAKERS = {
    "step": "step_learner.StepLearner",
    "backprop": "backprop.BackpropLearner",
    "tp": "target_propagation.TargetPropagation",
    "dtp": "target_propagation.TargetPropagation",
    "eprop": "equilibrium.EquilibriumPropagation",
}
"""What makes the learner of each loop: called with the model, example inputs and options by keyword."""


def build(method: str, model: nn.Module, example_inputs: Any, **overrides: Any) -> Learner:
    """A learner for ``model``, whose parameters it moves in place; move the model to its device before.

    method: a name of ``reclra_graph.methods.registry.METHODS``. example_inputs: as ``rg.compile`` takes them.
    overrides: options of ``rg.compile``, or of the method's own loop; they win over the method's.

    Raises UsageError RG405 for an unknown method or option; ModelError, RG460 where the method cannot apply to the
    model, or whatever ``rg.compile`` has to say of it.
    """
    found = method_of(method)
    unknown = [name for name in overrides if name not in options_of(found)]
    if unknown:
        raise UsageError(
            [
                Problem("RG405", f"{method} has no option {name}", name, f"It has {', '.join(options_of(found))}.")
                for name in unknown
            ]
        )
    module, _, maker = _MAKERS[found.loop].partition(".")
    made: Learner = getattr(import_module(f"reclra_graph.methods.{module}"), maker)(
        model, example_inputs, **{**found.options, **overrides}
    )
    return made


def options_of(method: Method) -> tuple[str, ...]:
    """The options that a method can be given, in the order in which they are documented."""
    if method.loop == "step":
        given = ("model", "example_inputs", "example_kwargs", "progress")
        return tuple(name for name in inspect.signature(api.compile).parameters if name not in given)
    own = {
        "tp": target_propagation.Settings,
        "dtp": target_propagation.Settings,
        "eprop": equilibrium.Settings,
    }.get(method.loop)
    return (*(own.__dataclass_fields__ if own is not None else ()), *traced.OPTIONS)
