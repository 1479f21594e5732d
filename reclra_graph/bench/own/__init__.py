"""Models of our own, for what the libraries of the open list lack; each a plain module as a user writes it."""

from __future__ import annotations

from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.own import attention, control, dynamics, graphs, images, recurrent, structure, weights
from reclra_graph.errors import ModelError, Problem

_MODELS = {
    name: builder
    for part in (recurrent, attention, images, graphs, weights, structure, control, dynamics)
    for name, builder in part.MODELS.items()
}


def names() -> tuple[str, ...]:
    """The names of all models, in order."""
    return tuple(_MODELS)


def build(name: str) -> ZooModel:
    """The model of that name, with weights, inputs and target drawn from torch's generator as it stands.

    Raises ModelError RG802 where there is none of that name.
    """
    if name not in _MODELS:
        raise ModelError(Problem("RG802", f"there is no model {name!r} of our own", f"own {name}"))
    return _MODELS[name]()
