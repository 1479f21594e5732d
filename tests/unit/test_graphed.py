"""CUDA graphs without CUDA: streams, events and captures that only keep a record, and refuse what CUDA refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import reclra_graph as rg
from reclra_graph.errors import StepError, UsageError
from reclra_graph.runtime import graphed
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.graphed import GraphedStep
from tests.models import batch_for, build, dropouts, figure1_regions, fresh, mlp, tagger


class Device:
    """Says that it is a GPU, and that every tensor is there."""

    type, index = "cuda", 0

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


HERE = Device()


class Cuda:
    """What of torch.cuda a step and its graphs use. A stream's clock holds how much of each stream's work is sure to be
    done; entering a stream is work on it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.streams: list[Stream] = []
        self.usual = Stream(self, HERE)
        self.now = self.usual
        self.capturing: set[int] = set()
        self.forked: set[int] = set()
        self.fail = ""

    def Stream(self, device: Any) -> Stream:
        return Stream(self, device)

    def Event(self) -> Event:
        return Event(self)

    def CUDAGraph(self) -> Graph:
        return Graph(self)

    def current_stream(self, device: Any = None) -> Stream:
        return self.now

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def synchronize(self, device: Any = None) -> None:
        assert not self.capturing, "CUDA refuses to wait while it captures"

    def graph_pool_handle(self) -> str:
        return "pool"

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        stream.clock[stream.number] = stream.clock.get(stream.number, 0) + 1
        if self.capturing:
            assert stream.number in self.capturing, f"work on stream {stream.number}, which the capture does not hold"
        try:
            yield
        finally:
            self.now = before


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
            self.cuda.capturing.add(self.number)
        for number, count in event.clock.items():
            self.clock[number] = max(self.clock.get(number, 0), count)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def capture_begin(self, pool: Any) -> None:
        assert not self.cuda.capturing
        assert self.cuda.now is not self.cuda.usual, "the usual stream cannot be captured"
        self.cuda.log.append("begin")
        self.stream = self.cuda.now
        self.cuda.capturing = {self.stream.number}
        if self.cuda.fail:
            raise RuntimeError(self.cuda.fail)

    def capture_end(self) -> None:
        assert self.cuda.now is self.stream, "a capture ends on the stream that it began on"
        held, self.cuda.capturing = self.cuda.capturing, set()
        self.cuda.log.append(f"end, {len(held)} streams")
        done = self.cuda.now.clock
        for number in held:
            if done.get(number, 0) < self.cuda.streams[number].clock.get(number, 0):
                raise RuntimeError(f"stream {number} was not joined")

    def replay(self) -> None:
        self.cuda.log.append("replay")


