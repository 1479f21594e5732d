"""Coverage: how each operator and each parameter of a model takes part in learning, before anything is built.

An operator is *analytic* where a closed form carries errors over it or updates its parameters; *local* where PyTorch's
own derivative of that single operator is used inside its region; *opaque* where a sub-module runs as it is and takes
its own derivative; *not differentiated* where no error ever passes over it: between regions nothing needs a derivative.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

from reclra_graph.ir.operators import OPAQUE, Operator, OperatorGraph, TensorType
from reclra_graph.ir.regions import LOCAL, Region, RegionGraph

WAYS = ("analytic", "not differentiated", "local", "opaque")


@dataclass(frozen=True)
class Coverage:
    """``operators``: (way, count) for each of WAYS; ``rules``: (rule, tensors, entries) of the parameters that are
    updated, most entries first. ``special``: (operator, way, module, line, count) of what is local or opaque, most
    frequent first. Parameters are counted in tensors and in entries; ``frozen`` lists (key, reason)."""

    operators: tuple[tuple[str, int], ...]
    rules: tuple[tuple[str, int, int], ...]
    special: tuple[tuple[str, str, str, str, int], ...]
    regions: int
    learning: int
    parameters: int
    updated: int
    entries: int
    entries_updated: int
    frozen: tuple[tuple[str, str], ...]

    @property
    def total(self) -> int:
        """Operators of the forward pass that compute tensors from the data."""
        return sum(count for _, count in self.operators)

    @property
    def covered(self) -> int:
        """Operators that need no derivative of their own: closed forms, and what no error passes over."""
        return sum(count for way, count in self.operators if way in ("analytic", "not differentiated"))

    def lines(self) -> tuple[str, ...]:
        """Sentences for people, one per line."""
        share = f", {100 * self.covered // self.total} %" if self.total else ""
        ways = ", ".join(f"{count} {way}" for way, count in self.operators if count)
        texts = [
            f"{self.covered} of {self.total} operators{share}, without a derivative ({ways})",
            f"{self.learning} of {self.regions} regions learn",
            f"{self.updated} of {self.parameters} parameter tensors are updated "
            f"({self.entries_updated:,} of {self.entries:,} entries)",
        ]
        texts += [f"{name}: {tensors} tensors, {entries:,} entries" for name, tensors, entries in self.rules]
        for name, way, module, line, count in self.special:
            more = f" and {count - 1} more" if count > 1 else ""
            texts.append(f"{way}: {name} in {module or 'forward'}{more}" + (f"  {line}" if line else ""))
        texts += [f"frozen: {key}: {reason}" for key, reason in self.frozen]
        return tuple(texts)


def coverage(regions: RegionGraph) -> Coverage:
    """Counts over a partitioned model; needs no wiring."""
    graph = regions.graph
    way = _ways(regions)
    counts = Counter(way.values())
    special: dict[tuple[str, str], list[Operator]] = {}
    for operator in graph.operators:
        if way.get(operator.name) in ("local", "opaque"):
            name = operator.module if operator.target == OPAQUE else operator.target
            special.setdefault((name, way[operator.name]), []).append(operator)
    sizes = {item.key: _entries(item.type) for item in graph.parameters}
    rule_of = {
        update.parameter: LOCAL if _local(region) else update.rule.rpartition(".")[2]
        for region in regions.regions
        for update in region.updates
    }
    tensors, entries = Counter(rule_of.values()), Counter[str]()
    for key, rule in rule_of.items():
        entries[rule] += sizes[key]
    return Coverage(
        tuple((item, counts[item]) for item in WAYS),
        tuple((rule, tensors[rule], count) for rule, count in entries.most_common()),
        tuple(
            (name, kind, items[0].module, items[0].line, len(items))
            for (name, kind), items in sorted(special.items(), key=lambda pair: (-len(pair[1]), pair[0]))
        ),
        len(regions.sites),
        sum(region.learns for region in regions.regions),
        len(sizes),
        len(rule_of),
        sum(sizes.values()),
        sum(sizes[key] for key in rule_of),
        regions.frozen,
    )


def _local(region: Region) -> bool:
    return any(update.rule == LOCAL for update in region.updates)


def _ways(regions: RegionGraph) -> dict[str, str]:
    """How each operator that computes tensors from the data, or parameters' values for it, takes part."""
    graph = regions.graph
    found: dict[str, str] = {}
    for operator in graph.operators:
        if operator.name in graph.reaching and operator.name not in graph.without_data and _computes(operator):
            found[operator.name] = "opaque" if operator.target == OPAQUE else "not differentiated"
    for region in regions.regions:
        names = _moved(graph, region) if _local(region) else _closed(region)
        for name in names:
            if name in found or name in graph.derived:
                opaque = graph.by_name[name].target == OPAQUE
                found[name] = "opaque" if opaque else "local" if _local(region) else "analytic"
    return found


def _computes(operator: Operator) -> bool:
    return operator.target != "operator.getitem" and (operator.type is not None or bool(operator.types))


def _closed(region: Region) -> set[str]:
    """Operators of a region with closed forms: those that read parameters, those on the errors' way to them, and φ."""
    names = {name for update in region.updates for name in (update.operator, *update.path)}
    return names | set(region.activation)


def _moved(graph: OperatorGraph, region: Region) -> set[str]:
    """Operators between the parameters of a region and its representation."""
    moving = {item.name for item in graph.parameters if item.key in region.parameters}
    inside = set(region.operators) | set(graph.derived)
    names: list[str] = []
    for operator in graph.operators:
        if operator.name in inside and operator.differentiable and any(read in moving for read in operator.reads):
            moving.add(operator.name)
            names.append(operator.name)
    needed = {region.post}
    for name in reversed(names):
        if name in needed:
            needed.update(graph.by_name[name].reads)
    return {name for name in names if name in needed and _computes(graph.by_name[name])}


def _entries(kind: TensorType) -> int:
    return prod(int(size) for size in kind.shape)
