"""Costs: what every region and every error synapse takes on a kind of device."""

from __future__ import annotations

from dataclasses import dataclass

from reclra_graph.ir.text import register


@register
@dataclass(frozen=True)
class Costs:
    """Integers by region id. ``clock`` is ``"unit"`` (a target and an update take 1 each, all else 0) or ``"ns"``."""

    clock: str
    batch: int
    forward: tuple[int, ...]
    target: tuple[int, ...]
    update: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    parameter_bytes: tuple[int, ...]

    def displace(
        self, source: tuple[int, ...], source_axis: int, target: tuple[int, ...], target_axis: int, form: str
    ) -> int:
        """Time of d = E e (Eq. 3) for one synapse."""
        return 0

    def learn(
        self, source: tuple[int, ...], source_axis: int, target: tuple[int, ...], target_axis: int, form: str
    ) -> int:
        """Time of Eq. 6 for one synapse."""
        return 0
