"""What the benchmark scripts share beside ``reclra_graph.bench.record``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reclra_graph.bench import record
from reclra_graph.bench.record import ROOT, example, spread, write_json

__all__ = ["RESULTS", "ROOT", "circumstances", "example", "progress", "spread", "write_json"]

RESULTS = ROOT / "docs" / "results"


def progress(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def circumstances(argv: Sequence[str]) -> dict[str, Any]:
    """The command, date, commit, machine and versions. ``argv`` as in ``sys.argv``, the script first."""
    return record.circumstances(" ".join(["python", script_name(argv[0]), *argv[1:]]))


def script_name(path: str) -> str:
    """A script's path from the root of the checkout, however it was called."""
    try:
        return Path(path).resolve().relative_to(ROOT).as_posix()
    except ValueError:
        return Path(path).name
