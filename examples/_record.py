"""What a measurement is written down with (when, where, on what), and a file that is there whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import reclra_graph as rg

HERE = Path(__file__).resolve().parent


def circumstances(device: str) -> dict[str, Any]:
    """Time, commit, machine and versions. ``device``: "cpu" or "cuda"."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "reclra-graph": rg.__version__},
    }


def commit() -> str | None:
    """The commit of the checkout that this file stands in, with "+" where files differ from it; None outside of git."""
    try:
        describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def make_folder(path: Path) -> None:
    """Make the folder of a file, before anything is computed for it. Raises ReclraError RG701 where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise IsADirectoryError(21, "it is a folder, or its folder may not be written")
    except OSError as error:
        raise rg.ModelError(rg.Problem("RG701", f"cannot be written: {error.strerror}", str(path))) from None


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, beside its place and then renamed. Raises ReclraError RG701 where that fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise rg.ModelError(rg.Problem("RG701", f"cannot be written: {error.strerror}", str(path))) from None
