"""Any order of execution that a schedule's events allow gives bitwise the same parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from reclra_graph.ir.schedule import Run, Schedule, Wait
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import STEPS, batch_for, build, dropouts, fresh, same
from tests.property.happens_before import random_order, without
from tests.property.machine import Machine
from tests.property.nets import NETS, net, wiring


def emitted(step: CompiledStep, steps: int = 1) -> dict[str, torch.Tensor]:
    """What the emitted file leaves after training: P, E and the loss."""
    twin = fresh(step)
    for number in range(steps):
        inputs, target = batch_for(step, seed=number)
        loss = twin(inputs, target)
    return {
        **{f"P.{k}": v for k, v in twin.storage().items()},
        **{f"E.{k}": v for k, v in twin.store.all().items()},
        "loss": loss,
    }


def machine(step: CompiledStep, schedule: Schedule, seed: int, steps: int = 1) -> dict[str, torch.Tensor]:
    """The same from the machine, in a random order of the actions."""
    runner = Machine(schedule, step.storage(), step.store.all())
    for number in range(steps):
        inputs, target = batch_for(step, seed=number)
        loss = runner.run(random_order(schedule, seed + number), inputs, target)
    return {**{f"P.{k}": v for k, v in runner.P.items()}, **{f"E.{k}": v for k, v in runner.E.items()}, "loss": loss}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not same(found[key], wanted[key])] == []


# Compiling takes its time, so a failure is shown as it was found: shrinking it would take minutes.
@settings(max_examples=40, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(
    number=st.integers(0, NETS - 1),
    gpus=st.integers(1, 5),
    edges=st.integers(0, 99),
    rest=st.fixed_dictionaries(
        {
            "loss": st.sampled_from(("cross-entropy", "mse", "bce-with-logits")),
            "norm": st.sampled_from((1, 2)),
            "gain": st.booleans(),
            "sign": st.sampled_from(("descend", "printed")),
            "update": st.sampled_from(("analytic", "local_vjp")),
            "rule": st.sampled_from(("eq6", "fixed", "dkp", "readout")),
            "synapse_entries": st.sampled_from((1, 1 << 22)),
        }
    ),
    seed=st.integers(0, 10_000),
)
def test_every_order_gives_the_same_parameters(
    number: int, gpus: int, edges: int, rest: dict[str, object], seed: int
) -> None:
    model, regions, _ = net(number)
    step = build(model, regions, gpus=gpus, wiring=wiring(regions, edges), lr=0.05, **rest)
    wanted = emitted(step, steps=2)
    for shuffle in range(2):
        assert_same(machine(step, step.schedule, seed + 77 * shuffle, steps=2), wanted)


@pytest.mark.parametrize("make", [make for make in STEPS if make is not dropouts], ids=lambda make: make.__name__)
def test_compiled_models_do_not_depend_on_order(make: Callable[[], CompiledStep]) -> None:
    step = make()
    wanted = emitted(step)
    orders = set()
    for seed in range(4):
        orders.add(tuple(action.task for action in random_order(step.schedule, seed) if isinstance(action, Run)))
        assert_same(machine(step, step.schedule, seed), wanted)
    assert len(orders) > 1 or len(step.schedule.lanes) == 1


def test_the_machine_sees_a_race() -> None:
    # Else the tests above would prove nothing: without its waits, a lane reads values that are not there yet.
    model, regions, _ = net(5)
    step = build(model, regions, gpus=3)
    wanted = emitted(step)
    waits = [number for number, action in enumerate(step.schedule.actions) if isinstance(action, Wait)]
    assert waits
    seen = 0
    for number in waits:
        for seed in range(20):
            try:
                assert_same(machine(step, without(step.schedule, number), seed), wanted)
            except (KeyError, AssertionError):
                seen += 1
                break
    assert seen >= 1
