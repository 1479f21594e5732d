"""Models of the zoo: inputs, losses and targets that suit them; configurations made tiny by their sizes' names."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from reclra_graph.bench import own
from reclra_graph.bench.compare import difference, furthest
from reclra_graph.bench.loader import finished, load
from reclra_graph.bench.model import call, chosen, dry_run, labelled, objective
from reclra_graph.bench.shrink import LEVELS, shrunk
from reclra_graph.errors import ModelError


@pytest.mark.parametrize("name", own.names())
def test_our_own_models_run_and_their_losses_name_outputs(name: str) -> None:
    zoo = load("own", name)
    output = dry_run(zoo.model, zoo.inputs)
    if isinstance(zoo.loss, dict):
        assert isinstance(zoo.target, dict)
        assert set(zoo.loss) == set(zoo.target) <= set(dict(labelled(output)))
    else:
        assert chosen(output).is_floating_point()


def test_the_same_seed_gives_the_same_model() -> None:
    one, two, other = load("own", "gcn", 3), load("own", "gcn", 3), load("own", "gcn", 4)
    assert furthest(one.model.state_dict(), two.model.state_dict()) == (0.0, "")
    assert torch.equal(one.args[0], two.args[0])
    assert not torch.equal(one.args[0], other.args[0])


@pytest.mark.parametrize("name", ["dict_in_out", "keyword_inputs", "moe_nonzero"])
def test_a_model_can_be_had_in_double_precision(name: str) -> None:
    zoo = load("own", name)
    exact = zoo.to(torch.float64)
    assert chosen(call(exact.model, exact.inputs)).dtype == torch.float64
    assert next(zoo.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("source", "name"), [("own", "nothing"), ("own", ""), ("file", "nowhere.py")], ids=["own", "empty", "file"]
)
def test_a_model_that_is_not_there_is_told(source: str, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(source, name)
    assert caught.value.codes[0] in ("RG802", "RG101")


def test_inputs_that_no_model_accepts_are_told() -> None:
    with pytest.raises(ModelError, match="no inputs found that Linear accepts: RuntimeError") as caught:
        finished("net", nn.Linear(3, 2), [(torch.zeros(2, 4),), (torch.zeros(2, 5),)], True)
    assert caught.value.codes == ("RG803",)


def test_the_first_accepted_inputs_are_taken() -> None:
    zoo = finished("net", nn.Linear(3, 2), [(torch.zeros(2, 4),), (torch.zeros(5, 3),)], True)
    assert zoo.args[0].shape == (5, 3)
    assert (zoo.loss, tuple(zoo.target.shape)) == ("cross-entropy", (5,))  # type: ignore[union-attr]


@dataclass
class _Output:
    loss: Tensor | None
    hidden: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    ("shape", "head", "loss", "target"),
    [
        ((4, 10), True, "cross-entropy", (4,)),
        ((4, 7, 10), True, "cross-entropy", (4, 7)),
        ((2, 5, 8, 9), True, "cross-entropy", (2, 8, 9)),
        ((4, 1), True, "mse", (4, 1)),
        ((4,), True, "mse", (4,)),
        ((4, 10), False, "mse", (4, 10)),
    ],
)
def test_the_loss_suits_the_output(shape: tuple[int, ...], head: bool, loss: str, target: tuple[int, ...]) -> None:
    found, drawn = objective(torch.zeros(shape), head)
    assert (found, tuple(drawn.shape)) == (loss, target)
    assert drawn.is_floating_point() == (loss == "mse")


def test_one_of_several_outputs_is_chosen() -> None:
    x, y = torch.zeros(2, 3), torch.ones(2, 4)
    assert chosen(_Output(None, x, y)) is y
    assert chosen({"aux": x, "out": y}) is y
    assert chosen((torch.zeros(2, dtype=torch.int64), [x, y])) is x
    with pytest.raises(ValueError, match="no floating-point tensor"):
        chosen({"ids": torch.zeros(2, dtype=torch.int64)})
    assert list(dict(labelled((x, {"a": [y]})))) == ["0", "1.a.0"]


def test_a_configuration_is_made_tiny_by_the_names_of_its_sizes() -> None:
    config = {
        "model_type": "any", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512, "layer_types": ["full"] * 12,
        "pad_token_id": 50256, "rms_norm_eps": 1e-6, "attention_window": [512] * 12, "tie": True, "name": "base",
        "_private": 3,
        "vision_config": {"model_type": "part", "hidden_size": 1024, "image_size": 224, "patch_size": 16},
    }  # fmt: skip
    small = shrunk(config, LEVELS[0])
    assert {key: small[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")} == {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    assert (small["intermediate_size"], small["vocab_size"], small["max_position_embeddings"]) == (64, 99, 64)
    assert small["pad_token_id"] < 99
    assert (small["rms_norm_eps"], small["tie"], small["name"]) == (1e-6, True, "base")
    assert not {"layer_types", "attention_window", "_private"} & set(small)
    assert small["vision_config"] == {"model_type": "part", "hidden_size": 32, "image_size": 64, "patch_size": 16}


def test_stages_keep_their_proportions() -> None:
    config = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "num_heads": [1, 2, 5, 8]}
    small = shrunk(config, LEVELS[0])
    assert small["depths"] == [2, 2, 2, 2]
    assert small["hidden_sizes"] == [16, 32, 80, 128]
    assert small["num_heads"] == [1, 2, 5, 8]
    kept = shrunk(config, LEVELS[-1])
    assert kept["hidden_sizes"] == config["hidden_sizes"]


def test_differences() -> None:
    nan, inf = float("nan"), float("inf")
    a = torch.tensor([1.0, nan, inf])
    assert difference(a, a.clone()) == 0.0
    assert difference(a, torch.tensor([1.0, 2.0, inf])) == inf
    assert difference(torch.tensor([100.0, 1.0]), torch.tensor([100.0, 2.0])) == pytest.approx(0.01)
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == inf
    assert difference(torch.zeros(2), torch.zeros(3)) == inf
    assert difference(torch.tensor([1 + 1j]), torch.tensor([1 + 2j])) == pytest.approx(0.5)
    assert difference(torch.zeros(0), torch.zeros(0)) == 0.0
    assert furthest({"a": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.zeros(1)}) == (inf, "b")
