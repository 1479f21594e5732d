"""OperatorGraph → RegionGraph: group the operators into the pieces that carry error neurons.

Before:  operators, one by one.
After:   regions. A region starts at a parametrised operator; it takes in what follows as long as an error can be
         carried back over it in closed form (norms, residual additions, reshapes, pools), and ends with the first
         non-linearity: h_i stands before it, z_i after it. Two parametrised branches that are added, such as a block's
         last layer and the projection of its skip, share one pre-activation and so one region (Eq. 5's W_{k→i} for
         several k). A region never grows out of the block that it started in, so block outputs carry error neurons.
         Everything else (pooling behind z_i, concatenation, …) belongs to the latest region that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import Operator, OperatorGraph
from reclra_graph.ir.regions import LOCAL, Region, RegionGraph, Update
from reclra_graph.rules.operators import is_activation, short
from reclra_graph.rules.table import NORMS, carry, data_read, derived_read, parameters_read, update


@dataclass
class _Open:
    """A region that is still growing; ``end`` is the value it has reached."""

    core: list[str]
    end: str
    first: Operator
    block: str
    activation: tuple[str, ...] = ()
    post: str = ""


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
    regions, output = _number(graph, grown)
    result = _with_updates(graph, regions, output)
    if not any(region.learns for region in result.regions):
        raise ModelError(
            Problem("RG302", "no parameter that requires grad is used on the way to the output", graph.model)
        )
    return result


def find_blocks(graph: OperatorGraph) -> tuple[str, ...]:
    """Paths of the modules that repeat: the outermost whose class occurs again and that hold two layers or more.

    PyTorch's own containers count only where no class of the model's own repeats.
    """
    owners: dict[str, set[str]] = {}
    for parameter in graph.parameters:
        for key in (parameter.key, *parameter.tied):
            owner = key.rpartition(".")[0]
            parts = owner.split(".")
            for depth in range(1, len(parts)):
                owners.setdefault(".".join(parts[:depth]), set()).add(owner)
    classes = dict(graph.modules)
    holders = [(path, kind) for path, kind in graph.modules if len(owners.get(path, ())) >= 2]
    for containers in (False, True):
        kinds = [kind for _, kind in holders]
        repeated = [
            path
            for path, kind in holders
            if kinds.count(kind) > 1
            and kind not in ("ModuleList", "ModuleDict")
            and (containers or kind != "Sequential")
        ]
        outermost = [path for path in repeated if not any(path.startswith(other + ".") for other in repeated)]
        if len(outermost) > 1:
            return tuple(path for path in classes if path in outermost)
    return ()


def _block_of(module: str, blocks: tuple[str, ...]) -> str:
    return next((path for path in blocks if module == path or module.startswith(path + ".")), "")


def _grow(graph: OperatorGraph, blocks: tuple[str, ...]) -> list[_Open]:
    """All regions with a parametrised operator, closed."""
    open_at: dict[str, _Open] = {}
    closed: list[_Open] = []

    def close(region: _Open) -> None:
        region.post = region.post or region.end
        open_at.pop(region.end, None)
        closed.append(region)

    for operator in graph.operators:
        data = data_read(operator, graph)
        block = _block_of(operator.module, blocks)
        arriving = [open_at[name] for name in data if name in open_at]
        mine = [region for region in arriving if region.block == block and _only_user(graph, region.end, operator)]
        if operator.name in graph.without_data:
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
        elif len(mine) == 1 and len(arriving) == 1 and not parametrised and is_activation(operator):
            region = mine[0]
            open_at.pop(region.end)
            region.activation, region.post = (operator.name,), operator.name
            closed.append(region)
            continue
        else:
            for region in arriving:
                close(region)
            if parametrised:
                open_at[operator.name] = _Open([operator.name], operator.name, operator, block)
        if operator.name == graph.output and operator.name in open_at:
            close(open_at[operator.name])
    for region in list(open_at.values()):
        close(region)
    return closed


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
    return counted == {operator.name} and value != graph.output


def _merged(regions: list[_Open], operator: Operator) -> _Open:
    main = max(regions, key=lambda region: len(region.core))
    core = [name for region in regions for name in region.core]
    return _Open([*core, operator.name], operator.name, main.first, main.block)


def _number(graph: OperatorGraph, grown: list[_Open]) -> tuple[tuple[Region, ...], int]:
    """Regions with ids, every operator assigned to one, and the id of the output."""
    position = {operator.name: index for index, operator in enumerate(graph.operators)}
    grown.sort(key=lambda region: position[region.post])
    owner: dict[str, int] = {item.name: 0 for item in graph.inputs}
    for number, region in enumerate(grown, start=1):
        for name in (*region.core, *region.activation):
            owner[name] = number
    bare = graph.output not in {region.post for region in grown}
    if bare:
        owner[graph.output] = len(grown) + 1
    for operator in graph.operators:
        if operator.name not in owner:
            owner[operator.name] = max((owner[name] for name in operator.reads if name in owner), default=0)
    members: dict[int, list[str]] = {}
    for operator in graph.operators:
        members.setdefault(owner[operator.name], []).append(operator.name)

    problems: list[Problem] = []
    first = graph.inputs[0]
    head = Region(
        0, "input", "input", tuple(members.get(0, ())), first.name, (), first.name, graph.sample_shape(first.name) or ()
    )
    regions = [head]
    blocks_end: dict[str, int] = {region.block: number for number, region in enumerate(grown, start=1)}
    for number, region in enumerate(grown, start=1):
        shape = graph.sample_shape(region.end)
        if shape is None:
            found = graph.types[region.end].shape
            problems.append(
                Problem(
                    "RG305", f"{region.first.module or region.end} gives a tensor of shape {found}", region.first.line
                )
            )
            continue
        ends = region.block != "" and blocks_end[region.block] == number
        regions.append(
            Region(
                number,
                region.first.module or region.first.name,
                "layer",
                tuple(members[number]),
                region.end,
                region.activation,
                region.post,
                shape,
                (),
                region.block,
                ends,
                region.first.line,
            )
        )
    if problems:
        raise ModelError(problems)
    if not bare:
        return tuple(regions), next(region.id for region in regions if region.post == graph.output)
    number = len(grown) + 1
    final = graph.by_name.get(graph.output)
    name = (final.module or final.name) if final else graph.output
    shape = graph.sample_shape(graph.output) or ()
    regions.append(
        Region(
            number,
            name,
            "output",
            tuple(members.get(number, ())),
            graph.output,
            (),
            graph.output,
            shape,
            line=final.line if final else "",
        )
    )
    return tuple(regions), number


def _with_updates(graph: OperatorGraph, regions: tuple[Region, ...], output: int) -> RegionGraph:
    """Regions with the rule by which each parameter learns, and the parameters that do not learn."""
    learns = {item.name: item for item in graph.parameters if item.learns}
    found: dict[int, list[Update]] = {}
    used: set[str] = set()
    for region in regions:
        paths = _paths(graph, region)
        for name in region.operators:
            if name in graph.without_data:
                continue
            operator = graph.by_name[name]
            for item in _updates(graph, operator, paths.get(name)):
                if item.parameter in {parameter.key for parameter in learns.values()}:
                    used.add(item.parameter)
                    found.setdefault(region.id, []).append(item)
    frozen = [
        (item.key, "requires_grad is False" if not item.learns else "not used by forward()")
        for item in graph.parameters
        if item.key not in used
    ]
    done = tuple(replace(region, updates=tuple(found.get(region.id, ()))) for region in regions)
    return RegionGraph(graph, done, output, tuple(frozen))


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
