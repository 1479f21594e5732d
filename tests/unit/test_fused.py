"""Steps that Inductor compiles as a whole: equal to the step itself, kept on disk, and never worse than no compiler."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import reclra_graph as rg
from reclra_graph.errors import StepError
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.fused import FusedStep, kinds
from reclra_graph.runtime.traced import held_tensors
from tests.models import batch_for, figure1, fresh, same, snapshot
from tests.unit import test_opaque_step

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))) or sys.platform != "linux",
    reason="Inductor needs a C++ compiler",
)


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 5)
    )


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(size, 2, 4, 4, generator=draw), torch.randint(5, (size,), generator=draw)


def compiled() -> CompiledStep:
    return rg.compile(net(), batch()[0], lr=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled by the first test that wants it, read by the others."""
    return tmp_path_factory.mktemp("fused")


@needs_compiler
def test_it_does_what_the_step_does(folder: Path) -> None:
    step, twin = compiled(), compiled()
    fused = FusedStep(twin, folder=folder)
    inputs, target = batch()
    for lr in (0.05, 0.05, 0.01):
        step.lr = twin.lr = lr
        torch.manual_seed(7)
        wanted = step(inputs, target)
        torch.manual_seed(7)
        torch.testing.assert_close(fused(inputs, target), wanted, rtol=1e-5, atol=1e-6)
        assert fused.why == ""
    assert len(fused.held) == 1  # another rate is no other step
    after = snapshot(twin)
    for key, value in snapshot(step).items():
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_targets_of_large_maps_are_those_of_the_step(folder: Path) -> None:
    """h − β E e in one product: Inductor makes ``addmm`` of a sum with a product, and forgets the sum's own factor."""

    def built() -> CompiledStep:
        torch.manual_seed(5)
        body = nn.Sequential(nn.Conv2d(2, 32, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32 * 64, 5))
        return rg.compile(body, torch.randn(4, 2, 8, 8), wiring="flat", lr=0.05)

    step, twin = built(), built()
    assert "target_at_once" in step.source or "addmm" in step.source
    fused = FusedStep(twin, folder=folder)
    draw = torch.Generator().manual_seed(2)
    inputs, target = torch.randn(4, 2, 8, 8, generator=draw), torch.randint(5, (4,), generator=draw)
    before = snapshot(step)
    for _ in range(2):
        torch.testing.assert_close(fused(inputs, target), step(inputs, target), rtol=1e-5, atol=1e-6)
    assert fused.why == ""
    after = snapshot(twin)
    for key, value in snapshot(step).items():
        torch.testing.assert_close(after[key] - before[key], value - before[key], rtol=1e-3, atol=1e-7)


@needs_compiler
def test_a_second_start_compiles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, target = batch()
    first = FusedStep(compiled(), folder=folder)
    torch.manual_seed(7)
    wanted = first(inputs, target)
    assert first.why == ""
    monkeypatch.setattr(FusedStep, "_compiled", None)
    again = FusedStep(compiled(), folder=folder)
    torch.manual_seed(7)
    assert same(again(inputs, target), wanted)
    assert again.why == ""


@needs_compiler
def test_a_model_whose_parameters_are_replaced_learns_by_the_new_ones(folder: Path) -> None:
    step = compiled()
    fused = FusedStep(step, folder=folder)
    inputs, target = batch()
    fused(inputs, target)
    layer = step.model[5]
    assert isinstance(layer, nn.Linear)
    replaced = [nn.Parameter(torch.zeros_like(layer.weight)), layer.weight]
    layer.weight = replaced[0]  # another object
    fused(inputs, target)
    assert replaced[0].any()
    layer.weight.data = torch.zeros_like(layer.weight)  # the same object, elsewhere
    fused(inputs, target)
    assert layer.weight.any()
    other = {key: torch.zeros_like(value) for key, value in step.synapses.items()}
    step.synapses.update(other)
    fused(inputs, target)
    assert fused.why == ""
    assert len(fused.held) == 1


@needs_compiler
def test_what_is_refused_changes_nothing(folder: Path) -> None:
    step = compiled()
    fused = FusedStep(step, folder=folder)
    inputs, target = batch()
    fused(inputs, target)
    before = snapshot(step)
    for wrong, code in (
        ((inputs * float("inf"), target), "RG604"),
        ((inputs, target + 5), "RG603"),
        ((inputs[:, :1], target), "RG601"),
        ((inputs, target[1:]), "RG602"),
        ((None, target), "RG601"),
    ):
        with pytest.raises(StepError) as error:
            fused(*wrong)
        assert error.value.codes == (code,)
    assert len(fused.held) == 1
    assert all(same(value, before[key]) for key, value in snapshot(step).items())


@needs_compiler
def test_a_damaged_file_counts_as_none(folder: Path, tmp_path: Path) -> None:
    inputs, target = batch()
    FusedStep(compiled(), folder=folder)(inputs, target)
    copied = tmp_path / "cache"
    shutil.copytree(folder, copied)
    for path in copied.rglob("step.*"):
        path.write_bytes(b"{}")
    fused = FusedStep(compiled(), folder=copied)
    given, goal = fused.step.arguments(inputs, target)
    assert isinstance(goal, torch.Tensor)
    key = (kinds(held_tensors(fused.step)), kinds([*given, goal, fused.rate[1]]), fused.step.beta, fused.step.gamma)
    assert fused._home(key).is_dir()
    assert fused._kept(key) is None


def test_without_a_compiler_the_step_itself_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler here\nat all")

    monkeypatch.setattr(FusedStep, "_compiled", broken)
    step, twin = fresh(figure1()), fresh(figure1())
    fused = FusedStep(twin, folder=tmp_path)
    inputs, target = batch_for(step)
    for _ in range(2):
        assert same(fused(inputs, target), step(inputs, target))
        assert fused.why == "the step cannot be compiled: no compiler here"


def test_sizes_that_change_all_the_time_are_not_compiled(tmp_path: Path) -> None:
    step = fresh(figure1())
    fused = FusedStep(step, most=0, folder=tmp_path)
    fused(*batch_for(step))
    assert "more than 0 shapes" in fused.why
    assert not list(tmp_path.iterdir())


def test_sub_modules_that_run_as_they_are_are_not_compiled(tmp_path: Path) -> None:
    fused = FusedStep(test_opaque_step.compiled(), folder=tmp_path)
    fused(*test_opaque_step.batch())
    assert "as they are" in fused.why
