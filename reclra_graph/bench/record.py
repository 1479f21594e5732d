"""What every measurement records beside its figures, and how it writes them: whole, or not at all."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from reclra_graph.errors import ModelError, Problem

ROOT = Path(__file__).resolve().parents[2]
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


def written(content: Mapping[str, Any]) -> str:
    """Where a result comes from, as a sentence of its page."""
    versions = ", ".join(f"{name} {value}" for name, value in content["versions"].items() if value)
    machine = content["machine"]
    return (
        f"Written by `{content['command']}` on {content['finished'][:10]}, commit {content['commit'] or 'unknown'}; "
        f"{machine['processor']}, {machine['cores']} cores; {versions}."
    )


def plain(text: str) -> str:
    """Text that means nothing to Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


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


@cache
def example(name: str) -> ModuleType:
    """An example's module, from the checkout's folder examples/. Raises ModelError RG802 where there is none."""
    path = ROOT / "examples" / f"{name}.py"
    if not path.is_file():
        advice = "Run it from a checkout of reclra-graph: the installed package has no examples."
        raise ModelError(Problem("RG802", f"there is no example {name}", str(path), advice))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


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
