"""Which dimension of a representation counts features."""

from __future__ import annotations

from collections.abc import Sequence

from reclra_graph.ir.operators import OperatorGraph
from reclra_graph.rules.operators import short

_FIRST = {
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "group_norm", "native_group_norm", "_native_batch_norm_legit_functional",
}  # fmt: skip
_LAST = {
    "linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "embedding", "layer_norm", "native_layer_norm", "rms_norm",
}  # fmt: skip
_FOLDS = {"view", "reshape", "_unsafe_view", "flatten", "unflatten"}


def feature_axis(graph: OperatorGraph, operators: Sequence[str], end: str) -> int:
    """0 where the first size of a sample of ``end`` counts features, as behind a convolution; -1 where the last does.

    Followed from the last operator among ``operators`` that settles it, over what permutes dimensions."""
    place = -1
    for name in operators:
        operator = graph.by_name[name]
        kind = operator.type or next((item for item in operator.types if item is not None), None)
        if kind is None or not operator.target.startswith("aten."):
            continue
        rank, target = len(kind.shape), short(operator.target)
        if target in _FIRST:
            place = 1
        elif target in _LAST:
            place = rank - 1
        elif target == "permute" and place >= 0 and isinstance(operator.args[1], tuple):
            order = [int(item) % rank for item in operator.args[1]]  # type: ignore[arg-type]
            place = order.index(place) if place in order else -1
        elif target == "transpose" and place >= 0:
            one, two = (int(item) % rank for item in operator.args[1:3])  # type: ignore[arg-type]
            place = {one: two, two: one}.get(place, place)
        elif target in ("stack", "unsqueeze") and place >= 0:
            dims = operator.args[1] if len(operator.args) > 1 else 0
            place += int(dims) % rank <= place  # type: ignore[arg-type]
        elif target in _FOLDS and place >= 0:
            source = graph.types.get(operator.reads[0])
            last = source is not None and place == len(source.shape) - 1
            same = source is not None and place < rank and source.shape[: place + 1] == kind.shape[: place + 1]
            place = place if same else rank - 1 if last else -1
        if name == end:
            break
    layout = graph.layouts[end]
    shape = graph.types[end].shape
    if len(shape) <= 2 or place == len(shape) - 1:
        return -1 if len(shape) > 2 else 0
    if place < 0:
        return -1 if len(shape) == 3 else 0
    first = 1 if layout.dim == 0 else 0
    return 0 if place == first and layout.before * layout.after == 1 else -1
