"""report.txt: what was compiled, how it will learn and why so, as plain text to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from reclra_graph.export.coverage import coverage
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.regions import Region
from reclra_graph.ir.schedule import Copy, Record, Schedule, Wait
from reclra_graph.ir.wiring import Candidate, Edge, WiringPlan, matrix_bytes

MODEL_NOTE = "unit-cost model: a target and an update cost 1 each; the forward pass is not counted"


@dataclass(frozen=True)
class Node:
    """One line of the wiring tree: a region below the one that sends it its error.

    ``edge`` is the error edge that arrives, None at the output. ``parents`` are the node's ancestors' positions,
    outermost first, as "whether more siblings follow". ``alone``: the only child of the node on the line above.
    ``again``: the region's own children stand at its first mention.
    """

    region: int
    edge: Edge | None
    parents: tuple[bool, ...]
    alone: bool
    again: bool


def wiring_tree(plan: WiringPlan) -> tuple[Node, ...]:
    """The error pathway as a tree, depth first from the output. An only child keeps its parent's indentation, so that
    a chain of any length reads as a column."""
    nodes: list[Node] = []
    shown: set[int] = set()
    waiting = [Node(number, None, (), False, False) for number in reversed(plan.regions.outputs)]
    while waiting:
        node = waiting.pop()
        edges = plan.outgoing.get(node.region, ())
        nodes.append(replace(node, again=node.region in shown and bool(edges)))
        if node.region in shown:
            continue
        shown.add(node.region)
        children = [
            Node(edge.target, edge, node.parents if len(edges) == 1 else (*node.parents, more), len(edges) == 1, False)
            for edge, more in zip(edges, [True] * (len(edges) - 1) + [False], strict=False)
        ]
        waiting += reversed(children)
    return tuple(nodes)


def wiring_lines(plan: WiringPlan) -> tuple[str, ...]:
    """The wiring tree drawn with plain characters, one region per line."""
    lines: list[str] = []
    for node in wiring_tree(plan):
        bars = "".join("|  " if more else "   " for more in node.parents)
        if node.edge is not None:
            head = f"{bars}-> " if node.alone else bars[:-3] + ("|- " if node.parents[-1] else "`- ")
        else:
            head = ""
        lines.append(head + node_text(plan, node))
    return tuple(lines)


def node_text(plan: WiringPlan, node: Node) -> str:
    """A node's own text: region, name, and the synapse through which its error arrives."""
    name = plan.regions.regions[node.region].name
    label = f"{node.region} ({name})"
    if node.edge is None:
        return f"{label}  (error of the loss)"
    again = "  (see above)" if node.again else ""
    return f"{label}  [{node.edge.name} {node.edge.words}]{again}"


def report_text(program: StepProgram, seconds: Sequence[tuple[str, float]] = ()) -> str:
    """The report. Only its last section, the seconds per pass, differs from one run to the next."""
    schedule = program.schedule
    plan = schedule.tasks.plan
    sections = (
        ("Model", list(_model(program, plan))),
        ("Coverage", list(coverage(plan.regions).lines())),
        ("Regions", list(_regions(plan))),
        ("Wiring: who sends its error to whom", list(wiring_lines(plan))),
        ("Wirings compared", list(_candidates(plan))),
        ("Waves: targets computed at the same time", list(wave_lines(schedule))),
        ("Prediction", list(prediction_lines(schedule))),
        ("Memory of the error synapses", list(_memory(plan))),
        ("Seconds per pass", list(second_lines(seconds))),
    )
    texts = [f"{title}\n{'-' * len(title)}\n" + "".join(f"{row}\n" for row in rows) for title, rows in sections if rows]
    return "\n".join(texts)


def wave_lines(schedule: Schedule) -> Iterator[str]:
    """One line per wave: the lanes, and the regions whose targets each computes."""
    for number, wave in enumerate(schedule.waves, start=1):
        lanes: dict[int, list[int]] = {}
        for region, lane in wave:
            lanes.setdefault(lane, []).append(region)
        parts = [f"lane {lane}: {', '.join(map(str, lanes[lane]))}" for lane in sorted(lanes)]
        yield f"wave {number} on {count(len(lanes), 'lane')}   " + "   ".join(parts)


