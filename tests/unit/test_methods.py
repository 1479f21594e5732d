"""Methods by name: the registry, the forms of inverses, what each loop refuses, and going on from a state."""

from __future__ import annotations

import copy
import io
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reclra_graph.errors import ModelError, StepError, UsageError
from reclra_graph.ir.regions import Region
from reclra_graph.methods.build import build, options_of
from reclra_graph.methods.inverses import Form, form_of
from reclra_graph.methods.registry import LOOPS, METHODS, method_of
from reclra_graph.rules.target_propagation import map_inverse, window
from tests.models import Dropouts, ResidualCNN, Signum, SkipMLP, Tagger, mlp

OWN = [name for name, method in METHODS.items() if method.loop in ("tp", "dtp", "eprop")]


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 6), torch.randint(0, 3, (count,))


# -- the registry ------------------------------------------------------------------------------------------------------


def test_the_methods_are_these() -> None:
    names = "bp lra-e reclra tp dtp eprop reclra-hybrid reclra-dkp local"
    assert list(METHODS) == names.split()
    for name, method in METHODS.items():
        assert method.name == name
        assert method.loop in LOOPS
        assert method.title
        assert method.needs
        assert any(letter.isdigit() for letter in method.source), "a source has a year"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_sets_only_options_that_there_are(name: str) -> None:
    pending = {"errors"}  # an option of rg.compile that presets name
    assert set(METHODS[name].options) <= {*options_of(METHODS[name]), *pending}


def test_an_unknown_method_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"(?s)RG405.*no method 'sgd'.*Choose one of bp, .*local"):
        method_of("sgd")


