"""Costs: what the planner knows of a region graph on a device, before any wiring is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from reclra_graph.ir.device import Device

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Costs:
    """Costs by region id, for a batch of ``batch`` samples: in units of ``clock``, and in bytes.

    forward: the region's part of the forward pass. target: its target and its error, without the displacements that
    arrive (see ``displace``). update: its parameters' updates, the optimiser's included. output_bytes: of z_i, what
    other regions read. activation_bytes: everything that its forward pass leaves until it has learned.
    parameter_bytes: its parameters.
    """

    device: Device
    clock: str
    batch: int
    forward: tuple[int, ...]
    target: tuple[int, ...]
    update: tuple[int, ...]
    output_bytes: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    parameter_bytes: tuple[int, ...]
    item: int = 4
    """Bytes of one number of a synapse."""

    def displace(self, source: Shape, source_axis: int, target: Shape, target_axis: int, form: str) -> int:
        """Cost of d_i = E e_j for one synapse, from region shapes without the batch."""
        flops, entries, kernels = _work(source, source_axis, target, target_axis, form, self.batch)
        moved = entries + self.batch * (prod(source) + prod(target))
        return self.device.nanoseconds(flops, self.item * moved, kernels)

    def learn(self, source: Shape, source_axis: int, target: Shape, target_axis: int, form: str) -> int:
        """Cost of Eq. 6 for one synapse, with the optimiser's step on E."""
        flops, entries, kernels = _work(source, source_axis, target, target_axis, form, self.batch)
        moved = 6 * entries + self.batch * (prod(source) + prod(target))
        return self.device.nanoseconds(flops + 3 * entries, self.item * moved, kernels + 2)

    def transfer(self, size: int) -> int:
        """Cost of bringing ``size`` bytes to another device."""
        return self.device.transfer(size)


def _work(
    source: Shape, source_axis: int, target: Shape, target_axis: int, form: str, batch: int
) -> tuple[int, int, int]:
    """(operations, stored or regenerated entries, kernels) of one product with a synapse."""
    name, _, rest = form.partition("(")
    if name == "dense" or name == "implicit":
        entries = prod(source) * prod(target)
        return 2 * batch * entries, entries, 1
    if name == "lowrank":
        entries = int(rest.rstrip(")")) * (prod(source) + prod(target))
        return 2 * batch * entries, entries, 2
    entries = _features(source, source_axis) * _features(target, target_axis)
    positions = _positions(_places(source, source_axis), _places(target, target_axis))
    window = 9 if name == "conv" else 1
    return 2 * batch * positions * entries * window, entries * window, 2


def _features(shape: Shape, axis: int) -> int:
    return shape[axis] if shape else 1


def _places(shape: Shape, axis: int) -> Shape:
    return shape[1:] if axis == 0 else shape[:-1]


def _positions(source: Shape, target: Shape) -> int:
    """At how many positions a shared E works: the smaller grid of two (see ``reclra_graph.rules.synapse.grid``)."""
    if prod(source) == 1 or prod(target) == 1:
        return 1
    if len(source) == len(target):
        return prod(map(min, source, target))
    return prod(source) if prod(source) == prod(target) else 1