def model_note(schedule: Schedule) -> str:
    """Which model predicted times come from."""
    plan, parts = schedule.tasks.plan, schedule.tasks.micro_batches
    if plan.device.clock == "unit":
        return MODEL_NOTE
    size = f"{parts} micro-batches of {plan.batch}" if parts > 1 else f"a batch of {plan.batch}"
    return f"cost model of the device {plan.device.name} for {size}; the forward pass is counted"


def _short(relays: Sequence[int]) -> str:
    """Relays for a table: all, or of many the first and how many more."""
    shown = ", ".join(map(str, relays[:12]))
    return shown + (f" and {len(relays) - 12} more" if len(relays) > 12 else "") or "-"


def gpu_note(schedule: Schedule) -> str:
    """What to know where more GPUs were asked for than the model can use; nothing otherwise."""
    plan = schedule.tasks.plan
    used, regions = len(schedule.lanes), len(plan.regions.sites)
    if plan.gpus <= regions or used >= plan.gpus:
        return ""
    return f"{plan.gpus} GPUs were asked for; the model has {count(regions, 'region')}, and the plan uses {used}"


def prediction_lines(schedule: Schedule) -> Iterator[str]:
    """Predicted times and speed-ups, labelled with the model they come from."""
    plan = schedule.tasks.plan
    shown = plan.device.shown
    yield f"({model_note(schedule)})"
    note = gpu_note(schedule)
    if note:
        yield note
    yield f"makespan on {count(plan.gpus, 'GPU')}: {shown(schedule.makespan)}"
    one, chain = baselines(plan)
    if one is not None:
        yield f"same wiring on one GPU: {shown(one)}, so {ratio(one, schedule.makespan)} as fast"
    if chain is not None:
        yield f"chain wiring on {count(plan.gpus, 'GPU')}: {shown(chain)}, so {ratio(chain, schedule.makespan)} as fast"
    events = Counter(type(action) for action in schedule.actions)
    if len(schedule.lanes) > 1:
        yield (
            f"between {count(len(schedule.lanes), 'lane')}: {count(events[Record], 'record')} and "
            f"{count(events[Wait], 'wait')}, the fewest that do; {count(events[Copy], 'value')} read from another lane"
        )
    if schedule.peak:
        shares = ", ".join(size(item) for item in schedule.peak)
        yield f"peak memory at the example batch: {shares}" + (" by device" if len(schedule.peak) > 1 else "")


def second_lines(seconds: Sequence[tuple[str, float]]) -> Iterator[str]:
    """Seconds of each pass and their sum."""
    if not seconds:
        return
    width = max(len(name) for name, _ in (*seconds, ("total", 0.0)))
    for name, value in (*seconds, ("total", sum(value for _, value in seconds))):
        yield f"{name:<{width}}  {value:8.3f}"


def baselines(plan: WiringPlan) -> tuple[int | None, int | None]:
    """(makespan of the chosen wiring on one GPU, makespan of the chain wiring on all), None where not compared: a chain
    that may run anywhere is no yardstick for regions with GPUs of their own."""
    one = next((candidate.makespan_one for candidate in plan.candidates if candidate.chosen), None)
    chain = next((candidate.makespan for candidate in plan.candidates if candidate.name == "chain"), None)
    return one, None if plan.placement else chain


def ratio(before: int, after: int) -> str:
    """Speed-up as text, ``"3.6x"``."""
    return f"{before / after:.1f}x" if after else "-"


