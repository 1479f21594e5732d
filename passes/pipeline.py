"""The order of the passes, in one place; every pass is followed by its verifier, always."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from reclra_graph.errors import UsageError
from reclra_graph.ir.costs import Costs
from reclra_graph.ir.device import UNIT, Device, find_device
from reclra_graph.ir.operators import OperatorGraph
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.options import MIRRORING, TOGETHER, Options
from reclra_graph.passes.autocast import autocast
from reclra_graph.passes.capture import capture
from reclra_graph.passes.costs import batch_size, device_costs, unit_costs
from reclra_graph.passes.emit import emit
from reclra_graph.passes.lower import lower
from reclra_graph.passes.memory import with_peak
from reclra_graph.passes.micro import micro
from reclra_graph.passes.partition import partition
from reclra_graph.passes.place import place
from reclra_graph.passes.price import price
from reclra_graph.passes.profile import measured_on, profile
from reclra_graph.passes.recompute import recompute
from reclra_graph.passes.schedule import schedule
from reclra_graph.passes.wire import wire
from reclra_graph.verify import verify

T = TypeVar("T")
Progress = Callable[[str], None]
"""Told the name of each pass as it starts."""


@dataclass(frozen=True)
class Compilation:
    """What a compilation gives: the program (which holds every value before it), the constants that the graph needs
    beside ``state_dict()``, and the seconds that each pass took, its verifier included."""

    program: StepProgram
    constants: dict[str, Tensor]
    seconds: tuple[tuple[str, float], ...]


class _Clock:
    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.seconds = progress, dict[str, float]()

    def run(self, name: str, work: Callable[[], T]) -> T:
        if self.progress is not None:
            self.progress(name)
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[name] = time.perf_counter() - start


def compile_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Options,
    progress: Progress | None = None,
) -> Compilation:
    """All passes over a model, called as ``model(*args, **kwargs)``.

    Raises UsageError for impossible options, ModelError for impossible models.
    """
    device, unknown = find_device(options.device)
    problems = (*options.problems(), *unknown)
    held = model.parameters() if isinstance(model, nn.Module) else iter(())  # capture refuses what is no module
    where = next((item.device for item in held), torch.device("cpu"))
    if options.profile and not problems:
        device, problems = measured_on(device, where)
    if problems:
        raise UsageError(problems)
    clock = _Clock(progress)
    if options.memory_format == "auto":
        options = replace(options, memory_format=memory_format(args, kwargs))
    graph, constants = clock.run("capture", lambda: _captured(model, args, kwargs, options))
    regions = clock.run("partition", lambda: verify(partition(graph)))
    batch = batch_size(graph, args, kwargs)
    if options.autocast is not None:
        low, plain = options.autocast, regions
        regions = clock.run("autocast", lambda: verify(autocast(plain, low, where.type, batch)))

    def priced(tasks: TaskGraph) -> TaskGraph:
        return profile(tasks, device, where) if options.profile else price(tasks, device)

    found = clock.run("costs", lambda: _costs(regions, options, device, batch, priced))
    plan = clock.run("wire", lambda: verify(wire(regions, options, found)))
    tasks = clock.run("lower", lambda: verify(lower(plan, options.without)))
    if options.recompute:
        tasks = clock.run("recompute", lambda: verify(recompute(tasks)))
    part = replace(tasks.plan, batch=-(-tasks.plan.batch // options.micro_batches))
    tasks = clock.run("price", lambda: verify(priced(replace(tasks, plan=part))))
    if options.placed or plan.placement:
        tasks = clock.run("place", lambda: verify(placed(tasks, options)))
    timetable = clock.run("schedule", lambda: verify(schedule(tasks, options.overlap_steps)))
    program = clock.run("emit", lambda: verify(emit(timetable)))
    whole = -(-batch // options.micro_batches) * options.micro_batches  # the next batch that can be cut
    program = clock.run("memory", lambda: verify(with_peak(program, whole)))
    return Compilation(program, constants, tuple(clock.seconds.items()))


def memory_format(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """That of the images among the inputs."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    images = [item for item in tree_leaves((args, dict(kwargs))) if isinstance(item, Tensor) and item.dim() in formats]
    last = [item.is_contiguous(memory_format=formats[item.dim()]) and not item.is_contiguous() for item in images]
    return "channels_last" if any(last) else "contiguous"


def placed(tasks: TaskGraph, options: Options) -> TaskGraph:
    """The tasks with every region on a GPU and in micro-batches, where the plan or the options ask for either."""
    if options.placed or tasks.plan.placement:
        return micro(place(tasks), options.micro_batches)
    return tasks


def _costs(
    regions: RegionGraph, options: Options, device: Device, batch: int, priced: Callable[[TaskGraph], TaskGraph]
) -> Costs:
    """What each region costs, from its tasks in the flat wiring."""
    units = unit_costs(regions, batch)
    if device == UNIT:
        return units
    # One that fits edges of every length.
    rule = {"mirror": "eq6", **dict.fromkeys(MIRRORING, "fixed")}.get(options.rule, options.rule)
    plain = replace(
        options, wiring="flat", relays=None, depth="auto", kappa=(), strict=False, synapse_memory=None,
        gpu_memory=None, rule=rule, synapse="auto" if options.synapse == "adjoint" else options.synapse,
    )  # fmt: skip
    flat = replace(wire(regions, plain, units), device=device, batch=batch)
    return device_costs(priced(lower(flat, (*options.without, *TOGETHER))))


def explain_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options | None = None
) -> RegionGraph:
    """Capture and partition only: what ``reclra explain`` reports before anything is built."""
    graph, _ = _captured(model, args, kwargs, options or Options())
    return verify(partition(graph))


def _captured(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options
) -> tuple[OperatorGraph, dict[str, Tensor]]:
    graph, constants = capture(model, args, kwargs, options)
    return verify(graph), constants
