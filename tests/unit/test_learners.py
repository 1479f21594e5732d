"""Learners: backpropagation and a compiled step, with optimisers of their own and of torch.optim; and their losses."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.errors import ReclraError, StepError, UsageError
from reclra_graph.methods.backprop import BackpropLearner
from reclra_graph.methods.build import build
from reclra_graph.methods.learner import Learner
from reclra_graph.methods.objective import Objective, objective
from reclra_graph.methods.optimizers import optimizer_problems, others, outside, own, read_arguments
from reclra_graph.methods.step_learner import StepLearner


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(8, 4, generator=draw), torch.randint(3, (8,), generator=draw)


def learner(method: str, optimizer: str = "momentum", **options: Any) -> Learner:
    arguments = {"alpha": 0.9} if optimizer == "torch:RMSprop" else {}
    return build(method, net(), (torch.zeros(8, 4),), options, optimizer=optimizer, arguments=arguments)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return bool(one == other)


CASES = [(method, name) for method in ("bp", "reclra") for name in ("sgd", "momentum", "adamw", "torch:RMSprop")]


@pytest.mark.parametrize(("method", "optimizer"), CASES)
def test_a_state_is_all_that_learning_needs(method: str, optimizer: str) -> None:
    one, other = learner(method, optimizer), learner(method, optimizer)
    for number in range(3):
        one.learn(*batch(number), 0.05)
    buffer = io.BytesIO()
    torch.save(one.state(), buffer)
    buffer.seek(0)
    other.load(torch.load(buffer, weights_only=True))
    assert same(one.state(), other.state())
    held = one.state()
    for number in range(3, 6):
        losses = [item.learn(*batch(number), 0.02).item() for item in (one, other)]
        assert losses[0] == losses[1]
    assert same(one.state(), other.state())
    assert not same(one.state(), held)  # a copy


@pytest.mark.parametrize(("method", "optimizer"), CASES)
def test_what_is_not_finite_changes_nothing(method: str, optimizer: str) -> None:
    found = learner(method, optimizer)
    found.learn(*batch(), 0.05)
    before = found.state()
    x, y = batch(1)
    x[3, 2] = torch.nan
    with pytest.raises(StepError) as caught:
        found.learn(x, y, 0.05)
    assert caught.value.codes == ("RG604",)
    assert same(found.state()["model"], before["model"])
    assert same(found.state().get("step"), before.get("step"))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_backprop_is_autograd_with_that_optimiser(optimizer: str) -> None:
    options = {"weight_decay": 0.01, "momentum": 0.8, "betas": (0.8, 0.9), "eps": 1e-6}
    found = build("bp", net().double(), (torch.zeros(8, 4),), options, optimizer=optimizer)
    twin = net().double()
    kinds: dict[str, Any] = {
        "sgd": lambda values: torch.optim.SGD(values, lr=1.0, weight_decay=0.01),
        "momentum": lambda values: torch.optim.SGD(values, lr=1.0, momentum=0.8, weight_decay=0.01),
        "adamw": lambda values: torch.optim.AdamW(values, lr=1.0, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.01),
    }
    oracle = kinds[optimizer](twin.parameters())
    for number, lr in enumerate((0.1, 0.05, 0.02)):
        x, y = batch(number)[0].double(), batch(number)[1]
        loss = F.cross_entropy(twin(x), y)
        oracle.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        oracle.param_groups[0]["lr"] = lr
        oracle.step()
        assert found.learn(x, y, lr).item() == pytest.approx(loss.item(), rel=1e-12)
    for one, other in zip(found.model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize(
    ("inside", "name", "arguments"),
    [
        ("sgd", "torch:SGD", {}),
        ("momentum", "torch:SGD", {"momentum": 0.9}),
        ("adamw", "torch:AdamW", {"weight_decay": 0.0}),
    ],
)
def test_an_optimiser_outside_does_what_the_same_one_inside_the_step_does(
    inside: str, name: str, arguments: dict[str, Any]
) -> None:
    options = {"rule": "eq6", "gamma": 0.3, "gain": True, "seed": 4}
    one = build("reclra", net(), (torch.zeros(8, 4),), options, optimizer=inside)
    other = build("reclra", net(), (torch.zeros(8, 4),), options, optimizer=name, arguments=arguments)
    assert isinstance(one, StepLearner)
    assert isinstance(other, StepLearner)
    for number, lr in enumerate((0.1, 0.03, 0.03)):
        losses = [item.learn(*batch(number), lr).item() for item in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for key, value in one.model.state_dict().items():
        assert torch.allclose(value, other.model.state_dict()[key], atol=1e-5), key
    for key, value in one.step.synapses.items():
        assert torch.allclose(value, other.step.synapses[key], atol=1e-5), key
        assert not torch.equal(value, build("reclra", net(), (torch.zeros(8, 4),), options).step.synapses[key])  # type: ignore[attr-defined]


def test_several_inputs_are_given_as_forward_takes_them() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"other": a, "logits": self.layer(a + b)}

    found = BackpropLearner(Both(), Objective().loss, own("sgd", {}))
    x, y = batch()
    one = found.learn((x, x), y, 0.0)
    assert torch.equal(one, found.learn({"a": x, "b": x}, y, 0.0))


# -- optimisers by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "cause"),
    [
        ("torch:RMSprob", {}, "no optimiser 'RMSprob'"),
        ("torch:LBFGS", {}, "no optimiser 'LBFGS'"),
        ("torch:Optimizer", {}, "no optimiser 'Optimizer'"),
        ("torch:RMSprop", {"beta": 1}, "RMSprop takes no beta"),
        ("torch:RMSprop", {"lr": 1}, "RMSprop takes no lr"),
        ("torch:RMSprop", {"alpha": -1}, "RMSprop: Invalid alpha"),
        ("torch:RMSprop", {"alpha": "high"}, "RMSprop: "),
    ],
)
def test_optimisers_that_there_are_not(name: str, arguments: dict[str, Any], cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as caught:
        outside(name, arguments)
    assert caught.value.codes == ("RG405",)


def test_names_of_optimisers() -> None:
    assert {"SGD", "AdamW", "RMSprop", "Adagrad"} <= set(others())
    assert optimizer_problems("adamw") == optimizer_problems("torch:Adagrad") == ()
    assert [item.code for item in optimizer_problems("adam")] == ["RG405"]


def test_arguments_of_optimisers_are_constants_or_words() -> None:
    assert read_arguments(["alpha=0.9", "centered=True", "betas=(0.1, 0.2)", "kind=fast"]) == {
        "alpha": 0.9, "centered": True, "betas": (0.1, 0.2), "kind": "fast",
    }  # fmt: skip
    for text in ("alpha", "=1", "a b=1"):
        with pytest.raises(UsageError, match="no name=value"):
            read_arguments([text])


@pytest.mark.parametrize(("method", "run"), [("back", "eager"), ("bp", "fast"), ("reclra", "fast")])
def test_methods_and_runs_that_there_are_not(method: str, run: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(method, net(), (torch.zeros(8, 4),), {}, run=run)
    assert caught.value.codes == ("RG405",)


def test_a_step_has_no_place_for_an_optimiser_from_outside_when_it_is_compiled() -> None:
    step = rg.compile(net(), torch.zeros(8, 4))
    with pytest.raises(UsageError) as caught:
        StepLearner(step, "fused", outside("torch:SGD", {}))
    assert caught.value.codes == ("RG405",)


# -- losses -----------------------------------------------------------------------------------------------------------


def test_the_losses_are_those_of_the_step() -> None:
    x, y = batch()
    cases: list[tuple[dict[str, Any], Tensor]] = [
        ({}, y),
        ({"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 0.5)}, y),
        ({"ignore_index": 1}, y),
        ({"loss": "mse"}, torch.rand(8, 3)),
        ({"loss": "bce-with-logits"}, torch.rand(8, 3)),
        ({"loss": {"output": "mse"}}, torch.rand(8, 3)),
    ]
    for options, target in cases:
        model = net()
        wanted = objective(options).loss(copy.deepcopy(model)(x), target)
        loss = rg.compile(model, x, **options)(x, target)
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-6), options


def test_wrong_classes_are_counted() -> None:
    z = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1], [0, 1, 2]])
    y = torch.tensor([0, 1, 1, 0])
    assert [int(item) for item in Objective().wrong(z, y)] == [2, 4]
    assert [int(item) for item in Objective().wrong(z, y, top=2)] == [1, 4]
    assert [int(item) for item in Objective(ignore=0).wrong(z, y)] == [1, 2]
    assert [int(item) for item in Objective().wrong(z, F.one_hot(y, 3).float())] == [2, 4]
    words = z.reshape(2, 2, 3)
    assert [int(item) for item in Objective().wrong(words, y.reshape(2, 2))] == [2, 4]
    assert [int(item) for item in Objective().wrong(words.mT, y.reshape(2, 2))] == [2, 4]
    # each position is judged by the next target: scores 0 against 1, 1 against 0
    assert [int(item) for item in Objective("causal-lm").wrong(words, y.reshape(2, 2))] == [2, 2]
    total, count = Objective("mse").wrong(torch.zeros(4, 2), torch.ones(4, 2))
    assert (float(total), count) == (4.0, 4)


def test_results_are_found_by_name() -> None:
    given = {"aux": torch.zeros(2, 3), "logits": torch.ones(2, 3)}
    assert torch.equal(Objective().result(given), given["logits"])
    assert torch.equal(Objective(output="aux").result(given), given["aux"])
    assert torch.equal(Objective().result((given["aux"], given["logits"])), given["aux"])
    with pytest.raises(ReclraError) as caught:
        Objective(output="other").result(given)
    assert caught.value.codes == ("RG409",)
    with pytest.raises(UsageError, match="one target"):
        objective({"loss": {"a": "mse", "b": "mse"}})


def test_looking_at_a_state_leaves_the_roundings_as_they_are() -> None:
    # Under plain SGD and eq6 the synapses of a region learn through one matrix, which reading them multiplies out.
    one, other = (learner("reclra", "sgd", gamma=0.5, gain=True, wiring="flat") for _ in range(2))
    assert isinstance(one, StepLearner)
    assert one.step.store.matrices
    for number in range(5):
        for item in (one, other):
            item.learn(*batch(number), 0.1)
        other.load(other.state())
        one.state()
    assert same(one.state(), other.state())
    matrices = one.state()["matrices"].values()
    assert not any(torch.equal(value, torch.eye(len(value))) for value in matrices)
