"""Schedule → StepProgram: the emitted file reads as it should, whatever a model's own names are."""

from __future__ import annotations

import ast
import traceback
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.schedule import Run
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.loader import load_source
from tests.models import (
    STEPS,
    batch_for,
    build,
    changed,
    dropouts,
    figure1,
    figure1_regions,
    fresh,
    mlp,
    residual_cnn,
    snapshot,
    tied,
    two_inputs,
)


class Clamp(nn.Module):
    """An operator with an infinite argument, which the file writes as float('-inf')."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.clamp(h, -torch.inf, 1.0)


def step_function(source: str) -> ast.FunctionDef:
    return next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "step")


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_what_every_file_keeps(make: Callable[[], CompiledStep]) -> None:
    step = make()
    tree = ast.parse(step.source)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {ast.unparse(node) for node in imports} <= {
        "import contextlib", "import math", "import operator", "import torch", "import torch.nn.functional as F",
    }  # fmt: skip
    body = ast.unparse(step_function(step.source))
    for word in ("autograd", "backward()", "requires_grad", "no_grad", "vjp", "record_stream", "synchronize"):
        assert word not in body
    assert step.source.count(step.program.digest) == 2
    assert step.source.endswith("    return loss\n")
    assert "\t" not in step.source
    docstring = ast.get_docstring(tree)
    assert docstring is not None
    assert step.plan.regions.graph.model in docstring.splitlines()[0]
    assert f"depth {step.plan.depth}" in " ".join(docstring.split())
    graph = step.plan.regions.graph
    arguments = [item.arg for item in step_function(step.source).args.args]
    names = arguments[2 : 2 + len(graph.inputs)]
    assert arguments == ["P", "E", *names, "target", "lr", "beta", "gamma", "optimise"]
    assert list(step.module.INPUTS) == names
    matrices = {item.name for item in step.schedule.tasks.matrices.values()}
    assert set(step.module.SYNAPSES) == {edge.synapse for edge in step.plan.edges} | matrices
    constants = (step.module.LANES, step.module.PLAN)
    assert constants == (len(step.schedule.lanes), step.program.digest)


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_the_line_map_names_each_task(make: Callable[[], CompiledStep]) -> None:
    step = make()
    lines = step.source.splitlines()
    mapped = dict(step.program.lines)
    assert set(mapped) == {task.name for task in step.schedule.tasks.tasks}
    for task in step.schedule.tasks.tasks:
        text = lines[mapped[task.name] - 1]
        first = task.calls[0]
        result = next((name for name in first.results if name), "")
        helpers = (f"{result} =", f"{result}_a =", f"{result}, ", "_, ")
        if task.kind == "optimise" and first.function == "optimise":
            assert text.strip().startswith("optimise(")
        elif first.function == "aten.copy_.default":
            assert ".copy_(" in text
        else:
            assert text.strip().startswith(helpers), (task.name, text)
    order = [mapped[action.task] for action in step.schedule.actions if isinstance(action, Run)]
    assert order == sorted(order)


def test_names_follow_the_paper() -> None:
    body = ast.unparse(step_function(figure1().source))
    for line in (
        "h5 = F.linear(z4, P['8.weight'], P['8.bias'])",
        "z5 = torch.tanh(h5)",
        "e9 = torch.softmax(z9, 1) - F.one_hot(target, 10)",
        "d5 = here(e9) @ E['9->5'].T",
        "y8 = torch.tanh(h8 - beta * d8)",
        "e8 = z8 - y8",
        "dW8 = e8.T @ z7 / B",
        "db8 = e8.sum(0) / B",
        "optimise(P, '14.weight', dW8, lr)",
        "optimise(E, '9->8', dE_9_8, lr)",
    ):
        assert line in body, line


def test_comments_give_modules_lines_and_shapes() -> None:
    source = residual_cnn().source
    assert "# r2: blocks.0.conv1 Conv2d, blocks.0.bn1 BatchNorm2d" in source
    assert "# f32[B, 4, 6, 6]" in source
    stem = next(line for line in source.splitlines() if "# r1: stem Conv2d" in line)
    assert "tests/models.py:" in stem
    shared = next(line for line in tied().source.splitlines() if "several layers share: first.weight" in line)
    assert shared.strip().startswith("#")
    assert "-- lane 0: forward, loss -" in source
    assert "def step(P, E, image, context, target, " in two_inputs().source


def test_rates_are_defaults_and_arguments() -> None:
    model, regions = figure1_regions()
    step = build(model, regions, lr=0.25, beta=0.5, gamma=0.125)
    assert "lr=0.25, beta=0.5, gamma=0.125, optimise=sgd" in step.source
    x, target = batch_for(step)
    twin, other = fresh(step), fresh(step)
    before = snapshot(twin)
    twin.lr = 0.0
    twin(x, target)
    assert changed(twin, before) == set()
    other.gamma = 0.0
    other(x, target)
    assert not any(key.startswith("E.") for key in changed(other, snapshot(step)))
    assert any(key.startswith("P.") for key in changed(other, snapshot(step)))


def test_a_wrong_line_shows_in_the_traceback() -> None:
    step = figure1()
    module = load_source(step.source.replace("dW8 = e8.T @ z7 / B", "dW8 = e8.T @ z3[1:] / B"), "<a wrong file>")
    x, target = batch_for(step)
    twin = fresh(step)
    try:
        module.step(twin.storage(), twin.store.all(), *x, target)
    except RuntimeError as error:
        text = "".join(traceback.format_exception(error))
    assert "<a wrong file>" in text
    assert "dW8 = e8.T @ z3[1:] / B" in text


def test_synapses_come_from_the_seed_alone() -> None:
    module = figure1().module
    torch.manual_seed(5)
    first = module.synapses(seed=4)
    torch.manual_seed(6)
    second, other = module.synapses(seed=4), module.synapses(seed=5)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    drawn = {name for name, (_, start, _) in module.SYNAPSES.items() if start != "identity"}
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    state = torch.get_rng_state()
    module.synapses(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for name, (shape, deviation, _) in module.SYNAPSES.items():
        assert first[name].shape == shape
        if name not in drawn:
            assert torch.equal(first[name], torch.eye(*shape))
            continue
        assert deviation == pytest.approx(shape[1] ** -0.5, abs=1e-6)


@pytest.mark.parametrize(
    "names",
    [
        ("my-conv", "last-one"),
        ("my conv", "the last  layer, of all layers that this model has"),
        ("weiß", "слой"),
        ("it's", "back\\slash"),
        ("{braces}", "# hash"),
        ("torch", "E"),
    ],
    ids=repr,
)
def test_names_of_modules_are_only_keys(names: tuple[str, str]) -> None:
    first, last = names
    model = nn.Sequential(
        OrderedDict(
            [
                (first, nn.Conv2d(1, 2, 3, padding=1)),
                ("n", nn.BatchNorm2d(2)),
                ("a", nn.ReLU()),
                ("f", nn.Flatten()),
                (last, nn.Linear(32, 3)),
            ]
        )
    )
    step = rg.compile(model, torch.randn(2, 1, 4, 4), gpus=2)
    before = snapshot(step)
    step(torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2]))
    assert {key for key in changed(step, before) if key.startswith("P.")} == {
        f"P.{key}" for key, _ in model.named_parameters()
    }


@pytest.mark.parametrize("name", ['a "quoted" name', "new\nline", "import"], ids=repr)
def test_names_that_torch_cannot_trace(name: str) -> None:
    with pytest.raises(rg.ModelError) as refused:
        rg.compile(nn.Sequential(OrderedDict([(name, nn.Linear(3, 4)), ("b", nn.Linear(4, 2))])), torch.randn(2, 3))
    assert refused.value.codes == ("RG202",)


INPUT_NAMES = (
    *("input", "x", "x1", "z1", "target", "step", "P", "E", "B", "F", "torch", "lr", "loss", "device", "dW1"),
    *("lane", "grad", "func", "float", "list", "range", "данные"),
)


@pytest.mark.parametrize("name", INPUT_NAMES)
def test_names_of_inputs(name: str) -> None:
    # forward()'s argument becomes an argument of step(): it may not hide anything else in the file.
    space: dict[str, object] = {"nn": nn, "Clamp": Clamp}
    exec(  # the only way to give an argument any name
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Clamp(), nn.Linear(4, 3))\n"
        f"    def forward(self, {name}):\n        return self.net({name})\n",
        space,
    )
    model = space["Net"]()  # type: ignore[operator]
    step = rg.compile(model, torch.randn(2, 4))
    assert bool(step(torch.randn(3, 4), torch.tensor([0, 1, 2])).isfinite())


def test_class_names_are_only_text() -> None:
    Strange = type('Net"""\nimport os\n"""', (nn.Linear,), {})
    step = rg.compile(nn.Sequential(Strange(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.zeros(2, 3))
    outer = type('Out"""\nraise SystemExit', (nn.Sequential,), {})
    other = rg.compile(outer(nn.Linear(3, 2)), torch.zeros(2, 3))
    for source in (step.source, other.source):
        assert "import os" not in [line.strip() for line in source.splitlines()]
        assert "raise SystemExit" not in [line.strip() for line in source.splitlines()]


