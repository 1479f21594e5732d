"""Pipelines in unit costs: this rule's schedule beside 1F1B and a zero-bubble schedule, and beside its own execution.

    python tests/bench/pipeline.py             writes docs/results/pipeline.json
    python tests/bench/pipeline.py --quick     one and two micro-batches; writes nothing unless --out is given

Five stages of equal cost. Backpropagation: a forward, an input gradient and a weight gradient cost 1 each; 1F1B does
the two gradients at once, a zero-bubble schedule puts weight gradients off until a stage has nothing else to do. This
rule: a forward costs 1, and a target with its error and its weight gradient together cost 1. ``makespan`` is the
compiled schedule's own; ``simulated`` follows the schedule's actions; ``executed`` runs them on threads, one per lane,
every task lasting as long as it costs, and compares parameters and synapses with those of the same step in one lane.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.record import RESULTS, circumstances, progress, write_json

STAGES = 5
MICRO_BATCHES = (1, 5, 20)
STEPS = 2
SAMPLES = 40


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="Pipelines in unit costs.")
    parser.add_argument("--quick", action="store_true", help="one and two micro-batches: does it run at all")
    parser.add_argument("--unit", type=float, help="seconds per unit of cost on threads (default: 0.1)")
    parser.add_argument("--out", type=Path, help="the file to write (default: docs/results/pipeline.json)")
    args = parser.parse_args(argv)
    if args.out is None and not args.quick:
        args.out = RESULTS / "pipeline.json"
    args.unit = args.unit or (0.01 if args.quick else 0.1)
    return args


def backpropagation(stages: int, parts: int, costs: dict[str, int]) -> int:
    """Makespan of a step of pipelined backpropagation, by a simulation that knows nothing of this package.

    ``costs`` of F (forward), B (backward) and, where it is put off, W (weight gradient). A free stage takes a backward
    that is ready, else a forward, else a weight gradient, always of the earliest micro-batch; as under 1F1B, stage s of
    p has at most p − s micro-batches in flight.
    """
    ends: dict[tuple[str, int, int], int] = {}
    begun: set[tuple[str, int, int]] = set()
    free = [0] * stages
    now = 0

    def ready(kind: str, stage: int, part: int) -> bool:
        if kind == "F":
            needs = [("F", stage - 1, part)] if stage else []
            flying = sum(("F", stage, other) in begun and ("B", stage, other) not in begun for other in range(parts))
            if flying >= stages - stage:
                return False
        elif kind == "B":
            needs = [("F", stage, part), *([("B", stage + 1, part)] if stage < stages - 1 else [])]
        else:
            needs = [("B", stage, part)]
        return (kind, stage, part) not in begun and all(ends.get(item, now + 1) <= now for item in needs)

    while len(ends) < stages * parts * len(costs):
        for stage in range(stages):
            waiting = ((kind, stage, part) for kind in ("B", "F", "W") if kind in costs for part in range(parts))
            chosen = next((item for item in waiting if free[stage] <= now and ready(*item)), None)
            if chosen is not None:
                begun.add(chosen)
                free[stage] = ends[chosen] = now + costs[chosen[0]]
        now += 1
    return max(ends.values())


@cache
def net() -> tuple[Any, Any]:
    """A net of equal stages, and its regions."""
    import torch
    from torch import nn

    from reclra_graph.options import Options
    from reclra_graph.passes.capture import capture
    from reclra_graph.passes.partition import partition
    from reclra_graph.verify import verify

    torch.manual_seed(0)
    layers = [item for _ in range(STAGES - 1) for item in (nn.Linear(8, 8), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(8, 8))
    return model, verify(partition(verify(capture(model, (torch.zeros(4, 8),), {}, Options())[0])))


def steps(parts: int, lanes: int, overlap: bool) -> Any:
    """A step of that net, flat wiring, priced in the unit costs of pipelines."""
    from reclra_graph.options import Options
    from reclra_graph.passes.emit import emit
    from reclra_graph.passes.lower import lower
    from reclra_graph.passes.pipeline import placed
    from reclra_graph.passes.schedule import schedule
    from reclra_graph.passes.simulate import pipeline_units
    from reclra_graph.passes.wire import wire
    from reclra_graph.runtime.compiled import CompiledStep
    from reclra_graph.verify import verify

    model, regions = net()
    options = Options(
        gpus=lanes, wiring="flat", micro_batches=parts, placement="pipeline", overlap_steps=overlap, gamma=0.5
    )
    tasks = verify(placed(pipeline_units(verify(lower(verify(wire(regions, options))))), options))
    program = verify(emit(verify(schedule(tasks, overlap))))
    return CompiledStep(copy.deepcopy(model), program, {})


def ours(parts: int, overlap: bool, unit: float) -> dict[str, Any]:
    """The schedule's own makespan, that of its actions, and that of its execution on threads; steps back to back."""
    import torch

    from reclra_graph.passes.simulate import simulate
    from reclra_graph.runtime.threads import run_on_threads

    step = steps(parts, STAGES, overlap)
    alone = steps(parts, 1, False)
    batches = [(torch.randn(SAMPLES, 8), torch.randint(8, (SAMPLES,))) for _ in range(STEPS)]
    expected = [alone(*batch) for batch in batches]
    run_on_threads(steps(parts, STAGES, overlap), batches)  # once without pauses: whatever is set up first
    found = run_on_threads(step, batches, lambda task: task.cost * unit)
    same = all(torch.equal(first, second) for first, second in zip(found.losses, expected, strict=True))
    held = zip(
        (*step.model.parameters(), *step.synapses.values()),
        (*alone.model.parameters(), *alone.synapses.values()),
        strict=True,
    )
    several = simulate(step.schedule, STEPS).makespan
    executed = found.seconds / unit
    return {
        "lanes": len(step.schedule.lanes),
        "makespan": step.schedule.makespan,
        "simulated": simulate(step.schedule).makespan,
        f"simulated_{STEPS}_steps": several,
        "each_further_step": simulate(step.schedule, 4).makespan - simulate(step.schedule, 3).makespan,
        f"executed_{STEPS}_steps": round(executed, 2),
        "executed_over_simulated": round(executed / several, 4),
        "bitwise_as_in_one_lane": same and all(torch.equal(first, second) for first, second in held),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the figures; exit status 1 where an execution gave other numbers, or this rule does not come out ahead."""
    args = arguments(argv)
    import torch

    torch.set_num_threads(1)
    rows = []
    for parts in (1, 2) if args.quick else MICRO_BATCHES:
        row = {
            "micro_batches": parts,
            "1f1b": backpropagation(STAGES, parts, {"F": 1, "B": 2}),
            "zero_bubble": backpropagation(STAGES, parts, {"F": 1, "B": 1, "W": 1}),
            "rec_lra": ours(parts, False, args.unit),
            "rec_lra_overlapping_steps": ours(parts, True, args.unit),
        }
        rows.append(row)
        progress(
            f"{parts} micro-batches: 1F1B {row['1f1b']}, zero bubble {row['zero_bubble']}, "
            f"here {row['rec_lra']['makespan']}; {row['rec_lra']}; {row['rec_lra_overlapping_steps']}"
        )
    if args.out is not None:
        settings = {"stages": STAGES, "steps": STEPS, "samples": SAMPLES, "seconds_per_unit": args.unit}
        write_json(
            args.out, {**circumstances(sys.argv if argv is None else [__file__, *argv]), **settings, "rows": rows}
        )
    arms = [row[name] for row in rows for name in ("rec_lra", "rec_lra_overlapping_steps")]
    sound = all(arm["bitwise_as_in_one_lane"] and arm["makespan"] == arm["simulated"] for arm in arms)
    ahead = all(row["rec_lra"]["makespan"] < min(row["1f1b"], row["zero_bubble"]) for row in rows)
    return 0 if sound and ahead else 1


if __name__ == "__main__":
    sys.exit(main())
