"""Peak memory of a training step on the CPU: predicted, and as PyTorch's allocator reports it.

    python tests/bench/memory.py               all nets; writes docs/results/memory-cpu.json
    python tests/bench/memory.py --nets mlp    some of them; writes nothing unless --out is given

Predicted is ``Schedule.peak``. Measured is what was there before the step (parameters, buffers, synapses, the batch)
and the highest sum of what PyTorch's CPU allocator gave out and took back during one step, which `torch.profiler`
reports with every allocation, workspaces of PyTorch's own operators included. What a library takes from the system
itself (oneDNN's scratch pads) is in neither.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.bench.loader import imported
from reclra_graph.bench.step_memory import added_bytes
from reclra_graph.passes.memory import predicted_peak
from reclra_graph.runtime.compiled import CompiledStep
from tests.bench.record import RESULTS, circumstances, progress, write_json
from tests.models import ResidualCNN, mlp

LIMIT = 0.1
"""How far a prediction may be off, as a part of the measured peak."""

Made = tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]


def measured_peak(step: CompiledStep, inputs: tuple[Tensor, ...], target: Any) -> tuple[int, int]:
    """(bytes before the step, highest number of bytes that one step adds to them).

    The step runs once before, so that what PyTorch keeps from its first call on is not counted."""
    step(inputs, target)
    goals = tuple(target.values()) if isinstance(target, dict) else (target,)
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in (*step.storage().values(), *step.synapses.values(), *inputs, *goals)
    }
    return sum(storages.values()), added_bytes(lambda: step(inputs, target))


def _mlp() -> Made:
    return mlp(784, *(256,) * 5, 10), (torch.randn(50, 784),), {}


def _deep() -> Made:
    return mlp(256, *(512,) * 12, 10), (torch.randn(256, 256),), {"wiring": "chain"}


def _figure_1() -> Made:
    return mlp(784, 256, 32, 256, 256, 32, 256, 256, 32, 10), (torch.randn(128, 784),), {"gpus": 5}


def _cnn() -> Made:
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 10)), (torch.randn(32, 3, 32, 32),), {}


def _residual() -> Made:
    return ResidualCNN(), (torch.randn(256, 1, 28, 28),), {"gpus": 2}


def _torchvision(name: str, size: int, batch: int, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        models = imported("torchvision").models
        return models.get_model(name, num_classes=10), (torch.randn(batch, 3, size, size),), options

    return make


class GPT(nn.Module):
    """Embeddings, transformer blocks with causal attention, a linear layer over the vocabulary."""

    def __init__(self, vocabulary: int, width: int, heads: int, depth: int, length: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        z = self.token(ids) + self.place(torch.arange(length, device=ids.device))
        mask = torch.triu(torch.full((length, length), float("-inf"), device=ids.device), 1)
        for block in self.blocks:
            z = block(z, src_mask=mask)
        logits: Tensor = self.head(self.norm(z))
        return logits


def _gpt() -> Made:
    return GPT(512, 128, 4, 4, 64), (torch.randint(512, (16, 64)),), {}


class Recurrent(nn.Module):
    """An LSTM over sequences, and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x)[0][:, -1])
        return logits


def _lstm() -> Made:
    return Recurrent(), (torch.randn(64, 16, 32),), {}


class ViT(nn.Module):
    """Patches, transformer blocks, a linear layer on their mean."""

    def __init__(self, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.place = nn.Parameter(torch.zeros(1, 64, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            z = block(z)
        logits: Tensor = self.head(self.norm(z).mean(1))
        return logits


def _vit() -> Made:
    return ViT(), (torch.randn(32, 3, 32, 32),), {}


NETS: dict[str, Callable[[], Made]] = {
    "mlp": _mlp,
    "deep-mlp-chain": _deep,
    "figure-1-five-lanes": _figure_1,
    "cnn": _cnn,
    "residual-cnn-two-lanes": _residual,
    "resnet18": _torchvision("resnet18", 64, 8),
    "mobilenet-v3-small": _torchvision("mobilenet_v3_small", 64, 8),
    "vit": _vit,
    "gpt": _gpt,
    "lstm": _lstm,
}


def row(name: str) -> dict[str, Any]:
    """What is predicted and measured of one net, in bytes."""
    torch.manual_seed(0)
    model, inputs, options = NETS[name]()
    step = rg.compile(model, inputs, **options)
    batch = inputs[0].shape[0]
    (shape, dtype, classes, _) = step.module.TARGETS[""]
    sizes = [size if isinstance(size, int) else batch * int(size.strip("B*") or 1) for size in shape]
    target = torch.randint(classes, sizes) if classes > 0 else torch.rand(sizes, dtype=getattr(torch, dtype))
    # Lanes are devices in the prediction; here all of them are one.
    lanes = tuple(replace(lane, device=0) for lane in step.schedule.lanes)
    (predicted,) = predicted_peak(replace(step.program, schedule=replace(step.schedule, lanes=lanes)), batch)
    before, added = measured_peak(step, inputs, target)
    found = {
        "net": name,
        "batch": batch,
        "lanes": len(lanes),
        "predicted_bytes": predicted,
        "measured_bytes": before + added,
        "held_before_bytes": before,
        "relative_error": round((predicted - before - added) / (before + added), 4),
        "relative_error_of_what_the_step_adds": round((predicted - before - added) / added, 4),
    }
    progress(f"{name}: predicted {predicted}, measured {before + added} ({100 * found['relative_error']:+.2f} %)")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; exit status 1 where a prediction is further off than ``LIMIT``."""
    parser = argparse.ArgumentParser(description="Predicted and measured peak memory of training steps on the CPU.")
    parser.add_argument("--nets", help=f"of {', '.join(NETS)}; joined by commas (default: all)")
    parser.add_argument("--out", type=Path, help="the file to write (default: docs/results/memory-cpu.json)")
    args = parser.parse_args(argv)
    names = args.nets.split(",") if args.nets else list(NETS)
    if args.out is None and args.nets is None:
        args.out = RESULTS / "memory-cpu.json"
    rows = [row(name) for name in names]
    worst = max(abs(item["relative_error"]) for item in rows)
    if args.out is not None:
        content = {"circumstances": circumstances(sys.argv), "limit": LIMIT, "worst": worst, "nets": rows}
        write_json(args.out, content)
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
