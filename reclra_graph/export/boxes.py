"""What the pictures of a plan show: which operators become boxes, and what they are called.

Bookkeeping (sizes, tuple items, counters of batches, arithmetic on parameters alone) is left out, and the wires are
drawn past it.
"""

from __future__ import annotations

from dataclasses import dataclass

from reclra_graph.export.panels import Box, Panel, panels_of
from reclra_graph.ir.operators import Operator, OperatorGraph
from reclra_graph.ir.schedule import Schedule
from reclra_graph.ir.wiring import WiringPlan

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("dense", ("conv", "linear", "addmm", "embedding", "bilinear")),
    ("norm", ("norm",)),
    ("pool", ("pool", "mean", "amax", "upsample", "interpolate")),
    ("attention", ("softmax", "attention", "matmul", "bmm", "mm", "einsum", "baddbmm")),
    ("drop", ("dropout", "bernoulli")),
    (
        "shape",
        ("view", "reshape", "flatten", "permute", "transpose", "expand", "squeeze", "clone", "slice", "select", "pad",
         "split", "chunk", "unbind", "roll", "repeat", "contiguous", "copy", "alias", "movedim", "index"),
    ),
    (
        "act",
        ("relu", "tanh", "sigmoid", "gelu", "silu", "elu", "sign", "softplus", "hardswish", "mish", "hardtanh", "clamp",
         "prelu", "sgn", "exp", "log", "erf", "sin", "cos"),
    ),
    ("join", ("add", "sub", "mul", "div", "cat", "stack", "where", "maximum", "minimum", "lerp", "pow", "neg")),
)  # fmt: skip

_SHORT = {
    "_native_batch_norm_legit_functional": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "native_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "native_dropout": "dropout",
    "max_pool2d_with_indices": "max_pool2d",
    "_adaptive_avg_pool2d": "avg_pool2d",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "scaled_dot_product_attention": "attention",
    "_unsafe_view": "view",
    "_softmax": "softmax",
    "convolution": "conv",
}


@dataclass(frozen=True)
class Picture:
    """Everything drawn of the forward pass, without coordinates.

    ``wires`` are (producer, consumer) pairs of boxes; ``post`` names the box that shows z_i of a region, ``panel_of``
    the panel (by index) of every box.
    """

    boxes: dict[str, Box]
    wires: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]
    post: dict[int, str]
    panel_of: dict[str, int]


def bytes_text(count: int) -> str:
    """A number of bytes with a unit: ``512 B``, ``4.2 KB``, ``3.1 MB``."""
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")


def short_name(target: str) -> str:
    """``aten.max_pool2d.default`` → ``max_pool2d``."""
    parts = target.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    return _SHORT.get(name, name.strip("_") or name)


def picture(plan: WiringPlan) -> Picture:
    """Boxes, wires and panels of a plan; the same value for the same plan, in every process."""
    graph = plan.regions.graph
    owner = plan.regions.region_of
    shown = _shown(plan)
    one_of = _single(plan, shown)
    names = _labels(graph, shown, one_of)
    shown = {one_of.get(name, name) for name in shown}
    boxes: dict[str, Box] = {}
    for item in graph.inputs:
        title = f"input {item.name}: {item.type}"
        boxes[item.name] = Box(item.name, "input" if len(graph.inputs) == 1 else item.name, "input", 0, title)
    for operator in graph.operators:
        if operator.name in shown:
            boxes[operator.name] = Box(
                operator.name,
                names[operator.name],
                _kind(operator, operator.name in one_of),
                owner.get(operator.name, 0),
                _title(operator),
            )
    behind = _sources(graph, set(boxes), one_of)
    wires = tuple((source, name) for name in boxes if name in graph.by_name for source in behind[name])
    post = {}
    for region in plan.regions.regions:
        shown_post = one_of.get(region.post, region.post)
        found = shown_post if shown_post in boxes else next(iter(behind.get(region.post, ())), "")
        inside = [name for name in region.operators if name in boxes]
        chosen = found or (inside[-1] if inside else "")
        if chosen:
            post[region.id] = chosen
    panels = panels_of(plan, boxes, wires)
    return Picture(boxes, wires, panels, post, {name: at for at, panel in enumerate(panels) for name in panel.boxes})


def _is_size(operator: Operator) -> bool:
    """Whether the value is a number and no tensor: sizes, and arithmetic on them."""
    return operator.type is None and not operator.types


def _shown(plan: WiringPlan) -> set[str]:
    """Operators worth a box: those on a way from an input to the output, or that a region names."""
    graph = plan.regions.graph
    table = graph.by_name
    fed = {item.name for item in graph.inputs}
    for operator in graph.operators:
        if not _is_size(operator) and any(name in fed for name in operator.reads):
            fed.add(operator.name)
    needed = set(graph.output_values)
    for operator in reversed(graph.operators):
        if operator.name in needed:
            needed.update(operator.reads)
    named = {update.operator for region in plan.regions.regions for update in region.updates}
    keep = (fed | named) & needed
    found = {name for name in keep if name in table and not _is_size(table[name]) and not _hidden(table[name])}
    for region in plan.regions.regions:
        operator_or_none = table.get(region.post)
        if operator_or_none is not None and not any(name in found for name in region.operators):
            found.add(operator_or_none.name)
    return found


