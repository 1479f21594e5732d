"""Programs that torch.export saves, and what can be made of them with an archive writer."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export, save

from reclra_graph.errors import ModelError
from reclra_graph.model_file import load_model


class Net(nn.Module):
    """A module tree, a buffer, a constant, a keyword argument that is a nest, and a dict as its result."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.last = nn.Linear(4, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor, *, scale: dict[str, Tensor]) -> dict[str, Tensor]:
        h = self.last(self.body(x)) + self.shift + torch.tensor([1.0, 2.0, 3.0])
        return {"logits": h * scale["by"]}


def save_net(path: Path) -> None:
    """A program with a free batch."""
    keywords = {"scale": {"by": torch.ones(3)}}
    sizes = {"x": {0: Dim("batch")}, "scale": {"by": None}}
    save(export(Net(), (torch.zeros(5, 4),), keywords, dynamic_shapes=sizes), path)


def refused(path: Path, *inputs: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(str(path), inputs)
    for problem in caught.value.problems:
        assert problem.cause
        assert problem.place
    return caught.value


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def edited(source: Path, folder: Path, changes: dict[str, Callable[[bytes], bytes]]) -> Path:
    """A copy of an archive with records changed or added."""
    path = folder / "edited.pt2"
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in {*reader.get_all_records(), *changes}:
        if name.startswith(".data") or name in ("version", "byteorder"):
            continue
        old = reader.get_record(name) if reader.has_record(name) else b""
        new = changes[name](old) if name in changes else old
        writer.write_record(name, new, len(new))
    writer.write_end_of_file()
    return path


def graph_edited(source: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    def rewrite(old: bytes) -> bytes:
        model = json.loads(old)
        change(model)
        return json.dumps(model).encode()

    return edited(source, folder, {"models/model.json": rewrite})


def torch_saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
