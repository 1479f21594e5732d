"""What the pages of a measurement say beside its figures; the examples that are measured."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from reclra_graph.circumstances import ROOT, circumstances, commit, processor, write_json, write_text
from reclra_graph.errors import ModelError, Problem

__all__ = [
    "ROOT", "circumstances", "commit", "example", "plain", "processor", "spread", "write_json", "write_text", "written",
]  # fmt: skip


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
