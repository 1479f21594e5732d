"""assign_grads, state_dict, save and load."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import batch_for, changed, figure1, fresh, mlp, residual_cnn, same, snapshot, tied, two_inputs
from tests.unit.refusals import refused
from tests.unit.test_capture import held


@pytest.mark.parametrize("make", [figure1, residual_cnn, tied], ids=lambda make: make.__name__)
def test_assign_grads_gives_the_steps_own_directions(make: Callable[[], CompiledStep]) -> None:
    step, twin = fresh(make()), fresh(make())
    x, target = batch_for(step)
    before = snapshot(step)
    loss = rg.assign_grads(step, x, target)
    assert changed(step, before) == {key for key in before if key.startswith("B.")}
    torch.testing.assert_close(twin(x, target), loss)
    with torch.no_grad():
        for _, parameter in step.model.named_parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=step.lr)
        for value in step.synapses.values():
            assert value.grad is not None
            value.sub_(value.grad, alpha=step.lr)
    # Synapses that learn together move by E M there, by E and ΔE here: alike but for rounding.
    assert changed(step, snapshot(twin)) <= {f"E.{name}" for name in step.schedule.tasks.matrices}
    for name, value in step.synapses.items():
        torch.testing.assert_close(value, twin.synapses[name])
    # Set, not added to.
    rg.assign_grads(step, x, target)
    rg.assign_grads(twin, x, target)
    for mine, theirs in zip(step.model.parameters(), twin.model.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_frozen_parameters_get_no_gradient() -> None:
    model = mlp(4, 5, 3)
    model[0].requires_grad_(False)
    step = rg.compile(model, torch.zeros(2, 4))
    rg.assign_grads(step, torch.randn(3, 4), torch.tensor([0, 1, 2]))
    assert [parameter.grad is None for parameter in model.parameters()] == [True, True, False, False]


def test_state_dict_round_trip() -> None:
    step, other = fresh(figure1()), fresh(figure1())
    step(*batch_for(step))
    state = {key: value.clone() for key, value in step.state_dict().items()}
    assert set(state) == {f"E.{edge.name}" for edge in step.plan.edges}
    held_before = dict(other.synapses)
    other.load_state_dict(state)
    assert all(same(other.synapses[name], step.synapses[name]) for name in step.synapses)
    assert all(other.synapses[name] is value for name, value in held_before.items())
    before = snapshot(other)
    state["E.9->8"] = state["E.9->8"][:1]
    del state["E.9->5"]
    state["E.5->9"] = torch.zeros(1)
    refused(rg.ModelError, lambda: other.load_state_dict(state), "RG605", "RG605", "RG605")
    assert changed(other, before) == set()


@pytest.mark.parametrize("make", [figure1, residual_cnn, tied, two_inputs], ids=lambda make: make.__name__)
def test_saved_and_loaded_steps_go_on_alike(make: Callable[[], CompiledStep], tmp_path: Path) -> None:
    step = fresh(make())
    step(*batch_for(step))
    folder = step.save(tmp_path / "new" / "step")
    assert {"step.py", "plan.json", "report.txt", "schedule.json"} <= {path.name for path in folder.iterdir()}
    assert (folder / "step.py").read_text(encoding="utf-8") == step.source
    loaded = rg.load(folder, copy.deepcopy(step.model))
    assert loaded.schedule == step.schedule
    assert loaded.source == step.source
    for seed in (1, 2):
        assert same(step(*batch_for(step, seed=seed)), loaded(*batch_for(step, seed=seed)))
    assert changed(loaded, snapshot(step)) == set()


def test_constants_travel_with_the_saved_step(tmp_path: Path) -> None:
    step = fresh(held())
    loaded = rg.load(step.save(tmp_path / "held"), copy.deepcopy(step.model))
    x, target = batch_for(step)
    assert same(step(x, target), loaded(x, target))
    assert changed(loaded, snapshot(step)) == set()


def test_an_edited_file_is_what_runs(tmp_path: Path) -> None:
    step = fresh(figure1())
    folder = step.save(tmp_path / "edited")
    path = folder / "step.py"
    path.write_text(
        path.read_text(encoding="utf-8").replace("    return loss\n", "    return loss * 0 + 7\n"), encoding="utf-8"
    )
    assert float(rg.load(folder, step.model)(*batch_for(step))) == 7


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    step = fresh(figure1())
    folder = step.save(tmp_path / "saved")
    refused(rg.ModelError, lambda: rg.load(tmp_path / "nowhere", step.model), "RG702")
    error = refused(rg.ModelError, lambda: rg.load(folder, mlp(20, 16, 10)), *["RG605"] * 16)
    assert "16.weight" in {problem.place for problem in error.problems}
    for name, content in {
        "schedule.txt": "Schedule(",
        "step.py": "def step(:",
        "synapses.pt": "no tensors",
        "constants.pt": "",
    }.items():
        good = (folder / name).read_bytes()
        (folder / name).write_text(content, encoding="utf-8")
        refused(rg.ModelError, lambda: rg.load(folder, step.model), "RG702")
        (folder / name).write_bytes(good)
    (folder / "schedule.txt").write_text("Schedule()", encoding="utf-8")
    refused(rg.ModelError, lambda: rg.load(folder, step.model), "RG702")


def test_an_unwritable_folder_is_left_as_it_was(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("mine", encoding="utf-8")
    refused(rg.ModelError, lambda: figure1().save(blocked), "RG701")
    refused(rg.ModelError, lambda: figure1().save(blocked / "below"), "RG701")
    assert blocked.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
