"""``rg.replace_conv`` and ``--replace-conv``: which convolutions become pseudo-convolutions, and why others do not."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.passes.replace_conv import Replacement
from reclra_graph.passes.replace_conv import replace_conv as replaced
from tests.models import ResidualCNN, mlp
from tests.unit.command import Call

NET = """
import torch
from torch import nn

model = nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 1),
    nn.Flatten(), nn.Linear(384, 3),
)
example_inputs = (torch.zeros(5, 1, 8, 8),)
"""


def outcome(model: nn.Module, size: int = 9, channels: int = 1) -> dict[str, str]:
    """What became of every convolution."""
    return dict(replaced(model, torch.zeros(2, channels, size, size)).convolutions)


def behind(*layers: nn.Module) -> nn.Sequential:
    """Layers behind a first convolution with four channels, and one that can be replaced, so that there is one."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), *layers)


def test_a_residual_net() -> None:
    model = ResidualCNN().eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    found = replaced(model, torch.zeros(2, 1, 8, 8), seed=3, masks=2, sigma=0.3)
    assert dict(found.convolutions) == {
        "stem": "is the first convolution",
        "blocks.0.conv1": "", "blocks.0.conv2": "", "blocks.1.conv1": "", "blocks.1.conv2": "",
        "blocks.1.skip": "is 1×1: it has no window",
    }  # fmt: skip
    assert next(path for path, _ in found.convolutions) == "stem"
    assert found.replaced == ("blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2")
    # The model itself, its mode and torch's random numbers are as they were; what is not replaced is copied.
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training
    assert not any(module.training for module in found.model.modules())
    state_after = found.model.state_dict()
    assert all(torch.equal(state_after[key], value) for key, value in before.items() if "conv" not in key)
    assert state_after["stem.weight"].data_ptr() != model.stem.weight.data_ptr()
    for path in found.replaced:
        layer, old = found.model.get_submodule(path), model.get_submodule(path)
        assert isinstance(layer, rg.PerturbativeConv2d)
        assert isinstance(old, nn.Conv2d)
        assert (layer.in_channels, layer.out_channels, layer.masks, layer.sigma, layer.size) == (
            old.in_channels, old.out_channels, 2, 0.3, (4, 4),
        )  # fmt: skip
        assert layer.bias is None
    assert found.model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert not torch.equal(*(found.model.get_submodule(f"blocks.0.conv{k}").maps for k in (1, 2)))