class Torch:
    """torch, but for its CUDA part."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, *name: Any) -> Any:
        return HERE


class OnCuda(CompiledStep):
    @property
    def device(self) -> Any:
        return HERE


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(graphed, "torch", Torch(made))
    return made


def on_cuda(step: CompiledStep, cuda: Cuda) -> OnCuda:
    """A copy of a step that takes the CPU for a GPU."""
    moved = fresh(step)
    moved.__class__ = OnCuda
    assert isinstance(moved, OnCuda)
    names = moved.module.__dict__
    usual = names["Lanes"]
    names.update(torch=Torch(cuda), lane_device=lambda lane, device: HERE, Lanes=lambda device: usual(HERE))
    return moved


def step_of(cuda: Cuda, **options: Any) -> OnCuda:
    return on_cuda(build(*figure1_regions(), **options), cuda)


PLANS: list[dict[str, Any]] = [
    {"gpus": 1}, {"gpus": 5}, {"gpus": 3, "micro_batches": 2}, {"gpus": 5, "placement": "pipeline"},
]  # fmt: skip


@pytest.mark.parametrize("options", PLANS, ids=str)
def test_a_step_is_two_graphs_with_all_lanes_forked_and_joined(cuda: Cuda, options: dict[str, Any]) -> None:
    step = step_of(cuda, **options)
    run, (inputs, target) = step.graphed(), batch_for(step)
    for number in range(4):
        assert torch.isfinite(run(inputs, target))
        assert bool(run.why) == (number < 2)
    ended = f"end, {len(step.schedule.lanes)} streams"
    assert cuda.log == ["begin", ended, "begin", ended, *["replay"] * 4]
    assert step.module.__dict__["check"].__name__ == "check", "the file is as it was"


def test_lanes_that_the_step_leaves_apart_are_joined_by_the_graph(cuda: Cuda) -> None:
    step = step_of(cuda, gpus=5)
    lines = step.source.splitlines()
    last = max(number for number, line in enumerate(lines) if line.strip().startswith("wait("))
    faked = {name: step.module.__dict__[name] for name in ("torch", "lane_device", "Lanes")}
    exec(compile("\n".join([*lines[:last], *lines[last + 1 :]]), "step", "exec"), step.module.__dict__)
    step.module.__dict__.update(faked)
    run, (inputs, target) = GraphedStep(step, warmup=0), batch_for(step)
    run(inputs, target)
    assert not run.why
    assert cuda.log.count("end, 5 streams") == 2


def test_shapes_and_rates_are_captured_apart(cuda: Cuda) -> None:
    step = step_of(cuda)
    run = GraphedStep(step, warmup=0, most=2)
    for size, begun in ((4, 2), (5, 4), (4, 4), (6, 4)):
        run(*batch_for(step, size))
        assert cuda.log.count("begin") == begun
    assert "more than 2 shapes" in run.why
    step.lr = 0.5
    run(*batch_for(step, 4))
    assert cuda.log.count("begin") == 6
    with torch.no_grad():
        for parameter in step.model.parameters():
            parameter.data = parameter.data.clone()
    run(*batch_for(step, 4))
    assert cuda.log.count("begin") == 8, "the parameters are elsewhere now"
    assert len(run.held) == 2


def test_a_loss_that_is_not_finite_is_refused_between_the_graphs(cuda: Cuda) -> None:
    step = step_of(cuda, gpus=2)
    run, (inputs, target) = GraphedStep(step, warmup=0), batch_for(step)
    run(inputs, target)
    (held,) = run.held.values()
    held.finite = torch.tensor(False)
    count = cuda.log.count("replay")
    with pytest.raises(StepError, match="RG604"):
        run(inputs, target)
    assert cuda.log.count("replay") == count + 1


def test_targets_go_by_their_labels_and_not_by_their_order(cuda: Cuda) -> None:
    made = tagger()
    step = on_cuda(fresh(made), cuda)
    inputs, target = batch_for(made)
    turned = dict(reversed(target.items()))
    first, second = step.arguments(inputs, target)[1], step.arguments(inputs, turned)[1]
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert list(first) == list(second)


def test_inputs_are_copied_into_the_graphs_own(cuda: Cuda) -> None:
    step = step_of(cuda)
    run = GraphedStep(step, warmup=0)
    for seed in (1, 2):
        inputs, target = batch_for(step, seed=seed)
        run(inputs, target)
        (held,) = run.held.values()
        assert [torch.equal(a, b) for a, b in zip(held.given, [*inputs, target], strict=True)] == [True, True]
        assert all(a is not b for a, b in zip(held.given, [*inputs, target], strict=True))


def test_what_cannot_be_captured_runs_as_it_is(cuda: Cuda) -> None:
    step = step_of(cuda, gpus=3, overlap_steps=True)
    run, (inputs, target) = GraphedStep(step, warmup=0), batch_for(step)
    assert isinstance(run(inputs, target), Tensor)
    assert "overlap" in run.why
    cuda.fail = "operation not permitted when stream is capturing"
    run = GraphedStep(step_of(cuda), warmup=0)
    assert isinstance(run(inputs, target), Tensor)
    assert run.why == f"the step cannot be captured: {cuda.fail}"
    assert "begin" in cuda.log


def test_random_numbers_do_not_hinder_a_graph(cuda: Cuda) -> None:
    step = on_cuda(dropouts(), cuda)
    run = GraphedStep(step, warmup=0)
    run(*batch_for(step))
    assert run.why == ""


def test_without_cuda_graphs_are_refused() -> None:
    step = rg.compile(mlp(4, 3), torch.zeros(2, 4))
    with pytest.raises(UsageError, match="RG606"):
        step.graphed()
