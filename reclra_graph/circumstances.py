"""What every measurement records beside its figures, and how it writes them: whole, or not at all."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reclra_graph.errors import ModelError, Problem

ROOT = Path(__file__).resolve().parents[1]
"""The checkout, where this package stands in one."""


def circumstances(command: str) -> dict[str, Any]:
    """The command, date, commit, machine and versions."""
    import torch

    import reclra_graph as rg

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
            "devices": [torch.cuda.get_device_name(index) for index in range(devices)],
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "reclra-graph": rg.__version__,
        },
    }


def processor() -> str:
    """Name of the processor, or of its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; None outside of one."""
    if not (ROOT / "pyproject.toml").exists():  # installed: a repository around it would be another's
        return None
    try:
        describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def write_text(path: Path, text: str) -> None:
    """Write beside, then rename: the file is there whole or not at all. Its folder is made.

    Raises ModelError RG701 where it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(Problem("RG701", f"cannot be written: {error.strerror}", str(path))) from None


def write_json(path: Path, content: object) -> None:
    """Write a value as JSON, whole or not at all; see ``write_text``."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