def test_a_custom_optimiser_gets_every_delta() -> None:
    step = fresh(dropouts())
    got: list[tuple[str, tuple[int, ...], float]] = []

    def optimise(store: dict[str, Tensor], name: str, delta: Tensor, lr: float) -> None:
        got.append((name, tuple(delta.shape), lr))
        assert delta.shape == store[name].shape
        assert not delta.requires_grad

    before = snapshot(step)
    x, target = batch_for(step)
    step.module.step(step.storage(), step.store.all(), *x, target, lr=0.5, optimise=optimise)
    assert changed(step, before) == set()
    learned = {store[2:-1] for store in step.schedule.tasks.learned}
    assert {key for key, _ in step.model.named_parameters()} < learned
    assert sorted(name for name, _, _ in got) == sorted(learned)
    assert {lr for _, _, lr in got} == {0.5}


@pytest.mark.parametrize("activation", [nn.Tanh, nn.SiLU, nn.ELU])
def test_training_lowers_the_loss(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = mlp(8, 16, 16, 3, activation=activation)
    step = rg.compile(model, torch.zeros(4, 8), wiring="flat", lr=0.5, beta=0.5)
    x = torch.randn(40, 8)
    target = (x[:, :3] * 2).argmax(1)
    losses = [float(step(x, target)) for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]
    assert bool(torch.nn.functional.cross_entropy(model(x), target) < losses[0])


def test_the_loss_is_the_models_own() -> None:
    for make in (residual_cnn, tied, figure1):
        step = fresh(make())
        x, target = batch_for(step)
        with torch.no_grad():
            wanted = torch.nn.functional.cross_entropy(step.model.train()(*x), target)
        # BatchNorm moved its statistics above; in train mode they are not read.
        torch.testing.assert_close(step(x, target), wanted)
    step = fresh(two_inputs())
    x, target = batch_for(step)
    with torch.no_grad():
        wanted = (step.model(*x) - target).square().sum(1).mean() / 2
    torch.testing.assert_close(step(x, target), wanted)
