"""The capture ladder through rg.compile: the rung that a model takes, what it says of it, and a step that is right."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from tests.differential.agreement import agrees
from tests.models import Dropouts, ResidualCNN, mlp, same
from tests.unit import record_models

EXPORT, STATIC, RECORD = "export", "export, static batch", "record, one path"


class LenTaken(nn.Module):
    """Takes the batch's length for a number of Python's: torch.export makes it a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.body(x)).view(len(x), 5))
        return logits


class Branch(nn.Module):
    """Takes one of two layers by the sign of the batch's sum."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.up if x.sum() > 0 else self.down
        logits: Tensor = self.head(torch.tanh(layer(x)))
        return logits


class Unread(nn.Module):
    """Draws a dropout's mask and a number of its own that no result is made of, and then a dropout's that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        self.first(hidden).sum()
        torch.rand(3)
        logits: Tensor = self.head(self.second(hidden))
        return logits


RUNGS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "any batch": (lambda: mlp(4, 5, 3), EXPORT),
    "one batch size": (LenTaken, STATIC),
    "a choice by the data": (Branch, RECORD),
}


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 4, dtype=torch.float64), torch.arange(size) % 3


@pytest.mark.parametrize("name", RUNGS)
def test_rungs(name: str) -> None:
    make, rung = RUNGS[name]
    x, target = batch()
    step = agrees(make().double(), x, target, steps=2)
    graph = step.plan.regions.graph
    assert graph.frontend == rung
    assert graph.batch == ("B" if rung == EXPORT else 4)
    assert bool(graph.notes) == (rung == RECORD)
    if rung == EXPORT:
        assert bool(step(*batch(7)).isfinite())
    else:
        assert "fixed batch size" in step.source
        with pytest.raises(rg.StepError) as refused:
            step(*batch(7))
        assert refused.value.codes == ("RG601",)


