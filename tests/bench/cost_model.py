"""How well the cost model orders steps: its predictions of the device `cpu` against measured steps on this machine.

    python tests/bench/cost_model.py           12 models × 3 wirings; writes docs/results/cost-model-cpu.json
    python tests/bench/cost_model.py --quick   two of the models, one round; writes nothing unless --out is given

A step on one lane is predicted to take the sum of its tasks' costs: once from the table's numbers, and once measured
task by task (`profile`), in a fresh cache folder. Steps are timed by the CPU time of the process, with one thread, so
that what else the machine does weighs little: the least of several rounds, in each of which every pair runs once, in an
order that rotates. Whether predictions order the pairs as measurements do is Spearman's rank correlation.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.device import DEVICES
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.passes.capture import capture
from reclra_graph.passes.emit import emit
from reclra_graph.passes.lower import lower
from reclra_graph.passes.partition import partition
from reclra_graph.passes.price import price
from reclra_graph.passes.profile import profile
from reclra_graph.passes.schedule import schedule
from reclra_graph.passes.wire import wire
from reclra_graph.verify import verify
from tests.bench.cost_nets import CASES
from tests.bench.record import RESULTS, circumstances, progress, write_json

WIRINGS = ("flat", "chain", "blocks")
CPU = DEVICES["cpu"]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="Predicted against measured step times on the CPU.")
    parser.add_argument("--rounds", type=int, default=12, help="rounds that are timed (default: 12)")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before that (default: 2)")
    parser.add_argument("--quick", action="store_true", help="two models, one round: does it run at all")
    parser.add_argument("--out", type=Path, help="the file to write (default: docs/results/cost-model-cpu.json)")
    args = parser.parse_args(argv)
    args.models = list(CASES)
    if args.quick:
        args.rounds, args.warm_up, args.models = 1, 1, ["mlp-small", "lenet"]
    elif args.out is None:
        args.out = RESULTS / "cost-model-cpu.json"
    return args


def nanoseconds(tasks: TaskGraph) -> int:
    """Predicted time of a step on one lane."""
    return sum(task.cost for task in tasks.tasks)


@dataclass(frozen=True)
class Captured:
    """A model of the benchmark with its regions; all its wirings start from them."""

    model: nn.Module
    inputs: Tensor
    target: Tensor
    options: dict[str, Any]
    regions: RegionGraph
    constants: dict[str, Tensor]


def captured(name: str) -> Captured:
    """Capture and partition a model."""
    model, inputs, target, options = CASES[name]()
    graph, constants = capture(model, (inputs,), {}, rg.Options(**options))
    return Captured(model, inputs, target, options, verify(partition(verify(graph))), constants)


class Pair:
    """A model under one wiring: its step, and what is predicted of it."""

    def __init__(self, name: str, wiring: str, case: Captured, folder: Path) -> None:
        self.name, self.wiring, self.inputs, self.target = name, wiring, case.inputs, case.target
        plan = verify(wire(case.regions, rg.Options(wiring=wiring, lr=1e-3, **case.options)))
        plan = replace(plan, device=CPU, batch=len(case.inputs))
        tasks = verify(price(verify(lower(plan)), CPU))
        program = verify(emit(verify(schedule(tasks))))
        self.step = rg.CompiledStep(copy.deepcopy(case.model), program, case.constants)
        self.predicted = nanoseconds(tasks)
        started = time.perf_counter()
        self.profiled = nanoseconds(profile(tasks, CPU, torch.device("cpu"), folder))
        self.profiling = time.perf_counter() - started
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def run(self) -> None:
        """One step, timed."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.step(self.inputs, self.target)
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def row(self) -> dict[str, Any]:
        """What is recorded, times in milliseconds."""
        plan = self.step.plan
        return {
            "model": self.name,
            "wiring": self.wiring,
            "plan": self.step.program.digest,
            "regions": len(plan.regions.sites),
            "depth": plan.depth,
            "batch": plan.batch,
            "tasks": len(self.step.schedule.tasks.tasks),
            "predicted_ms": round(self.predicted / 1e6, 4),
            "profiled_ms": round(self.profiled / 1e6, 4),
            "measured_ms": round(min(self.cpu) * 1e3, 4),
            "measured_wall_ms": round(min(self.wall) * 1e3, 4),
            "profiling_seconds": round(self.profiling, 2),
        }


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of every value from 1 on, the mean rank where several are equal."""
    ordered = sorted(values)
    return [(ordered.index(value) + 1 + len(ordered) - ordered[::-1].index(value)) / 2 for value in values]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks."""
    one, two = ranks(first), ranks(second)
    middle = (len(one) + 1) / 2
    covariance = sum((a - middle) * (b - middle) for a, b in zip(one, two, strict=True))
    spread = sum((a - middle) ** 2 for a in one) * sum((b - middle) ** 2 for b in two)
    return covariance / spread**0.5 if spread else 0.0


def probe() -> dict[str, float]:
    """What this machine does of what the table of devices says, with one thread: the best of several."""

    def best(work: Callable[[], object], count: int = 9) -> float:
        work()
        taken = []
        for _ in range(count):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        return min(taken)

    a, b = torch.randn(512, 512), torch.randn(512, 512)
    source, target = torch.randn(1 << 23), torch.empty(1 << 23)
    tiny = torch.randn(4)
    return {
        "matmul_flops_per_second": round(2 * 512**3 / best(lambda: a @ b)),
        "copy_bytes_per_second": round(2 * source.nbytes / best(lambda: target.copy_(source))),
        "launch_seconds": round(best(lambda: [tiny + tiny for _ in range(1000)]) / 1000, 9),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its file."""
    args = arguments(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            case = captured(name)
            for wiring in WIRINGS:
                pairs.append(Pair(name, wiring, case, Path(folder)))
                progress(f"{name}, {wiring}: predicted {pairs[-1].predicted / 1e6:.2f} ms")
    machine = probe()
    for number in range(args.warm_up + args.rounds):
        if number == args.warm_up:
            for pair in pairs:
                pair.cpu.clear()
                pair.wall.clear()
        shift = number % len(pairs)
        for pair in pairs[shift:] + pairs[:shift]:
            pair.run()
        progress(f"round {number + 1 - args.warm_up} of {args.rounds}")
    rows = [pair.row() for pair in pairs]
    measured = [row["measured_ms"] for row in rows]
    found = {
        name: round(rank_correlation([row[f"{name}_ms"] for row in rows], measured), 4)
        for name in ("predicted", "profiled")
    }
    report = {
        **circumstances([__file__, *(sys.argv[1:] if argv is None else argv)]),
        "what": "step times predicted from the table's numbers for `cpu`, and from tasks measured one by one, against "
        "the least CPU time of a step, one thread",
        "config": {"rounds": args.rounds, "warm_up": args.warm_up, "wirings": list(WIRINGS)},
        "device": {name: getattr(CPU, name) for name in ("flops", "bandwidth", "launch")},
        "probe": machine,
        "rank_correlation": found,
        "pairs": rows,
    }
    if args.out:
        write_json(args.out, report)
        progress(f"written: {args.out}")
    for row in rows:
        sys.stdout.write(
            f"{row['model']:16} {row['wiring']:7} predicted {row['predicted_ms']:9.2f}  "
            f"profiled {row['profiled_ms']:9.2f}  measured {row['measured_ms']:9.2f} ms\n"
        )
    sys.stdout.write(f"rank correlation: {found['predicted']} predicted, {found['profiled']} with profile\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
