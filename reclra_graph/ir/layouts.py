"""Where the batch stands in each value: first as a rule, but not behind a transposition, a window or a fold.

A layout is followed from the inputs on, operator by operator; a value without one has no error neurons of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from reclra_graph.ir.text import register

if TYPE_CHECKING:
    from reclra_graph.ir.operators import Dim, Operator, OperatorGraph

_FOLDS = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_copy", "view_copy"}
# Where the dimension stands among the arguments of operators that pick, sort or shift along it.
_ALONG = {"index_select": 1, "gather": 1, "sort": 1, "topk": 2, "flip": 1, "roll": 2, "take_along_dim": 2}
_REDUCE = {"mean", "sum", "amax", "amin", "select", "unbind", "argmax", "squeeze", "std", "var", "prod", "logsumexp"}


@register
@dataclass(frozen=True)
class Layout:
    """Dimension ``dim`` has the size ``before`` × batch × ``after``, the batch between the two."""

    dim: int = 0
    before: int = 1
    after: int = 1

    @property
    def plain(self) -> bool:
        """Whether the batch is the whole first dimension."""
        return self == BATCH_FIRST

    def sample(self, shape: tuple[Dim, ...]) -> tuple[int, ...]:
        """Sizes of one sample: all but the batch, in order."""
        inner = [size for size in (self.before, self.after) if size > 1]
        return tuple(int(size) for size in (*shape[: self.dim], *inner, *shape[self.dim + 1 :]))


BATCH_FIRST = Layout()


def find_layouts(graph: OperatorGraph) -> dict[str, Layout]:
    """The layout of every value in which the batch can be told apart.

    Values of samples in another order (sorted by length, shuffled) have none, until they are put in order again: until
    something picks or scatters along the batch once more."""
    found: dict[str, Layout] = {}
    mixed: set[str] = set()
    layout_of = _symbolic if graph.batch == "B" else _numeric
    for item in graph.inputs:
        if item.type.shape and item.type.shape[0] == graph.batch:
            found[item.name] = Layout()
    for operator in graph.operators:
        if operator.type is None or operator.name in graph.without_data:
            continue
        source = operator
        while source.target == "operator.getitem" and source.reads[0] in graph.by_name:
            source = graph.by_name[source.reads[0]]
        given = [(found[name], graph.types[name].shape) for name in source.reads if name in found]
        carried = not given and any(name in mixed for name in source.reads) and not _picks(source)
        if (carried or _reorders(source, found)) and operator.name not in graph.output_values:
            mixed.add(operator.name)
            continue
        place = layout_of(source, operator.type.shape, given, graph)
        if place is not None:
            found[operator.name] = place
    return found


def _picks(operator: Operator) -> bool:
    name = operator.target.split(".")[1]
    return name in _ALONG or name.startswith(("index", "scatter", "masked_scatter"))


def _reorders(operator: Operator, found: dict[str, Layout]) -> bool:
    """Whether the operator may move samples to other places: it picks, sorts, shifts or flips along the batch."""
    layout = found.get(operator.reads[0]) if operator.reads else None
    if layout is None or not operator.target.startswith("aten."):
        return False
    name = operator.target.split(".")[1]
    if name == "index":
        picked = operator.args[1]
        assert isinstance(picked, tuple)
        return layout.dim < len(picked) and picked[layout.dim] is not None
    if name not in _ALONG:
        return False
    place = _ALONG[name]
    dims = operator.args[place] if place < len(operator.args) else dict(operator.kwargs).get("dim", -1)
    several = dims if isinstance(dims, tuple) else (dims,)
    # A dimension counted from the end is the batch's only in values of which the batch is the last.
    return any(item == layout.dim for item in several) or (name == "roll" and several == ((),))


def _factor(size: Dim) -> int | None:
    """k where the size is k·B; None for a plain number or anything else in B."""
    match = re.fullmatch(r"(?:(\d+)\*)?B(?:\*(\d+))?", str(size))
    return int(match[1] or match[2] or 1) if match else None


def _symbolic(
    operator: Operator, shape: tuple[Dim, ...], given: list[tuple[Layout, tuple[Dim, ...]]], graph: OperatorGraph
) -> Layout | None:
    places = [index for index, size in enumerate(shape) if isinstance(size, str)]
    if len(places) != 1:
        return None
    place, factor = places[0], _factor(shape[places[0]])
    if factor == 1:
        return Layout(place)
    if factor is None or not given:
        return None
    name = operator.target.split(".")[1]
    if name == "cat" and all(layout.before * layout.after == 1 for layout, _ in given):
        return Layout(place, factor)
    if name in _FOLDS:
        return _folded(shape, place, *given[0])
    same = [layout for layout, _ in given if layout.before * layout.after == factor]
    return Layout(place, same[0].before, same[0].after) if same else None


def _folded(shape: tuple[Dim, ...], place: int, layout: Layout, source: tuple[Dim, ...]) -> Layout | None:
    """The layout behind a view: which sizes of the source were folded into dimension ``place`` of ``shape``."""
    lead = prod(size for size in shape[:place] if isinstance(size, int))
    total = _factor(shape[place])
    if total is None or not all(isinstance(size, int) for size in (*source[: layout.dim], *source[layout.dim + 1 :])):
        return None
    # Row by row, all that stands before the batch is split into what leads and what is folded in with it.
    before, rest = divmod(prod(int(size) for size in source[: layout.dim]) * layout.before, lead)
    after, odd = divmod(total, before) if before and not rest else (0, 1)
    behind = layout.after * prod(int(size) for size in source[layout.dim + 1 :])
    return Layout(place, before, after) if not rest and not odd and behind % after == 0 else None


def _numeric(
    operator: Operator, shape: tuple[Dim, ...], given: list[tuple[Layout, tuple[Dim, ...]]], graph: OperatorGraph
) -> Layout | None:
    """The same where the batch is a number, so that sizes alone do not tell: only what surely keeps its place."""
    if not given or not operator.target.startswith("aten."):
        return None
    name = operator.target.split(".")[1]
    layout, source = given[0]
    if not layout.plain and name in _FOLDS:
        return None
    dims = operator.args[1] if len(operator.args) > 1 else None
    if name in _FOLDS:
        return BATCH_FIRST if shape[:1] == source[:1] else None
    if name in ("permute", "transpose", "t"):
        if name == "permute":
            assert isinstance(dims, tuple)
            order = [int(item) % len(shape) for item in dims]  # type: ignore[arg-type]
        else:
            order = list(range(len(shape)))
            one, two = (0, 1) if name == "t" else (int(item) % len(shape) for item in operator.args[1:3])  # type: ignore[arg-type]
            order[one], order[two] = two, one
        return Layout(order.index(layout.dim))
    if name == "cat" and any(int(item) == layout.dim for item in operator.args[1:2] if isinstance(item, int)):
        return None
    moved = layout.dim
    if name == "unsqueeze":
        moved += int(dims) % len(shape) <= layout.dim  # type: ignore[arg-type]
    elif name in _REDUCE and len(shape) < len(source):
        axes = dims if isinstance(dims, tuple) else (dims if isinstance(dims, int) else 0,)
        places = {int(item) % len(source) for item in axes}  # type: ignore[arg-type]
        if moved in places:
            return None
        moved -= sum(place < layout.dim for place in places)
    elif len(shape) > len(source) and shape[moved] != source[layout.dim]:
        moved += len(shape) - len(source)
    return Layout(moved) if moved < len(shape) and shape[moved] == source[layout.dim] else None
