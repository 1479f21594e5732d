"""OperatorGraph → RegionGraph: group the operators into the pieces that carry error neurons.

Before:  operators, one by one.
After:   regions. A region starts at a parametrised operator; it takes in what follows as long as an error can be
         carried back over it in closed form (norms, residual additions, reshapes, pools), and ends with the first
         non-linearity: h_i stands before it, z_i after it. Two parametrised branches that are added, such as a block's
         last layer and the projection of its skip, share one pre-activation and so one region (Eq. 5's W_{k→i} for
         several k). A region never grows out of the block that it started in, so block outputs carry error neurons.
         What a layer's module does before its own parameters come in, as a pseudo-convolution's noise and ReLU do,
         ends the regions that it reads from, and belongs to the layer's.
         Everything else (pooling behind z_i, concatenation, …) belongs to the latest region that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import Operator, OperatorGraph, Parameter
from reclra_graph.ir.regions import LOCAL, Region, RegionGraph, Update
from reclra_graph.passes.blocks import find_blocks
from reclra_graph.passes.extend import extended, with_last_layers
from reclra_graph.passes.features import feature_axis
from reclra_graph.passes.growing import Growing
from reclra_graph.passes.local import local_derivatives
from reclra_graph.passes.preludes import preludes
from reclra_graph.rules.operators import is_activation, short
from reclra_graph.rules.table import MOVES, NORMS, carry, data_read, derived_read, parameters_read, update


def partition(graph: OperatorGraph) -> RegionGraph:
    """Regions in the order in which their representations are computed; region 0 is the input.

    Raises ModelError: RG301 without parameters, RG302 where nothing learns, RG305 where a layer's output does not lead
    with the batch.
    """
    if not graph.parameters:
        raise ModelError(Problem("RG301", f"{graph.model} has no parameters", graph.model))
    if not any(item.learns for item in graph.parameters):
        raise ModelError(Problem("RG302", f"no parameter of {graph.model} requires grad", graph.model))
    blocks = find_blocks(graph)
    grown = _grow(graph, blocks)
    grown = with_last_layers(graph, [*grown, *_bare(graph, grown)])
    regions, outputs = _number(graph, extended(graph, grown))
    result = _with_updates(graph, regions, outputs)
    if not any(region.learns for region in result.regions):
        raise ModelError(
            Problem("RG302", "no parameter that requires grad is used on the way to the output", graph.model)
        )
    return result


def _grow(graph: OperatorGraph, blocks: Mapping[str, str]) -> list[Growing]:
    """All regions with a parametrised operator, closed."""
    open_at: dict[str, Growing] = {}
    closed: list[Growing] = []
    before = preludes(graph)

    def close(region: Growing) -> None:
        open_at.pop(region.end, None)
        # What only moves numbers to other places stands behind the representation: queries and keys of an attention are
        # errors' business as features, not as heads. A vector unfolded into a map gets its positions there, and keeps
        # them.
        while short(graph.by_name[region.end].target) in MOVES and region.end not in graph.output_values:
            source = graph.by_name[region.end].reads[0]
            if len(graph.sample_shape(source) or ()) == 1 < len(graph.sample_shape(region.end) or ()):
                break
            region.core.remove(region.end)
            region.end = source
        region.post = region.post or region.end
        closed.append(region)

    for operator in graph.operators:
        data = data_read(operator, graph)
        block = blocks.get(operator.name, "")
        arriving = [open_at[name] for name in data if name in open_at]
        mine = [region for region in arriving if region.block == block and _only_user(graph, region.end, operator)]
        if operator.name in graph.without_data or operator.name not in graph.reaching:
            continue
        if operator.name in before:
            for region in arriving:
                close(region)
            continue
        parametrised = any(name in graph.derived for name in operator.reads)
        grows = (
            mine
            and len(mine) == len(arriving)
            and (not parametrised or short(operator.target) in NORMS or len(data) == 1)
        )
        joins = grows and all(carry(operator, graph, region.end) is not None for region in mine)
        if operator.target == "operator.getitem" and operator.args[1] != 0:
            continue
        if joins:
            region = _merged(mine, operator)
            for old in mine:
                open_at.pop(old.end, None)
            region.end = operator.name
            open_at[operator.name] = region
        elif len(arriving) == 1 and not parametrised and _ends(graph, arriving[0], operator, block):
            region = arriving[0]
            open_at.pop(region.end)
            region.activation, region.post = (operator.name,), operator.name
            closed.append(region)
            continue
        else:
            for region in arriving:
                close(region)
            if parametrised:
                core = [name for name, end in before.items() if end == operator.name]
                open_at[operator.name] = Growing([*core, operator.name], operator.name, operator, block)
        if operator.name in graph.output_values and operator.name in open_at:
            close(open_at[operator.name])
    for region in list(open_at.values()):
        close(region)
    return closed


def _ends(graph: OperatorGraph, region: Growing, operator: Operator, block: str) -> bool:
    """Whether the operator is the non-linearity φ that ends a region: in its block, or between blocks."""
    return block in ("", region.block) and is_activation(operator) and _only_user(graph, region.end, operator)


def _only_user(graph: OperatorGraph, value: str, operator: Operator) -> bool:
    """Whether nothing but the operator reads the value; questions for its size, and the unused parts of a tuple, do not
    count. The model's output is always read."""
    users = [graph.by_name[name] for name in graph.users.get(value, ())]
    if graph.by_name[value].types:
        users = [user for user in users if user.args[1:] == (0,)]
    counted = {
        user.name
        for user in users
        if not (user.target.startswith("aten.sym_") or (user.type is None and not user.types))
    }
    return counted == {operator.name} and value not in graph.output_values