def count(number: int, noun: str) -> str:
    """``"1 lane"``, ``"2 lanes"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size(number: int) -> str:
    """Bytes for people: ``"1.5 MiB"``."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns padded to their widest cell."""
    widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _model(program: StepProgram, plan: WiringPlan) -> Iterator[str]:
    graph = plan.regions.graph
    yield f"model     {graph.model}"
    yield f"frontend  {graph.frontend}"
    for note in graph.notes:
        yield f"note      {note}"
    yield f"batch     {'any size' if isinstance(graph.batch, str) else f'{graph.batch} only'}"
    yield "inputs    " + ", ".join(f"{item.name} {item.type}" for item in graph.inputs)
    yield f"digest    {program.digest}"
    rates = plan.rates
    for item, number in zip(plan.losses, plan.regions.outputs, strict=True):
        yield f"loss      {item.kind} of {item.label}, region {number}"
    if graph.unused:
        yield f"no loss   {', '.join(graph.unused)}"
    more = {"momentum": f", momentum {rates.momentum:g}", "adamw": f", betas {rates.betas}, eps {rates.eps:g}"}
    decay = f", weight decay {rates.weight_decay:g}" if rates.weight_decay else ""
    decay += f", synapse decay {rates.synapse_decay:g}" if rates.synapse_decay is not None else ""
    yield f"optimizer {rates.optimizer}, lr {rates.lr:g}{more.get(rates.optimizer, '')}{decay}"
    kappa = "".join(f", kappa[{region}] {value:g}" for region, value in rates.kappa)
    gain = ", errors divided by beta" if rates.gain else ""
    scale = f"beta {rates.beta:g}, gamma {rates.gamma:g}"
    noise = f", mirror noise {rates.mirror_noise:g}" if any(edge.rule == "mirror" for edge in plan.edges) else ""
    yield f"rule      {scale}, p = q = {rates.norm}, Eq. 6 sign {rates.sign}{kappa}{gain}{noise}"
    yield f"seed      {plan.seed}"


def _regions(plan: WiringPlan) -> Iterator[str]:
    rows = []
    for region in plan.regions.regions:
        rows.append(
            (
                str(region.id),
                region.name or "-",
                region.kind,
                "x".join(map(str, region.shape)) or "-",
                _update(plan, region),
                ", ".join(edge.name for edge in plan.incoming.get(region.id, ())) or "-",
                region.line or "-",
            )
        )
    yield from table(("id", "name", "kind", "shape", "update", "error from", "line"), rows)


def _update(plan: WiringPlan, region: Region) -> str:
    if not region.learns:
        return "-"
    return f"{plan.update_of.get(region.id, '-')} ({count(len(region.parameters), 'parameter')})"


def _forms(candidate: Candidate) -> str:
    """``"12 dense, 3 channel"``."""
    return ", ".join(f"{number} {form}" for form, number in candidate.forms)


def _candidates(plan: WiringPlan) -> Iterator[str]:
    chosen_forms = any(candidate.forms for candidate in plan.candidates)
    rows = [
        (
            "*" if candidate.chosen else "",
            candidate.name,
            str(candidate.depth),
            _short(candidate.relays),
            plan.device.shown(candidate.makespan),
            plan.device.shown(candidate.makespan_one),
            size(candidate.bytes) + ("" if candidate.fits else ", over the budget"),
            str(candidate.path),
            *([_forms(candidate)] if chosen_forms else []),
        )
        for candidate in plan.candidates
    ]
    if rows:
        gpus = f"on {count(plan.gpus, 'GPU')}"
        head = ("", "wiring", "depth", "relays", gpus, "on one GPU", "synapses", "error paths")
        yield from table((*head, "forms") if chosen_forms else head, rows)
    yield f"chosen: {plan.wiring}, depth {plan.depth}, relays {', '.join(map(str, plan.relays)) or 'none'}"
    if plan.why:
        yield f"why: {plan.why}"


def _memory(plan: WiringPlan) -> Iterator[str]:
    held = {edge.name: f"that of {edge.shared}" if edge.shared else size(edge.bytes) for edge in plan.edges}
    rows = [(edge.name, edge.words, edge.rule, held[edge.name]) for edge in plan.edges]
    for item in dict.fromkeys(plan.matrix_of.values()):
        common = f"{item.units}x{item.units} (what implicit synapses learn)"
        rows.append((item.name, common, "eq6", size(matrix_bytes(plan.regions, item))))
    rows.append(("total", "", "", size(plan.synapse_bytes)))
    if plan.budget:
        rows.append(("budget", "", "", size(plan.budget)))
    yield from table(("synapse", "shape", "rule", "memory"), rows)
