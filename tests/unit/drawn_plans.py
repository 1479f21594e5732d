"""Schedules built by hand, without torch, for the tests of the pictures."""

from __future__ import annotations

from collections.abc import Sequence

from reclra_graph.ir.operators import Input, Operator, OperatorGraph, Output, Parameter, Ref, TensorType
from reclra_graph.ir.regions import Region, RegionGraph, Update
from reclra_graph.ir.schedule import Lane, Schedule, Slot
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.ir.wiring import Candidate, Edge, Loss, Rates, WiringPlan

FIGURE_1 = ((9, 8), (9, 5), (9, 2), (8, 7), (8, 6), (5, 4), (5, 3), (2, 1))
"""The paper's Figure 1: (source, target) of the error edges."""


def flat(layers: int) -> tuple[tuple[int, int], ...]:
    return tuple((layers, target) for target in range(1, layers))


def chain(layers: int) -> tuple[tuple[int, int], ...]:
    return tuple((source, source - 1) for source in range(layers, 1, -1))


def _plan(graph: OperatorGraph, regions: Sequence[Region], pairs: Sequence[tuple[int, int]], lanes: int) -> Schedule:
    region_graph = RegionGraph(graph, tuple(regions), (regions[-1].id,))
    edges = tuple(
        Edge(one, two, "dense", "eq6", (regions[two].units, regions[one].units), 4 * regions[two].units)
        for one, two in pairs
    )
    relays = tuple(sorted({one for one, _ in pairs} - {regions[-1].id}))
    update = tuple((region.id, "analytic") for region in regions if region.learns)
    rates, losses = Rates(kappa=((1, 0.5),)), (Loss("output", "cross-entropy"),)
    draft = WiringPlan(region_graph, lanes, "by hand", 0, relays, edges, update, rates, losses)
    depth = max(draft.level.values(), default=0)
    candidates = (
        Candidate("by hand", depth, relays, 4, 2 * len(regions), 4096, 12, chosen=True),
        Candidate("chain", len(regions) - 2, (), 9, 2 * len(regions), 8192, 36),
    )
    plan = WiringPlan(
        region_graph, lanes, "by hand", depth, relays, edges, update, rates, losses, candidates, "it is the <shortest>"
    )
    waves, slots, start = [], [], 1
    for level in range(1, depth + 1):
        members = [region for region in sorted(plan.level, reverse=True) if plan.level[region] == level]
        wave = tuple((region, at % lanes) for at, region in enumerate(members))
        waves.append(wave)
        for at, (region, lane) in enumerate(wave):
            begin = start + at // lanes
            slots += [Slot(f"target:{region}", lane, begin, begin + 1)]
            slots += [Slot(f"update:{region}", lane, begin + 1, begin + 2)]
        start += -(-len(wave) // lanes)
    makespan = max((slot.end for slot in slots), default=0)
    made = tuple(Lane(number, number) for number in range(lanes))
    return Schedule(TaskGraph(plan, (), ()), made, (), tuple(slots), makespan, tuple(waves))


def mlp(
    layers: int, pairs: Sequence[tuple[int, int]], lanes: int = 2, *, model: str = "MLP", first: str = ""
) -> Schedule:
    """``layers`` regions of linear and tanh; ``model`` and ``first`` (the first module's path) may hold anything."""
    operators: list[Operator] = []
    parameters: list[Parameter] = []
    regions = [Region(0, "", "input", (), "x", (), "x", (8,))]
    before = "x"
    for number in range(1, layers + 1):
        path = first if number == 1 and first else f"net.{2 * number}"
        shape = TensorType(("B", 4 + number % 3))
        parameters.append(Parameter(f"w{number}", f"{path}.weight", TensorType((4, 4))))
        operators += [
            Operator(
                f"h{number}",
                "aten.linear.default",
                (Ref(before), Ref(f"w{number}")),
                (),
                shape,
                (),
                path,
                "Linear",
                f"net.py:{number}",
            ),
            Operator(
                f"z{number}", "aten.tanh.default", (Ref(f"h{number}"),), (), shape, (), f"net.{2 * number + 1}", "Tanh"
            ),
        ]
        update = Update(f"{path}.weight", f"h{number}", 1, "rules.updates.linear_weight")
        regions.append(
            Region(
                number,
                path,
                "layer",
                (f"h{number}", f"z{number}"),
                f"h{number}",
                (f"z{number}",),
                f"z{number}",
                (4 + number % 3,),
                (update,),
                line=f"net.py:{number}",
            )
        )
        before = f"z{number}"
    modules = (("net", "Sequential"), *((operator.module, operator.module_class) for operator in operators))
    inputs = (Input("x", TensorType(("B", 8))),)
    outputs = (Output("output", before),)
    graph = OperatorGraph(model, "by hand", "B", inputs, tuple(parameters), (), tuple(operators), outputs, modules)
    return _plan(graph, regions, pairs, lanes)


def residual(blocks: int, lanes: int = 3) -> Schedule:
    """A stem, residual blocks of two regions (every other one with a projection), and a head, wired through the blocks'
    ends. Batch norms are tuples taken apart, and count their batches, as captured models do."""
    operators: list[Operator] = []
    parameters: list[Parameter] = []
    regions = [Region(0, "", "input", (), "x", (), "x", (3, 8, 8))]
    shape = TensorType(("B", 4, 8, 8))

    def add(name: str, target: str, reads: Sequence[str], module: str, kind: str = "", learns: bool = False) -> str:
        args: list[Ref] = [Ref(item) for item in reads]
        if learns:
            parameters.append(Parameter(f"p_{name}", f"{module}.weight", TensorType((4, 4, 3, 3))))
            args.append(Ref(f"p_{name}"))
        operators.append(Operator(name, target, tuple(args), (), shape, (), module, kind, "res.py:7"))
        return name

    def conv_norm(module: str, norm: str, source: str) -> list[str]:
        name = module.replace(".", "_")
        conv = add(f"{name}_conv", "aten.conv2d.default", [source], module, "Conv2d", learns=True)
        operators.append(
            Operator(
                f"{name}_bn",
                "aten._native_batch_norm_legit_functional.default",
                (Ref(conv),),
                (),
                None,
                (shape, None),
                norm,
                "BatchNorm2d",
            )
        )
        # A running statistic: read by nothing on the way to the output.
        mean = add(f"{name}_count", "aten.mean.dim", [conv], norm, "BatchNorm2d")
        add(f"{name}_count_new", "aten.add.Tensor", [mean], norm, "BatchNorm2d")
        operators.append(Operator(f"{name}_out", "operator.getitem", (Ref(f"{name}_bn"), 0), (), shape, (), norm))
        return [conv, f"{name}_bn", f"{name}_count", f"{name}_count_new", f"{name}_out"]

    def region(names: Sequence[str], name: str, pre: str, post: str, block: str = "", ends: bool = False) -> None:
        found = tuple(
            Update(f"{operator.module}.weight", operator.name, 1, "rules.updates.conv_weight")
            for operator in operators
            if operator.name in names and operator.name.endswith("_conv")
        )
        activation = (post,) if post != pre else ()
        regions.append(
            Region(
                len(regions),
                name,
                "layer",
                tuple(names),
                pre,
                activation,
                post,
                (4, 8, 8),
                found,
                block,
                ends,
                "res.py:7",
            )
        )

    names = conv_norm("conv1", "bn1", "x")
    names += [add("relu0", "aten.relu.default", [names[-1]], "relu", "ReLU")]
    names += [add("pool", "aten.max_pool2d.default", ["relu0"], "maxpool", "MaxPool2d")]
    region(names, "conv1", names[4], "relu0")
    value = "pool"
    modules = ["conv1", "bn1", "relu", "maxpool", "fc"]
    for at in range(blocks):
        path = f"layer.{at}"
        modules += [path, *(f"{path}.{part}" for part in ("conv1", "bn1", "relu", "conv2", "bn2"))]
        names = conv_norm(f"{path}.conv1", f"{path}.bn1", value)
        inner = add(f"relu_a{at}", "aten.relu.default", [names[-1]], f"{path}.relu", "ReLU")
        region([*names, inner], f"{path}.conv1", names[4], inner, path)
        names = conv_norm(f"{path}.conv2", f"{path}.bn2", inner)
        main, skip = names[-1], value
        if at % 2:
            modules += [f"{path}.downsample", f"{path}.downsample.0", f"{path}.downsample.1"]
            names += conv_norm(f"{path}.downsample.0", f"{path}.downsample.1", value)
            skip = names[-1]
        total = add(f"add{at}", "aten.add.Tensor", [main, skip], path, "Block")
        value = add(f"relu_b{at}", "aten.relu.default", [total], f"{path}.relu", "ReLU")
        region([*names, total, value], f"{path}.conv2", total, value, path, ends=True)
    last = regions.pop()
    operators.append(Operator("size", "aten.sym_size.int", (Ref("x"), 0)))
    pooled = add("avg", "aten.adaptive_avg_pool2d.default", [value], "avgpool", "AdaptiveAvgPool2d")
    behind = add("view", "aten.view.default", [pooled, "size"], "", "Net")
    regions.append(
        Region(
            last.id,
            last.name,
            "layer",
            (*last.operators, "size", "avg", "view"),
            last.pre,
            last.activation,
            last.post,
            last.shape,
            last.updates,
            last.block,
            True,
            last.line,
        )
    )
    out = add("fc_conv", "aten.linear.default", [behind], "fc", "Linear", learns=True)
    region([out], "fc", out, out)
    top = len(regions) - 1
    pairs = [(top, 1)]
    for number in range(2, top, 2):
        pairs += [(top, number + 1), (number + 1, number)]
    graph = OperatorGraph(
        "ResNet",
        "by hand",
        "B",
        (Input("x", TensorType(("B", 3, 8, 8))),),
        tuple(parameters),
        (),
        tuple(operators),
        (Output("output", out),),
        tuple((path, "") for path in modules),
    )
    return _plan(graph, regions, pairs, lanes)
