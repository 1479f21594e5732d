"""Seconds to compile a model: every pass, and every file written.

    python tests/bench/compile_time.py             writes docs/results/compile-time.json
    python tests/bench/compile_time.py --quick     a 20-layer MLP, one process; writes nothing unless --out is given

Every figure is the median of several fresh processes. Importing torch is measured apart, and so is importing this
package (which imports torch.export); a pass's seconds include its verifier, and whatever PyTorch imports while it runs.
A second compilation in the same process shows how much of the first was that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.record import RESULTS, circumstances, example, progress, spread, write_json

MODELS = {"resnet18": "examples/resnet18.py, 64 images of 32×32", "mlp200": "200 linear layers of 64 units, tanh"}
QUICK = {"mlp20": "20 linear layers of 64 units, tanh"}
LANES = 5


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="Seconds to compile a model, by pass, in fresh processes.")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes per model (default: 5)")
    parser.add_argument("--quick", action="store_true", help="a 20-layer MLP in one process: does it run at all")
    parser.add_argument("--out", type=Path, help="the file to write (default: docs/results/compile-time.json)")
    parser.add_argument("--one", choices=(*MODELS, *QUICK), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.processes = 1
    elif args.out is None:
        args.out = RESULTS / "compile-time.json"
    return args


def one(name: str) -> dict[str, Any]:
    """Compile and save one model in this process, which has imported nothing yet; returns seconds."""
    assert "torch" not in sys.modules
    clock = time.perf_counter
    started = clock()
    import torch

    imported_torch = clock()
    import reclra_graph as rg

    rg.compile  # noqa: B018 — names are imported when first used
    imported = clock()
    torch.manual_seed(0)
    model, inputs = build(name)
    rounds = []
    for _ in range(2):
        begun = clock()
        step = rg.compile(model, inputs, gpus=LANES)
        compiled = clock()
        with tempfile.TemporaryDirectory() as folder:
            step.save(folder)
            saved = clock()
            files = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir())}
        passes = dict(step.seconds)
        rounds.append(
            {
                **passes,
                "load": compiled - begun - sum(passes.values()),
                "files": saved - compiled,
                "all": saved - begun,
            }
        )
    return {
        "import torch": imported_torch - started,
        "import reclra_graph": imported - imported_torch,
        "first": rounds[0],
        "second": rounds[1],
        "about": {
            "regions": len(step.plan.regions.sites),
            "wiring": step.plan.wiring,
            "depth": step.plan.depth,
            "lanes": len(step.schedule.lanes),
            "lines": len(step.source.splitlines()),
            "plan": step.program.digest,
            "files": files,
        },
    }


def build(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A model and its example inputs."""
    import torch
    from torch import nn

    if name == "resnet18":
        module = example("resnet18")
        return module.build_model(), module.example_inputs
    layers: list[nn.Module] = []
    for _ in range(int(name.removeprefix("mlp")) - 1):
        layers += [nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(64, 10)), (torch.zeros(50, 64),)


def fresh(name: str) -> dict[str, Any]:
    """``one`` in a process of its own. Raises RuntimeError with the process's last words where it fails."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"compiling {name} failed:\n{done.stderr[-2000:]}")
    seconds: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spread over the processes."""
    found: dict[str, Any] = {"about": runs[0]["about"]}
    for key in ("import torch", "import reclra_graph"):
        found[key] = spread([run[key] for run in runs], 3)
    for key in ("first", "second"):
        found[key] = {part: spread([run[key][part] for run in runs], 3) for part in runs[0][key]}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its file."""
    args = arguments(argv)
    if args.one:
        sys.stdout.write(json.dumps(one(args.one)) + "\n")
        return 0
    models = QUICK if args.quick else MODELS
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for number in range(args.processes):
        for name in models:
            runs[name].append(fresh(name))
            first, second = (runs[name][-1][key]["all"] for key in ("first", "second"))
            progress(f"{number + 1}/{args.processes} {name}: {first:.2f} s, then {second:.2f} s")
    results = {name: {"model": models[name], **summary(found)} for name, found in runs.items()}
    report = {
        **circumstances([__file__, *(sys.argv[1:] if argv is None else argv)]),
        "what": "seconds to compile and to write all files; medians of fresh processes; imports apart",
        "config": {"gpus": LANES, "processes": args.processes},
        "models": results,
    }
    if args.out:
        write_json(args.out, report)
        progress(f"written: {args.out}")
    for name, figures in results.items():
        whole, importing = figures["first"]["all"]["median"], figures["import torch"]["median"]
        sys.stdout.write(f"{name}: {whole:.2f} s, beside {importing:.2f} s to import torch\n")
        for part, seconds in figures["first"].items():
            sys.stdout.write(f"  {part:<10} {seconds['median']:7.3f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
