"""The mathematics, once: plain torch functions, which the reference interpreter calls and the emitter prints.

Every function here runs on tensors and can be traced by torch.fx with its tensor arguments symbolic: shapes and
choices are plain Python values, and no function branches on data. None takes a derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def rule(name: str) -> Callable[..., Any]:
    """The function behind a call's name, e.g. ``rules.target.target``. Raises KeyError for an unknown name."""
    prefix, module, function = name.split(".")
    if prefix != "rules" or module not in (
        "adjoint",
        "carry",
        "discrepancy",
        "factors",
        "implicit",
        "layout",
        "loss",
        "micro",
        "mirror",
        "outer",
        "precision",
        "readout",
        "synapse",
        "target",
        "updates",
    ):
        raise KeyError(name)
    found: Callable[..., Any] = getattr(import_module(f"reclra_graph.rules.{module}"), function)
    return found
