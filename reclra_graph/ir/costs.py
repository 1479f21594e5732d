"""Costs: what the planner knows of a region graph on a device, before any wiring is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from reclra_graph.ir.device import Device

Shape = tuple[int, ...]

_FEW = 32
"""Up to this many units of the source, a dense synapse learns by E (e eᵀ) instead of d eᵀ."""

MADE_OPERATIONS, MADE_TRAFFIC = 3, 7
"""Of one entry of an implicit synapse: operations, and numbers read and written until it is there. Four entries share a
word of 32 bits, which seven passes mix; then each is converted, and read by the product."""


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
    buffers: int = 0
    """Cost of what is left of a step: buffers, such as running statistics, are set on the first device."""

    def synapse(self, source: Shape, source_axis: int, target: Shape, target_axis: int, form: str) -> tuple[int, int]:
        """(cost of sending, cost of learning) of one synapse, worked out once for all edges with these ends."""
        ends = (source, source_axis, target, target_axis, form)
        found = self._synapses.get(ends)
        if found is None:
            found = self._synapses[ends] = self.displace(*ends), self.learn(*ends)
        return found

    @cached_property
    def _synapses(self) -> dict[tuple[Shape, int, Shape, int, str], tuple[int, int]]:
        return {}

    def displace(self, source: Shape, source_axis: int, target: Shape, target_axis: int, form: str) -> int:
        """Cost of d_i = E e_j for one synapse, from region shapes without the batch."""
        work = _work(source, source_axis, target, target_axis, form)
        flops = 2 * self.batch * work.products + work.made * MADE_OPERATIONS
        moved = work.stored + work.made * MADE_TRAFFIC + self.batch * (prod(source) + prod(target))
        return self.device.nanoseconds(flops, self.item * moved, work.kernels)

    def learn(self, source: Shape, source_axis: int, target: Shape, target_axis: int, form: str) -> int:
        """Cost of Eq. 6 for one synapse, with the optimiser's step on E. Implicit synapses learn by a matrix of their
        source that all of them share: next to nothing for each."""
        work = _work(source, source_axis, target, target_axis, form)
        if not work.stored:
            return self.device.nanoseconds(0, 0, 0)
        units = prod(source)
        flops, kernels = 2 * self.batch * work.products, work.kernels + 2
        if form == "dense" and units <= _FEW:
            flops, kernels = 2 * self.batch * units**2 + 2 * work.stored * units, kernels + 1
        moved = 6 * work.stored + self.batch * (units + prod(target))
        return self.device.nanoseconds(flops + 3 * work.stored, self.item * moved, kernels)

    def send_back(self, source: Shape, source_axis: int, target: Shape, weight: Shape) -> int:
        """Cost of carrying an error back over an adjoint edge whose E has the shape ``weight``, () without one."""
        entries = prod(weight) if weight else 0
        flops = 2 * self.batch * entries * prod(_places(source, source_axis))
        moved = entries + self.batch * (prod(source) + prod(target))
        return self.device.nanoseconds(flops, self.item * moved, 1)

    def learn_back(self, weight: Shape) -> int:
        """Cost of what an adjoint edge learns from the change of its weight, with the optimiser's step on E."""
        return self.device.nanoseconds(4 * prod(weight), self.item * 6 * prod(weight), 2)

    def transfer(self, size: int) -> int:
        """Cost of bringing ``size`` bytes to another device."""
        return self.device.transfer(size)


@dataclass(frozen=True)
class _Work:
    """Of one product with a synapse: multiplications per sample, entries read, entries made on the way, kernels."""

    products: int
    stored: int
    made: int = 0
    kernels: int = 1


def _work(source: Shape, source_axis: int, target: Shape, target_axis: int, form: str) -> _Work:
    name, _, rest = form.partition("(")
    dense = prod(source) * prod(target)
    if name == "dense":
        return _Work(dense, dense)
    if name == "implicit":
        return _Work(dense, 0, dense, 9)
    if name == "lowrank":
        entries = int(rest.rstrip(")")) * (prod(source) + prod(target))
        return _Work(entries, entries, 0, 2)
    # A convolution's window is not known from the shapes: 3 by 3 is usual.
    entries = _features(source, source_axis) * _features(target, target_axis) * (9 if name == "conv" else 1)
    return _Work(_positions(_places(source, source_axis), _places(target, target_axis)) * entries, entries, 0, 2)


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