@pytest.mark.parametrize("name", OWN)
def test_an_option_of_another_method_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"(?s)RG405.*{name} has no option wiring.*It has"):
        build(name, mlp(6, 4, 3), batch()[:1], wiring="flat")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dtp", "first_target", "last"), ("dtp", "target_rate", 0), ("dtp", "noise", -1), ("dtp", "inverse_steps", 1.5),
        ("dtp", "inverse_lr", float("nan")), ("dtp", "inverse_optimizer", "lbfgs"), ("dtp", "inverse_activation", "x"),
        ("dtp", "difference", 1), ("eprop", "nudge", 0), ("eprop", "nudge_sign", 1), ("eprop", "free_steps", -1),
        ("eprop", "clamped_steps", True), ("eprop", "step_size", 1.5), ("eprop", "start", ""),
        ("eprop", "layer_rates", (1.0,)), ("eprop", "layer_rates", (1.0, -1.0)), ("dtp", "optimizer", "lbfgs"),
        ("eprop", "loss", "hinge"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        build(name, mlp(6, 4, 3), batch()[:1], **{option: value})
    assert caught.value.codes == ("RG405",)
    assert caught.value.problems[0].place == option


def test_the_page_has_every_method_as_the_registry_has_it(root: Path) -> None:
    text = (root / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if re.match(r"\| `[a-z][a-z-]*` \|", line)]
    table = {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in rows if len(cells) == 8}
    assert list(table) == list(METHODS)
    for name, (title, wiring, rule, errors, update, more, source) in table.items():
        method, options = METHODS[name], dict(METHODS[name].options)
        assert (title, source) == (method.title, method.source)
        for shown, option in ((wiring, "wiring"), (rule, "rule"), (errors, "errors")):
            assert shown == options.pop(option, "")
        if method.loop == "step":
            assert update == options.pop("update", "")
        if options:
            assert more == ", ".join(f"{key}={value!r}" for key, value in options.items())


# -- the forms of inverses ---------------------------------------------------------------------------------------------


def test_a_window_leads_from_any_size_to_any_larger_one_and_back() -> None:
    for small, large in product(range(1, 9), range(1, 20)):
        if small <= large:
            kernel, stride = window(small, large)
            back = map_inverse(
                torch.zeros(1, 2, small), torch.zeros(2, 3, kernel), torch.zeros(3), (stride,), (1,), True
            )
            assert back.shape == (1, 3, large)
            there = map_inverse(
                torch.zeros(1, 3, large), torch.zeros(2, 3, kernel), torch.zeros(2), (stride,), (1,), False
            )
            assert there.shape == (1, 2, small)


def region(*shape: int, axis: int = 0) -> Region:
    return Region(1, "layer", "layer", (), "h", (), "z", shape, axis=axis)


@pytest.mark.parametrize(
    ("source", "target", "form"),
    [
        (region(7), region(5), Form("dense", (5, 7))),
        (region(8, 4, 4), region(3, 8, 8), Form("map", (8, 3, 4, 4), (2, 2), True)),
        (region(8, 4), region(3, 4), Form("map", (8, 3, 3), (1,), True)),
        (region(3, 8, 9, 8), region(8, 4, 4, 8), Form("map", (8, 3, 4, 5, 3), (2, 2, 1), False)),
        (region(3, 8, 4), region(2, 4, 8), Form("dense", (64, 96))),
        (region(9, 4, axis=-1), region(9, 6, axis=-1), Form("token", (6, 4))),
        (region(9, 4, axis=-1), region(3, 6, axis=-1), Form("dense", (18, 36))),
        (region(10), region(4, 3, 3), Form("dense", (36, 10))),
    ],
)
def test_a_form_follows_from_the_shapes(source: Region, target: Region, form: Form) -> None:
    assert form_of(source, target) == form


# -- what they refuse --------------------------------------------------------------------------------------------------


def refusal(name: str, model: nn.Module, *inputs: Tensor, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        build(name, model, inputs, **options)
    assert set(caught.value.codes) == {"RG460"}
    return str(caught.value)


@pytest.mark.parametrize("name", OWN)
def test_a_connection_past_a_layer_is_named(name: str) -> None:
    said = refusal(name, SkipMLP(6, 4, [(1, 3)], [nn.Tanh]), torch.randn(4, 6))
    assert f"{name} needs a chain" in said
    assert "what layers.0 gives to layers.3 (1->4) leads past region 2, 3" in said


def test_an_input_that_leads_past_a_layer_is_named() -> None:
    assert "(0->3) leads past region 1, 2" in refusal("dtp", SkipMLP(6, 4, [(0, 2)], [nn.Tanh]), torch.randn(4, 6))


def test_a_block_may_be_a_link_of_target_propagation_but_no_layer_of_an_equilibrium() -> None:
    x = torch.randn(4, 1, 8, 8)
    build("dtp", ResidualCNN(), (x,))
    said = refusal("eprop", ResidualCNN(), x)
    assert "eprop needs a chain of layers" in said
    assert "(1->3) leads past region 2" in said
    assert "(3->5) leads past region 4" in said


@pytest.mark.parametrize("name", OWN)
def test_several_losses_are_refused(name: str) -> None:
    options = {"loss": {"logits": "cross-entropy", "value": "mse"}}
    assert "2 with a loss: logits, value" in refusal(name, Tagger(), torch.randn(3, 5, 4), **options)


@pytest.mark.parametrize("name", ["tp", "dtp"])
def test_step_functions_have_no_derivative(name: str) -> None:
    assert "aten.sign.default in region 1 (0) is 0" in refusal(name, mlp(6, 4, 3, activation=Signum), torch.randn(4, 6))


def test_an_equilibrium_names_each_operator_that_is_no_layer_of_its() -> None:
    x = torch.randn(4, 6)
    said = refusal("eprop", Dropouts(), x)
    assert said.count("aten.native_dropout.default in region") == 2
    assert "aten.gelu.default in region 1 (0) is no activation" in refusal("eprop", mlp(6, 4, 3, activation=nn.GELU), x)
    normed = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3))
    assert "aten.layer_norm.default in region 1 (0) is no dense layer" in refusal("eprop", normed, x)


