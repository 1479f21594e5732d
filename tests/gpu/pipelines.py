"""What must hold on a GPU of micro-batches, placed regions, overlapping steps and CUDA graphs, and what they take.

python -m tests.gpu.pipelines             on the GPU
python -m tests.gpu.pipelines --cpu       on the CPU, where there are no graphs
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch

import reclra_graph as rg
from reclra_graph.runtime.graphed import GraphedStep
from reclra_graph.runtime.spread import Spread
from tests.gpu.cases import (
    CASES,
    LANES,
    STEPS,
    NotHere,
    State,
    batch,
    exact,
    fresh,
    model,
    need,
    need_close,
    need_same,
    state,
    trained,
)
from tests.gpu.checks import run_one, sanitized

Options = tuple[tuple[str, Any], ...]

MICRO: Options = (("micro_batches", 2),)
PLACED: Options = (("placement", "pipeline"),)
OVERLAP: Options = (("overlap_steps", True),)
BOTH: Options = (*MICRO, *OVERLAP)


@cache
def source(name: str, lanes: int, more: Options) -> rg.CompiledStep:
    """A case compiled on the CPU with more options; only its program is used, by ``variant``."""
    case, net = CASES[name], copy.deepcopy(model(name))
    return rg.compile(net, (batch(name, 0)[0],), gpus=lanes, seed=3, **{**case.options, **dict(more)})


def variant(name: str, lanes: int, more: Options, device: torch.device) -> rg.CompiledStep:
    """A case's step with more options over a new copy of its model on a device."""
    made = source(name, lanes, more)
    return rg.CompiledStep(copy.deepcopy(model(name)).to(device), made.program, made.constants)


def joined(step: rg.CompiledStep, name: str, steps: int = STEPS) -> tuple[list[float], State]:
    """(losses, state) after some steps whose lanes are joined only then."""
    device, losses = step.device, []
    data = [tuple(item.to(device) for item in batch(name, number)) for number in range(steps)]
    for x, target in data:
        losses.append(step(x, target))
    step.join()
    return [loss.item() for loss in losses], state(step)


def same_for_all_lanes(name: str, more: Options, device: torch.device) -> None:
    """Bitwise the same on 1, 2, 5 and 8 lanes, and when repeated."""
    with exact():
        _, expected = joined(variant(name, 1, more, device), name)
        for lanes in LANES:
            for time_ in (1, 2):
                _, found = joined(variant(name, lanes, more, device), name)
                need_same(found, expected, f"{lanes} lanes, run {time_}")


def as_without(name: str, lanes: int, more: Options, device: torch.device) -> None:
    """Where regions are and when steps begin changes no bit of what comes out."""
    with exact():
        _, expected = trained(fresh(name, 1, device), name)
        _, found = joined(variant(name, lanes, more, device), name)
        need_same(found, expected, f"{lanes} lanes, {dict(more)}")


def as_on_the_cpu(name: str, lanes: int, more: Options, device: torch.device) -> None:
    """Micro-batches on the device learn what the whole batch does on the CPU; for nets without batch norm."""
    with exact():
        need_close(name, *joined(variant(name, lanes, more, device), name))


def graph_as_eager(name: str, lanes: int, more: Options, device: torch.device) -> None:
    """Replayed graphs give the eager step's losses and state, bit by bit."""
    if device.type != "cuda":
        raise NotHere("no CUDA device")
    with exact():
        eager, other = (variant(name, lanes, more, device) for _ in range(2))
        graphed = GraphedStep(other, warmup=2)
        for number in range(6):
            x, target = (item.to(device) for item in batch(name, number))
            first, second = eager(x, target), graphed(x, target)
            need(bool(torch.equal(first, second)), f"step {number}: loss {first.item()}, replayed {second.item()}")
            need(bool(graphed.why) == (number < 2), f"step {number}: {graphed.why or 'a graph ran'}")
        need_same(state(other), state(eager), "replayed")


def graphs_apart_as_eager(name: str, lanes: int, more: Options, device: torch.device) -> None:
    """Graphs of one device each, with copies and events between them, give the eager step's losses and state, bit by
    bit; on a single GPU every lane counts as a device of its own."""
    if device.type != "cuda":
        raise NotHere("no CUDA device")
    with exact():
        eager, other = (variant(name, lanes, more, device) for _ in range(2))
        apart = {lane.id: lane.id for lane in eager.schedule.lanes}
        places = None if torch.cuda.device_count() > 1 else apart
        graphed = GraphedStep(other, warmup=2, places=places)
        for number in range(6):
            x, target = (item.to(device) for item in batch(name, number))
            first, second = eager(x, target), graphed(x, target)
            need(bool(torch.equal(first, second.to(first.device))), f"step {number}: losses {first}, {second}")
            need(bool(graphed.why) == (number < 2), f"step {number}: {graphed.why or 'a graph ran'}")
        need(any(isinstance(held, Spread) for held in graphed.held.values()), "the lanes were taken together")
        need_same(state(other), state(eager), "replayed")


def graph_refuses_nan(name: str, device: torch.device, apart: bool = False) -> None:
    """A replayed graph refuses NaN in the input, with everything as it was, and goes on."""
    if device.type != "cuda":
        raise NotHere("no CUDA device")
    step = variant(name, 2, (), device)
    graphed = GraphedStep(step, warmup=1, places={0: 0, 1: 1} if apart else None)
    need_nan_refused(name, step, graphed, device)


