"""Device: what the cost model knows of a machine, the table of those with a name, and the reader of those in a file.

Where the numbers of the table come from (float32 without tensor cores, dense; one direction of all links together):

- ``v100``: NVIDIA V100 data sheet (SXM2, 32 GB): 15.7 TFLOP/s, 900 GB/s, NVLink 300 GB/s both directions together.
- ``a100``: NVIDIA A100 data sheet (SXM, 80 GB): 19.5 TFLOP/s, 2,039 GB/s, NVLink 600 GB/s both directions together.
- ``h200``: NVIDIA H200 data sheet (SXM, 141 GB): 67 TFLOP/s, 4.8 TB/s, NVLink 900 GB/s both directions together.
- a kernel of a GPU costs about 5 µs to launch from Python, a copy to another GPU about 10 µs before its first byte.
- ``cpu``: round numbers for one core of a server, the launch with PyTorch's own work around a kernel; what a machine
  measures of them, and how well they order steps, stands in docs/results/cost-model-cpu.json.

A data sheet's number is a limit that no kernel reaches: times are too small by a factor, their order and their ratios
are what a plan needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from reclra_graph.errors import Problem
from reclra_graph.ir.text import register

GPU = 5e12
"""From this many operations per second on a device is taken for a GPU."""


@register
@dataclass(frozen=True)
class Device:
    """One device of the kind that a step is planned for.

    flops: float32 operations per second. bandwidth: bytes per second from and to its memory. launch: seconds that a
    kernel costs beside its work. link: bytes per second to another such device. latency: seconds that a transfer takes
    beside its bytes. memory: bytes.
    """

    name: str
    flops: float
    bandwidth: float
    launch: float
    link: float
    latency: float
    memory: int

    @property
    def clock(self) -> str:
        """``"unit"``: a target and an update cost 1 each, everything else nothing. ``"ns"``: nanoseconds."""
        return "unit" if self == UNIT else "ns"

    @property
    def is_gpu(self) -> bool:
        """Whether kernels are likely to wait for their launch: arithmetic that only GPUs have."""
        return self.flops >= GPU

    def seconds(self, flops: int, size: int) -> float:
        """Seconds that one kernel works: by the roofline, whichever of arithmetic and memory takes longer."""
        return max(flops / self.flops, size / self.bandwidth)

    def nanoseconds(self, flops: int, size: int, kernels: int = 1) -> int:
        """Time of ``kernels`` kernels that do so many operations and move ``size`` bytes together; 0 in unit costs."""
        if self == UNIT:
            return 0
        return whole(self.seconds(flops, size) + kernels * self.launch)

    def transfer(self, size: int) -> int:
        """Nanoseconds until ``size`` bytes have arrived on another device; 0 in unit costs."""
        return 0 if self == UNIT else whole(self.latency + size / self.link)

    def shown(self, cost: int) -> str:
        """A cost for people: ``"5"`` in unit costs, else ``"18.2 µs"``, ``"1.24 ms"``, ``"2.31 s"``."""
        if self == UNIT:
            return str(cost)
        for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
            if cost >= size:
                amount = cost / size
                return f"{amount:.{max(0, 3 - len(str(int(amount))))}f} {unit}"
        return f"{cost} ns"


def whole(seconds: float) -> int:
    """Seconds as a whole number of nanoseconds, at least 1: costs are integers, so that sums do not depend on order."""
    return max(1, round(seconds * 1e9))


UNIT = Device("unit", 0.0, 0.0, 0.0, 0.0, 0.0, 0)
"""The paper's own measure, by which nothing but the steps of the wiring counts."""

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        UNIT,
        Device("cpu", 60e9, 10e9, 6e-6, 10e9, 20e-6, 16 * 10**9),
        Device("v100", 15.7e12, 900e9, 5e-6, 150e9, 10e-6, 32 * 10**9),
        Device("a100", 19.5e12, 2039e9, 5e-6, 300e9, 10e-6, 80 * 10**9),
        Device("h200", 67e12, 4800e9, 5e-6, 450e9, 10e-6, 141 * 10**9),
    )
}

LEAST, MOST = 1e-12, 1e24
"""What the numbers of a device lie between."""

_NUMBERS = tuple(field.name for field in fields(Device) if field.name != "name")


def find_device(name: str) -> tuple[Device, tuple[Problem, ...]]:
    """The device of a name, or of a JSON file, and what is wrong with it (then the device is ``UNIT``)."""
    if name in DEVICES:
        return DEVICES[name], ()
    if not isinstance(name, str) or not name.endswith(".json"):
        known = ", ".join(repr(item) for item in DEVICES)
        advice = f"Choose one of {known}, or give a JSON file with {', '.join(_NUMBERS)}."
        return UNIT, (Problem("RG430", f"there is no device named {name!r}", "device", advice),)
    try:
        value = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8 and not JSON are ValueErrors
        cause = f"cannot be read: {type(error).__name__}: {str(error)[:120]}"
        return UNIT, (Problem("RG431", cause, name),)
    return _from_json(value, name)


def _from_json(value: Any, place: str) -> tuple[Device, tuple[Problem, ...]]:
    """A device from the content of its file; every wrong field is told."""
    if not isinstance(value, dict):
        return UNIT, (Problem("RG431", f"holds a {type(value).__name__}, not an object", place),)
    found: list[Problem] = []
    missing = [name for name in _NUMBERS if name not in value]
    if missing:
        found.append(Problem("RG431", f"does not say {', '.join(missing)}", place))
    strange = sorted(set(value) - {"name", *_NUMBERS})
    if strange:
        found.append(Problem("RG431", f"says {', '.join(strange)}, which no device has", place))
    for name in _NUMBERS:
        number = value.get(name, 1)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not LEAST <= number <= MOST:
            cause = f"{name} is {str(number)[:40]}, not a number from {LEAST:g} to {MOST:g}"
            found.append(Problem("RG431", cause, place))
    name = value.get("name", Path(place).stem)
    if not isinstance(name, str) or name in DEVICES or not name:
        cause = f"name is {str(name)[:40]!r}: no text, or the name of another device"
        found.append(Problem("RG431", cause, place))
    if found:
        return UNIT, tuple(found)
    numbers = {item: float(value[item]) for item in _NUMBERS if item != "memory"}
    return Device(name, **numbers, memory=max(1, int(value["memory"]))), ()
