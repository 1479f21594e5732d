"""Seconds of one training step on the CPU: a flat-wired ResNet-18, and eager backpropagation.

    python tests/bench/step_cpu.py             ResNet-18, batch 64, 32×32; writes docs/results/step-cpu.json
    python tests/bench/step_cpu.py --quick     a narrow one, two rounds; writes nothing unless --out is given

Every round runs one step of each arm, in an order that rotates, all in one process; steps before the first round warm
up. Backpropagation is `torch.optim.SGD` with the same learning rate on the same batches, with the model and the images
once in PyTorch's usual memory format and once in channels_last. Ratios are taken within a round, so that what else the
machine does weighs on both sides, against the format that is faster for backpropagation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from tests.bench.record import RESULTS, circumstances, example, progress, spread, write_json

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CLASSES = 10
BATCHES = 4

Step = Callable[[int], float]
"""Trains on the batch of that number; returns the loss."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="Seconds of a flat-wired ResNet-18 step and of eager backpropagation.")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each arm that are timed (default: 15)")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of each arm before that (default: 3)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images (default: 32)")
    parser.add_argument("--width", type=int, default=64, help="filters of the first stage (default: 64)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of both (default: 0.01)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, synapses and images (default: 0)")
    parser.add_argument("--quick", action="store_true", help="width 8, batch 8, 2 rounds after 1: does it run at all")
    parser.add_argument("--out", type=Path, help="the file to write (default: docs/results/step-cpu.json)")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.warm_up, args.batch, args.width = 2, 1, 8, 8
    elif args.out is None:
        args.out = RESULTS / "step-cpu.json"
    return args


def batches(args: argparse.Namespace, memory: torch.memory_format) -> list[tuple[Tensor, Tensor]]:
    """The batches that every arm trains on, in turn: random images and labels."""
    generator = torch.Generator().manual_seed(args.seed)
    made = []
    for _ in range(BATCHES):
        images = torch.randn(args.batch, 3, args.size, args.size, generator=generator)
        labels = torch.randint(CLASSES, (args.batch,), generator=generator)
        made.append((images.to(memory_format=memory), labels))
    return made


def model(args: argparse.Namespace, memory: torch.memory_format) -> nn.Module:
    """examples/resnet18.py, its weights drawn from the seed."""
    torch.manual_seed(args.seed)
    made: nn.Module = example("resnet18").ResNet18(CLASSES, args.width)
    made.to(memory_format=memory)  # type: ignore[call-overload]  # missing in PyTorch's own annotations
    return made


def backprop(args: argparse.Namespace, memory: torch.memory_format) -> Step:
    """Eager PyTorch: forward, loss.backward(), SGD."""
    net, data = model(args, memory), batches(args, memory)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr)

    def run(number: int) -> float:
        images, labels = data[number % BATCHES]
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return run


def rec_lra(args: argparse.Namespace, memory: torch.memory_format) -> tuple[Step, rg.CompiledStep]:
    """The compiled step, flat wiring, with the compiler's own choices otherwise."""
    net, data = model(args, memory), batches(args, memory)
    step = rg.compile(net, (data[0][0],), wiring="flat", lr=args.lr, seed=args.seed)
    return (lambda number: step(*data[number % BATCHES]).item()), step


def measure(arms: dict[str, Step], args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """(wall seconds, CPU seconds of the process, loss) of every timed step, by arm."""
    names = list(arms)
    for name in names:
        for number in range(args.warm_up):
            arms[name](number)
        progress(f"{name}: warm")
    seen: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": [], "loss": []} for name in names}
    for index in range(args.rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            wall, cpu = time.perf_counter(), time.process_time()
            loss = arms[name](args.warm_up + index)
            seen[name]["cpu"].append(time.process_time() - cpu)
            seen[name]["wall"].append(time.perf_counter() - wall)
            seen[name]["loss"].append(loss)
        latest = "  ".join(f"{name} {seen[name]['wall'][-1]:.3f}" for name in names)
        progress(f"round {index + 1}/{args.rounds}: {latest}")
    peers = [name for name in names if name.startswith("backprop")]
    table = {
        name: {
            "wall_seconds": spread(values["wall"]),
            "cpu_seconds": spread(values["cpu"]),
            "last_loss": round(values["loss"][-1], 4),
        }
        for name, values in seen.items()
    }
    ratios: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        best = min(peers, key=lambda name: statistics.median(seen[name][clock]))
        ratios[clock] = {"peer": best}
        for name in names:
            if name != best:
                pairs = zip(seen[name][clock], seen[best][clock], strict=True)
                ratios[clock][name] = spread([ours / theirs for ours, theirs in pairs], 3)
    return table, ratios


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its file."""
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    arms: dict[str, Step] = {}
    plans: dict[str, str] = {}
    for label, memory in FORMATS.items():
        arms[f"backprop, {label}"] = backprop(args, memory)
    for label, memory in FORMATS.items():
        progress(f"rec-LRA, {label}: compiling")
        arms[f"rec-LRA, {label}"], step = rec_lra(args, memory)
        plans[label] = step.program.digest
    table, ratios = measure(arms, args)
    report = {
        **circumstances([__file__, *(sys.argv[1:] if argv is None else argv)]),
        "what": "seconds of one training step, all arms in one process, in turns; ratios within a round",
        "config": {
            "model": "examples/resnet18.py",
            **{key: getattr(args, key) for key in ("width", "batch", "size", "lr", "seed", "warm_up", "rounds")},
            "wiring": "flat",
            "plans": plans,
        },
        "arms": table,
        "ratios": ratios,
    }
    if args.out:
        write_json(args.out, report)
        progress(f"written: {args.out}")
    for clock, row in ratios.items():
        for name, figures in row.items():
            if name != "peer":
                middle, (low, high) = figures["median"], figures["quartiles"]
                sys.stdout.write(f"{clock}: {name} takes {middle:.3f} ({low:.3f} to {high:.3f}) of {row['peer']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
