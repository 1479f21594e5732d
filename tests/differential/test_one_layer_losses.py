"""A model of one layer has no border that an error could not cross: its step is autograd's, for every loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.regions import RegionGraph
from tests.models import build, regions_of

BATCH, TIME, CLASSES = 3, 4, 5
LR = 0.3


class TimeFirst(nn.Module):
    """[B, T, F] to [T, B, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.transpose(0, 1))
        return logits


def linear() -> nn.Module:
    return nn.Linear(6, CLASSES)


def conv() -> nn.Module:
    return nn.Conv2d(2, CLASSES, 3, padding=1)


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    # model, shape of a sample, shape of the targets, the logits as F.cross_entropy wants them
    "classes": (linear, (6,), (BATCH,), lambda z: z),
    "positions": (linear, (TIME, 6), (BATCH, TIME), lambda z: z.movedim(-1, 1)),
    "grid": (linear, (2, TIME, 6), (BATCH, 2, TIME), lambda z: z.movedim(-1, 1)),
    "map": (conv, (2, 4, 3), (BATCH, 4, 3), lambda z: z),
    "time first": (TimeFirst, (TIME, 6), (TIME, BATCH), lambda z: z.movedim(-1, 1)),
}


@cache
def captured(shape: str) -> tuple[nn.Module, RegionGraph]:
    """The model of a shape in float64, and its regions."""
    make, sample, _, _ = SHAPES[shape]
    model = make().double()
    return model, regions_of(model, torch.zeros(2, *sample, dtype=torch.float64))


WEIGHTS = (0.5, 2.0, 0.0, 1.0, 3.0)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.2},
    "ignore": {"ignore_index": 1},
    "ignore a number that is no class": {"ignore_index": -7},
    "weights": {"class_weights": WEIGHTS},
    "all": {"label_smoothing": 0.1, "ignore_index": 3, "class_weights": WEIGHTS},
}


def torch_options(options: dict[str, Any]) -> dict[str, Any]:
    """The same options under their names in torch.nn.functional."""
    found: dict[str, Any] = {"label_smoothing": options.get("label_smoothing", 0.0)}
    found["ignore_index"] = options.get("ignore_index", -100) if options.get("ignore_index") is not None else -100
    if options.get("class_weights"):
        found["weight"] = torch.tensor(options["class_weights"], dtype=torch.float64)
    return found


