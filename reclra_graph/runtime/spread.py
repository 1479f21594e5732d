"""A step over several GPUs as CUDA graphs: one for each segment of its schedule, each on one device.

A CUDA graph holds one device's work, so the hand-overs stand between the graphs: copies to tensors that stay where they
are, and events for which a device's stream waits before it goes on. Graphs of a device share their memory and run one
behind the other; its lanes are streams that fork from the capturing one where a graph begins, and join it at the end.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reclra_graph.errors import Problem, StepError
from reclra_graph.ir.schedule import Copy, Free, Record, Wait
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.segments import Part, Segment, segments
from reclra_graph.runtime.statements import name_space, part_code


@dataclass
class _Launch:
    """A graph, the stream to launch it on, the launches to wait for, and what to copy first: (to, from, stream of the
    device that it comes from, where that is another)."""

    graph: Any
    stream: Any
    after: tuple[int, ...]
    copies: list[tuple[Tensor, Tensor, Any]]
    check: bool


@dataclass
class Recorded:
    """The tensors that a captured step reads and writes, which stay where they are."""

    given: list[Tensor]
    loss: Tensor
    finite: Tensor

    def take(self, given: Sequence[Tensor]) -> None:
        """Bring a batch to where the graphs read it."""
        for static, value in zip(self.given, given, strict=True):
            static.copy_(value, non_blocking=True)

    def look(self) -> None:
        """Raises StepError RG604 where the loss is not finite: the host looks before anything is changed."""
        if not self.finite:
            cause = "the loss or an input is not finite; the parameters are as they were"
            raise StepError(Problem("RG604", cause, "step()"))


@dataclass
class Spread(Recorded):
    """A captured step over several devices."""

    launches: list[_Launch]
    device: torch.device

    def replay(self, given: Sequence[Tensor]) -> Tensor:
        """One step on a batch. Raises StepError RG604 before anything is changed."""
        self.take(given)
        begin = torch.cuda.current_stream(self.device).record_event()
        streams = list(dict.fromkeys(launch.stream for launch in self.launches))
        for stream in streams:
            stream.wait_event(begin)
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        try:
            self._launch()
        finally:  # what follows on any device comes behind what was launched there
            for stream in streams:
                for device in {other.device for other in streams}:
                    torch.cuda.current_stream(device).wait_stream(stream)
        return self.loss.clone()

    def _launch(self) -> None:
        done: list[Any] = []
        for launch in self.launches:
            for number in launch.after:
                launch.stream.wait_event(done[number])
            with torch.cuda.stream(launch.stream):
                for target, source, road in launch.copies:
                    # The copy leaves on a stream of the other device, and holds up nothing there.
                    with torch.cuda.stream(road) if road is not None else nullcontext():
                        target.copy_(source, non_blocking=True)
                launch.graph.replay()
                done.append(launch.stream.record_event())
                if launch.check:
                    self.look()


def lane_places(step: CompiledStep) -> dict[int, int]:
    """A number for the device of every lane."""
    homes = {lane.id: step.module.lane_device(lane.id, step.device) for lane in step.schedule.lanes}
    number = {home: index for index, home in enumerate(dict.fromkeys(homes.values()))}
    return {lane: number[home] for lane, home in homes.items()}


def spread(
    step: CompiledStep, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], places: Mapping[int, int]
) -> Spread:
    """Capture a step on a batch like this one, its lanes on the devices numbered ``places``. Nothing is computed.

    Raises ValueError where the schedule cannot be cut, and RuntimeError where CUDA cannot capture something.
    """
    return _Statements(step, given, goal, places).result()


class Capture(ABC):
    """Captures a step's segments one by one; what is done in them, and where values are, those who inherit know."""

    def __init__(
        self, step: CompiledStep, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], places: Mapping[int, int]
    ) -> None:
        self.step, self.places = step, places
        self.segments = segments(step.schedule, places)
        self.given = [item.clone() for item in given]
        self.goal = goal.clone() if isinstance(goal, Tensor) else {key: item.clone() for key, item in goal.items()}
        self.devices = {lane: step.module.lane_device(lane, step.device) for lane in places}
        self.queues: dict[int, Any] = {}
        self.roads: dict[tuple[Any, int], Any] = {}
        self.pools: dict[int, Any] = {}
        for lane in sorted(places):
            self.queues[lane] = torch.cuda.Stream(self.devices[lane])  # type: ignore[no-untyped-call]
            self.pools.setdefault(places[lane], torch.cuda.graph_pool_handle())

    @abstractmethod
    def entries(self, segment: Segment) -> Sequence[Any]:
        """What a segment does, in order: work, records, waits and frees."""

    @abstractmethod
    def work(self, item: Any) -> None:
        """Do a piece of work of ``entries``, on the current stream."""

    @abstractmethod
    def value(self, name: str) -> Tensor:
        """The tensor behind one of the plan's names, ``"loss"`` or ``"finite"``."""

    @abstractmethod
    def bring(self, copy: Copy, source: Tensor, target: Tensor) -> None:
        """Let a lane read ``target`` for what another made as ``source``."""

    @abstractmethod
    def forget(self, names: Sequence[str]) -> None:
        """Let go of values."""

    def result(self) -> Spread:
        """The captured step."""
        for device in dict.fromkeys(self.devices.values()):
            torch.cuda.synchronize(device)
        launches = [self._segment(segment) for segment in self.segments]
        goals = [self.goal] if isinstance(self.goal, Tensor) else list(self.goal.values())
        given = [*self.given, *goals]
        return Spread(given, self.value("loss"), self.value("finite"), launches, self.step.device)

    def _segment(self, segment: Segment) -> _Launch:
        lanes = [lane for lane in sorted(self.places) if self.places[lane] == segment.device]
        copies = [self._bring(copy) for copy in segment.copies]
        graph, main = torch.cuda.CUDAGraph(), self.queues[lanes[0]]
        with torch.cuda.stream(main):
            graph.capture_begin(pool=self.pools[segment.device])
            try:
                self._items(segment, lanes)
            except BaseException:
                with suppress(RuntimeError):  # a capture that failed cannot end well, but it must end
                    graph.capture_end()
                raise
            with warnings.catch_warnings():
                # Of a segment that only cuts inputs into micro-batches, which are views: such a graph has no kernel.
                warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
                graph.capture_end()
        return _Launch(graph, main, segment.after, copies, segment.check)

    def _bring(self, copy: Copy) -> tuple[Tensor, Tensor, Any]:
        """A tensor of the lane's own for a value of another device, and how it gets there."""
        source = self.value(copy.value)
        home = self.devices[copy.lane]
        target = torch.empty_like(source, device=home).copy_(source)  # valid numbers; each replay copies anew
        self.bring(copy, source, target)
        if source.device == home:
            return target, source, None
        key = source.device, self.places[copy.lane]
        if key not in self.roads:
            self.roads[key] = torch.cuda.Stream(source.device)  # type: ignore[no-untyped-call]
        return target, source, self.roads[key]

    def _items(self, segment: Segment, lanes: Sequence[int]) -> None:
        """Run a segment's items, each on its lane's stream; all lanes of the device begin and end with it."""
        main, others = self.queues[lanes[0]], [self.queues[lane] for lane in lanes[1:]]
        begin, events = main.record_event(), {}
        for queue in others:
            queue.wait_event(begin)
        for item in self.entries(segment):
            if isinstance(item, Free):
                self.forget(item.values)
            elif isinstance(item, Record):
                events[item.event] = self.queues[item.lane].record_event()
            elif isinstance(item, Wait):
                self.queues[item.lane].wait_event(events[item.event])
            else:
                with torch.cuda.stream(self.queues[item.lane]):
                    self.work(item)
        for queue in others:
            main.wait_event(queue.record_event())


