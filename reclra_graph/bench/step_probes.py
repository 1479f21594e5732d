"""What the machine can do at best: arithmetic by one large matrix product, memory traffic by one large copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
_COPIED = {"cpu": 1 << 26, "cuda": 1 << 29}  # bytes: more than any cache holds
_RUNS = 5


def settle(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def probes(device: str, dtype: str, tiny: bool = False) -> dict[str, float]:
    """``flops``: operations per second of the best matrix product in ``dtype``; ``bandwidth``: bytes per second, read
    and written, of the best copy."""
    sizes = (64,) if tiny else _SIZES[device]
    flops = max(_product(size, device, getattr(torch, dtype)) for size in sizes)
    source = torch.ones((1 << 12 if tiny else _COPIED[device]) // 4, device=device)
    copied = torch.empty_like(source)
    bandwidth = 2 * 4 * source.numel() / _fastest(lambda: copied.copy_(source), device)
    return {"flops": flops, "bandwidth": bandwidth}


def _product(size: int, device: str, dtype: torch.dtype) -> float:
    """Operations per second of the product of two square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / _fastest(lambda: torch.mm(left, right, out=out), device)


def _fastest(work: Callable[[], Any], device: str) -> float:
    """Seconds of the fastest of several runs, behind one that warms up."""
    work()
    best = float("inf")
    for _ in range(_RUNS):
        settle(device)
        start = time.perf_counter()
        work()
        settle(device)
        best = min(best, time.perf_counter() - start)
    return best
