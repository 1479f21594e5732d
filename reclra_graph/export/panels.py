"""Which boxes of a picture stand together: one panel per block of the model, or per group of regions without blocks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil

from reclra_graph.ir.regions import Region
from reclra_graph.ir.wiring import WiringPlan

MOST_PANELS = 24
"""A plan without blocks is cut into at most about this many panels, unless they would become too tall."""
TALLEST = 12
"""Most regions in a panel of a plan without blocks."""
MOST_BOXES = 26
"""A block with more boxes is cut into several panels."""


@dataclass(frozen=True)
class Box:
    """An operator (or model input) as drawn. ``name`` is the value it defines, ``kind`` its colour class, ``title``
    the long text a pointer reveals."""

    name: str
    label: str
    kind: str
    region: int
    title: str


@dataclass(frozen=True)
class Panel:
    """Boxes that are drawn together, in an order in which they can run, and the regions they come from."""

    title: str
    shape: str
    boxes: tuple[str, ...]
    regions: tuple[int, ...]


def size_text(shape: tuple[int | str, ...]) -> str:
    """``64×56×56``; ``scalar`` where there are no sizes."""
    return "×".join(str(size) for size in shape) or "scalar"


def panels_of(plan: WiringPlan, boxes: dict[str, Box], wires: tuple[tuple[str, str], ...]) -> tuple[Panel, ...]:
    """One panel per block; regions without a block are grouped."""
    groups = _groups(plan)
    at = {region.id: index for index, (_, members) in enumerate(groups) for region in members}
    of = {name: at[box.region] for name, box in boxes.items()}
    blocks = {members[0].block: index for index, (_, members) in enumerate(groups) if members[0].block}
    readers: dict[str, list[str]] = {}
    for source, name in wires:
        readers.setdefault(source, []).append(name)
    for name in reversed(boxes):
        # Pooling behind the last block belongs to that block's region, but is better seen where it is used.
        block = plan.regions.regions[boxes[name].region].block
        operator = plan.regions.graph.by_name.get(name)
        inside_of = _holder(operator.module, blocks) if operator is not None else ""
        if inside_of and inside_of != block:
            of[name] = blocks[inside_of]
            continue
        if not block or operator is None or f"{operator.module}.".startswith(f"{block}."):
            continue
        used = {of[reader] for reader in readers.get(name, ())}
        if used and of[name] not in used:
            of[name] = min(used)
    inside: list[list[str]] = [[] for _ in groups]
    for name in boxes:
        inside[of[name]].append(name)
    panels: list[Panel] = []
    for (title, members), names in zip(groups, inside, strict=True):
        if names:
            panels += _cut(title, members, names, boxes)
    return tuple(panels)


def _holder(module: str, blocks: dict[str, int]) -> str:
    """The block that a module is, or lies in; empty for none."""
    while module and module not in blocks:
        module = module.rpartition(".")[0]
    return module


def _cut(title: str, members: list[Region], names: list[str], boxes: dict[str, Box]) -> list[Panel]:
    """One panel, or several where it would hold too many boxes; boxes of a region stay together."""
    amount = Counter(boxes[name].region for name in names)
    order = list(dict.fromkeys(boxes[name].region for name in names))
    pieces = ceil(len(names) / MOST_BOXES)
    size = len(names) / pieces
    piece_of: dict[int, int] = {}
    count = 0
    for region in order:
        piece_of[region] = min(pieces - 1, int((count + amount[region] / 2) / size))
        count += amount[region]
    panels = []
    for at in range(pieces):
        mine = [name for name in names if piece_of[boxes[name].region] == at]
        own = [region for region in members if piece_of.get(region.id, -1) == at]
        if mine:
            words = f"{title} · {at + 1} of {pieces}" if pieces > 1 else title
            panels.append(
                Panel(words, size_text((own or members)[-1].shape), tuple(mine), tuple(item.id for item in own))
            )
    return panels


def _groups(plan: WiringPlan) -> list[tuple[str, list[Region]]]:
    """(title, regions) of the panels, in the order of the forward pass."""
    regions = plan.regions.regions
    if not any(region.block for region in regions):
        return [(_span(members), members) for members in _runs(plan)]
    groups: list[tuple[str, list[Region]]] = []
    where: dict[str, int] = {}
    last = max(region.id for region in regions if region.block)
    for region in regions:
        if region.block and region.block in where:
            groups[where[region.block]][1].append(region)
        elif region.block:
            where[region.block] = len(groups)
            groups.append((region.block, [region]))
        elif groups and not groups[-1][1][-1].block:
            groups[-1][1].append(region)
        else:
            groups.append(("stem" if not groups else "head" if region.id > last else "", [region]))
    return [
        ("input" if [region.kind for region in members] == ["input"] else title or _span(members), members)
        for title, members in groups
    ]


def _runs(plan: WiringPlan) -> list[list[Region]]:
    """Neighbouring regions under one relay stand together; long runs are cut, many short ones joined."""
    first = [region for region in plan.regions.regions if region.kind != "input"]
    keys: dict[int, int] = {}
    for level_region in sorted(plan.level, key=lambda item: (plan.level[item], item)):
        edges = plan.incoming.get(level_region, ())
        above = edges[0].source if edges else level_region
        keys[level_region] = level_region if plan.level.get(above, 0) == 0 else keys.get(above, above)
    runs: list[list[Region]] = []
    for region in first:
        if runs and keys.get(runs[-1][0].id, runs[-1][0].id) == keys.get(region.id, region.id):
            runs[-1].append(region)
        else:
            runs.append([region])
    size = min(TALLEST, ceil(len(first) / MOST_PANELS))
    joined: list[list[Region]] = []
    for run in runs:
        pieces = ceil(len(run) / TALLEST)
        step = ceil(len(run) / pieces)
        for start in range(0, len(run), step):
            piece = run[start : start + step]
            if joined and len(joined[-1]) + len(piece) <= size:
                joined[-1].extend(piece)
            else:
                joined.append(piece)
    inputs = [region for region in plan.regions.regions if region.kind == "input"]
    if joined:
        joined[0] = inputs + joined[0]
    return joined or [inputs]


def _span(members: list[Region]) -> str:
    """Title of regions without a block: the module path of one, the ids of several."""
    named = [region for region in members if region.kind != "input"] or members
    if len(named) == 1:
        name = named[0].name
        return name if name and not name.rpartition(".")[2].isdigit() else f"region {named[0].id}"
    tops = Counter(region.name.partition(".")[0] for region in named)
    top = next(iter(tops)) if len(tops) == 1 else ""
    words = f"regions {named[0].id}–{named[-1].id}"
    return f"{top} · {words}" if top and not top.isdigit() else words
