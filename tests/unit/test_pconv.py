"""``rg.PerturbativeConv2d``: what it computes, what it holds, and that it is a module as any other."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.data import fashion_mnist
from reclra_graph.pconv import MAPS
from tests.differential.numpy_pconv import activated, noise, product, weight_update

Layer = rg.PerturbativeConv2d

CASES: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((4, 6), {}),
    ((4, 6), {"masks": 3}),
    ((6, 6), {"stride": 2}),
    ((7, 5), {"stride": 2, "masks": 2}),
    ((7, 5), {"stride": (3, 1), "bias": False}),
    ((9, 8), {"stride": (2, 3), "crop": (1, 2), "masks": 2}),
    ((2, 3), {"stride": 4}),
    ((1, 1), {"masks": 4}),
]


def named(case: Any) -> str:
    return str(case).replace(" ", "")


def pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize(("size", "more"), CASES, ids=named)
def test_forward_and_gradient_are_the_transcription(maps: str, size: tuple[int, int], more: dict[str, Any]) -> None:
    layer = Layer(3, 5, size=size, sigma=0.8, seed=9, maps=maps, dtype=torch.float64, **more)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    stride, crop = pair(more.get("stride", 1)), pair(more.get("crop", 0))
    height, width = size[0] - 2 * crop[0], size[1] - 2 * crop[1]
    drawn = noise(9, 3 * more.get("masks", 1), height, width, 0.8)
    weight = layer.weight.detach().numpy()[:, :, 0, 0]
    bias = np.zeros(5) if layer.bias is None else layer.bias.detach().numpy()
    inner = [activated(sample, drawn, stride, crop) for sample in x.numpy()]
    z = layer(x)
    assert z.shape == (2, 5, -(-height // stride[0]), -(-width // stride[1]))
    assert np.max(np.abs(z.detach().numpy() - np.stack([product(weight, bias, a) for a in inner]))) < 1e-13
    e = torch.randn_like(z)
    z.backward(e)
    wanted = sum(weight_update(one, a) for one, a in zip(e.numpy(), inner, strict=True))
    assert layer.weight.grad is not None
    assert np.max(np.abs(layer.weight.grad.numpy()[:, :, 0, 0] - wanted)) < 1e-12
    if layer.bias is not None:
        assert layer.bias.grad is not None
        assert float((layer.bias.grad - e.sum((0, 2, 3))).abs().max()) < 1e-12


def test_inputs_learn_as_well() -> None:
    layer = Layer(2, 3, size=(5, 4), stride=2, masks=2, sigma=0.5, dtype=torch.float64)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_regenerated_maps_are_the_ones_that_are_held(dtype: torch.dtype) -> None:
    held, made = (Layer(3, 4, size=(6, 7), masks=2, seed=4, maps=maps, dtype=dtype) for maps in MAPS)
    assert torch.equal(held.noise(), made.noise())
    assert held.noise().dtype == made.noise().dtype == dtype
    assert torch.equal(held.float().noise(), made.float().noise()) or dtype in (torch.float16, torch.bfloat16)


def test_maps_depend_on_seed_number_and_size_alone() -> None:
    first = Layer(3, 4, size=8, seed=1).noise()
    torch.manual_seed(123)
    assert torch.equal(first, Layer(3, 7, size=8, seed=1, stride=2, bias=False).noise())
    assert torch.equal(first, Layer(1, 7, size=8, seed=1, masks=3).noise())
    for other in (Layer(3, 4, size=8, seed=2), Layer(3, 4, size=8, seed=-1)):
        assert abs(float(torch.corrcoef(torch.stack([first.flatten(), other.noise().flatten()]))[0, 1])) < 0.4
    assert float(Layer(3, 4, size=8, seed=1, sigma=0.2).noise().std() / first.std()) == pytest.approx(2)
    assert torch.equal(Layer(3, 4, size=8, sigma=0.0).noise(), torch.zeros(3, 8, 8))


def test_other_processes_have_the_same_maps(root: Path) -> None:
    code = (
        "import torch, reclra_graph as rg\ntorch.manual_seed(8)\n"
        "print(rg.PerturbativeConv2d(2, 3, size=5, masks=2, seed=6).noise().double().sum().item())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": str(root)}
    told = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert float(told.stdout) == Layer(2, 3, size=5, masks=2, seed=6).noise().double().sum().item()


def test_weights_begin_as_a_convolutions_do() -> None:
    torch.manual_seed(3)
    convolution = nn.Conv2d(12, 5, 1)
    torch.manual_seed(3)
    layer = Layer(4, 5, size=(3, 3), masks=3)
    assert torch.equal(layer.weight, convolution.weight)
    assert convolution.bias is not None
    assert layer.bias is not None
    assert torch.equal(layer.bias, convolution.bias)


@pytest.mark.parametrize("maps", MAPS)
def test_a_checkpoint_holds_the_maps(maps: str) -> None:
    one, other = (Layer(3, 4, size=(6, 5), masks=2, stride=2, seed=seed, maps=maps) for seed in (1, 2))
    x = torch.randn(2, 3, 6, 5)
    assert not torch.equal(one.noise(), other.noise())
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one(x), other(x))
    held = {key: value.numel() for key, value in one.state_dict().items() if key not in ("weight", "bias")}
    assert held == ({"maps": 6 * 6 * 5} if maps == "buffers" else {"rows": 6, "columns": 3 * 6 * 5})


@pytest.mark.parametrize("maps", MAPS)
def test_copies_modes_and_single_samples(maps: str) -> None:
    layer = Layer(3, 4, size=(6, 5), masks=2, stride=2, maps=maps)
    x = torch.randn(5, 3, 6, 5)
    z = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), z)
    assert torch.equal(layer.eval()(x), z)
    assert torch.allclose(layer(x[2]), z[2], atol=1e-6)
    assert not any(buffer.requires_grad for buffer in layer.buffers())
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    again = eval(f"rg.{layer}", {"rg": rg})
    assert isinstance(again, Layer)
    assert torch.equal(again.noise(), layer.noise())


@pytest.mark.parametrize("maps", MAPS)
def test_seeds_can_be_stacked(maps: str) -> None:
    """As torch.func has it: one call for several sets of weights."""
    layer = Layer(2, 3, size=(4, 4), masks=2, maps=maps)
    x = torch.randn(5, 2, 4, 4)
    several = {"weight": torch.randn(3, *layer.weight.shape), "bias": torch.randn(3, 3)}
    found = torch.vmap(lambda given: torch.func.functional_call(layer, given, (x,)))(several)
    for index in range(3):
        one = torch.func.functional_call(layer, {key: value[index] for key, value in several.items()}, (x,))
        assert torch.allclose(found[index], one, atol=1e-6)


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("more", [{}, {"masks": 2, "stride": 2}, {"stride": (2, 3), "crop": 1}], ids=named)
def test_torch_export_and_onnx(maps: str, more: dict[str, Any]) -> None:
    layer = Layer(3, 4, size=(7, 9), sigma=0.5, maps=maps, **more).eval()
    x = torch.randn(5, 3, 7, 9)
    program = torch.export.export(layer, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(x), layer(x))
    assert all(str(node.target).startswith("aten.") for node in program.graph.nodes if node.op == "call_function")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes: Any = ({0: torch.export.Dim("batch")},)
        written = torch.onnx.export(
            layer, (x[:2],), opset_version=18, dynamo=True, verbose=False, dynamic_shapes=sizes
        )  # fmt: skip
    assert written is not None
    session = onnxruntime.InferenceSession(written.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.max(np.abs(found - layer(x).detach().numpy())) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 4, 5, 6), (2, 1, 6, 5), (4, 6, 1)])
def test_inputs_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    layer = Layer(4, 2, size=(6, 5))
    with pytest.raises(rg.StepError, match=r"RG601 .* has maps for inputs \[4, 6, 5\], its input is "):
        layer(torch.zeros(shape))


@pytest.mark.parametrize(
    ("given", "place", "cause"),
    [
        ({"in_channels": 0}, "in_channels", "in_channels is 0; at least 1"),
        ({"out_channels": -1}, "out_channels", "out_channels is -1"),
        ({"size": (0, 4)}, "size", r"size is \(0, 4\)"),
        ({"stride": 0}, "stride", r"stride is \(0, 0\)"),
        ({"crop": -1}, "crop", r"crop is \(-1, -1\); at least 0 is needed"),
        ({"crop": (1, 2)}, "crop", r"a crop of \(1, 2\) leaves nothing of \(4, 4\)"),
        ({"masks": 0}, "masks", "masks is 0"),
        ({"sigma": -0.1}, "sigma", "sigma is -0.1"),
        ({"sigma": float("nan")}, "sigma", "sigma is nan"),
        ({"maps": "none"}, "maps", "maps is 'none', not one of buffers, regenerated"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(given: dict[str, Any], place: str, cause: str) -> None:
    with pytest.raises(rg.UsageError, match=f"RG405 bad-option: {cause}") as caught:
        Layer(**{"in_channels": 2, "out_channels": 3, "size": 4, **given})
    assert [problem.place for problem in caught.value.problems] == [place]


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(rg.UsageError) as caught:
        Layer(0, 1, size=4, masks=0, sigma=-1, maps="")
    assert [problem.place for problem in caught.value.problems] == ["in_channels", "masks", "sigma", "maps"]


@pytest.mark.parametrize("maps", MAPS)
def test_a_net_learns_real_images(root: Path, maps: str) -> None:
    data = fashion_mnist(root / "examples" / "data" / "fashion-mnist")
    images, labels = data.train_images[:1000, :, ::2, ::2], data.train_labels[:1000]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        Layer(8, 16, size=14, stride=2, masks=2, seed=1, maps=maps), nn.BatchNorm2d(16), nn.Tanh(),
        Layer(16, 16, size=7, seed=2, maps=maps), nn.BatchNorm2d(16), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 49, 10),
    )  # fmt: skip
    step = rg.compile(model, images[:50], wiring="flat", lr=0.05)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def loss() -> Tensor:
        with torch.no_grad():
            return nn.functional.cross_entropy(model(images), labels)

    first = float(loss())
    for start in (*range(0, 1000, 50), *range(0, 1000, 50)):
        step(images[start : start + 50], labels[start : start + 50])
    assert float(loss()) < 0.5 * first
    fixed = ("maps", "rows", "columns")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == key.endswith(fixed), key
