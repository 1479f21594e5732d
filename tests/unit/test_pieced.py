"""Steps compiled piece by piece: lanes, events and copies stay between the pieces, and the numbers are the step's."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reclra_graph as rg
from reclra_graph.errors import StepError
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.schedule import Free, Record, Wait
from reclra_graph.runtime import graphed, kept_code, spread
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.fused import FusedStep
from reclra_graph.runtime.graphed import GraphedStep
from reclra_graph.runtime.pieced import Pieced, PiecedStep
from reclra_graph.runtime.pieces import Piece, TracedPiece, pieces, trace_pieces
from reclra_graph.runtime.segments import Part, segments
from tests.models import (
    FIGURE_1,
    STEPS,
    batch_for,
    build,
    changed,
    figure1_regions,
    fresh,
    mlp,
    regions_of,
    residual_cnn,
    same,
    snapshot,
)
from tests.unit import test_opaque_step
from tests.unit.fake_cuda import Cuda, Torch, on_cuda

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))) or sys.platform != "linux",
    reason="Inductor needs a C++ compiler",
)


@cache
def double() -> tuple[nn.Module, RegionGraph]:
    """Figure 1's model in float64."""
    torch.manual_seed(1)
    model = mlp(*FIGURE_1).double()
    return model, regions_of(model, torch.zeros(4, 20, dtype=torch.float64))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces run as the graphs that they were recorded as."""

    def module(self: PiecedStep, traced: TracedPiece) -> Any:
        return traced.module

    monkeypatch.setattr(PiecedStep, "_machine_code", module)


def test_a_piece_is_what_a_lane_does_between_two_points_of_order() -> None:
    a, b, c, d = (Part(name, lane) for name, lane in (("a", 0), ("b", 0), ("c", 1), ("d", 0)))
    free = Free(("x",), 0)
    assert pieces([a, free, b, c, d]) == (Piece(0, (a, b, d)), free, Piece(1, (c,)))
    for glue in (Record("e", 0), Wait("e", 0)):
        assert pieces([a, glue, b, c, d]) == (Piece(0, (a,)), glue, Piece(0, (b, d)), Piece(1, (c,)))
    assert pieces([a, Record("e", 1), b]) == (Piece(0, (a, b)), Record("e", 1))
    assert pieces([]) == ()


PLANS: list[dict[str, Any]] = [
    {"gpus": 1}, {"gpus": 2}, {"gpus": 5}, {"gpus": 3, "micro_batches": 2}, {"gpus": 5, "placement": "pipeline"},
    {"gpus": 3, "optimizer": "adamw", "weight_decay": 0.01}, {"gpus": 3, "optimizer": "momentum"},
]  # fmt: skip


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("options", PLANS, ids=str)
def test_pieces_do_what_the_step_does(uncompiled: None, tmp_path: Path, options: dict[str, Any], apart: bool) -> None:
    step = build(*double(), **options)
    twin = fresh(step)
    places = {lane.id: lane.id for lane in step.schedule.lanes} if apart else None
    run = PiecedStep(step, folder=tmp_path, places=places)
    for number, lr in enumerate((0.1, 0.1, 0.03)):
        step.lr = twin.lr = lr
        inputs, target = batch_for(step, seed=number)
        torch.testing.assert_close(run(inputs, target), twin(inputs, target), rtol=1e-9, atol=1e-12)
        assert run.why == ""
    assert len(run.held) == 1  # another rate is no other step
    after = snapshot(step)
    for key, value in snapshot(twin).items():
        torch.testing.assert_close(after[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_steps_of_every_kind(uncompiled: None, tmp_path: Path, make: Callable[[], CompiledStep]) -> None:
    step, twin = fresh(make()), fresh(make())
    run = PiecedStep(step, folder=tmp_path, places={lane.id: lane.id % 2 for lane in step.schedule.lanes})
    for number in range(2):
        inputs, target = batch_for(step, seed=number)
        torch.manual_seed(number)
        wanted = twin(inputs, target)
        torch.manual_seed(number)
        torch.testing.assert_close(run(inputs, target), wanted, rtol=1e-5, atol=1e-6)
        assert run.why == ""
    after = snapshot(step)
    for key, value in snapshot(twin).items():
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-6)


def test_no_piece_orders_lanes_or_moves_anything() -> None:
    step = build(*figure1_regions(), gpus=3, micro_batches=2)
    (inputs, target), rate = batch_for(step), torch.tensor(step.lr, dtype=torch.float64)
    given, goal = step.arguments(inputs, target)
    cut = segments(step.schedule, {lane.id: lane.id for lane in step.schedule.lanes})
    found = trace_pieces(step, given, goal, rate, cut)
    named = {str(node.target) for item in found.values() for node in item.module.graph.nodes}
    assert not [name for name in named if "record" in name or "wait" in name or "device_put" in name]
    everything = [name for item in found.values() for name in item.outputs]
    assert len(everything) == len(set(everything)), "every value is given by one piece"
    assert {"loss", "finite"} <= set(everything)


def test_what_is_refused_changes_nothing(uncompiled: None, tmp_path: Path) -> None:
    step = fresh(residual_cnn())
    run, (inputs, target) = PiecedStep(step, folder=tmp_path), batch_for(step)
    run(inputs, target)
    before = snapshot(step)
    broken = inputs[0].clone()
    broken[0, 0, 0, 0] = float("nan")
    wrong_ones = ((((broken,), target), "RG604"), ((inputs, target + 100), "RG603"), ((inputs, target[1:]), "RG602"))
    for wrong, code in wrong_ones:
        with pytest.raises(StepError) as error:
            run(*wrong)
        assert error.value.codes == (code,)
    assert changed(step, before) == set()
    assert torch.isfinite(run(inputs, target))


@needs_compiler
@pytest.mark.slow
def test_compiled_pieces_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = mlp(6, 5, 3)
    made = build(model, regions_of(model, torch.zeros(4, 6)), gpus=2)
    step, twin, again = fresh(made), fresh(made), fresh(made)
    run, (inputs, target) = PiecedStep(step, folder=tmp_path), batch_for(made)
    wanted = twin(inputs, target)
    torch.testing.assert_close(run(inputs, target), wanted, rtol=1e-5, atol=1e-6)
    assert run.why == ""
    monkeypatch.setattr(PiecedStep, "_compiled", None)
    run = PiecedStep(again, folder=tmp_path)
    torch.testing.assert_close(run(inputs, target), wanted, rtol=1e-5, atol=1e-6)
    assert run.why == ""
    for ours in (step, again):
        after = snapshot(ours)
        for key, value in snapshot(twin).items():
            torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_compiled_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = build(*figure1_regions(), gpus=2)
    object.__setattr__(step.program, "lines", ())
    run = PiecedStep(step, folder=tmp_path)
    run(*batch_for(step))
    assert "from files" in run.why
    run = PiecedStep(test_opaque_step.compiled(), folder=tmp_path)
    run(*test_opaque_step.batch())
    assert "as they are" in run.why
    run = PiecedStep(build(*figure1_regions(), gpus=3, overlap_steps=True), folder=tmp_path)
    run(*batch_for(run.step))
    assert "overlap" in run.why

    def broken(self: PiecedStep, traced: TracedPiece) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(PiecedStep, "_machine_code", broken)
    step, twin = build(*figure1_regions(), gpus=2), build(*figure1_regions(), gpus=2)
    run, batch = PiecedStep(step, folder=tmp_path), batch_for(step)
    for _ in range(2):
        assert same(run(*batch), twin(*batch))
        assert run.why == "the step cannot be compiled: no compiler here"


# -- as CUDA graphs ------------------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    for module in (kept_code, graphed, spread):
        monkeypatch.setattr(module, "torch", Torch(made))
    return made


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("options", PLANS, ids=str)
def test_captured_pieces_do_what_the_step_does(
    uncompiled: None, cuda: Cuda, tmp_path: Path, options: dict[str, Any], apart: bool
) -> None:
    made = build(*double(), **options)
    lanes = [lane.id for lane in made.schedule.lanes]
    places = {lane: lane if apart else 0 for lane in lanes}
    step, twin = on_cuda(made, cuda), fresh(made)
    run = GraphedStep(step, warmup=0, fused=PiecedStep(step, folder=tmp_path, places=places))
    for number in range(4):
        inputs, target = batch_for(step, seed=number)
        torch.testing.assert_close(run(inputs, target), twin(inputs, target), rtol=1e-9, atol=1e-12)
        assert bool(run.why) == (number < 1)
    after = snapshot(step)
    for key, value in snapshot(twin).items():
        torch.testing.assert_close(after[key], value, rtol=1e-9, atol=1e-12)
    expected = len(segments(step.schedule, places))
    assert cuda.log.count("begin") == expected
    assert cuda.log.count("replay") == 3 * expected
    if len(set(places.values())) == 1:
        assert expected == 2, "a graph up to the check, and one behind it"


def test_pieces_that_cannot_be_compiled_are_not_captured(
    cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: PiecedStep, traced: TracedPiece) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(PiecedStep, "_machine_code", broken)
    made = build(*figure1_regions(), gpus=2)
    step, twin = on_cuda(made, cuda), fresh(made)
    run, batch = GraphedStep(step, fused=PiecedStep(step, folder=tmp_path)), batch_for(made)
    for _ in range(4):
        assert same(run(*batch), twin(*batch))
        assert run.why == "the step cannot be compiled: no compiler here"
    assert "begin" not in cuda.log


def test_the_form_follows_the_lanes(cuda: Cuda) -> None:
    assert type(build(*figure1_regions(), gpus=2).fused()) is FusedStep, "on the CPU lanes are nothing"
    assert type(on_cuda(build(*figure1_regions(), gpus=1), cuda).fused()) is FusedStep
    assert type(on_cuda(build(*figure1_regions(), gpus=2), cuda).fused()) is PiecedStep
    graphs = on_cuda(build(*figure1_regions(), gpus=2), cuda).graphed(fused=True)
    assert isinstance(graphs.fused, PiecedStep)
    with pytest.raises(rg.UsageError, match="RG606"):
        build(*figure1_regions(), gpus=2).graphed(fused=True)


def test_a_step_is_kept_apart_from_the_same_in_pieces_or_on_other_devices(uncompiled: None, tmp_path: Path) -> None:
    step = build(*figure1_regions(), gpus=2)
    runs = [FusedStep(step, folder=tmp_path), PiecedStep(step, folder=tmp_path)]
    runs.append(PiecedStep(step, folder=tmp_path, places={0: 0, 1: 1}))
    assert len({run._home(()) for run in runs}) == 3
    runs[2](*batch_for(step))
    (held,) = runs[2].held.values()
    assert isinstance(held.run, Pieced)