def _merged(regions: list[Growing], operator: Operator) -> Growing:
    main = max(regions, key=lambda region: len(region.core))
    core = [name for region in regions for name in region.core]
    return Growing([*core, operator.name], operator.name, main.first, main.block)


def _number(graph: OperatorGraph, grown: list[Growing]) -> tuple[tuple[Region, ...], tuple[int, ...]]:
    """Regions with ids, every operator assigned to one, and the ids of the outputs."""
    position = {operator.name: index for index, operator in enumerate(graph.operators)}
    grown.sort(key=lambda region: position[region.post])
    owner: dict[str, int] = {item.name: 0 for item in graph.inputs}
    blocks_end: dict[str, int] = {}
    for number, region in enumerate(grown, start=1):
        owner.update(dict.fromkeys((*region.core, *region.activation), number))
        blocks_end[region.block] = number
    for operator in graph.operators:
        if operator.name not in owner:
            owner[operator.name] = max((owner[name] for name in operator.reads if name in owner), default=0)
    members: dict[int, list[str]] = {}
    for operator in graph.operators:
        members.setdefault(owner[operator.name], []).append(operator.name)
    first = graph.inputs[0]
    given = graph.sample_shape(first.name) or ()
    regions = [Region(0, "input", "input", tuple(members.get(0, ())), first.name, (), first.name, given)]
    for number, region in enumerate(grown, start=1):
        shape = graph.sample_shape(region.end)
        assert shape is not None, region
        regions.append(
            Region(
                number,
                region.first.module or region.first.name,
                region.kind,
                tuple(members[number]),
                region.end,
                region.activation,
                region.post,
                shape,
                (),
                region.block,
                region.block != "" and blocks_end[region.block] == number,
                region.first.line,
                graph.layouts[region.end],
                feature_axis(graph, members[number], region.end),
            )
        )
    at = {region.post: region.id for region in regions}
    return tuple(regions), tuple(at[item.value] for item in graph.outputs)


