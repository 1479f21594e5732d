"""Where the time of a training step goes, in backprop and in this package's fused step, and what the limit is.

    python tests/bench/step_limit.py                 the cases below; writes docs/results/step-limit-cpu.json
    python tests/bench/step_limit.py --models mlp    some of them; writes nothing unless --out is given
    python tests/bench/step_limit.py --quick         tiny nets of the same kinds, to see that it runs; likewise

The two are timed in turns, as users run them. Then, apart from that:

- **Arithmetic.** Both run operator by operator, the fused step as what it was compiled from, and the operations of
  every product are counted by PyTorch's formulas, and timed. Products are told apart: forward, weight gradients, input
  gradients, which a flat wiring never computes (of a convolution, whose two gradients are one operator, what is saved
  by asking for the weight's alone), and what error synapses send and learn.
- **Kernels.** PyTorch's profiler says how long products and other kernels take. Calls that Inductor writes in C++ are
  hidden from it: the step that is profiled is compiled with calls from Python, and with every kernel of its own
  recorded, and is a little slower for it.

Limits of the ratio, backprop over rec-LRA: ``arithmetic`` if products were all there is; ``products at peak`` if those
of both ran at the best rate of a large matrix product, all other time as measured; ``ours at peak`` if ours alone did,
against backprop as it is; ``no input gradients`` if rec-LRA were backprop less these, and errors cost nothing to send.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import reclra_graph as rg
from reclra_graph.bench.step_arms import Run, Settings, backprop_eager, cross_entropy, reclra_eager, reclra_fused
from reclra_graph.bench.step_cases import CASES, Case
from reclra_graph.bench.step_probes import probes
from reclra_graph.passes.kernels import _FORMULAS as FORMULAS
from reclra_graph.runtime import fused, kept_code
from tests.bench.record import RESULTS, circumstances, progress, write_json

MODELS = ("resnet18", "mlp", "vit-tiny")
"""The case whose bar is not reached, and two whose bar is."""
WARM = 3
NEVER = "input gradients"

aten = torch.ops.aten
_BACKWARD = aten.convolution_backward.default
_PRODUCTS = {
    "aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
}  # fmt: skip
"""As the profiler calls them; what one of them calls is a part of it."""

Kinds: TypeAlias = dict[str, list[float]]
"""[seconds, operations] by kind."""


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, adds up seconds and operations of every product by kind, and seconds of the rest."""

    def __init__(self, weights: Sequence[Tensor], synapses: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights, self.synapses = ({item.untyped_storage().data_ptr() for item in held}
                                       for held in (weights, synapses))  # fmt: skip
        self.kinds: Kinds = {}
        self.behind = False  # whether the loss is known, and what follows are derivatives

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found, seconds = _timed(lambda: func(*args, **kwargs))
        formula = FORMULAS.get(func._overloadpacket)
        count = 0 if formula is None else int(formula(*args, **kwargs, out_val=found))
        if func is _BACKWARD:
            weight, part = count, seconds
            if args[-1][0]:
                only = (*args[:-1], [False, *args[-1][1:]])
                alone, part = _timed(lambda: func(*only))
                weight, part = int(formula(*only, out_val=alone)), min(part, seconds)  # type: ignore[misc]
                self._add(NEVER, seconds - part, count - weight)
            self._add("weight gradients", part, weight)
        else:
            self._add(self._kind(func, args) if count else "the rest", seconds, count)
        return found

    def _kind(self, func: Any, args: tuple[Any, ...]) -> str:
        factors = {item.untyped_storage().data_ptr() for item in args if isinstance(item, Tensor)}
        if factors & self.synapses:
            return "error synapses"
        if func._overloadpacket not in (aten.mm, aten.addmm, aten.convolution):
            return "batched products and attention"
        if factors & self.weights:
            return NEVER if self.behind else "forward"
        return "weight gradients"

    def _add(self, kind: str, seconds: float, count: int) -> None:
        held = self.kinds.setdefault(kind, [0.0, 0])
        self.kinds[kind] = [held[0] + seconds, held[1] + count]


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    found = work()
    return found, time.perf_counter() - begin


Batches: TypeAlias = list[tuple[Tensor, Tensor]]


def counted_backprop(case: Case, settings: Settings, batches: Batches, rounds: int) -> list[Kinds]:
    """Backprop with a fused SGD, operator by operator."""
    model = settings.net(case).model
    optimizer = torch.optim.SGD(model.parameters(), lr=case.lr, fused=True)
    found = []
    for number in range(rounds + 1):
        inputs, target = batches[number % 2]
        optimizer.zero_grad(set_to_none=True)
        with Counted(list(model.parameters()), ()) as counted:
            loss = cross_entropy(model(inputs), target)
            counted.behind = True
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found.append(counted.kinds)
    return found[1:]


def counted_step(case: Case, settings: Settings, batches: Batches, rounds: int) -> list[Kinds]:
    """The emitted step, operator by operator."""
    step = reclra_eager(case, settings)
    assert isinstance(step, rg.CompiledStep)
    held = [item for item in step.store.all().values() if item.is_floating_point()]
    found = []
    for number in range(rounds + 1):
        with Counted(list(step.model.parameters()), held) as counted:
            step(*batches[number % 2])
        found.append(counted.kinds)
    return found[1:]


def by_kind(rounds: Sequence[Kinds]) -> dict[str, dict[str, float]]:
    """Milliseconds, medians over rounds, and thousand million operations of each kind."""
    names = sorted({kind for item in rounds for kind in item})
    return {
        name: {
            "milliseconds": round(1e3 * statistics.median(item.get(name, [0.0, 0])[0] for item in rounds), 3),
            "gflop": round(rounds[0].get(name, [0.0, 0])[1] / 1e9, 4),
        }
        for name in names
    }


def in_kernels(run: Run, batches: Batches, rounds: int) -> dict[str, float]:
    """Milliseconds of a step under the profiler: in products, in other kernels, and in neither; means over rounds."""
    for number in range(WARM):
        run(*batches[number % 2])
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        begin = time.perf_counter()
        for number in range(rounds):
            run(*batches[number % 2])
        whole = (time.perf_counter() - begin) * 1e3 / rounds
    products = others = 0.0
    for event in seen.events():
        if any(item.name in _PRODUCTS for item in _above(event)):
            continue
        if event.name in _PRODUCTS:
            products += event.cpu_time_total
        elif event.name.startswith("aten::") or "cpp_fused" in event.name:
            others += event.self_cpu_time_total
    products, others = products / 1e3 / rounds, others / 1e3 / rounds
    return {
        "products": round(products, 3), "other kernels": round(others, 3), "rest": round(whole - products - others, 3),
        "all": round(whole, 3),
    }  # fmt: skip


def _above(event: Any) -> Iterator[Any]:
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event


@contextlib.contextmanager
def seen_by_the_profiler(folder: Path) -> Iterator[Callable[[rg.CompiledStep], Run]]:
    """A way to fuse a step that the profiler can look into, as long as this lasts; kept in a folder of its own."""
    options = {"fallback_random": True, "cpp_wrapper": False, "cpp.enable_kernel_profile": True}
    with patch.object(kept_code, "inductor_options", lambda device: options):
        yield lambda step: fused.FusedStep(step, folder=folder)


def in_turns(runs: Mapping[str, Run], batches: Batches, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a step of each run, round by round."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-WARM, rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            for index in range(steps):
                run(*batches[index % 2])
            if number >= 0:
                found[name].append((time.perf_counter() - begin) / steps)
    return found


def limits(ours: dict[str, Any], theirs: dict[str, Any], peak: float) -> dict[str, float]:
    """The limits of the ratio; ``peak``: operations per second."""
    gflop = [sum(item["gflop"] for item in side["kinds"].values()) for side in (theirs, ours)]
    at_peak = [1e12 / peak * value for value in gflop]
    apart = [side["milliseconds"] - _products(side) for side in (theirs, ours)]
    whole = sum(item["milliseconds"] for item in theirs["kinds"].values())
    saved = theirs["kinds"].get(NEVER, {}).get("milliseconds", 0.0)
    return {
        "arithmetic": round(gflop[0] / gflop[1], 4),
        "products at peak": round((at_peak[0] + apart[0]) / (at_peak[1] + apart[1]), 4),
        "ours at peak": round(theirs["milliseconds"] / (at_peak[1] + apart[1]), 4),
        "no input gradients": round(whole / (whole - saved), 4),
    }


def _products(side: dict[str, Any]) -> float:
    """Milliseconds that products take of a step as it is timed: their share under the profiler."""
    return float(side["milliseconds"] * side["profiled"]["products"] / side["profiled"]["all"])


def measured(case: Case, rounds: int, tiny: bool = False) -> dict[str, Any]:
    """All figures of a case, or of a tiny net of the same kind."""
    settings = Settings(format="channels_last", tiny=tiny)  # where it matters, both are fastest so
    batches = settings.batches(case, settings.net(case), 2)
    first = probes("cpu", "float32", tiny)["flops"]
    runs: dict[str, Run] = {"backprop": backprop_eager(case, settings), "rec-LRA": reclra_fused(case, settings)}
    seconds = in_turns(runs, batches, rounds, case.turn)
    why = getattr(runs["rec-LRA"], "why", "")
    if why:
        raise SystemExit(f"{case.name}: the step was not fused: {why}")
    kinds = {"backprop": counted_backprop, "rec-LRA": counted_step}
    sides: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, seen_by_the_profiler(Path(folder)) as fuse:
        step = reclra_eager(case, settings)
        assert isinstance(step, rg.CompiledStep)
        profiled = {"backprop": runs["backprop"], "rec-LRA": fuse(step)}
        for name, run in profiled.items():
            progress(f"  {name}")
            sides[name] = {
                "milliseconds": round(1e3 * statistics.median(seconds[name]), 3),
                "profiled": in_kernels(run, batches, rounds),
                "kinds": by_kind(kinds[name](case, settings, batches, rounds)),
            }
    peak = max(first, probes("cpu", "float32", tiny)["flops"])
    for side in sides.values():
        rate = sum(item["gflop"] for item in side["kinds"].values()) / _products(side) * 1e12
        side["products' share of peak"] = round(rate / peak, 4)
    ratios = [theirs / ours for theirs, ours in zip(seconds["backprop"], seconds["rec-LRA"], strict=True)]
    return {
        "title": case.title, "batch": case.batch, "wiring": case.wiring, "peak_gflops": round(peak / 1e9, 1), **sides,
        "times as fast": round(statistics.median(ratios), 4),
        "limits": limits(sides["rec-LRA"], sides["backprop"], peak),
    }  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="only these cases of reclra bench step, joined by commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv[1:])
    cases = {}
    for name in options.models.split(",") if options.models else MODELS:
        progress(name)
        cases[name] = found = measured(CASES[name], 1 if options.quick else options.rounds, options.quick)
        for side in ("backprop", "rec-LRA"):
            progress(f"  {side}: {found[side]}")
        progress(f"  {found['times as fast']} times as fast; limits {found['limits']}")
    whole = options.models is None and not options.quick
    out = options.out or (RESULTS / "step-limit-cpu.json" if whole else None)
    if out is not None:
        what = "milliseconds and operations of a training step by kind; ratios are backprop over rec-LRA"
        write_json(out, {**circumstances(argv), "what": what, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
