"""A flat ResNet-50 with 1,000 classes at 224×224, every error synapse implicit: what is stored, and that it trains.

    python tests/bench/implicit_resnet50.py             writes docs/results/implicit-resnet50.json
    python tests/bench/implicit_resnet50.py --quick     a ResNet-18 at 32×32; writes nothing unless --out is given

Needs torchvision. Memory is counted over the tensors of E, beside what dense synapses of the same shapes would take.
The steps run on one fixed batch of random images with random classes: the loss has to fall.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.record import RESULTS, circumstances, progress, write_json


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="A flat ResNet-50 with implicit error synapses.")
    parser.add_argument("--steps", type=int, default=12, help="training steps (default: 12)")
    parser.add_argument("--minutes", type=float, default=15.0, help="start no step after so long (default: 15)")
    parser.add_argument("--batch", type=int, default=4, help="images (default: 4)")
    parser.add_argument("--lr", type=float, default=0.001, help="learning rate (default: 0.001)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a small ResNet-18: does it run at all")
    parser.add_argument("--out", type=Path, help="the file to write (default: docs/results/implicit-resnet50.json)")
    args = parser.parse_args(argv)
    if args.out is None and not args.quick:
        args.out = RESULTS / "implicit-resnet50.json"
    return args


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Compile, count, and train on one batch."""
    import torch

    import reclra_graph as rg
    from reclra_graph.bench.loader import imported

    models = imported("torchvision").models
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    name, classes, size = ("resnet18", 10, 32) if args.quick else ("resnet50", 1000, 224)
    model = getattr(models, name)(num_classes=classes)
    x, y = torch.randn(args.batch, 3, size, size), torch.randint(classes, (args.batch,))
    started = time.perf_counter()
    step = rg.compile(model, (x,), wiring="flat", synapse="implicit", lr=args.lr)
    compiling = time.perf_counter() - started
    progress(f"{name} compiled in {compiling:.1f} s")
    plan, held = step.plan, step.synapses
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    losses: list[float] = []
    seconds: list[float] = []
    busy: list[float] = []
    while len(losses) < args.steps and time.perf_counter() - started < 60 * args.minutes:
        begun, worked = time.perf_counter(), time.process_time()
        losses.append(float(step(x, y)))
        seconds.append(round(time.perf_counter() - begun, 2))
        busy.append(round(time.process_time() - worked, 2))
        progress(f"step {len(losses)}: loss {losses[-1]:.4f}, {seconds[-1]} s")
    moved = [float((value.detach() - before[key]).norm()) for key, value in model.named_parameters()]
    return {
        "model": f"torchvision {name}, {classes} classes, {size}×{size}, weights at random (seed 0)",
        "parameters": sum(value.numel() for value in before.values()),
        "regions": len(plan.regions.sites),
        "synapses": {
            "edges": len(plan.edges),
            "forms": sorted({edge.form for edge in plan.edges}),
            "stored": {
                "tensors": len(held),
                "bytes": sum(item.numel() * item.element_size() for item in held.values()),
            },
            "dense": {
                "entries": sum(edge.shape[0] * edge.shape[1] for edge in plan.edges),
                "bytes": 4 * sum(edge.shape[0] * edge.shape[1] for edge in plan.edges),
            },
        },
        "training": {
            "images": args.batch,
            "lr": args.lr,
            "losses": [round(value, 6) for value in losses],
            "seconds": seconds,
            "processor seconds": busy,
            "parameters that moved": f"{sum(value > 0 for value in moved)} of {len(moved)} tensors",
        },
        "compile seconds": round(compiling, 1),
        "largest resident memory, bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its file."""
    args = arguments(argv)
    found = measured(args)
    report = {
        **circumstances([__file__, *(sys.argv[1:] if argv is None else argv)]),
        "what": "error synapses of a flat wiring that are never stored, and training steps on one fixed batch",
        "config": {"steps": args.steps, "minutes": args.minutes, "batch": args.batch, "lr": args.lr},
        **found,
    }
    if args.out:
        write_json(args.out, report)
        progress(f"written: {args.out}")
    stored, dense = found["synapses"]["stored"]["bytes"], found["synapses"]["dense"]["bytes"]
    losses = found["training"]["losses"]
    sys.stdout.write(f"synapses: {stored:,} bytes, {dense:,} if dense; loss {losses[0]:.4f} to {losses[-1]:.4f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