class _Statements(Capture):
    """The emitted file's own statements."""

    def __init__(
        self, step: CompiledStep, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], places: Mapping[int, int]
    ) -> None:
        super().__init__(step, given, goal, places)
        self.code = part_code(step.program)
        self.space = name_space(step, self.given, self.goal)
        self.lane = 0
        self.brought: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        optimise = self.space["optimise"]
        self.space.update(
            here=self._here,
            check=self._check,
            optimise=lambda store, name, delta, lr: optimise(store, name, self._here(delta), lr),
        )

    def entries(self, segment: Segment) -> Sequence[Any]:
        return segment.items

    def work(self, item: Part) -> None:
        self.lane = item.lane
        if self.step.plan.placement:
            self.space["device"] = self.devices[item.lane]
        exec(self.code[item.task, item.half], self.space)

    def value(self, name: str) -> Tensor:
        store, _, key = name.partition("[")
        found: Tensor = self.space["target" if store == "T" else store][key[:-1]] if key else self.space[name]
        return found

    def bring(self, copy: Copy, source: Tensor, target: Tensor) -> None:
        self.brought[copy.lane, id(source)] = target, source

    def forget(self, names: Sequence[str]) -> None:
        for name in names:
            self.space.pop(name, None)

    def _here(self, value: Tensor) -> Tensor:
        return self.brought.get((self.lane, id(value)), (value, value))[0]

    def _check(self, loss: Tensor, *inputs: Tensor) -> None:
        """What the file's own check would look at, for the host to see behind this segment."""
        finite = torch.isfinite(loss)
        for value in inputs:
            finite = finite & torch.isfinite(value).all()
        self.space["finite"] = finite