def need_nan_refused(name: str, step: rg.CompiledStep, run: Any, device: torch.device) -> None:
    """A captured form of the step, warm behind three calls, refuses NaN with everything as it was, and goes on."""
    x, target = (item.to(device) for item in batch(name, 0))
    for _ in range(3):
        run(x, target)
    need(not run.why, run.why)
    before, bad = state(step), x.clone()
    bad.view(-1)[7] = float("nan")
    try:
        run(bad, target)
    except rg.StepError as error:
        need("RG604" in str(error), str(error))
    else:
        need(False, "NaN was not refused")
    need_same(state(step), before, "after NaN")
    need(bool(torch.isfinite(run(x, target))), "the next step is not finite")


def graph_with_other_sizes_and_rates(device: torch.device) -> None:
    """Another batch size or learning rate is captured anew, and gives what the eager step does."""
    if device.type != "cuda":
        raise NotHere("no CUDA device")
    with exact():
        eager, other = (variant("figure1", 2, (), device) for _ in range(2))
        graphed = GraphedStep(other, warmup=1)
        x, target = (item.to(device) for item in batch("figure1", 0))
        for size, lr in ((50, 0.1), (20, 0.1), (50, 0.05), (50, 0.1)):
            eager.lr = other.lr = lr
            for _ in range(3):
                eager(x[:size], target[:size])
                graphed(x[:size], target[:size])
            need(not graphed.why, graphed.why)
        need_same(state(other), state(eager), "several graphs")


def sanitizer_finds_nothing(name: str, lanes: int, more: Options, device: torch.device) -> None:
    """TORCH_CUDA_SANITIZER=1 on two steps, one behind the other."""
    status, output = sanitized(source(name, lanes, more).source, name, device)
    need(status == 0, f"status {status}: {output}")


def all_checks() -> dict[str, Callable[[torch.device], None]]:
    """Every check by name."""
    found: dict[str, Callable[[torch.device], None]] = {}
    for name in CASES:
        found[f"{name} in micro-batches: bitwise the same for all lanes"] = partial(same_for_all_lanes, name, MICRO)
        found[f"{name} placed: as without"] = partial(as_without, name, 5, PLACED)
        found[f"{name} with overlapping steps: as without"] = partial(as_without, name, 5, OVERLAP)
        for lanes in (1, 2, 5, 8):
            found[f"{name} as a graph, {lanes} lanes"] = partial(graph_as_eager, name, lanes, ())
        found[f"{name} as a graph, micro-batches on 2 lanes"] = partial(graph_as_eager, name, 2, MICRO)
        found[f"{name} as a graph: refuses NaN"] = partial(graph_refuses_nan, name)
        for label, more in (("", ()), (", placed", PLACED), (", micro-batches", MICRO)):
            found[f"{name} as graphs of one device each{label}"] = partial(graphs_apart_as_eager, name, 3, more)
        found[f"{name} as graphs of one device each: refuses NaN"] = partial(graph_refuses_nan, name, apart=True)
    for name in ("figure1", "lenet"):
        found[f"{name} in micro-batches: as on the CPU"] = partial(as_on_the_cpu, name, 2, MICRO)
    found["figure1: micro-batches and overlapping steps"] = partial(same_for_all_lanes, "figure1", BOTH)
    found["graphs for other sizes and rates"] = graph_with_other_sizes_and_rates
    for label, more in (("in micro-batches", MICRO), ("with overlapping steps", OVERLAP), ("with both", BOTH)):
        check = partial(sanitizer_finds_nothing, "figure1", 5, more)
        found[f"figure1 {label}: the sanitizer finds nothing"] = check
    return found


def seconds(device: torch.device) -> dict[str, float]:
    """Median milliseconds of a step, eager and as a graph, by case and lanes."""
    found: dict[str, float] = {}
    for name in CASES:
        for lanes in (1, 2, 5):
            step = variant(name, lanes, (), device)
            arms: dict[str, Callable[..., Any]] = {"eager": step}
            if device.type == "cuda":
                arms["graph"] = GraphedStep(step)
            x, target = (item.to(device) for item in batch(name, 0))
            for label, run in arms.items():
                times = []
                for number in range(35):
                    begin = time.perf_counter()
                    run(x, target)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    if number >= 5:
                        times.append(time.perf_counter() - begin)
                found[f"{name}, {lanes} lanes, {label}"] = round(1000 * statistics.median(times), 4)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks without pytest; exit status 1 where one failed."""
    parser = argparse.ArgumentParser(description="Check pipelines and CUDA graphs on a GPU, without pytest.")
    parser.add_argument("--cpu", action="store_true", help="on the CPU instead")
    args = parser.parse_args(argv)
    if not args.cpu and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --cpu runs the checks on the CPU")
    device, failed = torch.device("cpu" if args.cpu else "cuda:0"), 0
    for name, check in all_checks().items():
        found = run_one(check, device)
        failed += found["outcome"] == "failed"
        sys.stdout.write(f"{found['outcome']:<8}{found['seconds']:7.1f} s  {name}  {found['message']}\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
