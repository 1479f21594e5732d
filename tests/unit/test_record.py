"""Recording one path: the program gives what the model gives, and says what it holds constant."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._decomp import decomposition_table

from reclra_graph.errors import ModelError
from reclra_graph.passes.opaque import own_derivatives, watch, with_opaque
from reclra_graph.passes.places import module_of, source_line
from reclra_graph.passes.record import Recorded, play, record
from reclra_graph.passes.tape import tensors_in
from reclra_graph.passes.twin import twin
from tests.unit import record_models as models

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


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
        copied = twin(model)
        torch.manual_seed(seed)
        expected = copied(*args, **kwargs)
        torch.manual_seed(seed)
        with with_opaque(model, recorded.opaque):
            results, buffers = play(recorded.program, state, args, kwargs)
        if isinstance(expected, models.Answer):
            expected = vars(expected)
        wanted = [leaf for leaf in pytree.tree_leaves(expected) if isinstance(leaf, Tensor)]
        assert [item.dtype for item in results] == [item.dtype for item in wanted]
        for result, want in zip(results, wanted, strict=True):
            torch.testing.assert_close(result, want, rtol=1e-14, atol=1e-14)
        after = dict(copied.named_buffers())
        for key, buffer in buffers.items():
            assert torch.equal(buffer, after[key]), key
        inside = tuple(f"{call.path}." for call in recorded.opaque.values())  # the sub-module keeps its own buffers
        changed = {
            key for key, item in after.items() if not torch.equal(item, state[key]) and not key.startswith(inside)
        }
        assert changed <= set(buffers)
    for node in recorded.program.graph.nodes:
        if node.op == "call_function":
            assert isinstance(node.target, torch._ops.OpOverload) or node.target.__module__ == "_operator", node.target
            assert str(node.target) != "reclra.stand_in.default"
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


def test_operators_can_be_written_out_beside_sizes_that_only_the_data_tell() -> None:
    lstm = torch.ops.aten.lstm.input
    model, args = models.Tagger(pick=True), (torch.randn(3, 7, 6), {"steps": torch.tensor([4, 5, 2])})
    program = record(model, args, {}, decompositions={lstm: decomposition_table[lstm]}).program
    targets = {str(node.target) for node in program.graph.nodes}
    assert "aten.lstm.input" not in targets
    assert "aten.nonzero.default" in targets
    sizes = [size for node in program.graph.nodes for item in tensors_in(node.meta.get("val")) for size in item.shape]
    assert all(isinstance(size, int) for size in sizes)
    state = {key: item.detach().clone() for key, item in model.named_parameters()}
    results, _ = play(program, state, args, {})
    torch.testing.assert_close(results[0], model(*args).logits)


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


def test_a_derivative_inside_of_forward_is_recorded() -> None:
    recorded = recorded_exactly(models.Energy(), torch.randn(5, 6))
    assert recorded.notes == ()


def test_vmap_derivatives_and_branches_are_recorded() -> None:
    recorded = recorded_exactly(models.Mapped(), X)
    (note,) = recorded.notes
    assert "reads a value" in note


def test_older_weight_norm_and_autocast() -> None:
    recorded_exactly(models.OlderNorm(), X)


def test_layers_left_out_at_random_are_told() -> None:
    notes = record(models.Dropped(), (X,), {}).notes
    assert any("path taken in forward" in note for note in notes)


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), lambda: torch.empty(1).uniform_()])
def test_numbers_that_python_alone_reads_are_drawn_all_the_same(draw: Callable[[], Tensor]) -> None:
    """Behind them the dropout masks are the model's own."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.drop, self.last = nn.Linear(6, 6), nn.Dropout(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            if draw() >= 0:
                x = self.first(x)
            scores: Tensor = self.last(self.drop(x))
            return scores

    recorded_exactly(Net(), X)


def test_a_script_module_is_recorded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still met
        script = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    recorded = recorded_exactly(models.Around(script), X)
    assert recorded.opaque == {}