def assert_autograds_step(
    model: nn.Module,
    regions: RegionGraph,
    x: Tensor,
    target: Any,
    objective: Callable[[Any], Tensor],
    **options: Any,
) -> None:
    """One step of plain SGD on ``objective(model(x))``, by autograd and compiled."""
    model.zero_grad()
    wanted = objective(model(x))
    wanted.backward()
    step = build(model, regions, lr=LR, **options)  # over a copy of the model
    loss = step(x, target)
    assert abs(float(loss - wanted.detach())) < 1e-13
    for (key, moved), start in zip(step.model.named_parameters(), model.parameters(), strict=True):
        assert start.grad is not None
        assert float(start.grad.abs().max()) > 1e-6
        assert float((moved - (start - LR * start.grad)).detach().abs().max()) < 1e-14, key


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_cross_entropy(shape: str, name: str) -> None:
    _, sample, labels, moved = SHAPES[shape]
    options, (model, regions) = OPTIONS[name], captured(shape)
    x = torch.randn(BATCH, *sample, dtype=torch.float64)
    target = (torch.arange(prod(labels)) % CLASSES).reshape(labels)  # of weights 0 and above, ignored and not
    if options.get("ignore_index") is not None:
        target.view(-1)[::3] = options["ignore_index"]

    def objective(logits: Tensor) -> Tensor:
        return F.cross_entropy(moved(logits), target, **torch_options(options))

    assert_autograds_step(model, regions, x, target, objective, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_causal_language_models_predict_the_next_token(name: str) -> None:
    options, (model, regions) = OPTIONS[name], captured("positions")
    x = torch.randn(BATCH, TIME, 6, dtype=torch.float64)
    target = (torch.arange(BATCH * TIME) % CLASSES).reshape(BATCH, TIME)
    if options.get("ignore_index") is not None:
        target[0, 2], target[1, 1] = options["ignore_index"], options["ignore_index"]
    target[:, 0] = 0  # what stands first is never predicted

    def objective(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].movedim(-1, 1), target[:, 1:], **torch_options(options))

    assert_autograds_step(model, regions, x, target, objective, loss="causal-lm", **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_probabilities(shape: str) -> None:
    (model, regions), sample = captured(shape), SHAPES[shape][1]
    x = torch.randn(BATCH, *sample, dtype=torch.float64)
    for loss in ("mse", "bce-with-logits"):
        target = torch.rand_like(model(x)).detach()

        def objective(z: Tensor, loss: str = loss, target: Tensor = target) -> Tensor:
            if loss == "mse":
                return (z - target).square().sum() / (2 * BATCH)
            return F.binary_cross_entropy_with_logits(z, target, reduction="sum") / BATCH

        assert_autograds_step(model, regions, x, target, objective, loss=loss)


class Heads(nn.Module):
    """Three results, each of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, CLASSES), nn.Linear(6, 2), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": self.a(x), "aux": (self.b(x), self.c(x))}


def test_several_losses_add() -> None:
    x, classes = torch.randn(BATCH, 6, dtype=torch.float64), torch.tensor([4, 0, 0])
    values = torch.randn(BATCH, 2, dtype=torch.float64)
    target = {"logits": classes, "aux.0": values, "aux.1": classes.flip(0)}

    def objective(found: Any) -> Tensor:
        first = F.cross_entropy(found["logits"], classes) + (found["aux"][0] - values).square().sum() / (2 * BATCH)
        return first + F.cross_entropy(found["aux"][1], classes.flip(0))

    losses = {"logits": "cross-entropy", "aux.0": "mse", "aux.1": "cross-entropy"}
    model = Heads().double()
    assert_autograds_step(
        model, regions_of(model, x, loss=tuple(losses.items())), x, target, objective, loss=tuple(losses.items())
    )


def test_an_embedding_alone() -> None:
    words, target = torch.tensor([[1, 2, 1], [0, 2, 2]]), torch.randint(CLASSES, (2, 3))

    def objective(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.movedim(-1, 1), target)

    model = nn.Embedding(3, CLASSES).double()
    assert_autograds_step(model, regions_of(model, words), words, target, objective)


def test_where_no_target_counts_the_step_is_refused_as_nan() -> None:
    x = torch.randn(BATCH, 6, dtype=torch.float64)
    step = build(*captured("classes"), ignore_index=2)
    before = copy.deepcopy(step.model.state_dict())
    with pytest.raises(rg.StepError) as refused:
        step(x, torch.full((BATCH,), 2))
    assert refused.value.codes == ("RG604",)
    assert all(torch.equal(value, before[key]) for key, value in step.model.state_dict().items())


def test_a_target_out_of_range_is_told_apart_from_an_ignored_one() -> None:
    x = torch.randn(BATCH, 6, dtype=torch.float64)
    step = build(*captured("classes"), ignore_index=-7)
    step(x, torch.tensor([0, -7, 1]))
    with pytest.raises(rg.StepError) as refused:
        step(x, torch.tensor([0, -6, 1]))
    assert refused.value.codes == ("RG603",)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": (1.0, 2.0)},
        {"class_weights": (-1.0,) * CLASSES},
        {"label_smoothing": 1.0},
        {"ignore_index": 0.5},
        {"loss": "causal-lm"},
        {"loss": {}},
        {"loss": {"output": "mse"}, "output": "output"},
    ],
)
def test_losses_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(rg.ReclraError) as refused:
        rg.compile(linear(), torch.randn(BATCH, 6), **options)
    assert set(refused.value.codes) == {"RG405"}
