"""plan.json: the plan for other programs. ``docs/plan.schema.json`` describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.regions import Region
from reclra_graph.ir.wiring import Candidate, Edge, Loss, Rates, WiringPlan

VERSION = 2

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"


@dataclass(frozen=True)
class SavedPlan:
    """What loading a saved step needs of its plan.json; ``data`` is the whole object."""

    version: int
    model: str
    digest: str
    edges: tuple[Edge, ...]
    data: Mapping[str, Any]


def plan_value(program: StepProgram) -> dict[str, Json]:
    """The object that plan.json holds. It depends on the program alone: no times, paths or dates."""
    schedule = program.schedule
    plan = schedule.tasks.plan
    graph = plan.regions.graph
    chosen = next((candidate for candidate in plan.candidates if candidate.chosen), None)
    chain = next((candidate for candidate in plan.candidates if candidate.name == "chain"), None)
    return {
        "version": VERSION,
        "model": graph.model,
        "digest": program.digest,
        "regions_digest": plan.regions.digest,
        "frontend": graph.frontend,
        "notes": list(graph.notes),
        "batch": graph.batch,
        "inputs": [
            {"name": item.name, "shape": list(item.type.shape), "dtype": item.type.dtype, "path": list(item.path)}
            for item in graph.inputs
        ],
        "gpus": plan.gpus,
        "seed": plan.seed,
        "wiring": plan.wiring,
        "depth": plan.depth,
        "relays": list(plan.relays),
        "why": plan.why,
        "outputs": [_output(item, number) for item, number in zip(plan.losses, plan.regions.outputs, strict=True)],
        "device": plan.device.name,
        "clock": plan.device.clock,
        "makespan": schedule.makespan,
        "makespan_one": chosen.makespan_one if chosen else None,
        "makespan_chain": chain.makespan if chain else None,
        "synapse_budget": plan.budget or None,
        "synapse_bytes": plan.synapse_bytes,
        "memory_format": plan.memory_format,
        "autocast": graph.autocast or None,
        "rates": _rates(plan.rates),
        "regions": [_region(plan, region) for region in plan.regions.regions],
        "edges": [_edge(edge) for edge in plan.edges],
        "waves": [[{"region": region, "lane": lane} for region, lane in wave] for wave in schedule.waves],
        "placement": [{"region": region, "gpu": gpu} for region, gpu in plan.placement],
        "micro_batches": schedule.tasks.micro_batches,
        "overlap_steps": schedule.overlap,
        "lanes": [{"id": lane.id, "device": lane.device, "stream": lane.stream} for lane in schedule.lanes],
        "candidates": [_candidate(candidate) for candidate in plan.candidates],
        "frozen": [{"parameter": key, "reason": reason} for key, reason in plan.regions.frozen],
    }


def plan_json(program: StepProgram) -> str:
    """Text of plan.json: one region, edge, wave or candidate per line, so that two plans compare line by line."""
    rows = [f"  {json.dumps(key)}: {_pretty(value)}" for key, value in plan_value(program).items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def read_plan(text: str) -> SavedPlan:
    """The parts of a plan.json that loading needs. Raises ModelError (RG702) with everything found wrong in it."""
    place = "plan.json"
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(Problem("RG702", f"it is not JSON: {error}", place)) from None
    if not isinstance(data, dict):
        raise ModelError(Problem("RG702", "it does not hold an object", place))
    version = data.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ModelError(Problem("RG702", f"its version is {version!r}; this package reads version {VERSION}", place))
    found = [
        Problem("RG702", f"its {key} is {data.get(key)!r}, not a text", f"{place}: {key}")
        for key in ("model", "digest")
        if not isinstance(data.get(key), str) or not data[key]
    ]
    ids = _region_ids(data.get("regions"))
    if ids is None:
        found.append(Problem("RG702", "its regions are not a list of objects with ids", f"{place}: regions"))
    edges: list[Edge] = []
    listed = data.get("edges")
    if not isinstance(listed, list):
        found.append(Problem("RG702", "its edges are not a list", f"{place}: edges"))
        listed = []
    for index, item in enumerate(listed):
        edge = _read_edge(item, ids)
        if isinstance(edge, str):
            found.append(Problem("RG702", edge, f"{place}: edges[{index}]"))
        else:
            edges.append(edge)
    names = [edge.name for edge in edges]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(Problem("RG702", f"the edge {name} stands there more than once", f"{place}: edges"))
    if found:
        raise ModelError(found)
    return SavedPlan(VERSION, data["model"], data["digest"], tuple(edges), data)


def _output(loss: Loss, region: int) -> dict[str, Json]:
    return {
        "label": loss.label,
        "region": region,
        "loss": loss.kind,
        "smoothing": loss.smoothing,
        "ignore": loss.ignore,
        "weights": list(loss.weights),
    }


def _rates(rates: Rates) -> dict[str, Json]:
    return {
        "beta": rates.beta,
        "gamma": rates.gamma,
        "kappa": [{"region": region, "value": value} for region, value in rates.kappa],
        "norm": rates.norm,
        "sign": rates.sign,
        "gain": rates.gain,
        "optimizer": rates.optimizer,
        "lr": rates.lr,
        "momentum": rates.momentum,
        "betas": list(rates.betas),
        "eps": rates.eps,
        "weight_decay": rates.weight_decay,
        "synapse_decay": rates.synapse_decay,
        "mirror_noise": rates.mirror_noise,
    }


def _region(plan: WiringPlan, region: Region) -> dict[str, Json]:
    return {
        "id": region.id,
        "name": region.name,
        "kind": region.kind,
        "shape": list(region.shape),
        "parameters": list(region.parameters),
        "update": plan.update_of.get(region.id),
        "learns": region.learns,
        "block": region.block,
        "line": region.line,
    }


def _edge(edge: Edge) -> dict[str, Json]:
    return {
        "source": edge.source,
        "target": edge.target,
        "form": edge.form,
        "rule": edge.rule,
        "shape": list(edge.shape),
        "bytes": edge.bytes,
        "shared": edge.shared,
        "branch": edge.branch,
        "weight": edge.weight,
    }


def _candidate(candidate: Candidate) -> dict[str, Json]:
    return {
        "name": candidate.name,
        "depth": candidate.depth,
        "relays": list(candidate.relays),
        "makespan": candidate.makespan,
        "makespan_one": candidate.makespan_one,
        "bytes": candidate.bytes,
        "path": candidate.path,
        "chosen": candidate.chosen,
        "forms": [{"form": form, "count": number} for form, number in candidate.forms],
        "fits": candidate.fits,
    }


def _pretty(value: Json) -> str:
    """One line, or one line per item for a list of objects or lists."""
    if isinstance(value, list) and value and all(isinstance(item, (dict, list)) for item in value):
        rows = ",\n".join(f"    {json.dumps(item, allow_nan=False)}" for item in value)
        return f"[\n{rows}\n  ]"
    return json.dumps(value, allow_nan=False)


def _whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _region_ids(value: object) -> set[int] | None:
    if not isinstance(value, list) or not all(isinstance(item, dict) and _whole(item.get("id")) for item in value):
        return None
    return {item["id"] for item in value}


def _read_edge(item: object, ids: set[int] | None) -> Edge | str:
    """The edge, or what is wrong with it."""
    if not isinstance(item, dict):
        return "it is not an object"
    wanted: Sequence[tuple[str, bool]] = (
        *((key, _whole(item.get(key))) for key in ("source", "target", "bytes")),
        *((key, isinstance(item.get(key), str)) for key in ("form", "rule", "shared")),
        ("branch", _whole(item.get("branch", 0))),
        ("weight", isinstance(item.get("weight", ""), str)),
    )
    for key, good in wanted:
        if not good:
            return f"its {key} is {item.get(key)!r}"
    shape = item.get("shape")
    least = 0 if item["form"] == "adjoint" and not item.get("weight", "") else 2
    if not isinstance(shape, list) or len(shape) < least or not all(_whole(size, 1) for size in shape):
        return f"its shape is {shape!r}, not two sizes or more"
    for key in ("source", "target"):
        if ids is not None and item[key] not in ids:
            return f"its {key} {item[key]} is no region of the plan"
    return Edge(
        item["source"], item["target"], item["form"], item["rule"], tuple(shape), item["bytes"], item["shared"],
        item.get("branch", 0), item.get("weight", ""),
    )  # fmt: skip
