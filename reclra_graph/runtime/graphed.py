"""The step as CUDA graphs: recorded once for each shape of input, then launched in one go.

On one GPU a step is two graphs, since it may be refused: the host looks at the loss's check between them, and nothing
is changed in the first. The lanes' streams are forked from the capturing stream and joined to it in each. Over several
GPUs they are as few as the hand-overs allow (``spread.py``). What cannot be captured runs as the step itself does, and
``why`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reclra_graph.errors import Problem, UsageError
from reclra_graph.ir.operators import OPAQUE
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.spread import Recorded, Spread, lane_places, spread

if TYPE_CHECKING:
    from reclra_graph.runtime.pieced import PiecedStep

Key = tuple[Any, ...]


@dataclass
class Captured(Recorded):
    """A captured step on one device: two graphs."""

    first: Any
    second: Any

    def replay(self, given: Sequence[Tensor]) -> Tensor:
        """One step on a batch. Raises StepError RG604 before anything is changed."""
        self.take(given)
        self.first.replay()
        self.look()
        self.second.replay()
        return self.loss.clone()


class GraphedStep:
    """``step(x, target)`` by CUDA graphs, a set of them for every shape, where that can be.

    The first ``warmup`` calls with a shape are ordinary steps; the next one captures. A change of ``lr``, ``beta``,
    ``gamma`` or of where the parameters are captures anew; at most ``most`` sets are kept, and further shapes run as
    the step itself does. ``why`` is the reason why the last call ran no graph, or "".
    """

    def __init__(
        self,
        step: CompiledStep,
        warmup: int = 2,
        most: int = 8,
        places: Mapping[int, int] | None = None,
        fused: PiecedStep | None = None,
    ) -> None:
        """``places``: a number for the device of every lane, to capture as for several GPUs where there is but one.
        ``fused``: the step in compiled pieces, to capture these; the first steps, at least one, are theirs.

        Raises UsageError RG606 where the model is not on a CUDA device."""
        if step.device.type != "cuda":
            cause = f"CUDA graphs were asked for, but the model is on {step.device}"
            raise UsageError(Problem("RG606", cause, "graphed()"))
        self.step, self.most, self.fused = step, most, fused
        self.warmup = max(1, warmup) if fused is not None else warmup
        self.places = places if fused is None else fused.places
        self.seen: dict[Key, int] = {}
        self.held: dict[Key, Captured | Spread] = {}
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
        if self.fused is None:
            return self.step(inputs, target, kwargs)
        loss = self.fused(inputs, target, kwargs)
        self.why = self.fused.why or self.why
        return loss

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
        if self._several() and not self.step.program.lines:
            return "the lines of its tasks are not known: a step from files is captured on one GPU alone"
        return ""

    def _several(self) -> dict[int, int]:
        """A number for the device of every lane, where they are on several; else nothing."""
        found = self.places or lane_places(self.step)
        return dict(found) if len(set(found.values())) > 1 else {}

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

    def _capture(self, given: list[Tensor], goal: Tensor | dict[str, Tensor]) -> Captured | Spread:
        """Record the step, on streams of its own: on one GPU in two graphs, cut at the loss's check. Nothing is
        computed."""
        device = self.step.device
        places = self._several()
        if self.fused is not None:
            return self.fused.captured(given, goal)
        if places:
            return spread(self.step, given, goal, places)
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
        return Captured([*static, *goals], loss, cut.finite, graphs[0], graphs[1])


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