def _hidden(operator: Operator) -> bool:
    """Operators that move no data worth a box."""
    name = operator.target.split(".")[1] if "." in operator.target else operator.target
    return operator.target.startswith("operator.") or name in {"alias", "detach", "lift_fresh_copy", "sym_size"}


def _single(plan: WiringPlan, shown: set[str]) -> dict[str, str]:
    """Operators drawn as one box with the last of them: the parts of a parameterless module (dropout, say), within one
    region, if nothing outside reads them before the last has run."""
    graph = plan.regions.graph
    parents = _parents(graph)
    region_of = plan.regions.region_of
    apart = {region.post for region in plan.regions.regions}
    apart |= {update.operator for region in plan.regions.regions for update in region.updates}
    group: dict[str, list[str]] = {}
    for operator in graph.operators:
        path = operator.module.partition("@")[0]
        if operator.name not in shown or not path or path in parents:
            continue
        for name in operator.reads:
            before = graph.by_name.get(name)
            if before is None or name not in shown or before.module != operator.module or name in apart:
                continue
            if region_of.get(name) == region_of.get(operator.name) and operator.name not in apart:
                mine, other = group.get(operator.name, [operator.name]), group.get(name, [name])
                if mine is not other:
                    mine[:0] = other
                    group.update(dict.fromkeys(mine, mine))
    place = {operator.name: at for at, operator in enumerate(graph.operators)}
    table: dict[str, str] = {}
    for name, members in group.items():
        last = max(members, key=lambda item: place[item])
        outside = {reader for item in members for reader in graph.users.get(item, ()) if reader not in members}
        if all(place[reader] > place[last] for reader in outside):
            table[name] = last
    return table


def _sources(graph: OperatorGraph, boxes: set[str], one_of: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """For every operator, the boxes it reads from, looking through operators that have none."""
    table: dict[str, tuple[str, ...]] = {}
    for operator in graph.operators:
        found: list[str] = []
        for name in operator.reads:
            whole = one_of.get(name, name)
            if whole in boxes and one_of.get(operator.name) != whole:
                found.append(whole)
            elif name in graph.by_name and not _is_size(graph.by_name[name]):
                found.extend(table.get(name, ()))
        table[operator.name] = tuple(dict.fromkeys(found))
    return table


def _kind(operator: Operator, whole: bool) -> str:
    """Colour class of an operator; of its module where the box stands for the ``whole`` of that."""
    name = operator.module_class.lower() if whole else short_name(operator.target)
    if name.startswith(("relu", "silu", "elu", "gelu")):
        return "act"
    return next((kind for kind, words in _KINDS if any(word in name for word in words)), "other")


def _parents(graph: OperatorGraph) -> set[str]:
    """Paths of the modules that hold others."""
    return {path.rpartition(".")[0] for path, _ in graph.modules if path}


def _labels(graph: OperatorGraph, shown: set[str], one_of: dict[str, str]) -> dict[str, str]:
    """A module that is one operator, or drawn as one, lends its name; other operators carry their own."""
    parents = _parents(graph)
    kinds: dict[str, set[str]] = {}
    for name in shown:
        box = one_of.get(name, name)
        kinds.setdefault(graph.by_name[box].module, set()).add(graph.by_name[box].target)
    labels = {}
    for name in shown:
        operator = graph.by_name[name]
        path = operator.module.partition("@")[0]
        if path and path not in parents and len(kinds[operator.module]) == 1:
            labels[name] = _module_label(path, operator.module_class)
        else:
            labels[name] = short_name(operator.target)
    return labels


def _module_label(path: str, module_class: str) -> str:
    """Last part of a path; a bare number takes its parent's name, or else its class's, along."""
    parent, _, last = path.rpartition(".")
    if not last.isdigit():
        return last
    holder = parent.rpartition(".")[2]
    if holder.isdigit() or not holder:
        kind = module_class.rpartition(".")[2]
        return f"{last} {kind}" if kind else path
    return f"{'down' if holder == 'downsample' else holder}.{last}"


def _title(operator: Operator) -> str:
    kind = operator.type or next((item for item in operator.types if item is not None), None)
    parts = [f"{operator.name} = {operator.target}", str(kind) if kind else "", operator.module, operator.line]
    return "\n".join(part for part in parts if part)


def time_text(schedule: Schedule) -> str:
    """The makespan of a schedule: ``5 time units``, or ``1.24 ms``."""
    device, makespan = schedule.tasks.plan.device, schedule.makespan
    if device.clock != "unit":
        return device.shown(makespan)
    return f"{makespan} time unit{'' if makespan == 1 else 's'}"