def _bare(graph: OperatorGraph, grown: list[Growing]) -> list[Growing]:
    """Outputs that no layer ends with: they carry their loss's error alone."""
    ends = {region.post for region in grown}
    missing = dict.fromkeys(item.value for item in graph.outputs if item.value not in ends)
    problems = [
        Problem("RG203", f"forward() returns {name}, which it does not compute", graph.model)
        for name in missing
        if name not in graph.by_name
    ]
    if problems:
        raise ModelError(problems)
    return [Growing([name], name, graph.by_name[name], "", (), name, "output") for name in missing]


def _with_updates(graph: OperatorGraph, regions: tuple[Region, ...], outputs: tuple[int, ...]) -> RegionGraph:
    """Regions with the rule by which each parameter learns, and the parameters that do not learn."""
    learns = {item.name: item for item in graph.parameters if item.learns}
    found: dict[int, list[Update]] = {}
    for region in regions:
        paths = _paths(graph, region)
        for name in region.operators:
            if name in graph.without_data or name not in graph.reaching:
                continue
            operator = graph.by_name[name]
            for item in _updates(graph, operator, paths.get(name)):
                if item.parameter in {parameter.key for parameter in learns.values()}:
                    found.setdefault(region.id, []).append(item)
    done = tuple(replace(region, updates=tuple(found.get(region.id, ()))) for region in regions)
    flat: set[str] = set()
    done = tuple(_without_zeros(graph, region, flat) for region in done)
    used = {key for region in done for key in region.parameters}
    frozen = [(item.key, _why_frozen(graph, item, flat)) for item in graph.parameters if item.key not in used]
    return RegionGraph(graph, done, outputs, tuple(frozen))


def _without_zeros(graph: OperatorGraph, region: Region, flat: set[str]) -> Region:
    """The region without the parameters whose local derivative is zero everywhere; ``flat`` learns their keys."""
    if all(item.rule != LOCAL for item in region.updates):
        return region
    _, moved = local_derivatives(graph, region, "e", lambda name: name)
    flat.update(key for key in region.parameters if key not in moved)
    return replace(region, updates=tuple(item for item in region.updates if item.parameter in moved))


def _why_frozen(graph: OperatorGraph, item: Parameter, flat: set[str]) -> str:
    if not item.learns:
        return "requires_grad is False"
    if item.key in flat:
        return "its derivative is zero everywhere, as behind a step function"
    if graph.users.get(item.name):
        return "it only moves buffers"
    if graph.unused:
        return f"not used on the way to {', '.join(output.label for output in graph.outputs)}"
    return "not used by forward()"


def _updates(graph: OperatorGraph, operator: Operator, path: tuple[str, ...] | None) -> Iterator[Update]:
    """How the parameters learn that an operator reads, directly or through values derived from them.

    Where the error cannot be carried to the operator, or the operator has no closed form, the rule is local_vjp.
    """
    keys = {item.name: item.key for item in graph.parameters}
    direct = parameters_read(operator, graph)
    for position, value in direct:
        call = update(operator, graph, position) if path is not None else None
        if call is None or sum(1 for _, other in direct if other == value) > 1:
            yield Update(keys[value], operator.name, position, LOCAL)
        else:
            yield Update(keys[value], operator.name, position, call.function, path or ())
    nested = {name for name in operator.reads if name in graph.parameter_names} - {value for _, value in direct}
    for value in (*derived_read(operator, graph), *sorted(nested)):
        for source in sorted(graph.derived[value]):
            yield Update(keys[source], operator.name, -1, LOCAL)


def _paths(graph: OperatorGraph, region: Region) -> dict[str, tuple[str, ...]]:
    """For each operator that an error reaches from the pre-activation: the operators on the way, nearest first."""
    if region.kind != "layer":
        return {}
    paths: dict[str, tuple[str, ...]] = {region.pre: ()}
    inside = set(region.operators)
    waiting = [region.pre]
    while waiting:
        name = waiting.pop()
        operator = graph.by_name[name]
        for value in data_read(operator, graph):
            if value in inside and value not in paths and carry(operator, graph, value) is not None:
                paths[value] = (*paths[name], name)
                waiting.append(value)
    return paths
