"""Run the source of an emitted step, so that tracebacks show its lines."""

from __future__ import annotations

import linecache
from types import ModuleType

from reclra_graph.errors import ModelError, Problem


def load_source(source: str, label: str) -> ModuleType:
    """A module from the text of a step.py; ``label`` stands for its file name in tracebacks.

    Raises ModelError RG702 where the text is no Python, raises as it runs, or defines no ``step`` and ``synapses``.
    """
    module = ModuleType("reclra_step")
    module.__file__ = label
    try:
        exec(compile(source, label, "exec"), module.__dict__)
    except Exception as error:
        raise ModelError(Problem("RG702", f"the step does not run: {type(error).__name__}: {error}", label)) from error
    missing = [name for name in ("step", "synapses", "lane_device", "SYNAPSES") if not hasattr(module, name)]
    if missing:
        raise ModelError(Problem("RG702", f"the step defines no {', '.join(missing)}", label))
    # The third-party contract of linecache: (size, no modification time, lines, name) is never checked against a file.
    linecache.cache[label] = (len(source), None, source.splitlines(keepends=True), label)
    return module
