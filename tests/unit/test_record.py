"""Recording one path: the program gives what the model gives, and says what it holds constant."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from reclra_graph.passes.places import module_of, source_line
from reclra_graph.passes.record import Recorded, play, record
from tests.unit import record_models as models


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)


def recorded_exactly(model: nn.Module, *args: Any, **kwargs: Any) -> Recorded:
    """Record; then the program and the model must give the same from the same seed, in outputs and buffers."""
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    recorded = record(model, args, kwargs)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    state = {
        key: tensor.detach().clone()
        for key, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    }
    for seed in (1, 2):
        twin = copy.deepcopy(model).train()
        torch.manual_seed(seed)
        expected = twin(*args, **kwargs)
        torch.manual_seed(seed)
        results, buffers = play(recorded.program, state, args, kwargs)
        if isinstance(expected, models.Answer):
            expected = vars(expected)
        wanted = [leaf for leaf in pytree.tree_leaves(expected) if isinstance(leaf, Tensor)]
        assert [item.dtype for item in results] == [item.dtype for item in wanted]
        for result, want in zip(results, wanted, strict=True):
            torch.testing.assert_close(result, want, rtol=1e-14, atol=1e-14)
        after = dict(twin.named_buffers())
        for key, buffer in buffers.items():
            assert torch.equal(buffer, after[key]), key
        changed = {key for key, tensor in after.items() if not torch.equal(tensor, state[key])}
        assert changed <= set(buffers)
    for node in recorded.program.graph.nodes:
        if node.op == "call_function":
            assert isinstance(node.target, torch._ops.OpOverload) or node.target.__module__ == "_operator", node.target
            assert not str(node.target).startswith("reclra."), node.target
    return recorded


def test_data_dependent_depth_is_one_path_and_says_so() -> None:
    recorded = recorded_exactly(models.Depth(), torch.randn(5, 6))
    assert any("forward (unit/record_models.py:" in note and "recorded path" in note for note in recorded.notes)


def test_what_numpy_makes_without_the_data_is_a_constant() -> None:
    recorded = recorded_exactly(models.NumpyConstant(), torch.randn(5, 6))
    assert recorded.notes == ()


def test_what_numpy_makes_of_the_data_is_told() -> None:
    recorded = recorded_exactly(models.NumpyData(), torch.randn(5, 6))
    assert "outside of torch in forward (unit/record_models.py:" in recorded.notes[0]


def test_a_number_read_from_the_data_is_told() -> None:
    recorded = recorded_exactly(models.ItemAsNumber(), torch.randn(5, 6))
    assert "a number that forward (unit/record_models.py:" in recorded.notes[0]


def test_experts_find_their_own_samples_in_other_batches() -> None:
    torch.manual_seed(3)
    model = models.Experts(dropout=0.0)
    x = torch.randn(60, 6)
    recorded = recorded_exactly(model, x)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    other = torch.randn(60, 6) * 2
    results, _ = play(recorded.program, state, (other,), {})
    want = copy.deepcopy(model).train()(other)
    assert torch.equal(results[0], want["logits"])
    assert torch.equal(results[1], want["weight"])


def test_batch_norm_and_dropout_stay_themselves() -> None:
    recorded = recorded_exactly(models.Experts(), torch.randn(60, 6))
    targets = {str(node.target) for node in recorded.program.graph.nodes}
    assert "aten.native_dropout.default" in targets
    updated = set(recorded.program.graph_signature.buffers_to_mutate.values())
    assert updated == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "calls"}


def test_tied_weights_keywords_and_modules_called_twice() -> None:
    ids = torch.randint(0, 11, (4, 7))
    recorded = recorded_exactly(models.Tied(), ids, scale=2.0, mask=torch.ones(4, 7))
    signature = recorded.program.graph_signature
    assert set(signature.inputs_to_parameters.values()) <= {"embed.weight", "layer.weight", "layer.bias", "head.weight"}
    assert "ids" in signature.user_inputs
    layers = [node for node in recorded.program.graph.nodes if module_of(node)[0] == "layer"]
    assert len(layers) == 2


def test_dataclass_outputs_and_lstm() -> None:
    recorded = recorded_exactly(models.Tagger(), torch.randn(3, 7, 6), {"steps": torch.tensor([4, 5, 2])})
    assert any(str(node.target) == "aten.lstm.input" for node in recorded.program.graph.nodes)


def test_nodes_say_where_they_come_from() -> None:
    program = record(models.Experts(), (torch.randn(60, 6),), {}).program
    for node in program.graph.nodes:
        if node.op == "call_function" and "assert" not in node.name:
            assert node.meta.get("val") is not None, node
            path, kind = module_of(node)
            assert (path, kind) != ("", ""), node
            if path == "":
                assert source_line(node).startswith("unit/record_models.py:"), node
    assert {module_of(node)[0] for node in program.graph.nodes} >= {"norm", "gate", "experts.0", "drop", "head"}
