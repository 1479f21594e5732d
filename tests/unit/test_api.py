"""rg.compile: what goes in, what comes out, and what is refused with nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.options import Options
from tests.models import Dropouts, ResidualCNN, mlp
from tests.unit.refusals import refused

# -- compile: options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({"gpus": 0}, ("RG401",)),
        ({"gpus": -2}, ("RG401",)),
        ({"gpus": 1.5}, ("RG401",)),
        ({"gpus": True}, ("RG401",)),
        ({"gpus": "5"}, ("RG401",)),
        ({"depth": 0}, ("RG402",)),
        ({"depth": "deep"}, ("RG402",)),
        ({"depth": None}, ("RG402",)),
        ({"wiring": "spaghetti"}, ("RG404",)),
        ({"rule": "hebb"}, ("RG405",)),
        ({"synapse": "sparse"}, ("RG405",)),
        ({"sign": "+"}, ("RG405",)),
        ({"loss": "hinge"}, ("RG405",)),
        ({"optimizer": "adam"}, ("RG405",)),
        ({"update": "magic"}, ("RG405",)),
        ({"norm": 3}, ("RG405",)),
        ({"norm": True}, ("RG405",)),
        ({"beta": 0}, ("RG405",)),
        ({"beta": float("nan")}, ("RG405",)),
        ({"beta": float("inf")}, ("RG405",)),
        ({"gamma": -1}, ("RG405",)),
        ({"lr": "fast"}, ("RG405",)),
        ({"lr": None}, ("RG405",)),
        ({"seed": "x"}, ("RG405",)),
        ({"seed": 2**70}, ("RG405",)),
        ({"kappa": {1: "much"}}, ("RG405",)),
        ({"kappa": {1: float("nan")}}, ("RG405",)),
        ({"strict": True, "update": "local_vjp"}, ("RG304",)),
        ({"gpus": 0, "depth": -1, "rule": "x", "lr": -1, "wiring": "y"}, ("RG401", "RG402", "RG404", "RG405", "RG405")),
    ],
    ids=str,
)
def test_options_that_cannot_be_meant(options: dict[str, Any], codes: tuple[str, ...]) -> None:
    error = refused(rg.UsageError, lambda: rg.compile(mlp(3, 4, 2), torch.zeros(2, 3), **options), *codes)
    assert error.exit_status == 2


def test_kappa_of_a_region_that_is_not_there() -> None:
    refused(rg.ModelError, lambda: rg.compile(mlp(3, 4, 2), torch.zeros(2, 3), kappa={99: 2.0}), "RG405")


def test_every_problem_has_a_place_in_the_options() -> None:
    places = {
        problem.place for problem in Options(gpus=0, depth=0, rule="", norm=0, beta=0.0, gamma=-1.0, lr=-1.0).problems()
    }
    assert places == {"gpus", "depth", "rule", "norm", "beta", "gamma", "lr"}


# -- compile: example inputs and models ------------------------------------------------------------------------------


class Custom(nn.Module):
    """A linear layer and whatever comes behind it."""

    def __init__(self, tail: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.tail = tail

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.b(torch.tanh(self.a(x))))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class Gamma(nn.Module):
    """PyTorch does not say how the parameter should move."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.gammainc(self.shape, x.abs())


def keeps_positive(z: Tensor) -> Tensor:
    z = nn.functional.dropout(z)
    return z if z.sum() > 0 else -z


def raises(z: Tensor) -> Tensor:
    z = nn.functional.dropout(z)
    raise KeyError("no such thing")


