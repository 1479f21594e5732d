"""Models of our own, for what the libraries of the open list lack; each a plain module as a user writes it."""

from __future__ import annotations

from collections.abc import Callable

from reclra_graph.bench.model import ZooModel
from reclra_graph.errors import ModelError, Problem

_MODELS: dict[str, Callable[[], ZooModel]] = {}


def names() -> tuple[str, ...]:
    """The names of all models, in order."""
    return tuple(_MODELS)


def build(name: str) -> ZooModel:
    """The model of that name, with weights, inputs and target. Raises ModelError RG802 where there is none."""
    if name not in _MODELS:
        raise ModelError(Problem("RG802", f"there is no model {name!r} of our own", f"own {name}"))
    return _MODELS[name]()
