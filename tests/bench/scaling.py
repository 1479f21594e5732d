"""How the time to compile grows with the size of the model.

    python tests/bench/scaling.py             writes docs/results/scaling.json
    python tests/bench/scaling.py --quick     two tiny sizes; writes nothing unless --out is given

MLPs of 100, 1,000 and 3,000 layers and GPT-2-shaped nets of 12, 48 and 96 blocks, all narrow: what is timed is the
compiler, not arithmetic. Each in a fresh process with one thread, in which a small model was compiled before. The
export's own seconds, with decompositions and without, are measured in the same process, before the compilation.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.record import RESULTS, circumstances, progress, write_json

SIZES = {"mlp": (100, 1000, 3000), "gpt": (12, 48, 96)}
QUICK = {"mlp": (10, 20), "gpt": (1, 2)}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="How the time to compile grows with the size of the model.")
    parser.add_argument("--quick", action="store_true", help="two tiny sizes: does it run at all")
    parser.add_argument("--out", type=Path, help="the file to write (default: docs/results/scaling.json)")
    parser.add_argument("--one", metavar="KIND:SIZE", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.out is None and not args.quick:
        args.out = RESULTS / "scaling.json"
    return args


def build(kind: str, size: int) -> tuple[Any, Any, str]:
    """A model, an example input and a loss."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    if kind == "mlp":
        layers: list[nn.Module] = []
        for _ in range(size - 1):
            layers += [nn.Linear(8, 8), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(8, 4)), torch.zeros(4, 8), "cross-entropy"

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.norm2, self.fc, self.out = (
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.Linear(4 * width, width),
            )

        def forward(self, x: Tensor) -> Tensor:
            b, t, w = x.shape
            parts = self.qkv(self.norm1(x)).split(w, dim=2)
            q, k, v = (item.view(b, t, self.heads, w // self.heads).transpose(1, 2) for item in parts)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(a.transpose(1, 2).reshape(b, t, w))
            result: Tensor = x + self.out(F.gelu(self.fc(self.norm2(x))))
            return result

    class GPT(nn.Module):
        def __init__(self, blocks: int, width: int = 32, words: int = 64, length: int = 16) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
            self.blocks = nn.ModuleList(Block(width, 2) for _ in range(blocks))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
            self.head.weight = self.words.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x)
            logits: Tensor = self.head(self.norm(x))
            return logits

    return GPT(size), torch.zeros(2, 16, dtype=torch.int64), "causal-lm"


def one(kind: str, size: int) -> dict[str, Any]:
    """Export and compile one model in this process; returns seconds."""
    import copy

    import torch

    import reclra_graph as rg

    torch.set_num_threads(1)
    torch.manual_seed(0)
    for number in (2, size):  # what PyTorch imports on the way is no model's own time
        model, inputs, loss = build(kind, number)
        started = time.perf_counter()
        program = torch.export.export(
            copy.deepcopy(model).train(), (inputs,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False
        )
        exported = time.perf_counter()
        program.run_decompositions({})
        decomposed = time.perf_counter()
        step = rg.compile(model, inputs, loss=loss)
        done = time.perf_counter()
    return {
        "export": round(exported - started, 3),
        "export, decomposed": round(decomposed - started, 3),
        "compile": round(done - decomposed, 3),
        "over export": round((done - decomposed) / (exported - started), 2),
        "over export, decomposed": round((done - decomposed) / (decomposed - started), 2),
        "passes": {name: round(seconds, 3) for name, seconds in step.seconds},
        "regions": len(step.plan.regions.sites),
        "operators": len(step.plan.regions.graph.operators),
        "lines": len(step.source.splitlines()),
    }


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log size by least squares: 1 where the time grows in proportion."""
    x, y = [math.log(size) for size in sizes], [math.log(item) for item in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return round(above / sum((a - mean_x) ** 2 for a in x), 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its file."""
    args = arguments(argv)
    if args.one:
        kind, _, size = args.one.partition(":")
        sys.stdout.write(json.dumps(one(kind, int(size))) + "\n")
        return 0
    kinds: dict[str, Any] = {}
    for kind, sizes in (QUICK if args.quick else SIZES).items():
        rows = {}
        for size in sizes:
            command = [sys.executable, str(Path(__file__).resolve()), "--one", f"{kind}:{size}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"compiling {kind} {size} failed:\n{done.stderr[-2000:]}")
            rows[str(size)] = json.loads(done.stdout.splitlines()[-1])
            progress(f"{kind} {size}: {rows[str(size)]['compile']} s, {rows[str(size)]['over export']} x the export")
        growth = {
            part: exponent(sizes, [rows[str(size)][part] for size in sizes])
            for part in ("export", "export, decomposed", "compile")
        }
        kinds[kind] = {"sizes": rows, "exponent": growth}
    report = {
        **circumstances([__file__, *(sys.argv[1:] if argv is None else argv)]),
        "what": "seconds to compile, one thread, fresh processes; exponent: slope of log seconds over log size",
        "kinds": kinds,
    }
    if args.out:
        write_json(args.out, report)
        progress(f"written: {args.out}")
    for kind, found in kinds.items():
        sys.stdout.write(f"{kind}: compile time grows with exponent {found['exponent']['compile']}\n")
        for size, row in found["sizes"].items():
            sys.stdout.write(f"  {size:>5}: {row['compile']:8.2f} s, export alone {row['export']:.2f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
