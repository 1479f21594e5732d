"""Every method by its name: where it comes from, what makes it of the compiler's options, and what it needs.

A method is a wiring, a rule of the error synapses and a form of the errors; those with a loop of their own (``loop``
other than "step") say so. This file imports nothing heavy: the command line reads it before torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from reclra_graph.errors import Problem, UsageError

LOOPS = ("step", "backprop", "tp", "dtp", "eprop")


@dataclass(frozen=True)
class Method:
    """A method of training.

    name: as ``--method`` takes it. title: for tables. source: where it was published. loop: "step" is what
    ``rg.compile`` makes with ``options``; the others have learners of their own, which take ``options`` too. needs:
    what a model must be for it.
    """

    name: str
    title: str
    source: str
    loop: str = "step"
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str = "any model"


_OWN = "this project"
_RECLRA = "Ororbia, Mali, Kifer, Giles 2023 (AAAI)"
_MIRRORED = "layers whose synapses can mirror them: dense, or convolutions side by side"
_CHAIN = "a chain of layers or blocks that can be differentiated; one loss"

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        item.name: item
        for item in (
            Method("bp", "BP", "Rumelhart, Hinton, Williams 1986 (Nature 323)", "backprop",
                   needs="a model that autograd can differentiate"),
            Method("lra-e", "LRA-E", "Ororbia, Mali 2019 (AAAI)",
                   options={"wiring": "reverse", "rule": "kp", "gamma": 1.0}, needs=_MIRRORED),
            Method("reclra", "rec-LRA", _RECLRA),
            Method("tp", "TP", "Bengio 2014 (arXiv:1407.7906)", "tp",
                   {"difference": False, "target_rate": 1.0}, _CHAIN),
            Method("dtp", "DTP", "Lee, Zhang, Fischer, Bengio 2015 (ECML/PKDD)", "dtp", {"difference": True}, _CHAIN),
            Method("eprop", "E-Prop", "Scellier, Bengio 2017 (Frontiers in Computational Neuroscience 11)", "eprop",
                   needs="a chain of dense layers, convolutions, average pools and activations that rise; one loss"),
            Method("reclra-hybrid", "rec-LRA, block-local derivatives", _RECLRA, options={"update": "local_vjp"}),
            Method("reclra-dkp", "rec-LRA, direct Kolen–Pollack", f"{_RECLRA}; Webster, Choi, Ahn 2020",
                   options={"rule": "dkp", "gamma": 1.0}),
            Method("local", "local readouts",
                   "Nøkland, Eidnes 2019 (ICML); Belilovsky, Eickenberg, Oyallon 2019 (ICML)",
                   options={"wiring": "blocks", "rule": "readout", "update": "local_vjp", "gamma": 1.0},
                   needs="one output over classes or values, of which every relay can have a readout"),
        )
    }
)  # fmt: skip


def method_of(name: str) -> Method:
    """The method of that name. Raises UsageError RG405 where there is none."""
    found = METHODS.get(name)
    if found is None:
        choices = ", ".join(METHODS)
        raise UsageError(Problem("RG405", f"there is no method {name!r}", "method", f"Choose one of {choices}."))
    return found
