"""What a command found, as one plain value: printed as it is for machines, drawn by ``render`` for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reclra_graph.export.coverage import coverage
from reclra_graph.export.report import baselines, gpu_note, model_note
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.regions import Region, RegionGraph


def compiled(
    name: str,
    program: StepProgram,
    folder: Path,
    seconds: Sequence[tuple[str, float]],
    files: Sequence[Path],
    convolutions: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The result of ``compile``: regions, wiring, waves, memory, prediction, times and paths; and what became of
    ``convolutions`` that were to be replaced."""
    schedule = program.schedule
    plan = schedule.tasks.plan
    one, chain = baselines(plan)
    return {
        "name": name,
        "model": plan.regions.graph.model,
        "frontend": plan.regions.graph.frontend,
        "notes": list(plan.regions.graph.notes),
        "digest": program.digest,
        "gpus": plan.gpus,
        "wiring": plan.wiring,
        "depth": plan.depth,
        "relays": list(plan.relays),
        "why": plan.why,
        "regions": [_region(region) | {"update": plan.update_of.get(region.id)} for region in plan.regions.regions],
        "gpu_note": gpu_note(schedule),
        "edges": [edge.name for edge in plan.edges],
        "waves": [_lanes(wave) for wave in schedule.waves],
        "synapse_bytes": plan.synapse_bytes,
        "prediction": {
            "model": model_note(schedule),
            "device": plan.device.name,
            "clock": plan.device.clock,
            "makespan": schedule.makespan,
            "peak_bytes": list(schedule.peak),
            "makespan_one_gpu": one,
            "makespan_chain": chain,
            "speedup_over_one_gpu": _ratio(one, schedule.makespan),
            "speedup_over_chain": _ratio(chain, schedule.makespan),
        },
        "frozen": [{"parameter": key, "reason": reason} for key, reason in plan.regions.frozen],
        "convolutions": list(convolutions),
        "seconds": [{"pass": label, "seconds": round(value, 4)} for label, value in seconds],
        "directory": str(folder),
        "files": [str(path) for path in files],
    }


def explained(name: str, regions: RegionGraph) -> dict[str, Any]:
    """The result of ``explain``: coverage, and the regions with the parameters that learn in each."""
    found = coverage(regions)
    return {
        "name": name,
        "model": regions.graph.model,
        "frontend": regions.graph.frontend,
        "notes": list(regions.graph.notes),
        "inputs": [f"{item.name} {item.type}" for item in regions.graph.inputs],
        "outputs": [item.label for item in regions.graph.outputs],
        "without_loss": list(regions.graph.unused),
        "operators": {"total": found.total, "covered": found.covered, **dict(found.operators)},
        "parameters": [
            {"rule": rule, "tensors": tensors, "entries": entries} for rule, tensors, entries in found.rules
        ],
        "coverage": list(found.lines()),
        "regions": [_region(region) | {"parameters": list(region.parameters)} for region in regions.regions],
        "frozen": [{"parameter": key, "reason": reason} for key, reason in regions.frozen],
    }


def _region(region: Region) -> dict[str, Any]:
    return {
        "id": region.id,
        "name": region.name,
        "kind": region.kind,
        "shape": list(region.shape),
        "learns": region.learns,
        "line": region.line,
    }


def _lanes(wave: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    lanes: dict[int, list[int]] = {}
    for region, lane in wave:
        lanes.setdefault(lane, []).append(region)
    return [{"lane": lane, "regions": lanes[lane]} for lane in sorted(lanes)]


def _ratio(before: int | None, after: int) -> float | None:
    return round(before / after, 3) if before is not None and after else None
