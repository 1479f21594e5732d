"""One matrix that learns for all dense synapses of a source: what users meet are the synapses as they act."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import batch_for, mlp, same

MATRIX = "4->dense"


def compiled(**options: Any) -> CompiledStep:
    torch.manual_seed(2)
    model = mlp(6, 8, 7, 9, 3).double()
    return rg.compile(model, torch.zeros(4, 6, dtype=torch.float64), wiring="flat", gamma=0.5, **options)


def trained(step: CompiledStep, steps: int = 3) -> CompiledStep:
    for number in range(steps):
        step(*batch_for(step, seed=number))
    return step


def assert_alike(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-12, atol=1e-14)


def test_the_matrix_is_all_that_learns() -> None:
    step, plain = compiled(), compiled(without="shared")
    assert step.module.SHARED == {MATRIX: ("4->3", "4->2", "4->1")}
    assert {name for name in step.schedule.tasks.learned if name.startswith("E")} == {f"E[{MATRIX}]"}
    assert "dense" not in plain.source.split("def step(")[1]
    start = {name: value.clone() for name, value in step.synapses.items()}
    assert all(same(value, plain.synapses[name]) for name, value in start.items())
    trained(step)
    assert all(same(step.store.named[name], value) for name, value in start.items())
    assert_alike(step.synapses, trained(plain).synapses)


def test_synapses_are_read_as_they_act() -> None:
    step, plain = compiled(), compiled(without="shared")
    held = step.synapses["4->1"]
    for number in range(3):
        batch = batch_for(step, seed=number)
        step(*batch)
        plain(*batch)
        assert_alike(step.synapses, plain.synapses)
        assert torch.equal(step.store.matrices[MATRIX], torch.eye(3, dtype=torch.float64))
    assert step.synapses["4->1"] is held
    with torch.no_grad():
        step.synapses["4->1"].mul_(2)
        plain.synapses["4->1"].mul_(2)
    assert_alike(trained(step).synapses, trained(plain).synapses)
    step.synapses["4->2"] = step.synapses["4->2"] / 2
    plain.synapses["4->2"] = plain.synapses["4->2"] / 2
    assert_alike(trained(step).synapses, trained(plain).synapses)


def test_states_go_from_one_to_the_other() -> None:
    step, plain = trained(compiled()), compiled(without="shared")
    state = {key: value.clone() for key, value in step.state_dict().items()}
    assert list(state) == ["E.4->3", "E.4->2", "E.4->1"]
    plain.load_state_dict(state)
    other = trained(compiled(), 1)
    other.load_state_dict(state)
    plain.model.load_state_dict(step.model.state_dict())
    other.model.load_state_dict(step.model.state_dict())
    assert_alike(trained(step).synapses, trained(plain).synapses)
    assert all(same(value, trained(other, 0).synapses[name]) for name, value in trained(other).synapses.items())
    assert all(same(value, step.synapses[name]) for name, value in other.synapses.items())  # to the last bit


def test_directions_are_those_of_the_synapses() -> None:
    step, plain = trained(compiled()), trained(compiled(without="shared"))
    batch = batch_for(step)
    _, _, found = step.deltas(*batch)
    _, _, wanted = plain.deltas(*batch)
    assert_alike(found, wanted)
    assert_alike(step.synapses, plain.synapses)


def test_the_file_settles_by_hand() -> None:
    step, plain = compiled(weight_decay=0.1), compiled(weight_decay=0.1, without="shared")
    E, P = step.module.synapses(), step.storage()
    del E[MATRIX]  # as in what a step saves
    with torch.no_grad():
        for number in range(2):
            inputs, target = batch_for(step, seed=number)
            step.module.step(P, E, *inputs, target)
            plain(inputs, target)
        step.module.settle(E)
    assert torch.equal(E.pop(MATRIX), torch.eye(3, dtype=torch.float64))
    assert_alike(E, plain.synapses)


@pytest.mark.parametrize(
    "options",
    [{"optimizer": "momentum"}, {"optimizer": "adamw"}, {"rule": "fixed"}, {"synapse_memory": "1MB"},
     {"synapse": "lowrank(2)"}],
    ids=str,
)  # fmt: skip
def test_where_no_matrix_can_stand_for_synapses(options: dict[str, Any]) -> None:
    assert not hasattr(compiled(**options).module, "SHARED")


def test_a_single_synapse_between_equals_keeps_its_own() -> None:
    step = rg.compile(nn.Sequential(*mlp(6, 8, 8, 8, 3)), torch.zeros(4, 6), wiring="chain")
    assert step.module.SHARED == {MATRIX: ("4->3",)}