@cache
def own_operator() -> Any:
    @torch.library.custom_op("reclra_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    @twice.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    return twice


REFUSED_MODELS: dict[str, tuple[Callable[[], nn.Module], Any, tuple[str, ...]]] = {
    "no inputs": (lambda: mlp(4, 3, 2), (), ("RG107",)),
    "no tensor": (lambda: mlp(4, 3, 2), ("x", 3), ("RG107",)),
    "no batch": (lambda: mlp(4, 3, 2), (torch.tensor(1.0),), ("RG107",)),
    "an empty batch": (lambda: mlp(4, 3, 2), (torch.zeros(0, 4),), ("RG107",)),
    "no inputs at all": (lambda: mlp(4, 3, 2), None, ("RG107",)),
    "a wrong shape": (lambda: mlp(4, 3, 2), torch.zeros(2, 5), ("RG201",)),
    "a wrong dtype": (lambda: mlp(4, 3, 2), torch.zeros(2, 4, dtype=torch.int64), ("RG201",)),
    "too many inputs": (lambda: mlp(4, 3, 2), (torch.zeros(2, 4), torch.zeros(2, 4)), ("RG201",)),
    "forward raises": (lambda: Custom(raises), torch.zeros(2, 4), ("RG201",)),
    "an output from numpy": (lambda: Custom(lambda z: torch.tensor(z.detach().numpy())), torch.zeros(2, 4), ("RG203",)),
    "no tensor out": (lambda: Custom(lambda z: 3), torch.zeros(2, 4), ("RG203",)),
    "a number out": (lambda: Custom(lambda z: z.sum()), torch.zeros(2, 4), ("RG203",)),
    "an output of some samples": (lambda: Custom(lambda z: z[z[:, 0] > 0]), torch.randn(3, 4), ("RG203",)),
    "an operator of the user's": (lambda: Custom(lambda z: own_operator()(z)), torch.zeros(2, 4), ("RG205",)),
    "no parameters": (lambda: nn.Sequential(nn.Tanh(), nn.Flatten()), torch.zeros(2, 4), ("RG301",)),
    "all frozen": (lambda: mlp(4, 3, 2).requires_grad_(False), torch.zeros(2, 4), ("RG302",)),
    "parameters that are not used": (Unused, torch.zeros(2, 4), ("RG302",)),
    "no rule": (lambda: nn.Sequential(Gamma(), nn.Linear(4, 2)), torch.zeros(2, 4), ("RG303",)),
}


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_models_that_cannot_be_compiled(name: str) -> None:
    make, inputs, codes = REFUSED_MODELS[name]
    model = make()
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    error = refused(rg.ModelError, lambda: rg.compile(model, inputs), *codes)
    assert error.exit_status == 1
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_the_place_is_the_users_line() -> None:
    for tail, code in ((raises, "RG201"), (keeps_positive, "RG202")):
        with pytest.raises(rg.ModelError) as error:
            rg.compile(Custom(tail), torch.randn(2, 4), frontend="export")
        (problem,) = error.value.problems
        name, _, number = problem.place.rpartition(":")
        assert name.endswith("test_api.py")
        assert problem.code == code
        line = Path(__file__).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert line.strip() in ('raise KeyError("no such thing")', "return z if z.sum() > 0 else -z")


def test_strict_refuses_local_derivatives_all_at_once() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 3), nn.PReLU(), nn.Linear(3, 2))
    refused(rg.ModelError, lambda: rg.compile(model, torch.zeros(2, 4), strict=True), "RG304", "RG304")
    assert dict(rg.compile(model, torch.zeros(2, 4)).plan.update)[1] == "analytic"
    assert "local_vjp" in dict(rg.compile(model, torch.zeros(2, 4)).plan.update).values()
    rg.compile(mlp(4, 3, 2), torch.zeros(2, 4), strict=True)


def test_a_thing_that_is_no_module() -> None:
    with pytest.raises((rg.ReclraError, TypeError), match=r"(?i)module"):
        rg.compile(lambda x: x, torch.zeros(2, 3))  # type: ignore[arg-type]


def test_recurrent_models_are_compiled_or_refused() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.cells(x)[0][:, -1])
            return logits

    # Never a VerificationError, which says: a bug here.
    try:
        step = rg.compile(Recurrent(), torch.zeros(2, 5, 4))
    except rg.ModelError as error:
        assert set(error.codes) <= {"RG303", "RG305"}  # noqa: PT017
    else:
        assert bool(step(torch.randn(2, 5, 4), torch.tensor([0, 1])).isfinite())


@pytest.mark.parametrize("train", [True, False])
def test_compiling_leaves_the_model_alone(train: bool) -> None:
    for model, inputs in ((ResidualCNN(), torch.randn(3, 1, 6, 6)), (Dropouts(), torch.randn(3, 6))):
        model.train(train)
        before = copy.deepcopy(model.state_dict())
        generator = torch.get_rng_state()
        rg.compile(model, inputs, gpus=2)
        assert torch.equal(torch.get_rng_state(), generator)
        assert [module.training for module in model.modules()] == [train] * len(list(model.modules()))
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_what_a_step_offers() -> None:
    told: list[str] = []
    model = mlp(4, 5, 3)
    step = rg.compile(model, torch.zeros(2, 4), gpus=2, progress=told.append)
    names = ["capture", "partition", "costs", "wire", "lower", "price", "schedule", "emit", "memory"]
    assert told == names == [name for name, _ in step.seconds]
    assert all(seconds >= 0 for _, seconds in step.seconds)
    assert step.model is model
    assert step.plan is step.schedule.tasks.plan
    assert step.source == step.program.source
    assert {name: tuple(value.shape) for name, value in step.synapses.items()} == {"2->1": (5, 3)}
    assert step.synapses["2->1"].dtype == torch.float32
    assert "flat" in repr(step)
    held = step.storage()
    for key, parameter in model.named_parameters():
        assert held[key].data_ptr() == parameter.data_ptr()
        assert not held[key].requires_grad


def test_edges_are_taken_in_two_spellings() -> None:
    model = mlp(4, 5, 5, 3)
    first = rg.compile(model, torch.zeros(2, 4), wiring=["3->2", "2->1"])
    second = rg.compile(model, torch.zeros(2, 4), wiring=[(3, 2), (2, 1)])
    assert first.program == second.program
