"""The parts of a run on a GPU machine: what each needs, how long it may take, and what it records.

    python -m tests.gpu.parts NAME FILE [--cpu]     run one part in this process; its result goes to FILE as JSON

`run_all.py` starts every part so, as a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.record import ROOT, circumstances, write_json

OPTIONAL = ("typer", "rich", "pytest", "hypothesis", "onnx", "numpy", "torchvision", "triton")


Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Part:
    """A part: ``work(small, keep)`` gives its result, with "failed" in it where something did; it may hand what it has
    so far to ``keep``, in case its time runs out. ``limit`` is in seconds."""

    about: str
    limit: int
    work: Callable[[bool, Keep], dict[str, Any]]
    modules: tuple[str, ...] = ()
    unless: str = ""
    """A module whose presence makes this part needless."""


def missing(part: Part) -> str:
    """Why a part cannot run here, or nothing."""
    absent = [name for name in part.modules if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if part.unless and importlib.util.find_spec(part.unless) is not None:
        return f"not needed where {part.unless} is installed"
    return ""


def environment(small: bool, keep: Keep) -> dict[str, Any]:
    """The machine, PyTorch's build, the GPUs, and which packages are there."""
    import torch

    result: dict[str, Any] = {
        "packages": {name: importlib.util.find_spec(name) is not None for name in OPTIONAL},
        "cuda": torch.cuda.is_available(),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "build": torch.__config__.show().splitlines(),
    }
    try:
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False)
        result["nvidia-smi"] = done.stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        result["nvidia-smi"] = str(error)
    if not torch.cuda.is_available():
        if not small:
            result["failed"] = "PyTorch sees no CUDA device"
        return result
    result["gpus"] = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        result["gpus"].append(
            {
                "name": about.name,
                "capability": f"{about.major}.{about.minor}",
                "mebibytes": about.total_memory // 2**20,
                "multiprocessors": about.multi_processor_count,
            }
        )
    return result


def tests(small: bool, keep: Keep) -> dict[str, Any]:
    """``pytest -m gpu``, or on the CPU the quick tests of the same checks."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short", f"--junitxml={report}"]
        command += ["tests/gpu"] if small else ["-m", "gpu", "tests/gpu"]
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
        if not report.exists():
            return {
                "failed": f"pytest ended with status {done.returncode} and wrote no report",
                "status": done.returncode,
            }
        cases = xml.etree.ElementTree.parse(report).getroot().iter("testcase")
        outcomes = [_outcome(case) for case in cases]
    counts = {kind: sum(item["outcome"] == kind for item in outcomes) for kind in ("passed", "failed", "skipped")}
    result: dict[str, Any] = {**counts, "status": done.returncode, "tests": outcomes}
    if done.returncode or not counts["passed"]:
        result["failed"] = f"{counts['failed']} of {len(outcomes)} tests failed, pytest's status {done.returncode}"
    return result


def _outcome(case: xml.etree.ElementTree.Element) -> dict[str, Any]:
    found: dict[str, Any] = {"name": case.get("name"), "seconds": float(case.get("time", "0")), "outcome": "passed"}
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            found["outcome"] = "skipped" if child.tag == "skipped" else "failed"
            found["message"] = f"{child.get('message', '')}\n{child.text or ''}"[-3000:].strip()
    return found


def checks(small: bool, keep: Keep) -> dict[str, Any]:
    """The same checks without pytest."""
    import torch

    from tests.bench.record import progress
    from tests.gpu.checks import all_checks, run_one

    device = torch.device("cpu" if small else "cuda:0")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, check in all_checks(folder).items():
            if small and not name.startswith("figure1"):
                continue
            results[name] = run_one(check, device)
            progress(f"{results[name]['outcome']:<8}{results[name]['seconds']:7.1f} s  {name}")
            keep({"checks": results})
    failed = [name for name, found in results.items() if found["outcome"] == "failed"]
    return {"checks": results, **({"failed": ", ".join(failed)} if failed else {})}


def steps(models: str, small: bool, keep: Keep) -> dict[str, Any]:
    """``reclra bench step`` for some of its cases: backprop eager, compiled, graphed, against the step's own forms."""
    import json

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.json"
        command = [sys.executable, "-c", "from reclra_graph.cli import main; main()", "bench", "step"]
        command += ["--models", models, "--out", str(out), "--work", str(Path(folder) / "work")]
        command += (
            ["--device", "cpu", "--quick", "--arms", "backprop-eager,reclra-eager"] if small else ["--device", "cuda"]
        )
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL, check=False
        )
        if not out.exists():
            return {"failed": f"reclra bench step ended with status {done.returncode} and wrote no results"}
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return {**found, **({"failed": "a cell was not measured, or its loss did not fall"} if done.returncode else {})}