def test_the_same_seed_gives_the_same_model_and_another_another() -> None:
    model = ResidualCNN()
    x = torch.zeros(2, 1, 8, 8)
    one = rg.replace_conv(model, x, seed=1).state_dict()
    torch.manual_seed(1234)
    again, other = (rg.replace_conv(model, x, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    changed = {key for key, value in one.items() if not torch.equal(value, other[key])}
    assert changed == {f"blocks.{i}.conv{k}.{name}" for i in (0, 1) for k in (1, 2) for name in ("weight", "maps")}


def test_other_processes_build_the_same_model(root: Path) -> None:
    code = (
        "import torch, reclra_graph as rg\nfrom tests.models import ResidualCNN\n"
        "model = rg.replace_conv(ResidualCNN(), torch.zeros(2, 1, 8, 8), seed=5, maps='regenerated')\n"
        "print(model.blocks[1].conv1.weight.double().sum().item(), model.blocks[1].conv1.noise().double().sum().item())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "3", "PYTHONPATH": str(root)}
    told = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True, cwd=root)
    model: Any = rg.replace_conv(ResidualCNN(), torch.zeros(2, 1, 8, 8), seed=5)
    layer = model.blocks[1].conv1
    assert told.stdout.split() == [repr(layer.weight.double().sum().item()), repr(layer.noise().double().sum().item())]


class TwoSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.alone = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(self.first(x)))
        x = torch.tanh(self.shared(nn.functional.avg_pool2d(x, 2)))
        x = self.twice(torch.tanh(self.twice(x)))
        return x.flatten(1)


KEPT: list[tuple[nn.Module, str, str]] = [
    (behind(nn.Conv2d(4, 8, 3, groups=2)), "3", "has 2 groups"),
    (behind(nn.Conv2d(4, 8, 3, dilation=2)), "3", "has the dilation (2, 2)"),
    (behind(nn.ConvTranspose2d(4, 8, 2, stride=2)), "3", "is of the class ConvTranspose2d, not nn.Conv2d"),
    (behind(nn.Flatten(2), nn.Conv1d(4, 8, 3)), "4", "is of the class Conv1d, not nn.Conv2d"),
    (behind(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))), "3",
     "is of the class ParametrizedConv2d, not nn.Conv2d"),
    (behind(nn.Conv2d(4, 4, 1, stride=2)), "3", "is 1×1: it has no window"),
    (behind(nn.Conv2d(4, 4, 3, padding=2)), "3",
     "gives 11×11 from 9×9, which no stride and no crop of a pseudo-convolution does"),
    (behind(nn.Conv2d(4, 4, 2)), "3", "gives 8×8 from 9×9, which no stride and no crop of a pseudo-convolution does"),
    (behind(nn.Conv2d(4, 4, 3).requires_grad_(False)), "3", "does not learn: requires_grad is False"),
    (TwoSizes(), "shared", "runs on maps of several sizes: 9×9, 4×4"),
    (TwoSizes(), "alone", "does not run on the way to a result with a loss"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "path", "reason"), KEPT, ids=[reason for _, _, reason in KEPT])
def test_what_cannot_be_replaced_is_kept(model: nn.Module, path: str, reason: str) -> None:
    found = outcome(model)
    assert found[path] == reason
    assert [reason for reason in found.values() if not reason]  # another one was replaced


def test_a_shared_weight_and_hooks_are_kept() -> None:
    model = behind(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    model[3].weight = model[4].weight
    model[5].register_forward_hook(lambda module, args, result: result)
    found = outcome(model)
    assert found["3"] == found["4"] == "shares its weight with another module"
    assert found["5"] == "has hooks, as those of weight norm are"


SIZES: list[tuple[nn.Conv2d, tuple[int, int]]] = [
    (nn.Conv2d(4, 4, 3), (1, 1)),
    (nn.Conv2d(4, 4, (5, 3), padding=(0, 1)), (2, 0)),
    (nn.Conv2d(4, 4, 3, padding="same"), (0, 0)),
    (nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="reflect"), (0, 0)),
    (nn.Conv2d(4, 4, 3, stride=(1, 3), padding=(1, 0)), (0, 0)),
    (nn.Conv2d(4, 4, (7, 3), stride=(2, 1)), (3, 1)),
]


@pytest.mark.parametrize(("convolution", "crop"), SIZES, ids=lambda item: str(item))
def test_the_result_has_the_convolutions_size(convolution: nn.Conv2d, crop: tuple[int, int]) -> None:
    x = torch.randn(2, 1, 13, 12)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), convolution)
    found = rg.replace_conv(model, x)
    layer = found.get_submodule("1")
    assert isinstance(layer, rg.PerturbativeConv2d)
    assert layer.crop == crop
    assert found(x).shape == model(x).shape
    assert (layer.bias is None) == (convolution.bias is None)


def test_whoever_refers_to_a_layer_has_the_new_one() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    model.again = model[1]  # a second name
    model.__dict__["aside"] = [model[1]]  # and one that no list of modules knows
    found = replaced(model, torch.zeros(2, 1, 6, 6))
    assert [path for path, _ in found.convolutions] == ["0", "1"]
    new: Any = found.model
    assert isinstance(new[1], rg.PerturbativeConv2d)
    assert new[1] is new.again is new.aside[0]


