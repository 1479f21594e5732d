"""Recurrent layers and transformers: the graph gives what the model gives, the step what the reference gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reclra_graph.ir.layouts import Layout
from reclra_graph.runtime.compiled import CompiledStep
from tests.differential.agreement import agrees
from tests.unit.test_layouts import values_of

WIDTH, TAGS, STEPS = 4, 3, 3


class Tagger(nn.Module):
    """A recurrent layer over a sequence, and a tag for every position; ``last`` classifies the last one instead."""

    def __init__(self, layer: nn.Module, width: int, first: bool, last: bool = False) -> None:
        super().__init__()
        self.layer, self.head, self.first, self.last = layer, nn.Linear(width, TAGS), first, last

    def forward(self, x: Tensor) -> Tensor:
        states = self.layer(x)
        states = states[0] if isinstance(states, tuple) else states
        if self.last:
            states = states[:, -1] if self.first else states[-1]
        return self.head(states)


LAYERS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "rnn": (nn.RNN, {}, 5),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}, 5),
    "lstm": (nn.LSTM, {}, 5),
    "gru": (nn.GRU, {}, 5),
    "gru without bias": (nn.GRU, {"bias": False}, 5),
    "lstm of two layers": (nn.LSTM, {"num_layers": 2}, 5),
    "gru both ways": (nn.GRU, {"bidirectional": True}, 10),
    "lstm projected": (nn.LSTM, {"proj_size": 2}, 2),
}


def tagger(name: str, first: bool = True, last: bool = True) -> tuple[Tagger, Tensor, Tensor]:
    """A model, inputs [B, T, F], and targets [B], or [B, T] where not only the last position has one."""
    torch.manual_seed(0)
    kind, options, width = LAYERS[name]
    model = Tagger(kind(WIDTH, 5, batch_first=first, **options), width, first, last).double()
    x = torch.randn(2, STEPS, WIDTH, dtype=torch.float64)
    return model, x, torch.randint(TAGS, (2,) if last else (2, STEPS))


def assert_forward(step: CompiledStep, model: nn.Module, x: Tensor) -> None:
    graph = step.plan.regions.graph
    store = step.storage()
    got = values_of(graph, x, {item.name: store[item.key] for item in graph.held})[graph.output]
    wanted = copy.deepcopy(model).train()(x).detach()
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_unrolled_layers_with_the_batch_in_front(name: str) -> None:
    model, x, target = tagger(name, last=False)
    step = agrees(model, x, target)
    assert_forward(step, model, x)
    assert step.plan.regions.graph.batch == "B"
    assert step.plan.regions.frozen == ()
    shared = [edge for edge in step.plan.edges if edge.shared]
    assert len(step.synapses) == len(step.plan.edges) - len(shared)
    assert shared  # the runs of one layer hear through one synapse


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_unrolled_layers_that_end_in_one_class(name: str) -> None:
    model, x, target = tagger(name)
    step = agrees(model, x, target)
    assert_forward(step, model, x)
    assert float(step(torch.cat((x, x)), torch.cat((target, target)))) > 0  # any batch


def test_time_first_is_the_same_step_as_batch_first() -> None:
    steps = {}
    for first in (True, False):
        model, x, target = tagger("lstm", first)
        if not first:
            model.layer = Turned(model.layer)
        steps[first] = agrees(model, x, target)
        assert_forward(steps[first], model, x)
    parameters = [dict(step.model.named_parameters()) for step in steps.values()]
    for left, right in zip(*(item.values() for item in parameters), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-13)


class Turned(nn.Module):
    """A layer that wants time first, for inputs with the batch in front."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layer(x.transpose(0, 1))
        return states


class Cells(nn.Module):
    """A loop over a cell."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(WIDTH, 5), nn.Linear(5, TAGS)  # type: ignore[call-arg, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for position in range(x.shape[1]):
            state = self.cell(x[:, position], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_loops_over_cells(kind: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    model = Cells(kind).double()
    x = torch.randn(3, STEPS, WIDTH, dtype=torch.float64)
    step = agrees(model, x, torch.tensor([0, 1, 2]))
    assert_forward(step, model, x)


class Encoder(nn.Module):
    """A transformer encoder over the input, and a tag for every position."""

    def __init__(self, first: bool, norm_first: bool, dropout: float) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout, batch_first=first, norm_first=norm_first)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head, self.first = nn.Linear(8, TAGS), first

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            return self.head(self.body(x))
        return self.head(self.body(x.transpose(0, 1))).transpose(0, 1)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoders(first: bool, norm_first: bool) -> None:
    torch.manual_seed(0)
    model = Encoder(first, norm_first, 0.0).double()
    x, target = torch.randn(2, 5, 8, dtype=torch.float64), torch.randint(TAGS, (2, 5))
    step = agrees(model, x, target)
    assert_forward(step, model, x)
    graph = step.plan.regions.graph
    assert graph.batch == "B"
    assert {region.layout for region in step.plan.regions.regions[1:-1]} >= {Layout(0 if first else 1)}
    assert {edge.form for edge in step.plan.edges} <= {"token", "dense"}
    assert step.plan.regions.frozen == ()
    blocks = {region.block for region in step.plan.regions.regions}
    assert {"body.layers.0", "body.layers.1"} <= blocks


def test_both_ways_of_a_transformer_learn_the_same() -> None:
    parameters = []
    for first in (True, False):
        torch.manual_seed(0)
        model = Encoder(first, True, 0.0).double()
        x, target = torch.randn(2, 5, 8, dtype=torch.float64), torch.randint(TAGS, (2, 5))
        agrees(model, x, target)
        parameters.append(dict(model.named_parameters()))
    for key, value in parameters[0].items():
        torch.testing.assert_close(value, parameters[1][key], rtol=1e-12, atol=1e-13)


def test_dropout_in_a_transformer_draws_one_mask() -> None:
    torch.manual_seed(0)
    model = Encoder(True, True, 0.3).double()
    agrees(model, torch.randn(2, 5, 8, dtype=torch.float64), torch.randint(TAGS, (2, 5)))