def pipelines(small: bool, keep: Keep) -> dict[str, Any]:
    """Micro-batches, placed regions, overlapping steps and CUDA graphs: the checks, then milliseconds per step."""
    import torch

    from tests.bench.record import progress
    from tests.gpu.checks import run_one
    from tests.gpu.pipelines import all_checks, seconds

    device = torch.device("cpu" if small else "cuda:0")
    results = {}
    for name, check in all_checks().items():
        if small and not name.startswith("figure1 "):
            continue
        results[name] = run_one(check, device)
        progress(f"{results[name]['outcome']:<8}{results[name]['seconds']:7.1f} s  {name}")
        keep({"checks": results})
    failed = [name for name, found in results.items() if found["outcome"] == "failed"]
    times = {} if small else {"milliseconds": seconds(device)}
    return {"checks": results, **times, **({"failed": ", ".join(failed)} if failed else {})}


def fused(small: bool, keep: Keep) -> dict[str, Any]:
    """Steps that Inductor compiles, whole, in pieces, and captured: the checks."""
    import torch

    from tests.bench.record import progress
    from tests.gpu.checks import run_one
    from tests.gpu.fused import all_checks

    device = torch.device("cpu" if small else "cuda:0")
    results = {}
    for name, check in all_checks().items():
        results[name] = run_one(check, device)
        progress(f"{results[name]['outcome']:<8}{results[name]['seconds']:7.1f} s  {name}")
        keep({"checks": results})
    failed = [name for name, found in results.items() if found["outcome"] == "failed"]
    return {"checks": results, **({"failed": ", ".join(failed)} if failed else {})}


def fashion_mnist(small: bool, keep: Keep) -> dict[str, Any]:
    """The main job, examples/fashion_mnist.py, with the images that travel with the examples."""
    import json

    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, str(ROOT / "examples" / "fashion_mnist.py"), "--out", str(Path(folder) / "out")]
        command += ["--results", str(results), "--device", "cpu" if small else "cuda"]
        command += ["--epochs", "1"] if small else []
        # The script stands in examples/; the package is this checkout's.
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            return {"failed": f"examples/fashion_mnist.py ended with status {done.returncode}"}
        found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return found


_TYPED = ("typer", "rich")
_LANES = ",".join(["resnet18", *(f"{name}-{count}-lanes" for name in ("mlp", "resnet18") for count in (2, 5, 8))])

PARTS = {
    "environment": Part("machine, versions, GPUs", 60, environment),
    "tests": Part("pytest -m gpu", 300, tests, ("pytest",)),
    "checks": Part("the GPU tests' checks, without pytest", 300, checks, (), "pytest"),
    "pipelines": Part(
        "micro-batches, placed regions, overlapping steps, CUDA graphs of one and several devices", 540, pipelines
    ),
    "fused": Part("steps that Inductor compiles: whole, in pieces, captured", 540, fused, ("triton",)),
    "bench-mlp": Part("seconds per step, MLP 5×256", 240, partial(steps, "mlp"), _TYPED),
    "bench-lanes": Part(
        "seconds per step, MLP and ResNet-18 on 1, 2, 5 and 8 lanes",
        540,
        partial(steps, _LANES),
        _TYPED,
    ),
    "bench-resnet50": Part("seconds per step, ResNet-50 in bfloat16", 560, partial(steps, "resnet50-224"), _TYPED),
    "bench-vit": Part("seconds per step, ViT-B/16", 560, partial(steps, "vit-b16"), _TYPED),
    "bench-gpt2": Part("seconds per step, GPT-2 small", 560, partial(steps, "gpt2"), _TYPED),
    "fashion-mnist": Part("the main job on the GPU", 150, fashion_mnist, ("rich",)),
}
"""In the order in which they run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one part and write its result; the exit status is 0 unless it raised."""
    parser = argparse.ArgumentParser(description="Run one part of tests/gpu/run_all.py.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cpu", action="store_true", help="small sizes on the CPU")
    args = parser.parse_args(argv)
    if args.cpu:
        import torch

        torch.set_num_threads(1)  # small work gains nothing from more, and waits for them where the machine is busy

    def keep(result: dict[str, Any]) -> None:
        write_json(args.file, {**circumstances(["tests/gpu/run_all.py", "--parts", args.part]), "result": result})

    keep(PARTS[args.part].work(args.cpu, keep))
    return 0


if __name__ == "__main__":
    sys.exit(main())
