"""What a step's targets look like: shape, dtype, and how many classes they choose between."""

from __future__ import annotations

from reclra_graph.ir.operators import Dim
from reclra_graph.ir.regions import Region
from reclra_graph.ir.wiring import WiringPlan


def target_types(plan: WiringPlan) -> dict[str, tuple[tuple[Dim, ...], str, int, int | None]]:
    """For every loss: shape and dtype of its target, classes (0: none) and the class index that is ignored."""
    found: dict[str, tuple[tuple[Dim, ...], str, int, int | None]] = {}
    for item, number in zip(plan.losses, plan.regions.outputs, strict=True):
        region = plan.regions.regions[number]
        kind = plan.regions.error_type(number)
        label = item.label if len(plan.losses) > 1 else ""
        if not item.classes:
            found[label] = (kind.shape, kind.dtype, -1 if item.kind == "bce-with-logits" else 0, None)
            continue
        place = _class_dimension(region, item.axis, len(kind.shape))
        found[label] = ((*kind.shape[:place], *kind.shape[place + 1 :]), "int64", region.features, item.ignore)
    return found


def _class_dimension(region: Region, axis: int, rank: int) -> int:
    """Which dimension of an output counts classes: the last, or the first that is not the batch."""
    return rank - 1 if axis == -1 else int(region.layout.dim == 0)
