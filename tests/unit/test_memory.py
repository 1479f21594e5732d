"""Predicted peak memory: against the allocator's own reports, by hand, and what it must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import reclra_graph as rg
from reclra_graph.ir.schedule import Copy, Free, Schedule
from reclra_graph.passes.emit import emit
from reclra_graph.passes.memory import predicted_peak
from reclra_graph.runtime.compiled import CompiledStep
from tests.bench.memory import LIMIT, measured_peak
from tests.models import STEPS, Tied, batch_for, build, figure1, fresh, mlp, regions_of


def together(schedule: Schedule) -> Schedule:
    """The schedule with all lanes on one device, as on a CPU."""
    return replace(schedule, lanes=tuple(replace(lane, device=0) for lane in schedule.lanes))


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_within_the_limit_of_what_the_allocator_reports(make: Callable[[], CompiledStep]) -> None:
    step = fresh(make())
    size = 64
    if step.plan.regions.graph.batch != "B":
        size = int(step.plan.regions.graph.batch)
    inputs, target = batch_for(step, size)
    (predicted,) = predicted_peak(replace(step.program, schedule=together(step.schedule)), size)
    before, added = measured_peak(step, inputs, target)
    assert predicted == pytest.approx(before + added, rel=LIMIT)


def test_every_compilation_has_its_peaks() -> None:
    step = rg.compile(mlp(8, 16, 4), torch.zeros(32, 8), gpus=2)
    assert step.schedule.peak == predicted_peak(step.program, 32)
    assert len(step.schedule.peak) == len({lane.device for lane in step.schedule.lanes})
    assert step.schedule.digest == replace(step.schedule, peak=()).digest == step.program.digest
    larger = rg.compile(mlp(8, 16, 4), torch.zeros(64, 8), gpus=2)
    assert larger.schedule.peak > step.schedule.peak
    assert larger.program.digest == step.program.digest


def test_an_example_that_cannot_be_cut_is_rounded_up() -> None:
    ragged, whole = (rg.compile(mlp(8, 16, 4), torch.zeros(size, 8), micro_batches=3) for size in (4, 6))
    assert ragged.schedule.peak == whole.schedule.peak != ()


def test_one_layer_by_hand() -> None:
    step = rg.compile(mlp(8, 3), torch.zeros(16, 8))
    held = 4 * (8 * 3 + 3 + 16 * 8) + 8 * 16  # weight, bias, input; class indices
    z, e, dW = 4 * 16 * 3, 4 * 16 * 3, 4 * 8 * 3
    (peak,) = step.schedule.peak
    # At least the output, the loss and the error; never more than these, the one-hot targets and the update twice over.
    assert held + z + 4 + e <= peak <= held + z + 4 + e + 8 * 16 * 3 + z + 2 * (dW + 12)


def test_frees_lower_the_peak() -> None:
    step = figure1()
    bare = replace(
        step.schedule, actions=tuple(action for action in step.schedule.actions if not isinstance(action, Free))
    )
    assert sum(predicted_peak(emit(bare), 512)) > sum(predicted_peak(step.program, 512))


def test_what_another_device_reads_is_there_twice() -> None:
    step = figure1()
    apart = predicted_peak(step.program, 512)
    (one,) = predicted_peak(replace(step.program, schedule=together(step.schedule)), 512)
    copied = {action.value for action in step.schedule.actions if isinstance(action, Copy)}
    assert copied
    assert len(apart) == 5
    assert sum(apart) > one


def test_tied_parameters_count_once() -> None:
    model = Tied()
    step = build(model, regions_of(model, torch.zeros(4, 6)))
    (peak,) = predicted_peak(step.program, 1)
    stored = {item.data_ptr(): item.numel() for item in model.parameters()}
    twice = sum(item.numel() for item in model.state_dict().values())
    assert twice > sum(stored.values())
    assert 4 * sum(stored.values()) < peak


def test_a_step_is_predicted_without_being_run() -> None:
    # No numbers, so none are drawn: the generator and the parameters stay as they were.
    step = fresh(STEPS[4]())
    before = torch.get_rng_state()
    values = {key: value.clone() for key, value in step.storage().items()}
    predicted_peak(step.program, 16)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, step.storage()[key]) for key, value in values.items())