# -- batches, and going on from a state --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_a_batch_that_does_not_fit_changes_nothing(name: str) -> None:
    x, y = batch()
    learner = build(name, mlp(6, 5, 4, 3), (x,), optimizer="momentum")
    learner.learn(x, y, 0.1)
    before = learner.state()
    inputs: list[tuple[Any, Any, str]] = [
        (x[:, :5], y, "RG601"), (x.double(), y, "RG601"), (x[:0], y[:0], "RG601"), ((), y, "RG601"),
        (x, y[:3], "RG602"), (x, y.float(), "RG602"), (x, None, "RG602"), (x, y + 1, "RG603"), (x, y - 3, "RG603"),
        (torch.full_like(x, float("nan")), y, "RG604"),
    ]  # fmt: skip
    for given, goal, code in inputs:
        with pytest.raises(StepError) as caught:
            learner.learn(given, goal, 0.1)
        assert caught.value.codes == (code,)
    same(learner.state(), before)


def same(one: Any, other: Any) -> None:
    """Equal, bit by bit, wherever the tensors are in a nest."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        for first, second in zip(one, other, strict=True):
            same(first, second)
    else:
        assert one == other


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_a_run_goes_on_exactly_from_a_state(name: str, optimizer: str) -> None:
    x, y = batch()
    options: dict[str, Any] = {"optimizer": optimizer, "weight_decay": 0.01}
    learner = build(name, mlp(6, 5, 4, 3), (x,), **options)
    for _ in range(3):
        learner.learn(x, y, 0.05)
    file = io.BytesIO()
    torch.save(learner.state(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = build(name, mlp(6, 5, 4, 3), (x,), seed=7, **options)
    other.load(saved)
    for rate in (0.05, 0.02, 0.01):
        assert torch.equal(learner.learn(x, y, rate), other.learn(x, y, rate))
    same(learner.state(), other.state())
    assert all(item.grad is None for item in learner.model.parameters())


def test_running_statistics_go_on_too() -> None:
    x, y = torch.randn(4, 1, 8, 8), torch.randint(0, 3, (4,))
    learner = build("dtp", ResidualCNN(), (x,), optimizer="adamw")
    learner.learn(x, y, 0.01)
    other = build("dtp", ResidualCNN(), (x,), optimizer="adamw")
    other.load(learner.state())
    learner.learn(x, y, 0.01)
    other.learn(x, y, 0.01)
    same(learner.state(), other.state())


@pytest.mark.parametrize("name", OWN)
def test_a_state_of_something_else_is_refused_and_changes_nothing(name: str) -> None:
    x, _ = batch()
    learner = build(name, mlp(6, 5, 4, 3), (x,), optimizer="adamw")
    mine = learner.state()
    another = "eprop" if name != "eprop" else "dtp"
    wrong = [
        build(name, mlp(6, 5, 5, 3), (x,), optimizer="adamw").state(),
        build(name, mlp(6, 5, 3), (x,), optimizer="adamw").state(),
        build(another, mlp(6, 5, 4, 3), (x,), optimizer="adamw").state(),
        {},
    ]
    damaged = copy.deepcopy(mine)
    damaged["optimizer"]["param_groups"] = []
    for state in [*wrong, damaged]:
        with pytest.raises(ModelError) as caught:
            learner.load(state)
        assert set(caught.value.codes) == {"RG605"}
        same(learner.state(), mine)


def test_everything_learns_the_same_under_no_grad_and_leaves_grad_alone() -> None:
    x, y = batch()
    torch.manual_seed(1)
    model = mlp(6, 5, 4, 3)
    twin = copy.deepcopy(model)
    for item in twin.parameters():
        item.grad = torch.ones_like(item)
    build("dtp", model, (x,)).learn(x, y, 0.1)
    with torch.no_grad():
        build("dtp", twin, (x,)).learn(x, y, 0.1)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
        assert other.grad is not None
        assert bool((other.grad == 1).all())


def test_a_frozen_layer_stays_and_the_others_learn() -> None:
    x, y = batch()
    for name in OWN:
        model = mlp(6, 5, 4, 3)
        model[2].requires_grad_(False)
        before = copy.deepcopy(model.state_dict())
        build(name, model, (x,)).learn(x, y, 0.1)
        moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert moved == {"0.weight", "0.bias", "4.weight", "4.bias"}
