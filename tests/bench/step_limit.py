"""Where the time of a training step goes, in backprop and in this package's fused step, and what the limit is.

    python tests/bench/step_limit.py                      all cases; writes docs/results/step-limit-cpu.json
    python tests/bench/step_limit.py --models resnet18    some of them; writes nothing unless --out is given

Backprop runs operator by operator, and every operator is timed. Products are told apart: forward, weight gradients, and
input gradients, which a flat wiring never computes (of a convolution, whose two gradients are one operator, what is
saved by asking for the weight's alone). The limit is what backprop takes over what it takes without input gradients:
a step that does everything else that backprop does, and as fast, and sends its errors for nothing, is so many times as
fast. The fused step's products are those that PyTorch's profiler reports; what is left are Inductor's own kernels.
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
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from reclra_graph.bench.step_arms import Settings, cross_entropy, reclra_fused
from reclra_graph.bench.step_cases import CASES, Case, usual
from tests.bench.record import RESULTS, circumstances, progress, write_json

aten = torch.ops.aten
_PRODUCTS = {aten.mm.default, aten.addmm.default}
_PROFILED = {
    "aten::mkldnn_convolution": "convolutions forward",
    "aten::convolution_backward": "weight gradients of convolutions",
    "aten::mm": "matrix products",
    "aten::addmm": "matrix products",
    "aten::bmm": "matrix products",
    "aten::baddbmm": "matrix products",
}


class Timed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, adds up the seconds of every operator in ``seconds``, by kind."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = {item.untyped_storage().data_ptr() for item in parameters}
        self.seconds: dict[str, float] = {}
        self.behind = False  # whether the loss is known, and what follows are derivatives

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        begin = time.perf_counter()
        found = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - begin
        if func is aten.convolution_backward.default:
            weight = seconds
            if args[-1][0]:
                begin = time.perf_counter()
                func(*args[:-1], [False, *args[-1][1:]])
                weight = min(seconds, time.perf_counter() - begin)
            self._add("input gradients", seconds - weight)
            self._add("weight gradients", weight)
        else:
            self._add(self._kind(func, args), seconds)
        return found

    def _kind(self, func: Any, args: tuple[Any, ...]) -> str:
        if func is aten.convolution.default:
            return "products forward"
        if func not in _PRODUCTS:
            return "batched products" if func in (aten.bmm.default, aten.baddbmm.default) else "the rest"
        if not self.behind:
            return "products forward"
        factors = [item for item in args[-2:] if isinstance(item, Tensor)]
        with_weight = any(item.untyped_storage().data_ptr() in self.held for item in factors)
        return "input gradients" if with_weight else "weight gradients"

    def _add(self, kind: str, seconds: float) -> None:
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds


def backprop(case: Case, settings: Settings, rounds: int) -> dict[str, Any]:
    """Milliseconds of backprop's operators by kind, medians over rounds, and the limit."""
    net = settings.net(case)
    optimizer = torch.optim.SGD(net.model.parameters(), lr=case.lr, fused=True)
    batches = settings.batches(case, net, 2)
    found: list[dict[str, float]] = []
    for number in range(rounds + 2):
        inputs, target = batches[number % 2]
        optimizer.zero_grad(set_to_none=True)
        with Timed(list(net.model.parameters())) as timed:
            loss = cross_entropy(net.model(inputs), target)
            timed.behind = True
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found.append(timed.seconds)
    kinds = sorted({kind for item in found for kind in item})
    times = {kind: 1e3 * statistics.median(item.get(kind, 0.0) for item in found[2:]) for kind in kinds}
    whole = sum(times.values())
    return {
        "milliseconds": {kind: round(value, 3) for kind, value in times.items()},
        "sum": round(whole, 3),
        "limit": round(whole / (whole - times.get("input gradients", 0.0)), 4),
    }


def fused(case: Case, settings: Settings, rounds: int) -> dict[str, Any]:
    """Milliseconds of the fused step, median over rounds, and of its products by kind."""
    run: Callable[[Tensor, Tensor], Tensor] = reclra_fused(case, settings)
    batches = settings.batches(case, settings.net(case), 2)
    for number in range(3):
        run(*batches[number % 2])
    whole = []
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for number in range(rounds):
            begin = time.perf_counter()
            run(*batches[number % 2])
            whole.append(time.perf_counter() - begin)
    times: dict[str, float] = {}
    for item in seen.key_averages():
        if item.key in _PROFILED:
            kind = _PROFILED[item.key]
            times[kind] = times.get(kind, 0.0) + item.self_cpu_time_total / 1e3 / rounds
    total = 1e3 * statistics.fmean(whole)
    times["Inductor's kernels and the rest"] = total - sum(times.values())
    return {"milliseconds": {kind: round(value, 3) for kind, value in times.items()}, "sum": round(total, 3)}


def main(argv: Sequence[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="only these cases of reclra bench step, joined by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv[1:])
    names = [name for name in usual("cpu") if CASES[name].wiring != "blocks"]
    if options.models:
        names = options.models.split(",")
    cases = {}
    for name in names:
        case = CASES[name]
        settings = Settings(format="channels_last")  # where it matters, both are fastest so
        progress(name)
        peer, ours = backprop(case, settings, options.rounds), fused(case, settings, options.rounds)
        cases[name] = {"title": case.title, "backprop": peer, "fused step": ours}
        progress(f"  limit {peer['limit']:.3f}; backprop {peer['milliseconds']}; fused {ours['milliseconds']}")
    out = options.out or (RESULTS / "step-limit-cpu.json" if options.models is None else None)
    if out is not None:
        write_json(out, {**circumstances(argv), "what": "milliseconds of a step by kind of operator", "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
