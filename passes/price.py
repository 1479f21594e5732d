"""TaskGraph → TaskGraph: what every task costs on the plan's device.

Before:  Task("update:3", …, cost=1)                                    the unit-cost model
After:   Task("update:3", …, cost=18250, flops=8388608, bytes=2228224)  nanoseconds, at the example batch size

Every call is run once on tensors without numbers (PyTorch's device ``meta``), so that shapes, arithmetic and kernels
are those of the step itself. A kernel takes as long as its arithmetic or its memory traffic, whichever is more, and its
launch (``reclra_graph.ir.device``). In the unit-cost model nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from reclra_graph.ir.costs import MADE_OPERATIONS, MADE_TRAFFIC
from reclra_graph.ir.device import UNIT, Device, whole
from reclra_graph.ir.operators import Ref, TensorType, references
from reclra_graph.ir.tasks import Call, Task, TaskGraph
from reclra_graph.passes.calls import IMPLICIT, Values, without_numbers
from reclra_graph.passes.kernels import CountKernels, Kernel


@dataclass(frozen=True)
class Counted:
    """A task, the kernels that it runs, and the (name, type) of each tensor that it reads."""

    task: Task
    kernels: tuple[Kernel, ...]
    given: tuple[tuple[str, TensorType], ...]

    def priced(self, device: Device) -> Task:
        """The task with its cost on a device."""
        seconds = sum(device.seconds(*item) for item in self.kernels) + len(self.kernels) * device.launch
        flops, size = sum(item[0] for item in self.kernels), sum(item[1] for item in self.kernels)
        return replace(self.task, cost=whole(seconds), flops=flops, bytes=size)


def price(tasks: TaskGraph, device: Device) -> TaskGraph:
    """The same tasks with their cost, their floating-point operations and the bytes they move."""
    if device == UNIT:
        return tasks
    return replace(tasks, tasks=tuple(item.priced(device) for item in counted(tasks)))


def counted(tasks: TaskGraph) -> Iterator[Counted]:
    """The kernels of every task, in the order of the tasks, for the plan's batch."""
    values = Values(tasks, tasks.plan.batch, without_numbers)
    for task in tasks.tasks:
        given = tuple(
            (name, TensorType(tuple(value.shape), str(value.dtype).removeprefix("torch.")))
            for name in task.reads
            if isinstance(value := values.held.get(name), Tensor)
        )
        kernels = [kernel for call in task.calls for kernel in _kernels(call, values)]
        yield Counted(task, tuple(kernels), given)


def _kernels(call: Call, values: Values) -> list[Kernel]:
    """The kernels of a call. What runs only on real numbers, as a sub-module kept whole does, counts as one kernel
    that reads its arguments, writes its results, and multiplies each of its parameters once per sample."""
    counter = CountKernels()
    with torch.no_grad(), counter:
        try:
            values.run(call)
            return counter.found
        except Exception:  # whatever an operator raises that cannot do without numbers
            pass
    values.declare(call)
    if call.function == IMPLICIT:
        return _made(call, values)
    read = dict.fromkeys(references((*call.args, *(item for _, item in call.kwargs))))
    given = [value for name in read if isinstance(value := values.held.get(name), Tensor)]
    made = [values.held[name] for name in call.results if name]
    stored = sum(values.held[name].numel() for name in read if name.startswith("P["))
    size = sum(item.numel() * item.element_size() for item in (*given, *made))
    return [(2 * stored * values.batch + sum(item.numel() for item in made), size)]


def _made(call: Call, values: Values) -> list[Kernel]:
    """The kernels of a product with an implicit synapse: those that mix its entries, and the product."""
    (e, _, target), (result,) = call.args, call.results
    assert isinstance(e, Ref)
    assert isinstance(target, tuple)
    units = values.held[e.name].numel() // values.batch
    entries = units * prod(int(str(size)) for size in target)
    item = values.held[e.name].element_size()
    sent = item * (values.held[e.name].numel() + values.held[result].numel())
    mixing = [(MADE_OPERATIONS * entries // 8, MADE_TRAFFIC * entries * item // 8)] * 8
    return [*mixing, (2 * values.batch * entries, sent)]