def test_nothing_to_replace() -> None:
    with pytest.raises(rg.ModelError, match="RG130 nothing-to-replace: the model has no convolution"):
        rg.replace_conv(mlp(4, 3, 2), torch.zeros(2, 4))
    with pytest.raises(rg.ModelError, match=r"RG130 .* 0 is the first convolution; 1 is 1×1"):
        rg.replace_conv(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1)), torch.zeros(2, 1, 6, 6))


def test_wrong_arguments_and_models() -> None:
    model = behind()
    with pytest.raises(rg.UsageError) as caught:
        rg.replace_conv(model, torch.zeros(2, 1, 6, 6), masks=0, sigma=-1.0)
    assert caught.value.codes == ("RG405", "RG405")
    with pytest.raises(rg.UsageError, match="maps is 'none'"):
        rg.replace_conv(model, torch.zeros(2, 1, 6, 6), maps="none")
    with pytest.raises(rg.ModelError, match="RG201"):
        rg.replace_conv(model, torch.zeros(2, 3, 6, 6))
    with pytest.raises(rg.ModelError, match="RG104"):
        rg.replace_conv("model", torch.zeros(2, 1, 6, 6))  # type: ignore[arg-type]


def test_what_became_of_each_is_reported() -> None:
    said: list[str] = []
    rg.replace_conv(behind(), torch.zeros(2, 1, 6, 6), report=said.append)
    assert said == ["0: kept, is the first convolution", "1: replaced"]
    assert Replacement(nn.Identity(), (("a", ""), ("b", "has 2 groups"))).lines == (
        "a: replaced", "b: kept, has 2 groups",
    )  # fmt: skip


def test_the_command_line(reclra: Call, tmp_path: Path) -> None:
    Path("net.py").write_text(NET, encoding="utf-8")
    result = reclra("compile", "net.py", "--replace-conv", "pconv", "--masks", "2", "--sigma", "0.3", "--seed", "4")
    assert result.status == 0, result.err
    assert "Pseudo-convolutions: 1 in the place of 3 convolutions" in result.out
    assert "0: kept, is the first convolution" in result.out
    assert "4: kept, is 1×1: it has no window" in result.out
    told = reclra("compile", "net.py", "--replace-conv", "pconv", "--json").json()
    assert told["convolutions"] == [
        {"module": "0", "kept": "is the first convolution"}, {"module": "2", "kept": None},
        {"module": "4", "kept": "is 1×1: it has no window"},
    ]  # fmt: skip
    names: dict[str, Any] = {}
    exec(NET, names)
    model = rg.replace_conv(names["model"], names["example_inputs"], masks=2, sigma=0.3, seed=4)
    assert reclra("compile", "net.py", "--replace-conv", "pconv", "--masks", "2", "--sigma", "0.3").status == 0
    step = rg.load("build/net", model)
    assert float(step(torch.zeros(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1]))) > 0
    assert reclra("compile", "net.py", "--json").json()["convolutions"] == []


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("--replace-conv", "conv"), "--replace-conv"),
        (("--masks", "2"), "--masks"),
        (("--sigma", "0.5"), "--sigma"),
        (("--replace-conv", "pconv", "--masks", "0"), "masks"),
        (("--replace-conv", "pconv", "--sigma", "nan"), "sigma"),
    ],
    ids=" ".join,
)
def test_wrong_usage(reclra: Call, words: tuple[str, ...], place: str) -> None:
    Path("net.py").write_text(NET, encoding="utf-8")
    result = reclra("compile", "net.py", "--json", *words)
    assert result.status == 2
    assert [(item["code"], item["place"]) for item in result.json()["errors"]] == [("RG405", place)]


def test_nothing_to_replace_on_the_command_line(reclra: Call) -> None:
    Path("net.py").write_text(NET.replace("nn.Conv2d(4, 6, 3, padding=1)", "nn.Conv2d(4, 6, 1)"), encoding="utf-8")
    result = reclra("compile", "net.py", "--replace-conv", "pconv")
    assert result.status == 1
    assert "RG130 nothing-to-replace" in result.err
