"""Models that were exported, to .pt2 and to ONNX, and read again: the same outputs, the same blocks, and a step."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import reclra_graph as rg
from reclra_graph.model_file import LoadedModel, load_model


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.b(torch.tanh(self.a(x))))


class Attention(nn.Module):
    """An embedding, a transformer layer, and scores of the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.layer(self.embed(ids)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layers = kind(4, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x)[0][:, -1])


class Unet(nn.Module):
    """Strided and transposed convolutions, resizing, group norm and a long skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.low = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.wide = nn.Upsample(scale_factor=2, mode="bilinear")
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.norm(self.down(x)))
        low = nn.functional.gelu(self.low(first))
        return self.last(torch.cat([first, self.up(low), self.wide(low)], 1)).mean((2, 3))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), Block(), Block(), nn.LayerNorm(8), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
FLAT = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
STEPS = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(30).reshape(6, 5) % 11
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, FLAT),
    "cnn": (cnn, IMAGES),
    "unet": (Unet, IMAGES),
    "attention": (Attention, IDS),
    "lstm": (lambda: Recurrent(nn.LSTM), STEPS),
    "gru": (lambda: Recurrent(nn.GRU), STEPS),
}


def write_pt2(model: nn.Module, x: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch")},)), path)


def write_onnx(model: nn.Module, x: Tensor, path: Path, dynamo: bool) -> None:
    sizes = {"dynamic_shapes": ({0: Dim("batch")},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, input_names=["x"], dynamo=dynamo, **sizes)  # type: ignore[arg-type]


def check(model: nn.Module, loaded: LoadedModel, x: Tensor, tolerance: float) -> None:
    """The same outputs in eval mode, for another batch size too; a step moves every weight that learns."""
    model.eval()
    read = loaded.model.eval()
    with torch.no_grad():
        for given in (x, x[:3]):
            torch.testing.assert_close(read(given), model(given), rtol=tolerance, atol=tolerance)
    step = rg.compile(loaded.model, x, lr=0.1)
    assert step.plan.regions.graph.frontend == "export"
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    loss = step(x, torch.arange(6) % 3)
    assert loss.isfinite()
    moved = [name for name, value in loaded.model.named_parameters() if not torch.equal(before[name], value)]
    assert len(moved) >= len(before) // 2


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm"])
def test_pt2(name: str, tmp_path: Path) -> None:
    make, x = NETS[name]
    model = make().eval()
    write_pt2(model, x, tmp_path / "net.pt2")
    loaded = load_model(str(tmp_path / "net.pt2"))
    assert set(loaded.model.state_dict()) == set(model.state_dict())
    check(model, loaded, x, 1e-6)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(name: str, dynamo: bool, tmp_path: Path) -> None:
    make, x = NETS[name]
    model = make().eval()
    write_onnx(model, x, tmp_path / "net.onnx", dynamo)
    check(model, load_model(str(tmp_path / "net.onnx")), x, 1e-5)


@pytest.mark.parametrize("name", ["unet", "attention", "lstm", "gru"])
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_onnx_outputs(name: str, dynamo: bool, tmp_path: Path) -> None:
    make, x = NETS[name]
    model = make().eval()
    write_onnx(model, x, tmp_path / "net.onnx", dynamo)
    read = load_model(str(tmp_path / "net.onnx")).model
    for given in (x, x[:3]):
        torch.testing.assert_close(read(given), model(given), rtol=1e-5, atol=1e-5)
    sizes = ({0: Dim.AUTO},)
    program = torch.export.export(read.train(), (x,), dynamic_shapes=sizes, strict=False)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    assert isinstance(placeholders[-1].meta["val"].shape[0], torch.SymInt), "the batch is not free"


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_blocks_are_found_in_what_was_saved(form: str, tmp_path: Path) -> None:
    model = mlp()
    path = tmp_path / f"net.{form}"
    if form == "pt2":
        write_pt2(model, FLAT, path)
    else:
        write_onnx(model, FLAT, path, True)
    wanted = rg.compile(model, FLAT).plan.regions.regions
    found = rg.compile(load_model(str(path)).model, FLAT).plan.regions.regions
    assert [(item.name, item.block) for item in found] == [(item.name, item.block) for item in wanted]


def test_a_step_of_a_program_saved_in_train_mode_is_the_models_own(tmp_path: Path) -> None:
    model = cnn()[:4].append(nn.Flatten()).append(nn.Linear(64, 3)).train()
    write_pt2(model, IMAGES, tmp_path / "net.pt2")
    loaded = load_model(str(tmp_path / "net.pt2"))
    target = torch.arange(6) % 3
    losses = [rg.compile(item, IMAGES, lr=0.1)(IMAGES, target) for item in (model, loaded.model)]
    assert torch.equal(*losses)
    for (name, mine), theirs in zip(loaded.model.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_program_saved_in_eval_mode_keeps_its_statistics(tmp_path: Path) -> None:
    model = cnn().eval()
    write_pt2(model, IMAGES, tmp_path / "net.pt2")
    loaded = load_model(str(tmp_path / "net.pt2"))
    before = loaded.model.state_dict()["1.running_mean"].clone()
    rg.compile(loaded.model, IMAGES)(IMAGES, torch.arange(6) % 3)
    assert torch.equal(loaded.model.state_dict()["1.running_mean"], before)
