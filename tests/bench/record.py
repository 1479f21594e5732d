"""What every benchmark records beside its figures, and how it writes them: whole, or not at all."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"


def progress(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def circumstances(argv: Sequence[str]) -> dict[str, Any]:
    """The command, date, commit, machine and versions. ``argv`` as in ``sys.argv``, the script first."""
    import torch

    import reclra_graph as rg

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "command": " ".join(["python", script_name(argv[0]), *argv[1:]]),
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


def script_name(path: str) -> str:
    """A script's path from the root of the checkout, however it was called."""
    try:
        return Path(path).resolve().relative_to(ROOT).as_posix()
    except ValueError:
        return Path(path).name


def processor() -> str:
    """Name of the processor, or of its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; None outside of git."""
    try:
        describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def spread(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Median, quartiles and extremes of some figures, with their number."""
    ordered = sorted(values)
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    return {
        "median": round(quartiles[1], digits),
        "quartiles": [round(quartiles[0], digits), round(quartiles[2], digits)],
        "range": [round(ordered[0], digits), round(ordered[-1], digits)],
        "count": len(ordered),
    }


def write_json(path: Path, content: object) -> None:
    """Write beside, then rename: the file is there whole or not at all. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def example(name: str) -> ModuleType:
    """An example's module, from the folder examples/."""
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module
