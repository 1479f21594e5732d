"""Results of forward(): which of them have a loss, what they are called, and what becomes of the others."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.passes.pipeline import explain_model
from tests.differential.agreement import agrees
from tests.models import captured, regions_of

Named = namedtuple("Named", ("scores", "out"))


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


class Returns(nn.Module):
    """A body, a head, and what ``form`` makes of both."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head, self.form = nn.Linear(4, 5), nn.Linear(5, 3), form

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.body(x))
        return self.form(hidden, self.head(hidden))


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], dict[str, Any], str, tuple[str, ...]]] = {
    # what is returned, the options, the label with the loss, the labels without
    "one tensor": (lambda h, z: z, {}, "output", ()),
    "the first of a tuple": (lambda h, z: (z, h), {}, "0", ("1",)),
    "the first that is floating-point": (lambda h, z: (z.argmax(1), z, h), {}, "1", ("0", "2")),
    "logits before out": (lambda h, z: {"out": h, "logits": z}, {}, "logits", ("out",)),
    "out before the first": (lambda h, z: {"first": h, "out": z}, {}, "out", ("first",)),
    "a dataclass": (lambda h, z: Answer(h, z), {}, "logits", ("hidden",)),
    "a named tuple": (lambda h, z: Named(h, z), {}, "out", ("scores",)),
    "by its label": (lambda h, z: (h, z), {"output": "1"}, "1", ("0",)),
    "deep in a nest": (lambda h, z: [{"a": (h, {"z": z})}], {"output": "0.a.1.z"}, "0.a.1.z", ("0.a.0",)),
    "beside numbers and None": (lambda h, z: {"n": 3, "none": None, "z": z}, {}, "z", ()),
    "by the mapping of losses": (lambda h, z: (h, z), {"loss": {"1": "mse"}}, "1", ("0",)),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_result_with_the_loss(name: str) -> None:
    form, options, chosen, unused = FORMS[name]
    graph = explain_model(
        Returns(form), (torch.zeros(2, 4),), {}, rg.Options(**options) if "loss" not in options else rg.Options(
            loss=tuple(options["loss"].items())
        ),
    ).graph  # fmt: skip
    assert [item.label for item in graph.outputs] == [chosen]
    assert graph.unused == unused
    assert graph.output in graph.types


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], dict[str, Any], str, str]] = {
    "an unknown label": (lambda h, z: {"logits": z}, {"output": "scores"}, "RG409", "its results are logits"),
    "an unknown loss": (lambda h, z: (h, z), {"loss": (("0", "mse"), ("2", "mse"))}, "RG409", "no '2'"),
    "the label of a lone tensor": (lambda h, z: z, {"output": "0"}, "RG409", "its results are output"),
    "no floating-point tensor": (lambda h, z: z.argmax(1), {}, "RG203", "no floating-point tensor"),
    "classes with a loss": (lambda h, z: (z, z.argmax(1)), {"output": "1"}, "RG203", "result '1' is no floating"),
    "a number": (lambda h, z: 3, {}, "RG203", "no floating-point tensor"),
    "nothing": (lambda h, z: None, {}, "RG203", "no floating-point tensor"),
    "a mean over the batch": (lambda h, z: (z, z.mean(0)), {"output": "1"}, "RG203", "in which there is no batch"),
    "the same for all inputs": (lambda h, z: torch.ones(2, 3), {}, "RG203", "does not depend on the inputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_results_that_cannot_have_a_loss(name: str) -> None:
    form, options, code, cause = REFUSED[name]
    with pytest.raises(rg.ModelError) as refused:
        captured(Returns(form), torch.zeros(2, 4), **options)
    assert refused.value.codes == (code,)
    assert cause in str(refused.value)


def test_an_input_that_is_returned_as_it_is() -> None:
    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, self.a(x)

    x = torch.randn(2, 4)
    with pytest.raises(rg.ModelError) as refused:
        regions_of(Through(), x)
    assert refused.value.codes == ("RG203",)
    assert regions_of(Through(), x, output="1").graph.outputs[0].label == "1"


def test_a_result_whose_batch_stands_last() -> None:
    """[C, B]: targets are one class per sample, as always."""
    x, target = torch.randn(3, 4, dtype=torch.float64), torch.tensor([2, 0, 1])
    step = agrees(Returns(lambda h, z: z.t()).double(), x, target)
    logits = step.model(x).detach()
    wanted = nn.functional.cross_entropy(logits.t(), target)
    assert abs(float(step(x, target) - wanted)) < 1e-12


def test_the_same_value_under_two_labels() -> None:
    model = Returns(lambda h, z: {"a": z, "b": z})
    with pytest.raises(rg.ModelError) as refused:
        captured(model, torch.zeros(2, 4), loss=(("a", "cross-entropy"), ("b", "mse")))
    assert refused.value.codes == ("RG203",)
    assert captured(model, torch.zeros(2, 4)).unused == ("b",)


class Auxiliary(nn.Module):
    """A side branch with a batch norm, whose result nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.side, self.norm, self.out = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"logits": self.head(hidden), "side": self.out(torch.relu(self.norm(self.side(hidden))))}


def test_a_branch_without_a_loss_moves_its_buffers_and_nothing_else() -> None:
    model = Auxiliary().double()
    x, target = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    start = {key: value.clone() for key, value in model.state_dict().items()}
    mean = 0.1 * model.side(torch.tanh(model.body(x))).mean(0).detach()
    step = agrees(model, x, target, steps=1, gpus=2)
    frozen = dict(step.plan.regions.frozen)
    assert frozen["side.weight"] == frozen["side.bias"] == frozen["norm.weight"] == "it only moves buffers"
    assert frozen["out.weight"] == frozen["out.bias"] == "not used on the way to logits"
    now = model.state_dict()
    for key in ("side.weight", "side.bias", "norm.weight", "norm.bias", "out.weight", "out.bias"):
        assert torch.equal(now[key], start[key]), key
    torch.testing.assert_close(now["norm.running_mean"], mean, rtol=1e-12, atol=1e-14)
    assert int(now["norm.num_batches_tracked"]) == 1
    assert not torch.equal(now["body.weight"], start["body.weight"])


# -- parameters that are not updated, and why ------------------------------------------------------------------------


class Signs(nn.Module):
    """A layer in front of a sign, inside one region with the layer behind it: no error passes the sign."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.first, self.last = nn.Parameter(torch.ones(4)), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.sign(self.last.weight)
        return nn.functional.linear(torch.tanh(self.first(x)), weight, self.last.bias)


class Reasons(nn.Module):
    """A parameter for every reason."""

    def __init__(self) -> None:
        super().__init__()
        self.still, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.idle, self.other = nn.Linear(2, 2), nn.Linear(5, 2)
        self.still.weight.requires_grad_(False)
        self.stepped = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.still(x))
        return self.last(hidden) + torch.sign(self.stepped), self.other(hidden)


def test_every_reason_is_told() -> None:
    regions = regions_of(Reasons(), torch.zeros(2, 4))
    frozen = dict(regions.frozen)
    assert frozen == {
        "still.weight": "requires_grad is False",
        "stepped": "its derivative is zero everywhere, as behind a step function",
        "idle.weight": "not used on the way to 0",
        "idle.bias": "not used on the way to 0",
        "other.weight": "not used on the way to 0",
        "other.bias": "not used on the way to 0",
    }
    updated = {key for region in regions.regions for key in region.parameters}
    assert updated == {"still.bias", "last.weight", "last.bias"}


def test_without_further_results_an_idle_parameter_is_just_not_used() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    model.register_parameter("idle", nn.Parameter(torch.ones(2)))
    assert dict(regions_of(model, torch.zeros(2, 4)).frozen) == {"idle": "not used by forward()"}


def test_weights_behind_a_sign_do_not_learn_and_say_so() -> None:
    model = Signs().double()
    x, target = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    weight = model.last.weight.detach().clone()
    step = agrees(model, x, target)
    assert dict(step.plan.regions.frozen) == {
        "scale": "not used by forward()",
        "last.weight": "its derivative is zero everywhere, as behind a step function",
    }
    assert torch.equal(model.last.weight, weight)
