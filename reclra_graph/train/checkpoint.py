"""Checkpoints: written beside and then renamed, so that one is there whole or not at all; read back without running
anything that stands in them."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reclra_graph.errors import ModelError, Problem, UsageError

VERSION = 1
_SHOWN = 5


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values and tensors. The file that stands there stays as it is until the new one is on the disk.

    Raises ModelError RG701 where it cannot be written, as on a full disk; nothing half-written is left then.
    """
    buffer = io.BytesIO()  # a disk that fills up while torch.save writes fails inside its C++, in ways of its own
    torch.save({"version": VERSION, **content}, buffer)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        advice = "Make room, or give the permission to write; the same command then goes on from the last checkpoint."
        raise ModelError(Problem("RG701", f"cannot be written: {error.strerror}", str(path), advice)) from None


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """What a checkpoint holds, its tensors on ``device``. Raises ModelError RG711 where it is damaged or another's."""
    try:
        held = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file fails in any way inside its reader
        raise ModelError(Problem("RG711", "is damaged, or is no checkpoint", str(path))) from error
    if not isinstance(held, dict) or held.get("version") != VERSION:
        raise ModelError(Problem("RG711", "is no checkpoint of this version", str(path)))
    return held


def plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them, so that what is read back compares equal."""
    found: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return found


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], place: str) -> None:
    """Raise UsageError RG710, which names the differences, unless both are settings of one run."""
    before, now = _flat(before), _flat(now)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not names:
        return
    shown = [f"{name} {_shown(before, name)} then, {_shown(now, name)} now" for name in names[:_SHOWN]]
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise UsageError(Problem("RG710", f"it holds a run with other settings: {'; '.join(shown)}{more}", place))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"data": {"digest": 1}}`` as ``{"data digest": 1}``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict)
        found.update({f"{name} {key}": item for key, item in value.items()} if nested else {name: value})
    return found


def _shown(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name)
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def random_state() -> dict[str, Any]:
    """Where the generators stand that a training step may draw from: PyTorch's of every device, and Python's."""
    version, words, gauss = random.getstate()
    found: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(words), gauss]}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_random_state(held: Mapping[str, Any]) -> None:
    """Go on drawing from a ``random_state()``."""
    torch.set_rng_state(held["torch"].cpu())
    version, words, gauss = held["python"]
    random.setstate((version, tuple(words), gauss))
    if torch.cuda.is_available() and "cuda" in held:
        torch.cuda.set_rng_state_all([item.cpu() for item in held["cuda"]])
