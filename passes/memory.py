"""StepProgram → the same with the predicted peak memory of every device in its schedule.

Before:  an emitted step.
After:   ``Schedule.peak``: bytes at the example batch, of parameters, buffers, synapses, inputs and targets, and of
         what the step itself holds at the worst moment.

The step runs once on PyTorch's meta device, where tensors have shapes, strides and storage but no data. So views,
results written in place and temporaries count for what they are, and a value lives until its ``del``, as it will in
earnest. Inside a convolution the CPU's library holds its operands a second time, in a layout of its own; what other
operators take for themselves is not seen.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reclra_graph.ir.operators import OPAQUE, TensorType
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.schedule import Run, Schedule
from reclra_graph.passes.calls import MEANS, sized
from reclra_graph.runtime.probe import probed

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default

_WITHOUT_DATA = (NotImplementedError, RuntimeError, TypeError, ValueError)


def with_peak(program: StepProgram, batch: int) -> StepProgram:
    """The program with the peaks in its schedule; as it was where a step cannot be run without data."""
    try:
        peak = predicted_peak(program, batch)
    except _WITHOUT_DATA:
        return program
    return replace(program, schedule=replace(program.schedule, peak=peak))


def predicted_peak(program: StepProgram, batch: int) -> tuple[int, ...]:
    """Bytes of every device, in the order of their numbers, at the worst moment of a step on ``batch`` samples.

    Raises NotImplementedError where a sub-module is opaque, and what the meta device raises for operators that need
    data: NotImplementedError, RuntimeError, TypeError or ValueError.
    """
    schedule = program.schedule
    graph = schedule.tasks.plan.regions.graph
    if any(operator.target == OPAQUE for operator in graph.operators):
        raise NotImplementedError("what a sub-module that could not be captured holds is not known")
    device_of = {lane.id: lane.device for lane in schedule.lanes}
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    held = _Held(sorted(set(device_of.values())))
    module: Any = probed(program, lambda task: held.on(device_of[lane_of.get(task, 0)]))
    places = {key: device_of[lane] for key, lane in vars(module).get("PLACES", {}).items()}
    P = {item.key: held.base(_meta(item.type, batch), places.get(item.key, 0)) for item in graph.held}
    P.update({key: P[item.key] for item in graph.parameters for key in item.tied})
    dtype = schedule.tasks.plan.regions.synapse_dtype
    E = {name: _meta(TensorType(tuple(shape), dtype), batch) for name, (shape, *_) in module.SYNAPSES.items()}
    if schedule.tasks.beside:
        module.lay_out(E)
    for name, (*_, lane) in module.SYNAPSES.items():
        held.base(E[name], device_of[lane])
    remembered = [
        held.base(torch.empty_like(value), held.device_of(value))
        for value in _learning(schedule, P, E)
        for _ in range(MEANS[schedule.tasks.plan.rates.optimizer])
    ]
    inputs = [held.base(_meta(item.type, batch), 0) for item in graph.inputs]
    goals = {
        label: held.base(_meta(TensorType(tuple(shape), kind), batch), 0)
        for label, (shape, kind, *_) in module.TARGETS.items()
    }

    class Lanes(module.Lanes):  # type: ignore[misc]
        """Lanes that copy between devices which are not there."""

        def here(self, value: Tensor) -> Tensor:
            return held.here(value)

    def optimise(store: dict[str, Tensor], name: str, delta: Tensor, lr: float) -> None:
        store[name].sub_(held.copied(delta, held.device_of(store[name])), alpha=lr)

    module.check = module.check_inputs = lambda *_: None
    module.Lanes = Lanes
    with held:
        module.step(P, E, *inputs, goals.get("", goals), optimise=optimise)
    del remembered
    return tuple(held.peak[device] for device in sorted(held.peak))


def _learning(schedule: Schedule, P: dict[str, Tensor], E: dict[str, Tensor]) -> list[Tensor]:
    """Parameters and synapses that the optimiser changes, each once."""
    return [(P if store.startswith("P") else E)[store[2:-1]] for store in schedule.tasks.learned]


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage from when an operator makes it until nothing refers to it any more."""

    def __init__(self, devices: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = dict.fromkeys(devices, 0)
        self.peak = dict.fromkeys(devices, 0)
        self.current = devices[0]
        self.home: dict[int, int] = {}
        """Device of every storage that lives, by its address."""
        self.brought: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def on(self, device: int) -> None:
        """What is made from now on is made on this device."""
        self.current = device

    def base(self, value: Tensor, device: int) -> Tensor:
        """Count a tensor that was there before the step."""
        self._count(value, device)
        return value

    def device_of(self, value: Tensor) -> int:
        return self.home.get(_address(value), self.current)

    def here(self, value: Tensor) -> Tensor:
        """What ``Lanes.here`` returns: the value, or a copy that lives until the end of the step."""
        if self.device_of(value) == self.current:
            return value
        key = self.current, id(value)
        if key not in self.brought:
            self.brought[key] = self.copied(value, self.current), value
        return self.brought[key][0]

    def copied(self, value: Tensor, device: int) -> Tensor:
        """The value on a device: itself, or a copy."""
        if self.device_of(value) == device:
            return value
        before, self.current = self.current, device
        found = torch.empty_like(value)
        self.current = before
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func == _FORWARD:
            self._during(_reordered(args[0], 16, 16) + _reordered(args[1], 1, 1) + _reordered(result, 16, 1))
        elif func == _BACKWARD:
            few = args[1].shape[1] < 4
            self._during(_reordered(args[0], 16 if few else 8, 1) + _reordered(args[1], 8, 4))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value, self.current)
        return result

    def _during(self, size: int) -> None:
        """Count what an operator takes for itself, before its results."""
        self.peak[self.current] = max(self.peak[self.current], self.now[self.current] + size)

    def _count(self, value: Tensor, device: int) -> None:
        storage = value.untyped_storage()
        address = int(storage._cdata)
        if address in self.home:
            return
        size = storage.nbytes()
        self.home[address] = device
        self.now[device] += size
        self.peak[device] = max(self.peak[device], self.now[device])
        weakref.finalize(storage, self._gone, address, device, size).atexit = False

    def _gone(self, address: int, device: int, size: int) -> None:
        del self.home[address]
        self.now[device] -= size


def _reordered(value: Tensor, block: int, least: int) -> int:
    """Bytes of an operand of a convolution in the layout of the library's kernels: channels in whole blocks, as seen in
    oneDNN's; nothing where there are fewer than ``least``, which it leaves as they are."""
    channels = value.shape[1]
    blocks = -(-channels // block) * block if channels >= least else 0
    return value.numel() // max(1, channels) * blocks * value.element_size()


def _address(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _meta(kind: TensorType, batch: int) -> Tensor:
    sizes = [sized(size, batch) for size in kind.shape]
    return torch.empty(sizes, dtype=getattr(torch, kind.dtype), device="meta")