def test_a_compiled_module_is_recorded() -> None:
    recorded = recorded_exactly(models.Around(torch.compile(nn.Linear(6, 6), backend="eager")), X)
    assert recorded.opaque == {}


@pytest.mark.parametrize(("odd", "path"), [(models.Untraceable, "body.odd"), (models.Round, "body.odd")])
def test_what_cannot_be_recorded_becomes_opaque(odd: type[nn.Module], path: str) -> None:
    recorded = recorded_exactly(models.Around(odd()), X)
    assert set(recorded.opaque) == {path}
    assert recorded.notes == ()
    calls = [node for node in recorded.program.graph.nodes if str(node.target) == "reclra.opaque.default"]
    assert [node.args[0] for node in calls] == [path, path]
    assert [module_of(node) for node in calls] == [(path, odd.__name__)] * 2
    assert all(source_line(node).startswith("unit/record_models.py:") for node in calls)


def test_numpy_in_a_function_of_its_own_becomes_opaque() -> None:
    model = models.Around(models.NumpyLayer())
    recorded = recorded_exactly(model, X)
    (call,) = recorded.opaque.values()
    assert call.path == "body.odd"
    assert call.takes.fill(["a", "b"]) == (("a", 2), {"extra": {"scale": "b", "none": None}})
    (node,) = [node for node in recorded.program.graph.nodes if str(node.target) == "reclra.opaque.default"]
    parameters = [recorded.program.graph_signature.inputs_to_parameters[item.name] for item in node.args[2]]
    assert parameters == ["body.odd.w", "body.odd.norm.weight", "body.odd.norm.bias"]
    assert recorded.program.graph_signature.inputs_to_parameters["p_head_weight"] == "head.weight"


def test_opaque_modules_can_be_asked_for() -> None:
    recorded = record(models.Experts(), (torch.randn(60, 6),), {}, frozenset({"experts.0", "experts.2", "head"}))
    assert {call.path for call in recorded.opaque.values()} == {"experts.0", "experts.2", "head"}


def test_torch_export_keeps_an_opaque_module_and_a_free_batch() -> None:
    model = models.Around(models.NumpyLayer())
    calls = watch(model, frozenset({"body.odd"}), [((X,), {}), ((torch.cat([X, X]),), {})])
    with with_opaque(model, calls) as copied, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = ({0: torch.export.Dim.AUTO},)
        program = torch.export.export(copied, (X,), dynamic_shapes=free, strict=False).run_decompositions({})
    (node,) = [node for node in program.graph.nodes if str(node.target) == "reclra.opaque.default"]
    size = node.meta["val"][0].shape[0]
    assert not isinstance(size, int)
    assert node.meta["val"][0].shape[1] == 6
    assert node.meta["val"][1].shape == ()
    other = torch.randn(11, 6)
    state = {key: item.detach().clone() for key, item in (*model.named_parameters(), *model.named_buffers())}
    with with_opaque(model, calls):
        (result,), _ = play(program, state, (other,), {})
    torch.testing.assert_close(result, copy.deepcopy(model).train()(other))


def test_functions_with_a_derivative_of_their_own_are_found() -> None:
    model = models.Around(models.NumpyLayer())
    assert own_derivatives(model, (X,), {}) == {"body.odd": ("Sine",)}
    assert own_derivatives(models.Experts(), (X,), {}) == {}
    assert models.Sine.apply(X, X[0]).shape == X.shape


def test_what_no_rung_can_take_is_a_coded_error() -> None:
    with pytest.raises(ModelError) as caught:
        record(models.Untraceable(), (X,), {})
    assert caught.value.codes == ("RG202",)
    assert "not while somebody is tracing" in str(caught.value)
    assert "record_models.py:" in caught.value.problems[0].place


def test_values_changed_behind_torch_are_a_coded_error() -> None:
    with pytest.raises(ModelError, match="behind torch's back"):
        record(models.BehindTheBack(), (X,), {})
