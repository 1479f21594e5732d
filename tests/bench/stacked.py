"""What a step of many runs at once costs, beside the same runs one after the other.

    python tests/bench/stacked.py             writes docs/results/stacked-cpu.json
    python tests/bench/stacked.py --quick     one tiny case; writes nothing unless --out is given

Milliseconds of one step for each run, with 1, 3 and 10 runs: all of them stacked in one fused step, and their own fused
steps one after the other; the same for backpropagation, whose peer is PyTorch's loop over models with autograd and
torch.optim. Each run has a batch of its own. Every case runs in a fresh process, its arms in turns. Beside them stands
what the matrix products of the step take alone, as torch.bmm over the runs and as torch.mm one after the other: no
stacking can be faster than its products; what is left is activations, errors, and the optimiser's traffic.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.stacked import StackedStep
from reclra_graph.runtime.stacked_backprop import StackedBackprop
from tests.bench.record import RESULTS, circumstances, progress, spread, write_json
from tests.models import mlp

NETS = {"mlp 5x256": (784, 256, 256, 256, 256, 256, 10), "mlp 2x64": (64, 64, 64, 10)}
BATCH = 50
RUNS = (1, 3, 10)


@dataclass(frozen=True)
class Case:
    """What is measured in one process."""

    net: str
    runs: int
    optimizer: str
    threads: int
    rounds: int
    steps: int


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="What a step of many runs at once costs.")
    parser.add_argument("--quick", action="store_true", help="one tiny case: does it run at all")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each arm")
    parser.add_argument("--out", type=Path, help="the file to write (default: docs/results/stacked-cpu.json)")
    parser.add_argument("--one", metavar="CASE", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.out is None and not args.quick:
        args.out = RESULTS / "stacked-cpu.json"
    return args


def cases(quick: bool, rounds: int) -> list[Case]:
    """All of them: one thread, and all cores where there are more."""
    if quick:
        return [Case("mlp 2x64", 2, "sgd", 1, 2, 2)]
    threads = sorted({1, torch.get_num_threads()})
    return [
        Case(net, runs, optimizer, count, rounds, 200 if net == "mlp 2x64" else 30)
        for net in NETS
        for optimizer in ("sgd", "adamw")
        for count in threads
        for runs in RUNS
    ]


def one(case: Case) -> dict[str, Any]:
    """Measure a case in this process; milliseconds for each run and step."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    widths = NETS[case.net]
    x, y = torch.rand(case.runs, BATCH, widths[0]), torch.randint(widths[-1], (case.runs, BATCH))
    first = rg.compile(mlp(*widths), x[0], optimizer=case.optimizer, lr=1e-3)

    def fresh() -> list[CompiledStep]:
        return [CompiledStep(mlp(*widths), first.program, {}, (), seed) for seed in range(case.runs)]

    together, backprop = StackedStep(fresh()), StackedBackprop(fresh())
    alone = [run.fused() for run in fresh()]
    loops = [autograd(mlp(*widths), case.optimizer) for _ in range(case.runs)]
    arms: dict[str, Callable[[], object]] = {
        "stacked": lambda: together(x, y),
        "one by one": lambda: [run(x[number], y[number]) for number, run in enumerate(alone)],
        "backprop, stacked": lambda: backprop(x, y),
        "backprop, one by one": lambda: [run(x[number], y[number]) for number, run in enumerate(loops)],
        "products, bmm": products(widths, case.runs, True),
        "products, mm": products(widths, case.runs, False),
    }
    with torch.random.fork_rng():
        for work in arms.values():
            for _ in range(5):
                work()
    compiled = not any((together.why, backprop.why, *(run.why for run in alone)))
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(case.rounds):
        for name, work in arms.items():
            started = time.perf_counter()
            for _ in range(case.steps):
                work()
            found[name].append((time.perf_counter() - started) * 1e3 / case.steps / case.runs)
    ratios = [one / stacked for one, stacked in zip(found["one by one"], found["stacked"], strict=True)]
    return {
        **asdict(case),
        "compiled": compiled,
        "milliseconds of a run's step": {name: spread(values) for name, values in found.items()},
        "one by one, over stacked": spread(ratios, 3),
    }


def autograd(model: torch.nn.Module, optimizer: str) -> Callable[[Tensor, Tensor], Tensor]:
    """PyTorch's own training step."""
    made: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    optimiser = made[optimizer](model.parameters(), lr=1e-3, fused=True)

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss

    return step


def products(widths: Sequence[int], runs: int, together: bool) -> Callable[[], None]:
    """The products of all layers' forward passes and updates, of all runs."""
    pairs = list(itertools.pairwise(widths))
    weights = [torch.rand(runs, wide, narrow) for narrow, wide in pairs]
    inputs = [torch.rand(runs, BATCH, narrow) for narrow, _ in pairs]
    errors = [torch.rand(runs, BATCH, wide) for _, wide in pairs]

    def work() -> None:
        for w, z, e in zip(weights, inputs, errors, strict=True):
            if together:
                torch.bmm(z, w.mT)
                torch.bmm(e.mT, z)
                continue
            for run in range(runs):
                torch.mm(z[run], w[run].T)
                torch.mm(e[run].T, z[run])

    return work


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its file."""
    args = arguments(argv)
    if args.one:
        sys.stdout.write(json.dumps(one(Case(**json.loads(args.one)))) + "\n")
        return 0
    rows = []
    for case in cases(args.quick, args.rounds):
        command = [sys.executable, str(Path(__file__).resolve()), "--one", json.dumps(asdict(case))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{case} failed:\n{done.stderr[-2000:]}")
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        medians = {name: item["median"] for name, item in row["milliseconds of a run's step"].items()}
        progress(f"{case.net}, {case.optimizer}, {case.threads} threads, {case.runs} runs: {medians}")
    report = {
        **circumstances([__file__, *(sys.argv[1:] if argv is None else argv)]),
        "what": "milliseconds of one step for each of several runs: stacked in one step, and one after the other",
        "config": {"batch": BATCH, "nets": {name: list(widths) for name, widths in NETS.items()}},
        "cases": rows,
    }
    if args.out:
        write_json(args.out, report)
        progress(f"written: {args.out}")
    for row in rows:
        gain = row["one by one, over stacked"]["median"]
        case = f"{row['net']}, {row['optimizer']}, {row['threads']} threads, {row['runs']:>2} runs"
        sys.stdout.write(f"{case}: one by one takes {gain} times as long as stacked\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