@pytest.mark.filterwarnings("ignore")  # of torch.export's
def test_an_export_that_failed_before_leaves_no_free_sizes() -> None:
    model = Branch().double()
    x, target = batch()
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(copy.deepcopy(model), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
    graph = agrees(model, x, target).plan.regions.graph
    assert (graph.frontend, graph.batch) == (RECORD, 4)


def test_a_recorded_path_says_so_everywhere(tmp_path: Path) -> None:
    model = record_models.Depth().double()
    x, target = torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % 3
    step = agrees(model, x, target)
    graph = step.plan.regions.graph
    assert graph.frontend == RECORD
    assert any(note.startswith("export failed: ") for note in graph.notes)
    assert any("record_models.py:" in note and "path" in note for note in graph.notes)
    folder = step.save(tmp_path / "depth")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    assert (plan["frontend"], plan["notes"]) == (RECORD, list(graph.notes))
    report = " ".join((folder / "report.txt").read_text(encoding="utf-8").split())
    file = " ".join((folder / "step.py").read_text(encoding="utf-8").split())
    for text in (report, file):
        assert RECORD in text
    for note in graph.notes:
        assert " ".join(note.split())[:60].replace('"', "?") in file
    taken = {key.split(".")[1] for region in step.plan.regions.regions for key in region.parameters if "layers" in key}
    idle = {key.split(".")[1] for key in dict(step.plan.regions.frozen)}
    assert taken | idle == {"0", "1", "2", "3"}
    assert not taken & idle


@pytest.mark.parametrize("make", [lambda: mlp(4, 5, 3), Dropouts, ResidualCNN], ids=["mlp", "dropouts", "cnn"])
def test_a_rung_that_is_asked_for_gives_the_same_step(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(4, *((1, 6, 6) if isinstance(model, ResidualCNN) else (6,)), dtype=torch.float64)
    x = x[:, :4] if isinstance(model, nn.Sequential) else x
    target = torch.arange(4) % 3
    found: list[tuple[float, dict[str, Tensor]]] = []
    for frontend in ("export", "record"):
        twin = copy.deepcopy(model)
        step = rg.compile(twin, x, frontend=frontend)
        assert step.plan.regions.graph.frontend.startswith(frontend)
        torch.manual_seed(3)
        found.append((float(step(x, target)), twin.state_dict()))
    assert found[0][0] == found[1][0]
    for key, value in found[0][1].items():
        assert same(value, found[1][1][key]), key


@pytest.mark.parametrize("frontend", ["export", "record"])
def test_what_is_drawn_and_never_read_is_drawn_all_the_same(frontend: str) -> None:
    model = Unread().double()
    x, target = batch(8)
    step = rg.compile(model, x, frontend=frontend)
    torch.manual_seed(3)
    wanted = nn.functional.cross_entropy(copy.deepcopy(model).train()(x), target)
    torch.manual_seed(3)
    torch.testing.assert_close(step(x, target), wanted.detach(), rtol=1e-12, atol=0)


def test_export_alone_refuses_what_it_cannot_follow() -> None:
    with pytest.raises(rg.ModelError) as refused:
        rg.compile(Branch(), torch.rand(4, 4), frontend="export")
    assert refused.value.codes == ("RG202",)
    assert refused.value.problems[0].place.rpartition(":")[0].endswith("test_ladder.py")
    with pytest.raises(rg.UsageError) as wrong:
        rg.compile(Branch(), torch.rand(4, 4), frontend="guess")
    assert wrong.value.codes == ("RG405",)


def test_capture_leaves_no_trace() -> None:
    """Neither the model, its buffers, its mode, nor any random number depends on how often it is captured."""
    for make in (Branch, record_models.Depth, ResidualCNN):
        model = make().eval()
        x = torch.rand(4, 1, 6, 6) if make is ResidualCNN else torch.rand(4, 4 if make is Branch else 6)
        before = copy.deepcopy(model.state_dict())
        generator = torch.get_rng_state()
        rg.compile(model, x)
        assert torch.equal(torch.get_rng_state(), generator)
        assert not model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(same(value, before[key]) for key, value in model.state_dict().items())
        assert "forward" not in vars(model)


# -- one module under two names --------------------------------------------------------------------------------------


class TwoNames(nn.Module):
    """A block of a layer and a batch norm that the model holds under several names, the first of them deep or not."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())
        parts = nn.ModuleList([block, nn.Linear(6, 3)])
        if deep:
            self.parts = parts
        self.first = block
        self.parts = parts
        self.alias = block

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.parts[1](self.alias(self.first(x)))
        return logits


def two_names(deep: bool) -> tuple[TwoNames, Tensor, Tensor]:
    torch.manual_seed(0)
    return TwoNames(deep).double(), torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("frontend", ["export", "record"])
def test_a_module_under_two_names(frontend: str, deep: bool) -> None:
    model, x, target = two_names(deep)
    twin = copy.deepcopy(model).train()
    step: CompiledStep = agrees(model, x, target, steps=1, frontend=frontend)
    twin(x)
    keys = [item.key for item in step.plan.regions.graph.parameters]
    assert len(keys) == len(set(keys)) == 6
    # Statistics moved twice, once for each run, as PyTorch's own forward() moves them.
    torch.testing.assert_close(model.first[1].running_mean, twin.first[1].running_mean, rtol=1e-12, atol=1e-14)
    assert int(model.first[1].num_batches_tracked) == 2  # type: ignore[arg-type]
    assert model.alias is model.first
    assert model.parts[0] is model.first
    tied: dict[str, Any] = {item.key: item.tied for item in step.plan.regions.graph.parameters}
    names = {"first.0.weight", "parts.0.0.weight", "alias.0.weight"}
    (key,) = names & set(tied)
    assert {key, *tied[key]} == names


def test_the_ways_agree_on_a_module_under_two_names() -> None:
    states = []
    for frontend in ("export", "record"):
        model, x, target = two_names(deep=True)
        rg.compile(model, x, frontend=frontend)(x, target)
        states.append(model.state_dict())
    for key, value in states[0].items():
        assert same(value, states[1][key]), key


def test_a_list_of_modules_under_two_names() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
            self.alias, self.head = self.layers, nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert len(self.alias) == 3
            for layer in self.alias:
                x = torch.tanh(layer(x))
            logits: Tensor = self.head(torch.tanh(self.alias[0](x)))
            return logits

    step = agrees(Lists().double(), torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    assert step.plan.regions.graph.frontend == EXPORT
    assert [region.name for region in step.plan.regions.regions[1:]] == [
        "layers.0",
        "layers.1",
        "layers.2",
        "layers.0",
        "head",
    ]


def test_saved_and_loaded_under_two_names(tmp_path: Path) -> None:
    model, x, target = two_names(deep=True)
    step = rg.compile(model, x)
    again = rg.load(step.save(tmp_path / "two"), copy.deepcopy(model))
    assert float(again(x, target)) == float(step(x, target))
    for key, value in model.state_dict().items():
        assert same(value, again.model.state_dict()[key]), key
