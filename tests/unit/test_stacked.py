"""Many runs in one step: each as it would learn alone, none disturbed by another, saved and resumed exactly."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime import stacked
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.stacked import StackedStep
from reclra_graph.runtime.stacked_backprop import StackedBackprop
from tests.models import STEPS, batch_for, mlp, residual_cnn, same
from tests.unit import test_opaque_step
from tests.unit.refusals import refused
from tests.unit.stacks import batches, gap, runs_of, together
from tests.unit.test_fused import needs_compiler

EPSILON = 1e-12


@cache
def small(optimizer: str = "sgd", **options: object) -> CompiledStep:
    torch.manual_seed(0)
    return rg.compile(mlp(6, 5, 4, 3).double(), torch.zeros(4, 6).double(), optimizer=optimizer, **options)  # type: ignore[arg-type]


@cache
def made(optimizer: str, which: int) -> tuple[StackedStep, dict[str, Tensor]]:
    stack = StackedStep(runs_of(small(optimizer)), fused=False)
    return stack, stack.state()


def stack_of(optimizer: str = "sgd", which: int = 0) -> StackedStep:
    """Three runs as they start. ``which``: another object for the same. What they recorded before they know still."""
    stack, start = made(optimizer, which)
    stack.load(start)
    return stack


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_each_run_learns_as_it_would_alone(make: Callable[[], CompiledStep]) -> None:
    step, random = make(), make.__name__ == "dropouts"
    stack, alone = StackedStep(runs_of(step), fused=False), runs_of(step)
    for number in range(1 if random else 2):
        inputs, targets = batches(step, seed=10 * number)
        losses = stack(*together(inputs, targets))
        wanted = [run(x, y) for run, x, y in zip(alone, inputs, targets, strict=True)]
        assert losses.shape == (3,)
        if not random:
            torch.testing.assert_close(losses, torch.stack(wanted), rtol=1e-5, atol=1e-6)
    assert stack.failed == ()
    before = {name: value.clone() for name, value in stack.held_by(stack.runs[0]).items()}
    after = stack.unstack()
    assert not equal(before, stack.held_by(after[0]))
    if not random:
        assert max(map(gap, after, alone)) < 1e-6


def test_one_batch_serves_all_runs() -> None:
    inputs, target = batch_for(small())
    shared, each = stack_of(), stack_of(which=1)
    losses = shared(inputs, target)
    assert len(set(losses.tolist())) == 3
    torch.testing.assert_close(each(*together([inputs] * 3, [target] * 3)), losses, rtol=EPSILON, atol=EPSILON)
    torch.testing.assert_close(shared.held, each.held, rtol=EPSILON, atol=EPSILON)
    mixed = stack_of()(inputs, torch.stack([target] * 3))
    torch.testing.assert_close(mixed, losses, rtol=EPSILON, atol=EPSILON)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_a_run_that_fails_is_frozen_and_the_others_do_not_notice(optimizer: str) -> None:
    stack, other = stack_of(optimizer), stack_of(optimizer, 1)
    (first,), y = together(*batches(small()))
    stack(first, y)
    other(first, y)
    before = {name: value[1].clone() for name, value in stack.held.items()}
    spoiled = first.clone()
    spoiled[1, 2, 3] = float("nan")
    losses = stack(spoiled, y)
    assert losses.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(other(first, y)[[0, 2]], losses[[0, 2]], rtol=0, atol=0)
    assert stack.failed == (1,)
    losses = stack(first, y)  # its loss would be finite again
    other(first, y)
    assert losses.isnan().tolist() == [False, True, False]
    assert equal({name: value[1] for name, value in stack.held.items()}, before)
    for run in (0, 2):
        mine, theirs = ({name: value[run] for name, value in item.held.items()} for item in (stack, other))
        assert equal(mine, theirs)


def test_a_run_that_diverges_is_as_it_was_before() -> None:
    stack, (x, y) = stack_of(), together(*batches(small()))
    stack.lr = [0.1, 1e300, 0.1]
    for _ in range(4):
        stack(x, y)
    assert stack.failed == (1,)
    assert bool(stack.held["P[0.weight]"][[0, 2]].isfinite().all())


def test_where_no_run_is_left_nothing_changes() -> None:
    stack, (inputs, target) = stack_of(), batch_for(small())
    stack(inputs, target)
    before = stack.state()
    refused(rg.StepError, lambda: stack(inputs[0] * float("nan"), target), "RG604")
    assert equal(stack.state(), before)
    assert stack.failed == ()
    stack(inputs, target)


def test_running_statistics_of_a_run_that_fails_stay() -> None:
    step = residual_cnn()
    stack, (inputs, targets) = StackedStep(runs_of(step, 2), fused=False), batches(step, 2)
    inputs[1][0][0, 0, 0, 0] = float("inf")
    before = stack.state()
    stack(*together(inputs, targets))
    after = stack.state()
    name = next(name for name in before if name.endswith("running_mean]"))
    assert same(before[name][1], after[name][1])
    assert not same(before[name][0], after[name][0])


def test_every_run_may_have_rates_of_its_own() -> None:
    stack, alone = stack_of(), runs_of(small())
    stack.lr, stack.beta, stack.gamma = [0.1, 0.2, 0.3], torch.tensor([0.1, 0.5, 1.0]), (0.0, 0.1, 0.2)
    for number, run in enumerate(alone):
        run.lr, run.beta, run.gamma = (float(rate[number]) for rate in (stack.lr, stack.beta, stack.gamma))
    for number in range(2):
        inputs, targets = batches(small(), seed=7 * number)
        losses = stack(*together(inputs, targets))
        wanted = torch.stack([run(x, y) for run, x, y in zip(alone, inputs, targets, strict=True)])
        torch.testing.assert_close(losses, wanted, rtol=EPSILON, atol=EPSILON)
    assert max(map(gap, stack.unstack(), alone)) < EPSILON
    assert [run.beta for run in stack.runs] == stack.beta.tolist()


def test_a_schedule_sets_the_rate_of_each_step() -> None:
    stack, twin = stack_of(), stack_of(which=1)
    inputs, target = batch_for(small())
    before = len(stack._codes)
    stack.learn(inputs, target, 0.0)
    assert equal(stack.held, twin.held)
    stack.learn(inputs, target, [0.0, 0.1, 0.0])
    moved = [not same(stack.held["P[0.weight]"][run], twin.held["P[0.weight]"][run]) for run in range(3)]
    assert moved == [False, True, False]
    assert len(stack._codes) <= before + 1


@pytest.mark.parametrize("value", [float("nan"), -0.1, [0.1, 0.2], [[0.1, 0.2, 0.3]], "much"])
def test_rates_that_cannot_be_are_refused(value: object) -> None:
    stack = stack_of()
    for name in ("lr", "beta", "gamma"):
        refused(rg.UsageError, lambda name=name: setattr(stack, name, value), "RG405")  # type: ignore[misc]
    assert stack.lr.tolist() == [0.1] * 3


def test_batches_are_checked_run_by_run_before_anything_changes() -> None:
    stack = stack_of()
    (x,), y = together(*batches(small()))
    before = stack.state()
    for wrong, code in (
        ((x[:2], y), "RG601"),
        ((x, y[:2]), "RG602"),
        ((x[..., :5], y), "RG601"),
        ((x.float(), y), "RG601"),
        ((x, y.double()), "RG602"),
        ((x, y[:, :3]), "RG602"),
        ((x, torch.stack([y[0], y[1], y[2] + 3])), "RG603"),
        ((x[None], y), "RG601"),
        ((x[:, :0], y[:, :0]), "RG601"),
    ):
        error = refused(rg.StepError, lambda wrong=wrong: stack(*wrong), code)  # type: ignore[misc]
        assert code != "RG603" or "run 2" in str(error)
    assert equal(stack.state(), before)


def test_it_goes_on_exactly_where_it_was_saved(tmp_path: Path) -> None:
    stack, (x, y) = stack_of("adamw"), together(*batches(small()))
    stack.beta = [0.1, 0.2, 0.3]
    stack(x, y)
    x[0][1] = float("nan")
    stack(x, y)
    torch.save(stack.state(), tmp_path / "state.pt")
    x[0][1] = 0
    stack(x, y)
    again = stack_of("adamw", 1)
    again.load(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.failed == (1,)
    again(x, y)
    assert equal(again.state(), stack.state())


def test_states_that_do_not_fit_are_refused() -> None:
    stack = stack_of("momentum")
    state = stack.state()
    assert {"P[0.weight]", "E[3->1]", "S[0.weight|v]", "S[E.3->1|v]", "lr", "beta", "gamma", "going"} <= state.keys()
    before = stack.state()
    lost = {name: value for name, value in state.items() if name != "P[0.weight]"}
    for wrong in (lost, {**state, "P[7.weight]": state["lr"]}, {**state, "going": torch.ones(4, dtype=torch.bool)}):
        refused(rg.ModelError, lambda wrong=wrong: stack.load(wrong), "RG605")  # type: ignore[misc]
    assert equal(stack.state(), before)


def test_a_run_goes_on_alone_after_it_was_unstacked() -> None:
    step = small("adamw")
    stack, alone, (inputs, targets) = stack_of("adamw"), runs_of(step), batches(step)
    stack(*together(inputs, targets))
    left = stack.unstack()[1]
    left(inputs[1], targets[1])
    for _ in range(2):
        alone[1](inputs[1], targets[1])
    assert gap(left, alone[1]) < EPSILON
    assert stack.models[1] is left.model


def test_dropout_draws_for_each_run() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 200), nn.Dropout(0.25), nn.Tanh(), nn.Linear(200, 2)).double()
    step = rg.compile(net, torch.zeros(8, 4).double())
    one = StackedStep(runs_of(step, 1), fused=False)
    alone = runs_of(step, 1)[0]
    inputs, target = batch_for(step, 8)
    torch.manual_seed(5)
    wanted = alone(inputs, target)
    torch.manual_seed(5)
    torch.testing.assert_close(one(inputs, target)[0], wanted, rtol=EPSILON, atol=EPSILON)  # one run draws the same
    same_runs = [runs_of(step, 1)[0] for _ in range(40)]
    losses = StackedStep(same_runs, fused=False)(inputs, target)
    assert len(set(losses.tolist())) == 40
    torch.manual_seed(6)
    drawn = torch.stack([runs_of(step, 1)[0](inputs, target) for _ in range(40)])
    assert abs(float(losses.mean() - drawn.mean())) < 4 * float(drawn.std()) / 40**0.5
    assert 0.5 < float(losses.std() / drawn.std()) < 2


@needs_compiler
def test_machine_code_does_what_pytorch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = small("momentum")
    plain, fused = stack_of("momentum"), StackedStep(runs_of(step), folder=tmp_path)
    for number in range(3):
        x, y = together(*batches(step, seed=number))
        rate = [0.1, 0.2, 0.1 * number]
        wanted = plain.learn(x, y, rate)
        torch.testing.assert_close(fused.learn(x, y, rate), wanted, rtol=EPSILON, atol=EPSILON)
        assert fused.why == ""
    assert "not to be compiled" in plain.why
    torch.testing.assert_close(fused.held, plain.held, rtol=EPSILON, atol=EPSILON)
    spoiled = x[0].clone()
    spoiled[0, 0, 0] = float("inf")
    before = {name: value[0].clone() for name, value in fused.held.items()}
    fused(spoiled, y)
    plain(spoiled, y)
    assert fused.failed == plain.failed == (0,)
    assert equal({name: value[0] for name, value in fused.held.items()}, before)
    torch.testing.assert_close(fused.held, plain.held, rtol=EPSILON, atol=EPSILON)
    monkeypatch.setattr(stacked, "compiled", None)  # a second start compiles nothing
    again = StackedStep(runs_of(step), folder=tmp_path)
    again(*together(*batches(step)))
    assert again.why == ""


def test_without_a_compiler_pytorch_runs_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler here\nat all")

    monkeypatch.setattr(stacked, "compiled", broken)
    stack, plain = StackedStep(runs_of(small()), folder=tmp_path), stack_of()
    x, y = together(*batches(small()))
    torch.testing.assert_close(stack(x, y), plain(x, y), rtol=0, atol=0)
    assert stack.why == "the step cannot be compiled: no compiler here"
    few = StackedStep(runs_of(small()), most=0, folder=tmp_path)
    few(x, y)
    assert "more than 0 shapes" in few.why


def test_steps_that_cannot_be_stacked_say_why() -> None:
    step = test_opaque_step.compiled()
    error = refused(rg.ModelError, lambda: StackedStep([step]), "RG620")
    assert "as they are" in str(error)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.RReLU(), nn.Linear(4, 3))
    stack = StackedStep([rg.compile(net, torch.zeros(4, 6))], fused=False)
    error = refused(rg.ModelError, lambda: stack(torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)), "RG620")
    assert "rrelu_with_noise" in str(error)


def test_steps_of_one_plan_and_models_of_their_own_alone_are_stacked() -> None:
    runs = runs_of(small(), 2)
    refused(rg.UsageError, lambda: StackedStep([]), "RG405")
    refused(rg.ModelError, lambda: StackedStep([runs[0], runs_of(small("adamw"), 1)[0]]), "RG621")
    twin = CompiledStep(runs[0].model, runs[0].program, {}, (), 3)
    error = refused(rg.ModelError, lambda: StackedStep([runs[0], runs[1], twin]), *["RG621"] * 6)
    assert "run 2 and run 0 have one tensor for P[0.weight]" in str(error)
    runs[1].model.float()
    error = refused(rg.ModelError, lambda: StackedStep(runs), *["RG621"] * 6)
    assert "float32[5, 6] on cpu in run 1, float64[5, 6] on cpu in run 0" in str(error)


def test_how_it_is_shown() -> None:
    assert repr(stack_of()).startswith("StackedStep(3 runs of CompiledStep(Sequential")
    assert len(stack_of()) == 3
    assert issubclass(StackedBackprop, StackedStep)
