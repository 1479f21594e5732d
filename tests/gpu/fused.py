"""What must hold on a GPU of steps that Inductor compiles: whole on one lane, in pieces on several, and as CUDA graphs.

python -m tests.gpu.parts fused FILE
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import reclra_graph as rg
from reclra_graph.runtime.fused import FusedStep
from reclra_graph.runtime.graphed import GraphedStep
from reclra_graph.runtime.pieced import PiecedStep
from tests.gpu.cases import STEPS, NotHere, batch, exact, need, need_close, state
from tests.gpu.pipelines import MICRO, PLACED, Options, need_nan_refused, variant

Form = Callable[[rg.CompiledStep, Path], FusedStep | GraphedStep]


def whole(step: rg.CompiledStep, folder: Path) -> FusedStep:
    """The step as one piece of machine code."""
    return FusedStep(step, folder=folder)


def pieced(step: rg.CompiledStep, folder: Path) -> FusedStep:
    """Lanes side by side, in pieces."""
    return PiecedStep(step, folder=folder)


def captured(step: rg.CompiledStep, folder: Path) -> GraphedStep:
    """The pieces as CUDA graphs."""
    return GraphedStep(step, warmup=1, fused=PiecedStep(step, folder=folder))


def captured_apart(step: rg.CompiledStep, folder: Path) -> GraphedStep:
    """The same, with every lane as a device of its own."""
    apart = {lane.id: lane.id for lane in step.schedule.lanes}
    places = None if torch.cuda.device_count() > 1 else apart
    return GraphedStep(step, warmup=1, fused=PiecedStep(step, folder=folder, places=places))


def as_on_the_cpu(name: str, lanes: int, more: Options, form: Form, device: torch.device) -> None:
    """A compiled step learns what the step itself does on the CPU, and the second start compiles nothing."""
    if device.type != "cuda":
        raise NotHere("no CUDA device")
    with tempfile.TemporaryDirectory() as folder, exact():
        for start in (1, 2):
            step = variant(name, lanes, more, device)
            run = form(step, Path(folder))
            if start == 2:
                _no_compiler(run.fused if isinstance(run, GraphedStep) else run)
            losses = []
            for number in range(STEPS):
                losses.append(run(*(item.to(device) for item in batch(name, number))))
                graphs = isinstance(run, GraphedStep) and number == 0
                need(graphs or not run.why, f"start {start}, step {number}: {run.why}")
            need_close(name, [loss.item() for loss in losses], state(step))


def _no_compiler(step: Any) -> None:
    """Let a compiled step use what is on disk alone."""

    def refuse(*_: object) -> None:
        raise RuntimeError("the second start compiles")

    step._compiled = refuse


def graph_refuses_nan(name: str, device: torch.device) -> None:
    """Captured pieces refuse NaN in the input, with everything as it was, and go on."""
    if device.type != "cuda":
        raise NotHere("no CUDA device")
    with tempfile.TemporaryDirectory() as folder:
        step = variant(name, 2, (), device)
        run = captured(step, Path(folder))
        need_nan_refused(name, step, run, device)


def all_checks() -> dict[str, Callable[[torch.device], None]]:
    """Every check by name."""
    found: dict[str, Callable[[torch.device], None]] = {}
    kinds: Sequence[tuple[str, int, Options, Form]] = (
        ("whole", 1, (), whole),
        ("in pieces, 2 lanes", 2, (), pieced),
        ("in pieces, micro-batches on 2 lanes", 2, MICRO, pieced),
        ("captured, 1 lane", 1, (), captured),
        ("captured, 2 lanes", 2, (), captured),
        ("captured, every lane apart", 2, (), captured_apart),
        ("captured, placed, every lane apart", 3, PLACED, captured_apart),
    )
    for name in ("figure1", "lenet"):
        for label, lanes, more, form in kinds:
            found[f"{name} compiled {label}"] = partial(as_on_the_cpu, name, lanes, more, form)
    found["figure1 compiled, captured: refuses NaN"] = partial(graph_refuses_nan, "figure1")
    return found
