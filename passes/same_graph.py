"""Whether another model has the graph that a step was compiled from, so that the step is one for it, too.

Before:  a compiled model, and one that should differ from it in its numbers alone
After:   the constants that the other's graph needs beside ``state_dict()``, or ModelError RG621
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from reclra_graph.check_model import check_model
from reclra_graph.errors import ModelError, Problem
from reclra_graph.options import Options
from reclra_graph.passes.capture import capture
from reclra_graph.runtime.alike import built_otherwise, set_otherwise
from reclra_graph.runtime.compiled import CompiledStep

Call = tuple[tuple[Any, ...], dict[str, Any]]


def constants_of(
    other: nn.Module, model: nn.Module, step: CompiledStep, call: Call, options: Options, place: str
) -> Mapping[str, Tensor]:
    """Constants for ``other``, from the step of ``model``. ``call``: the example call's arguments. Models that are
    built and set alike have the same graph; where settings differ, or the graph has numbers or a path of its model's
    own in it, both are captured.

    Raises ModelError RG621 where the graphs differ, and what capture raises.
    """
    problems = check_model(other, *call)
    if problems:
        raise ModelError(problems)
    apart = built_otherwise(model, other)
    if apart:
        raise ModelError(Problem("RG621", f"{place} has {apart}", place))
    differences = set_otherwise(model, other)
    if not differences and not step.constants and step.plan.regions.graph.frontend.startswith("export"):
        return {}
    (mine, _), (graph, constants) = (capture(item, *call, options) for item in (model, other))
    if graph != mine:
        shown = "; ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
        cause = f"{place} has {shown}" if differences else f"forward() of {place} takes another path than the first"
        raise ModelError(Problem("RG621", cause, place))
    return constants
