"""Several trained results: who hears from which of them, and what that adds up to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from tests.differential.agreement import agrees
from tests.models import build, regions_of

LOSSES = {"logits": "cross-entropy", "aux.value": "mse", "aux.flags": "bce-with-logits"}


class Heads(nn.Module):
    """A body of three layers; a head behind each of the last two, one behind the first, and one without a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 5), nn.Linear(5, 7), nn.Linear(7, 5)
        self.classes, self.value, self.flags = nn.Linear(5, 4), nn.Linear(7, 2), nn.Linear(5, 3)
        self.idle = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        a = torch.tanh(self.one(x))
        b = torch.tanh(self.two(a))
        c = torch.tanh(self.three(b))
        aux = {"value": self.value(b), "flags": self.flags(a), "idle": self.idle(c)}
        return {"aux": aux, "logits": self.classes(c)}


def batch(size: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.randn(size, 6, dtype=torch.float64)
    flags = torch.rand(size, 3, dtype=torch.float64)
    return x, {
        "logits": torch.arange(size) % 4,
        "aux.value": torch.randn(size, 2, dtype=torch.float64),
        "aux.flags": flags,
    }


def names(step: Any) -> dict[int, str]:
    return {region.id: region.name for region in step.plan.regions.regions}


def test_each_region_hears_from_every_output_that_it_flows_into() -> None:
    x, target = batch()
    step = agrees(Heads().double(), x, target, loss=LOSSES, wiring="flat", gpus=2)
    name = names(step)
    heard: dict[str, set[str]] = {}
    for edge in step.plan.edges:
        heard.setdefault(name[edge.target], set()).add(name[edge.source])
    assert heard == {
        "one": {"classes", "value", "flags"},
        "two": {"classes", "value"},
        "three": {"classes"},
    }
    outputs = [name[number] for number in step.plan.regions.outputs]
    labels = [item.label for item in step.plan.losses]
    assert dict(zip(labels, outputs, strict=True)) == {
        "logits": "classes",
        "aux.value": "value",
        "aux.flags": "flags",
    }
    assert step.plan.regions.graph.unused == ("aux.idle",)
    frozen = dict(step.plan.regions.frozen)
    assert frozen.keys() == {"idle.weight", "idle.bias"}
    assert all("not used on the way to" in reason for reason in frozen.values())


@pytest.mark.parametrize(
    "options",
    [
        {"wiring": "chain"},
        {"relays": ("two",), "kappa": {2: 2.0, 5: 0.5}},
        {"depth": 2, "gain": True},
        {"gpus": 3, "norm": 1, "sign": "printed"},
        {"update": "local_vjp", "rule": "fixed"},
    ],
    ids=lambda options: "-".join(options),
)
def test_wirings_of_several_outputs_agree_with_the_reference(options: dict[str, Any]) -> None:
    x, target = batch()
    agrees(Heads().double(), x, target, loss=LOSSES, **options)


def test_a_displacement_is_the_sum_over_the_outputs() -> None:
    """Eq. 3 written out for the first layer: its error comes from all three results."""
    model = Heads().double()
    x, target = batch()
    losses = tuple(LOSSES.items())
    step = build(model, regions_of(model, x, loss=losses), loss=losses, wiring="flat", beta=0.3, lr=1.0, gamma=0.5)
    found = step.model(x)
    e = {
        "logits": torch.softmax(found["logits"], 1) - F.one_hot(target["logits"], 4),
        "aux.value": found["aux"]["value"] - target["aux.value"],
        "aux.flags": torch.sigmoid(found["aux"]["flags"]) - target["aux.flags"],
    }
    region = {item.label: number for item, number in zip(step.plan.losses, step.plan.regions.outputs, strict=True)}
    before = {key: value.clone() for key, value in step.synapses.items()}
    h = model.one(x)
    d = torch.stack([e[label] @ before[f"{region[label]}->1"].T for label in e]).sum(0)
    error = torch.tanh(h) - torch.tanh(h - 0.3 * d)
    loss, deltas, moved = step.deltas(x, target)
    wanted = F.cross_entropy(found["logits"], target["logits"]) + (e["aux.value"] ** 2).sum() / 8
    wanted = (
        wanted + F.binary_cross_entropy_with_logits(found["aux"]["flags"], target["aux.flags"], reduction="sum") / 4
    )
    assert abs(float(loss - wanted.detach())) < 1e-13
    torch.testing.assert_close(deltas["one.weight"], (error.T @ x / 4).detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(deltas["one.bias"], error.mean(0).detach(), rtol=0, atol=1e-14)
    for label, value in e.items():
        key = f"{region[label]}->1"
        outer = 0.5 * (value @ before[key].T).T @ value / 4
        torch.testing.assert_close(moved[key], outer.detach(), rtol=0, atol=1e-14)


def test_one_result_chosen_of_several() -> None:
    x, target = batch()
    step = agrees(Heads().double(), x, target["aux.value"], output="aux.value", loss="mse")
    updated = {key for region in step.plan.regions.regions for key in region.parameters}
    assert updated == {"one.weight", "one.bias", "two.weight", "two.bias", "value.weight", "value.bias"}
    assert step.plan.regions.graph.unused == ("aux.flags", "aux.idle", "logits")
    # Also by its label.
    step(x, {"aux.value": target["aux.value"]})


class Chained(nn.Module):
    """The second result is computed from the first."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.first(torch.tanh(self.body(x)))
        return scores, self.second(torch.tanh(scores))


def test_a_result_on_the_way_to_another_keeps_its_own_error() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    target = {"0": torch.tensor([0, 1, 2, 0]), "1": torch.randn(4, 2, dtype=torch.float64)}
    step = agrees(Chained().double(), x, target, loss={"0": "cross-entropy", "1": "mse"})
    outputs = set(step.plan.regions.outputs)
    assert not {edge.target for edge in step.plan.edges} & outputs
    name = names(step)
    assert {name[edge.source] for edge in step.plan.edges if name[edge.target] == "body"} == {"first", "second"}


@pytest.mark.parametrize(
    "change",
    [
        lambda goal: goal.pop("logits"),
        lambda goal: goal.update(more=torch.zeros(4)),
        lambda goal: goal.update({"logits": None}),
        lambda goal: goal.update({"logits": torch.zeros(4, dtype=torch.float64)}),
        lambda goal: goal.update({"aux.value": torch.zeros(4, 3, dtype=torch.float64)}),
    ],
)
def test_targets_that_do_not_fit_the_results(change: Any) -> None:
    model = Heads().double()
    x, target = batch()
    losses = tuple(LOSSES.items())
    step = build(model, regions_of(model, x, loss=losses), loss=losses)
    start = {key: value.clone() for key, value in step.model.state_dict().items()}
    change(target)
    with pytest.raises(rg.StepError) as refused:
        step(x, target)
    assert set(refused.value.codes) == {"RG602"}
    with pytest.raises(rg.StepError):
        step(x, torch.zeros(4))
    assert all(torch.equal(value, start[key]) for key, value in step.model.state_dict().items())
