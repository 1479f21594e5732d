"""What one look at a step has found: plain frozen data, to JSON and back.

A figure that was asked for and cannot be said is None, and ``why`` has (figure, reason); a figure that was not asked
for is None without a reason, and is left out of the JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from reclra_graph.diagnostics.measures import Figure

Why: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class EdgeLook:
    """An error edge j → i. Angles are in degrees.

    angle: between E and the transposed weights that it stands for; ``weights`` names them, the one next to the source
    first. sent: between what E sends on this batch and what the derivative of h_j by z_i makes of the same error.
    synapse, change: norms of E and of its direction of descent. flips, change_flips: shares of their entries whose sign
    is another than at the last look.
    """

    name: str
    form: str
    rule: str
    weights: tuple[str, ...] = ()
    angle: float | None = None
    sent: float | None = None
    synapse: float | None = None
    change: float | None = None
    flips: float | None = None
    change_flips: float | None = None
    why: Why = ()


@dataclass(frozen=True)
class RegionLook:
    """A region. ``rule``: how it learns, "analytic" or "local_vjp", "" where nothing does.

    cosine: of its update with backprop's, over all its parameters. discrepancy: κ_i ‖z_i − y_i‖_p^q. error,
    displacement: norms of e_i and d_i. These three are means over samples. update, weight: norms of its update and of
    its parameters. flips, update_flips: shares of weights and of updates whose sign is another than at the last look.
    Of a parameter that several regions share, the sum of their updates stands in each of them.
    """

    id: int
    name: str
    rule: str = ""
    parameters: tuple[str, ...] = ()
    cosine: float | None = None
    discrepancy: float | None = None
    error: float | None = None
    displacement: float | None = None
    update: float | None = None
    weight: float | None = None
    flips: float | None = None
    update_flips: float | None = None
    why: Why = ()


@dataclass(frozen=True)
class ParameterLook:
    """A parameter: cosine of its update with backprop's, norms of the two."""

    key: str
    cosine: float | None = None
    update: float | None = None
    gradient: float | None = None
    why: Why = ()


@dataclass(frozen=True)
class Look:
    """All of it. ``step``: the number of the training step; ``samples``: of the batch; ``loss``: the step's own on this
    batch; cosine: over all parameters that learn; discrepancy: D(Θ), the sum over the regions; seconds: what the look
    took."""

    step: int | None = None
    samples: int = 0
    loss: float | None = None
    cosine: float | None = None
    discrepancy: float | None = None
    seconds: float = 0.0
    regions: tuple[RegionLook, ...] = ()
    edges: tuple[EdgeLook, ...] = ()
    parameters: tuple[ParameterLook, ...] = ()
    why: Why = ()

    @property
    def region(self) -> dict[int, RegionLook]:
        """Regions by id."""
        return {item.id: item for item in self.regions}

    @property
    def edge(self) -> dict[str, EdgeLook]:
        """Edges by name, ``"9->5"``."""
        return {item.name: item for item in self.edges}

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = _plain(self)
        return found

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Look:
        """The reverse. Raises KeyError, TypeError or ValueError for anything else."""
        if not isinstance(value, Mapping):
            raise TypeError(f"{value!r} is no object")
        parts: dict[str, Any] = dict(value)
        for name, kind in (("regions", RegionLook), ("edges", EdgeLook), ("parameters", ParameterLook)):
            parts[name] = tuple(_read(kind, item) for item in parts.get(name, ()))
        found: Look = _read(Look, parts)
        return found


def figures(**given: Figure) -> tuple[dict[str, float | None], Why]:
    """The numbers by name, and the reasons for those that are missing."""
    why = tuple((name, reason) for name, (value, reason) in given.items() if value is None and reason)
    return {name: value for name, (value, _) in given.items()}, why


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        why = dict(getattr(value, "why", ()))
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            name: dict(item) if name == "why" else _plain(item)
            for name, item in held.items()
            if (item is not None or name in why) and item != ()
        }
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _read(kind: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no object")
    held: dict[str, Any] = {}
    known = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    for name, item in value.items():
        wanted = known[name]
        if wanted == "Why":
            held[name] = tuple((str(figure), str(reason)) for figure, reason in dict(item).items())
            continue
        if wanted == "tuple[str, ...]":
            fits = isinstance(item, list) and all(isinstance(part, str) for part in item)
            item = tuple(item) if fits else item
        elif wanted == "str":
            fits = isinstance(item, str)
        elif wanted.startswith("tuple"):
            fits = isinstance(item, tuple)
        else:
            number = isinstance(item, int if wanted.startswith("int") else (int, float)) and not isinstance(item, bool)
            fits = number or (item is None and "None" in wanted)
        if not fits:
            raise TypeError(f"{name} is {item!r}")
        held[name] = item
    return kind(**held)
