"""What stands above the step in an emitted file: its docstring, the tables, and the functions that the step calls.

Before:  a schedule
After:   everything up to ``def step``, put together from the fixed texts of ``template.py``, ``placed_template.py`` and
         ``optimisers.py``, with what this plan needs of them
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from reclra_graph.ir.homes import homes
from reclra_graph.ir.operators import OPAQUE, OperatorGraph
from reclra_graph.ir.schedule import Run, Schedule
from reclra_graph.ir.wiring import Matrix
from reclra_graph.passes import template
from reclra_graph.passes.optimisers import optimiser_text
from reclra_graph.passes.placed_template import CHECK_MICRO, lanes_text, more_tables
from reclra_graph.passes.target_types import target_types
from reclra_graph.rules.forms import stored
from reclra_graph.rules.operators import short

VERSION = "0.1.0"
_WITH_CONSTANTS = '{**model.state_dict(), **torch.load("constants.pt", weights_only=True)}'


def plain(text: str) -> str:
    """Text of the model's that is safe in a comment or a docstring."""
    return "".join(c if c.isprintable() and c not in '"\\' else "?" for c in text)


def head_text(schedule: Schedule, stamp: str) -> str:
    """Docstring, imports, tables and functions of the file of a schedule, whose digest is ``stamp``."""
    plan = schedule.tasks.plan
    regions = plan.regions
    graph = regions.graph
    home = homes(schedule.tasks, {action.task: action.lane for action in schedule.actions if isinstance(action, Run)})
    matrices = schedule.tasks.matrices
    made = stored(plan, matrices.values())
    synapses = {item.name: (item.shape, item.start, home[f"E[{item.name}]"]) for item in made}
    implicit = any(edge.form == "implicit" for edge in plan.edges)
    groups = schedule.tasks.beside
    identity = any(item.start == "identity" for item in made)
    count = schedule.tasks.micro_batches
    names = list(schedule.tasks.inputs)
    inputs = {name: (item.type.shape, item.type.dtype) for name, item in zip(names, graph.inputs, strict=True)}
    dtype = regions.synapse_dtype
    held = any(buffer.constant for buffer in graph.buffers)
    notes = [] if graph.frontend == "export" else [f"\nCaptured with a fixed batch size ({graph.frontend})."]
    notes += [f"\n{plain(note)}" for note in graph.notes]
    if graph.autocast:
        notes.append(f"\nProducts are computed in {graph.autocast}; P, E and all errors stay float32.")
    if any(edge.rule == "mirror" for edge in plan.edges):
        notes.append(template.MIRRORS.format(inputs=", ".join(names)))
    lanes = f"{len(schedule.lanes)} lanes" if len(schedule.lanes) > 1 else "one lane"
    docstring = template.DOCSTRING.format(
        model=plain(graph.model), version=VERSION, digest=stamp, wiring=plain(plan.wiring), depth=plan.depth,
        edges=len(plan.edges), lanes=lanes, note="".join(notes), seed=plan.seed, lr=plan.rates.lr,
        inputs=", ".join(names), state=_WITH_CONSTANTS if held else "model.state_dict()",
    )  # fmt: skip
    tables = template.TABLES.format(
        digest=stamp,
        synapses=_table(synapses),
        starts=(template.IDENTITY if identity else "") + (template.KEY if implicit else ""),
        shared=_shared(matrices) + (template.BESIDE.format(beside=_rows(groups)) if groups else ""),
        inputs=_table(inputs),
        lanes=len(schedule.lanes),
        smallest=smallest_batch(graph) * count,
        more=more_tables(schedule),
        targets=_table(target_types(plan)),
    )
    kinds = {"classes" if item.classes else item.kind for item in plan.losses}
    checks = (template.CHECK_CLASSES if "classes" in kinds else "") + (
        template.CHECK_RANGE if "bce-with-logits" in kinds else ""
    )
    if count > 1:
        checks = CHECK_MICRO + checks
    runtime = lanes_text(schedule) + template.RUNTIME.replace("@check_range@", checks)
    runtime = runtime.replace("@optimiser@", optimiser_text(plan.rates))
    if any(operator.target == OPAQUE for operator in graph.operators):
        runtime += template.OPAQUE
    if implicit:
        runtime += template.IMPLICIT
    if graph.autocast == "float16":
        runtime += template.UNIT
    runtime = runtime.replace("@made@", "lay_out(made)" if groups else "made")
    if any(edge.rule == "mirror" for edge in plan.edges):  # ``mirror`` takes no target
        runtime = runtime.replace("in TARGETS.items()", "in (TARGETS.items() if target is not None else ())")
    if groups:
        runtime += template.BATCH
    if matrices:
        runtime += template.SETTLE
    starts = (template.IDENTITY_STARTS if identity else "") + (template.KEY_STARTS if implicit else "")
    runtime = (
        runtime.replace("@starts@", starts + template.NORMAL_STARTS)
        .replace("@seed@", str(plan.seed))
        .replace("@dtype@", dtype)
    )
    return docstring + template.IMPORTS.lstrip("\n") + tables + runtime


def _rows(items: Iterable[tuple[str, ...]]) -> str:
    return "(\n" + "".join(f"    {item!r},\n" for item in items) + ")"


def _shared(matrices: Mapping[str, Matrix]) -> str:
    """The table of synapses that learn through a matrix, by the matrix; nothing where there are none."""
    groups: dict[str, tuple[str, ...]] = {}
    for name, matrix in matrices.items():
        groups[matrix.name] = (*groups.get(matrix.name, ()), name)
    return template.SHARED.format(shared=_table(groups)) if groups else ""


def smallest_batch(graph: OperatorGraph) -> int:
    """Two where a batch norm sees one value per sample and channel: over a single sample it has no variance."""
    for operator in graph.operators:
        if short(operator.target) == "_native_batch_norm_legit_functional" and operator.args[5] is True:
            shape = graph.sample_shape(operator.reads[0])
            if shape is not None and prod(shape[1:]) == 1:
                return 2
    return 1


def _table(items: Mapping[str, tuple[object, ...]]) -> str:
    return "{\n" + "".join(f"    {name!r}: {value!r},\n" for name, value in items.items()) + "}" if items else "{}"
