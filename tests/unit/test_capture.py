"""nn.Module → OperatorGraph: what is captured, and that the model itself is left alone."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.operators import OperatorGraph, Ref
from reclra_graph.options import Options
from reclra_graph.passes.capture import capture
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import Dropouts, ResidualCNN, Tied, TwoInputs, captured, dropouts, mlp, residual_cnn, same, tied


class Fixed(nn.Module):
    """Reads its batch size as a Python number, so that no other batch will do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = int(x.shape[0])
        logits: Tensor = self.b(torch.tanh(self.a(x).reshape(rows, -1)))
        return logits


class Viewed(Fixed):
    """Names one batch size in its code."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.b(torch.tanh(self.a(x).view(5, 6)))
        return logits


class Held(nn.Module):
    """A buffer that is saved, one that is not, one that forward() updates, and a tensor made in forward()."""

    scale: Tensor
    shift: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("scale", torch.full((4,), 1.5))
        self.register_buffer("shift", torch.full((4,), 0.25), persistent=False)
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.plain = torch.tensor([1.0, -1.0, 2.0, 0.5])

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.a(x) * self.scale + self.shift)
        self.seen += z.detach().sum(0)
        logits: Tensor = self.b(z * self.plain * torch.tensor([2.0, 1.0, 1.0, 1.0]))
        return logits


@cache
def held() -> CompiledStep:
    torch.manual_seed(0)
    return rg.compile(Held(), torch.zeros(3, 4))


def forward_of(graph: OperatorGraph, model: nn.Module, constants: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    """Run the captured operators one by one."""
    from reclra_graph.rules.operators import function, resolve

    state = {**dict(model.named_parameters()), **dict(model.named_buffers()), **constants}
    values: dict[str, object] = {item.name: state[item.key].detach() for item in (*graph.parameters, *graph.buffers)}
    values.update({item.name: value for item, value in zip(graph.inputs, inputs, strict=True)})
    device = torch.device("cpu")
    for operator in graph.operators:
        args = [resolve(item, values, device) for item in operator.args]
        kwargs = {key: resolve(item, values, device) for key, item in operator.kwargs}
        values[operator.name] = function(operator.target)(*args, **kwargs)
    result = values[graph.output]
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("make", [ResidualCNN, Tied, Held], ids=lambda make: make.__name__)
def test_the_graph_computes_what_the_model_does(make: type[nn.Module], size: int) -> None:
    model = make()
    shape = {"ResidualCNN": (1, 6, 6), "Tied": (6,), "Held": (4,)}[make.__name__]
    graph, constants = capture(model, (torch.randn(3, *shape),), {}, Options())
    x = torch.randn(size, *shape)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(forward_of(graph, twin, constants, x), model(x), rtol=0, atol=0)


def test_types_and_places(root: Path) -> None:
    graph = residual_cnn().plan.regions.graph
    assert (graph.model, graph.frontend, graph.batch) == ("ResidualCNN", "export", "B")
    by_module = {operator.module: operator for operator in graph.operators if operator.target.startswith("aten.conv2d")}
    assert set(by_module) == {
        "stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "blocks.1.skip",
    }  # fmt: skip
    stem = by_module["stem"]
    assert stem.module_class == "Conv2d"
    assert stem.type is not None
    assert (stem.type.shape, stem.type.dtype, str(stem.type)) == (("B", 4, 6, 6), "float32", "f32[B, 4, 6, 6]")
    lines = (root / "tests" / "models.py").read_text(encoding="utf-8").splitlines()
    assert {operator.line.partition(":")[0] for operator in graph.operators if operator.module} == {"tests/models.py"}
    assert "self.stem(x)" in lines[int(stem.line.partition(":")[2]) - 1]
    relu = next(
        operator
        for operator in graph.operators
        if operator.target == "aten.relu.default" and "blocks.0" in operator.module
    )
    assert (relu.module, relu.module_class) == ("blocks.0", "ResidualBlock")
    assert dict(graph.modules)["blocks.1.bn2"] == "BatchNorm2d"
    assert all(
        operator.type is not None or operator.types for operator in graph.operators if "sym" not in operator.target
    )


def test_batch_norm_is_functional_and_counts() -> None:
    graph = residual_cnn().plan.regions.graph
    norms = [operator for operator in graph.operators if "batch_norm" in operator.target]
    assert len(norms) == 5
    assert {operator.target for operator in norms} == {"aten._native_batch_norm_legit_functional.default"}
    updated = {buffer.key: buffer.updated for buffer in graph.buffers}
    assert set(updated) == {key for key, _ in residual_cnn().model.named_buffers()}
    assert None not in updated.values()
    made = {operator.name for operator in graph.operators}
    assert set(updated.values()) <= made
    # Learning reads the batch's own mean and deviation, which the forward pass itself does not.
    for norm in norms:
        parts = {
            item.args[1]
            for item in graph.operators
            if item.target == "operator.getitem" and item.args[0] == Ref(norm.name)
        }
        assert {0, 1, 2, 3, 4} <= parts


def test_masks_of_dropouts_are_kept() -> None:
    graph = dropouts().plan.regions.graph
    drops = [operator.name for operator in graph.operators if operator.target == "aten.native_dropout.default"]
    masks = [
        operator for operator in graph.operators if operator.target == "operator.getitem" and operator.args[1] == 1
    ]
    assert len(drops) == 3
    assert {operator.args[0] for operator in masks} == {Ref(name) for name in drops}
    assert {operator.type.dtype for operator in masks if operator.type} == {"bool"}


def test_tied_weights_have_one_value() -> None:
    graph = tied().plan.regions.graph
    keys = {item.key: item for item in graph.parameters}
    assert "second.weight" not in keys
    assert keys["first.weight"].tied == ("second.weight",)
    assert keys["second.bias"].tied == ()
    value = keys["first.weight"].name
    assert len(graph.users[value]) == 2
    assert len(graph.users[keys["again.weight"].name]) == 2
    # A module that is called twice keeps its own path.
    assert [item.module for item in graph.operators if item.target == "aten.linear.default"] == [
        "first", "second", "again", "again", "head",
    ]  # fmt: skip


def test_several_inputs() -> None:
    graph = captured(TwoInputs(), torch.zeros(3, 1, 4, 4), torch.zeros(3, 5))
    assert [(item.name, item.type.shape) for item in graph.inputs] == [("image", ("B", 1, 4, 4)), ("context", ("B", 5))]


def test_buffers_and_constants() -> None:
    step = held()
    graph = step.plan.regions.graph
    found = {buffer.key: buffer for buffer in graph.buffers}
    assert {"scale", "shift", "seen"} <= set(found)
    assert not found["scale"].constant
    assert found["shift"].constant
    assert found["seen"].updated is not None
    constants = {key for key, buffer in found.items() if buffer.constant}
    assert constants == set(step.constants)
    assert len(constants) == 4
    # They are copies: a step must not depend on what the user does to the model's own tensor later.
    assert all(value.data_ptr() != step.model.plain.data_ptr() for value in step.constants.values())  # type: ignore[union-attr]


def test_float64_and_integer_inputs() -> None:
    graph = captured(mlp(3, 4, 2).double(), torch.zeros(2, 3, dtype=torch.float64))
    assert {item.type.dtype for item in (*graph.inputs, *graph.parameters)} == {"float64"}
    table = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3))
    words = captured(table, torch.zeros(3, 2, dtype=torch.int64))
    assert words.inputs[0].type.dtype == "int64"
    assert words.types[words.output].shape == ("B", 3)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_batch_of_the_examples_does_not_matter(size: int) -> None:
    graph = captured(mlp(4, 5, 3), torch.randn(size, 4))
    assert graph == captured(mlp(4, 5, 3), torch.randn(7, 4))
    assert graph.batch == "B"


@pytest.mark.parametrize(("make", "size"), [(Fixed, 2), (Fixed, 5), (Viewed, 5), (Fixed, 1)])
def test_a_model_with_one_batch_size(make: type[nn.Module], size: int) -> None:
    model = make()
    step = rg.compile(model, torch.randn(size, 4))
    graph = step.plan.regions.graph
    assert graph.batch == size
    assert "static batch" in graph.frontend
    assert "fixed batch size" in step.source
    before = copy.deepcopy(model.state_dict())
    step(torch.randn(size, 4), torch.zeros(size, dtype=torch.int64))
    assert [key for key, value in before.items() if torch.equal(value, model.state_dict()[key])] == []
    with pytest.raises(rg.StepError) as refused:
        step(torch.randn(size + 1, 4), torch.zeros(size + 1, dtype=torch.int64))
    assert refused.value.codes == ("RG601",)


def test_shapes_that_depend_on_the_batch() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            pairs = torch.tanh(self.a(x)).reshape(-1, 3)
            logits: Tensor = self.b(torch.tanh(pairs)).reshape(x.shape[0], -1)
            return logits

    graph, constants = capture(Mixed(), (torch.randn(5, 4),), {}, Options())
    assert ("2*B", 3) in [graph.types[operator.name].shape for operator in graph.operators if operator.type]
    assert constants == {}


@pytest.mark.parametrize("train", [True, False])
def test_the_model_is_left_alone(train: bool) -> None:
    for model, inputs in (
        (ResidualCNN(), torch.randn(3, 1, 6, 6)),
        (Dropouts(), torch.randn(3, 6)),
        (Held(), torch.randn(3, 4)),
    ):
        model.train(train)
        next(model.children()).train(not train)
        modes = [module.training for module in model.modules()]
        before = {key: value.clone() for key, value in (*model.state_dict().items(), *model.named_buffers())}
        ids = [id(item) for item in (*model.parameters(), *model.buffers())]
        generator = torch.get_rng_state()
        example = inputs.clone()
        captured(model, inputs)
        assert torch.equal(torch.get_rng_state(), generator)
        assert torch.equal(inputs, example)
        assert [module.training for module in model.modules()] == modes
        assert [id(item) for item in (*model.parameters(), *model.buffers())] == ids
        now = dict((*model.state_dict().items(), *model.named_buffers()))
        assert all(same(value, now[key]) for key, value in before.items())
        assert all(
            type(item) in (nn.Parameter, Tensor) and item.grad is None
            for item in (*model.parameters(), *model.buffers())
        )


def test_a_model_that_is_functional_already() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3))
            self.c = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.softplus(x @ self.w + self.c)

    graph = captured(Bare(), torch.randn(2, 4))
    assert [operator.target for operator in graph.operators] == [
        "aten.matmul.default",
        "aten.add.Tensor",
        "aten.softplus.default",
    ]
    assert {operator.module for operator in graph.operators} == {""}
