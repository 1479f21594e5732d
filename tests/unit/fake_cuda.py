"""CUDA without CUDA: streams, events and captures that only keep a record, and refuse what CUDA refuses.

Every tensor is on the CPU, and says that it is on whichever GPU it is asked about. A captured graph holds the operators
that were called; they change nothing then, and are called again on the same tensors when the graph is replayed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reclra_graph.runtime.compiled import CompiledStep
from tests.models import fresh


class Device:
    """Says that it is a GPU, and that every tensor is there."""

    type = "cuda"

    def __init__(self, index: int = 0) -> None:
        self.index = index

    def __eq__(self, other: object) -> bool:
        return self.index == other.index if isinstance(other, Device) else True

    def __hash__(self) -> int:
        return 0


HERE = Device()


class Cuda:
    """What of torch.cuda a step and its graphs use. A stream's clock holds how much of each stream's work is sure to be
    done; entering a stream is work on it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.streams: list[Stream] = []
        self.usual: dict[int, Stream] = {}
        self.now: dict[int, Stream] = {}
        self.capturing: set[int] = set()
        self.graphs: list[Graph] = []
        self.fail = ""

    def Stream(self, device: Any) -> Stream:
        return Stream(self, device)

    def Event(self) -> Event:
        return Event(self)

    def CUDAGraph(self) -> Graph:
        return Graph(self)

    def current_stream(self, device: Any = HERE) -> Stream:
        if device.index not in self.usual:
            self.usual[device.index] = Stream(self, Device(device.index))
        return self.now.get(device.index, self.usual[device.index])

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_device_name(self, device: Any) -> str:
        return "a GPU that is not there"

    def synchronize(self, device: Any = None) -> None:
        assert not self.capturing, "CUDA refuses to wait while it captures"

    def graph_pool_handle(self) -> object:
        return object()

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        number = stream.device.index
        before, self.now[number] = self.current_stream(stream.device), stream
        stream.clock[stream.number] = stream.clock.get(stream.number, 0) + 1
        if self.capturing:
            assert stream.number in self.capturing, f"work on stream {stream.number}, which the capture does not hold"
        try:
            yield
        finally:
            self.now[number] = before


class Event:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.clock, self.of = cuda, dict[int, int](), 0

    def record(self, stream: Stream) -> None:
        self.clock, self.of = dict(stream.clock), self.cuda.log.count("begin") if self.cuda.capturing else 0


class Stream:
    def __init__(self, cuda: Cuda, device: Any) -> None:
        self.cuda, self.device, self.number = cuda, device, len(cuda.streams)
        self.clock: dict[int, int] = {}
        cuda.streams.append(self)

    def record_event(self) -> Event:
        event = Event(self.cuda)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        inside = self.cuda.log.count("begin") if self.cuda.capturing else 0
        assert event.of == inside, "an event of another capture"
        if inside:
            home = self.cuda.graphs[-1].stream.device
            assert self.device == home, "a stream of another device in a capture"
            self.cuda.capturing.add(self.number)
        for number, count in event.clock.items():
            self.clock[number] = max(self.clock.get(number, 0), count)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class _Recorded(TorchDispatchMode):
    """The operators of a capture, and what they changed as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.inplace_view in func.tags:  # of a tensor that is made in this graph, not of its memory
            return func(*args, **(kwargs or {}))
        for value, item in zip(args, func._schema.arguments, strict=False):
            if item.is_write and id(value) not in self.before:
                self.before[id(value)] = value, value.clone()
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, found))
        return found

    def undo(self) -> None:
        with torch.no_grad():
            for value, before in self.before.values():
                value.copy_(before)

    def again(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, found in self.calls:
                made = func(*args, **kwargs)
                if not any(item.alias_info for item in func._schema.returns):  # a view is one still
                    leaves = torch.utils._pytree.tree_leaves
                    for old, new in zip(leaves(found), leaves(made), strict=True):
                        if isinstance(old, torch.Tensor):
                            old.copy_(new.reshape(old.shape))  # which may have been squeezed since


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.recorded = cuda, _Recorded()
        cuda.graphs.append(self)

    def capture_begin(self, pool: Any) -> None:
        assert not self.cuda.capturing
        self.stream = next(stream for stream in self.cuda.now.values() if stream not in self.cuda.usual.values())
        assert [self.stream] == [s for s in self.cuda.now.values() if s not in self.cuda.usual.values()]
        self.cuda.log.append("begin")
        self.pool = pool
        self.cuda.graphs.remove(self)
        self.cuda.graphs.append(self)  # in the order of their captures
        if self.cuda.fail:
            raise RuntimeError(self.cuda.fail)
        self.cuda.capturing = {self.stream.number}
        self.recorded.__enter__()

    def capture_end(self) -> None:
        now = self.cuda.now[self.stream.device.index]
        assert now is self.stream, "a capture ends on the stream that it began on"
        if torch.utils._python_dispatch._get_current_dispatch_mode() is self.recorded:
            self.recorded.__exit__(None, None, None)
        self.recorded.undo()
        if not self.recorded.calls:
            warnings.warn("The CUDA Graph is empty.", stacklevel=2)
        held, self.cuda.capturing = self.cuda.capturing, set()
        self.cuda.log.append(f"end, {len(held)} streams")
        for number in held:
            if now.clock.get(number, 0) < self.cuda.streams[number].clock.get(number, 0):
                raise RuntimeError(f"stream {number} was not joined")

    def replay(self) -> None:
        self.cuda.log.append("replay")
        self.recorded.again()


class Torch:
    """torch, but for its CUDA part."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, *name: Any) -> Any:
        return HERE

    def empty_like(self, value: torch.Tensor, device: Any = None) -> torch.Tensor:
        return torch.empty_like(value)


class OnCuda(CompiledStep):
    @property
    def device(self) -> Any:
        return HERE


def on_cuda(step: CompiledStep, cuda: Cuda, gpus: int = 1) -> OnCuda:
    """A copy of a step that takes the CPU for so many GPUs."""
    moved = fresh(step)
    moved.__class__ = OnCuda
    assert isinstance(moved, OnCuda)
    names = moved.module.__dict__
    usual = names["Lanes"]
    if len(step.schedule.lanes) > 1:
        usual.streams.clear()
    names.update(
        torch=Torch(cuda), lane_device=lambda lane, device: Device(lane % gpus), Lanes=lambda device: usual(HERE)
    )
    return moved
