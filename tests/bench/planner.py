"""How good the planner's choices are, and how long it takes over large models.

    python tests/bench/planner.py             writes docs/results/planner.json
    python tests/bench/planner.py --quick     a few graphs, one tiny model; writes nothing unless --out is given

Random region graphs of at most 8 regions on at most 4 GPUs, with random costs, are planned, and compared with the best
of all trees of parents under the best of all schedules (``tests/property/small_plans.py``). Then ResNet-152 and a GPT
of 96 blocks are planned for 8 GPUs by the costs of an A100: seconds of the wire pass alone, of the clock and of the
processor, each model in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.record import RESULTS, circumstances, progress, write_json

MODELS = ("resnet152", "gpt:96")
DEVICE, GPUS = "a100", 8


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="How good the planner's choices are, and how long it takes.")
    parser.add_argument("--quick", action="store_true", help="a few graphs and one tiny model: does it run at all")
    parser.add_argument("--graphs", type=int, default=300, help="random graphs (default: 300)")
    parser.add_argument("--out", type=Path, help="the file to write (default: docs/results/planner.json)")
    parser.add_argument("--one", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.out is None and not args.quick:
        args.out = RESULTS / "planner.json"
    if args.quick:
        args.graphs = 5
    return args


MOST = 300_000
"""Branches of the exact scheduler for each tree, in the proof that no step is shorter by more than 5 %."""


def small(graphs: int) -> dict[str, Any]:
    """The planner against the exhaustive search, on the random graphs with seeds 0, 1, 2, …"""
    from tests.property.small_plans import compared

    rows = []
    for seed in range(graphs):
        rows.append(compared(Random(seed), MOST))
        if (seed + 1) % 25 == 0:
            progress(f"{seed + 1} of {graphs} graphs")
    ratios = [row.planned / row.shortest.makespan for row in rows]
    optimal = sum(row.planned == row.shortest.makespan and row.shortest.proven for row in rows)
    return {
        "graphs": graphs,
        "regions, at most": max(row.regions for row in rows),
        "gpus, at most": max(row.gpus for row in rows),
        "optimal, proven": optimal,
        "share optimal": round(optimal / graphs, 4),
        "within 5 % of the best, proven": sum(row.near for row in rows),
        "not decided whether optimal": sum(not row.shortest.proven for row in rows),
        "largest ratio to the shortest known": round(max(ratios), 4),
        "largest ratio to the lower bound where not decided": round(
            max((row.planned / row.shortest.bound for row in rows if not row.shortest.proven), default=1.0), 4
        ),
        "mean ratio": round(sum(ratios) / graphs, 5),
    }


def build(name: str) -> tuple[Any, Any, str]:
    """A model, an example input and a loss."""
    import torch

    from tests.bench import scaling

    if name == "resnet152":
        from reclra_graph.bench.loader import imported

        return imported("torchvision").models.resnet152(), torch.zeros(2, 3, 224, 224), "cross-entropy"
    kind, _, size = name.partition(":")
    return scaling.build(kind, int(size))


def one(name: str) -> dict[str, Any]:
    """Plan one model in this process; returns what was chosen, and seconds."""
    import torch

    from reclra_graph.ir.device import DEVICES
    from reclra_graph.options import Options
    from reclra_graph.passes.costs import device_costs, unit_costs
    from reclra_graph.passes.lower import lower
    from reclra_graph.passes.pipeline import explain_model
    from reclra_graph.passes.price import price
    from reclra_graph.passes.wire import wire
    from reclra_graph.verify import verify

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, inputs, loss = build(name)
    options = Options(gpus=GPUS, device=DEVICE, loss=loss)
    regions = explain_model(model, (inputs,), {}, options)
    progress(f"{name}: {len(regions.sites)} regions")
    device, batch = DEVICES[DEVICE], inputs.shape[0]
    flat = wire(regions, replace(options, wiring="flat"), unit_costs(regions, batch))
    costs = device_costs(price(lower(replace(flat, device=device, batch=batch)), device))
    found: dict[str, Any] = {"regions": len(regions.sites), "gpus": GPUS, "device": DEVICE, "plans": {}}
    budgets = {"no budget": None, "16 MiB for synapses": 16 << 20}
    for label, budget in budgets.items():
        wall, cpu = time.perf_counter(), time.process_time()
        plan = verify(wire(regions, replace(options, synapse_memory=budget), costs))
        row = {
            "seconds": round(time.perf_counter() - wall, 2),
            "processor seconds": round(time.process_time() - cpu, 2),
            "chosen": plan.wiring,
            "depth": plan.depth,
            "relays": len(plan.relays),
            "synapse bytes": plan.synapse_bytes,
            "why": plan.why,
            "makespans in microseconds": {item.name: round(item.makespan / 1000) for item in plan.candidates},
        }
        progress(f"{name}, {label}: {row}")
        found["plans"][label] = row
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its file."""
    args = arguments(argv)
    if args.one:
        sys.stdout.write(json.dumps(one(args.one)) + "\n")
        return 0
    report: dict[str, Any] = {
        **circumstances([__file__, *(sys.argv[1:] if argv is None else argv)]),
        "what": "makespans against an exhaustive search; seconds of the wire pass, its verifier included",
        "small graphs": small(args.graphs),
        "large models": {},
    }
    for name in ("mlp:6",) if args.quick else MODELS:
        command = [sys.executable, str(Path(__file__).resolve()), "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"planning {name} failed")
        report["large models"][name] = json.loads(done.stdout.splitlines()[-1])
    if args.out:
        write_json(args.out, report)
        progress(f"written: {args.out}")
    small_graphs = report["small graphs"]
    sys.stdout.write(f"optimal: {small_graphs['optimal, proven']} of {small_graphs['graphs']}\n")
    for name, row in report["large models"].items():
        for label, plan in row["plans"].items():
            sys.stdout.write(f"{name}, {label}: {plan['chosen']} in {plan['seconds']} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
