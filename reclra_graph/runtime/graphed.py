"""The step as CUDA graphs: recorded once for each shape of input, then launched in one go.

A step is two graphs, since it may be refused: the host looks at the loss's check between them, and nothing is changed
in the first. The lanes' streams are forked from the capturing stream and joined to it in each. What cannot be captured
runs as the step itself does, and ``why`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reclra_graph.errors import Problem, StepError, UsageError
from reclra_graph.ir.operators import OPAQUE
from reclra_graph.runtime.compiled import CompiledStep

Key = tuple[Any, ...]


@dataclass
class Captured:
    """Two graphs with the tensors that they read and write."""

    first: Any
    second: Any
    given: list[Tensor]
    loss: Tensor
    finite: Tensor

    def replay(self, given: list[Tensor]) -> Tensor:
        """One step on a batch. Raises StepError RG604 before anything is changed."""
        for static, value in zip(self.given, given, strict=True):
            static.copy_(value, non_blocking=True)
        self.first.replay()
        if not self.finite:
            cause = "the loss or an input is not finite; the parameters are as they were"
            raise StepError(Problem("RG604", cause, "step()"))
        self.second.replay()
        return self.loss.clone()


class GraphedStep:
    """``step(x, target)`` by CUDA graphs, one pair for every shape, where that can be.

    The first ``warmup`` calls with a shape are ordinary steps; the next one captures. A change of ``lr``, ``beta``,
    ``gamma`` or of where the parameters are captures anew; at most ``most`` pairs are kept, and further shapes run as
    the step itself does. ``why`` is the reason why the last call ran no graph, or "".
    """

    def __init__(self, step: CompiledStep, warmup: int = 2, most: int = 8) -> None:
        """Raises UsageError RG606 where the model is not on a CUDA device."""
        if step.device.type != "cuda":
            cause = f"CUDA graphs were asked for, but the model is on {step.device}"
            raise UsageError(Problem("RG606", cause, "graphed()"))
        self.step, self.warmup, self.most = step, warmup, most
        self.seen: dict[Key, int] = {}
        self.held: dict[Key, Captured] = {}
        self.broken: dict[Key, str] = {}
        self.why = ""

    def __call__(
        self, inputs: Any, target: Tensor | Mapping[str, Tensor], kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """One training step on a batch; raises as the step itself does."""
        given, goal = self.step.arguments(inputs, target, kwargs)
        tensors = [*given, *([goal] if isinstance(goal, Tensor) else goal.values())]
        self.why = self._obstacle(tensors)
        if not self.why:
            self.step.place(given[0].device)
            key = self._key(tensors)
            if key not in self.held:
                self.why = self._prepare(key, given, goal)
            if not self.why:
                return self.held[key].replay(tensors)
        return self.step(inputs, target, kwargs)

    def _obstacle(self, tensors: list[Tensor]) -> str:
        """Why no graph can hold this step, whatever its shapes."""
        graph = self.step.plan.regions.graph
        if any(item.target == OPAQUE for item in graph.operators):
            return "sub-modules that run as they are may do anything"
        device = self.step.device
        if device.type != "cuda" or any(item.device != device for item in tensors):
            return "inputs, target and model are not all on one CUDA device"
        if self.step.schedule.overlap:
            return "steps overlap: their events reach from one to the next"
        homes = {self.step.module.lane_device(lane.id, device) for lane in self.step.schedule.lanes}
        return "a graph holds one GPU, and the lanes are on several" if len(homes) > 1 else ""

    def _key(self, tensors: list[Tensor]) -> Key:
        """What a captured step depends on: shapes, rates, and where its parameters, synapses and optimiser are."""
        step = self.step
        stored = (*step.storage().values(), *step.store.all().values(), *step.optimiser_state.values())
        shapes = tuple((item.shape, item.dtype) for item in tensors)
        return (shapes, step.lr, step.beta, step.gamma, tuple(item.data_ptr() for item in stored))

    def _prepare(self, key: Key, given: list[Tensor], goal: Tensor | dict[str, Tensor]) -> str:
        """Capture the step for a key that has none; else why not yet, or why not at all."""
        if key in self.broken:
            return self.broken[key]
        shapes = key[0]
        self.seen[shapes] = self.seen.get(shapes, 0) + 1
        if self.seen[shapes] <= self.warmup:
            return "the first steps with a shape warm up"
        if len({other[0] for other in self.held} | {shapes}) > self.most:
            return f"more than {self.most} shapes: sizes that change all the time are not captured"
        while len(self.held) >= self.most:
            self.held.pop(next(iter(self.held)))
        try:
            self.held[key] = self._capture(given, goal)
        except (RuntimeError, ValueError) as error:  # whatever CUDA cannot do while it captures
            said = str(error).splitlines() or [type(error).__name__]
            self.broken[key] = f"the step cannot be captured: {said[0]}"
            return self.broken[key]
        return ""

    def _capture(self, given: list[Tensor], goal: Tensor | dict[str, Tensor]) -> Captured:
        """Record the step in two graphs, cut at the loss's check, on a stream of their own. Nothing is computed."""
        device = self.step.device
        static = [item.clone() for item in given]
        held: Any = goal.clone() if isinstance(goal, Tensor) else {key: item.clone() for key, item in goal.items()}
        goals = [held] if isinstance(held, Tensor) else list(held.values())
        graphs = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        cut = _Cut(graphs, stream, torch.cuda.graph_pool_handle())
        stream.wait_stream(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
        with torch.cuda.stream(stream), cut.instead(self.step.module.__dict__):
            cut.begin()
            try:
                loss = self.step.module.step(
                    self.step.storage(), self.step.store.all(), *static, held, **self.step.settings()
                )
            except BaseException:
                with suppress(RuntimeError):  # a capture that failed cannot end well, but it must end
                    cut.end()
                raise
            cut.join()
            cut.end()
        torch.cuda.current_stream(device).wait_stream(stream)
        assert cut.finite is not None
        return Captured(graphs[0], graphs[1], [*static, *goals], loss, cut.finite)


class _Cut:
    """Two captures, one behind the other: the emitted step's own ``check`` ends the first and begins the second."""

    def __init__(self, graphs: list[Any], stream: Any, pool: Any) -> None:
        self.graphs, self.stream, self.pool = graphs, stream, pool
        self.current = -1
        self.lanes: Any = None
        self.finite: Tensor | None = None

    @contextmanager
    def instead(self, names: dict[str, Any]) -> Iterator[None]:
        """Put this cut in the place of the file's check, and note the lanes that the step makes."""
        usual = {name: names[name] for name in ("check", "Lanes")}

        def lanes(device: torch.device) -> Any:
            self.lanes = usual["Lanes"](device)
            self._fork()
            return self.lanes

        names.update(check=self.check, Lanes=lanes)
        try:
            yield
        finally:
            names.update(usual)

    def begin(self) -> None:
        self.current += 1
        self.graphs[self.current].capture_begin(pool=self.pool)

    def end(self) -> None:
        self.graphs[self.current].capture_end()

    def join(self) -> None:
        """Join all lanes to the capturing stream, those too that have been given no work since they were forked."""
        for queue in self.lanes.queues[1:] if self.lanes is not None else ():
            self.lanes.queues[0].wait_event(queue.record_event())

    def check(self, loss: Tensor, *inputs: Tensor) -> None:
        """What the file's own check would look at, for the host to see between the graphs. Lanes that are at work join
        before, and all begin again behind: an event of the first graph has then happened."""
        finite = torch.isfinite(loss)
        for value in inputs:
            finite = finite & torch.isfinite(value).all()
        self.finite = finite
        self.join()
        with torch.cuda.stream(self.stream):  # the check may stand on another lane
            self.end()
            self.begin()
        if self.lanes is not None:
            self.lanes.events = dict.fromkeys(self.lanes.events, self._fork())

    def _fork(self) -> Any:
        """Bring all lanes into the capture; returns the event behind which they begin."""
        begin = self.lanes.queues[0].record_event()
        for queue in self.lanes.queues[1:]:
            queue.wait_event(begin)
        return begin
