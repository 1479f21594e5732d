"""How much memory a training step takes: what was there before it, and what it adds at the worst moment."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "the step that is measured"


def added_bytes(work: Callable[[], Any]) -> int:
    """The highest number of bytes that ``work`` adds to what was there: the sum of what PyTorch's CPU allocator gives
    out and takes back, which its profiler reports with every allocation, workspaces of PyTorch's own operators
    included. What a library takes from the system itself (oneDNN's scratch pads) is not seen.

    It runs twice: the profiler tells of memory that is given back only where it saw it given out, and a step may free
    what the one before left, such as gradients."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
        with record_function(_MARK):
            work()
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    events = found.profiler.kineto_results.events()
    begin = min(event.start_ns() for event in events if event.name() == _MARK)
    now = peak = 0
    for event in sorted(events, key=lambda item: item.start_ns()):
        if event.name() == "[memory]" and event.start_ns() >= begin:
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def held_bytes() -> int:
    """Bytes behind every tensor on the CPU that Python can reach: parameters, their gradients, buffers, synapses,
    batches, and whatever else an arm keeps from step to step."""
    gc.collect()
    # No isinstance: it would wake objects that stand for something not yet imported. Fake tensors hold nothing.
    found = [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)]
    found += [item.grad for item in found if item.is_leaf and item.grad is not None]
    storages = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
        for item in found
        if item.device.type == "cpu" and item.layout is torch.strided
    }
    return sum(storages.values())


def peak_bytes(work: Callable[[], Any], device: str) -> tuple[int, int]:
    """(bytes before, bytes at the worst moment) of ``work`` on a device, "cpu" or "cuda", where it ran before.

    On a GPU as PyTorch's allocator counts them, with those that CUDA graphs hold for themselves: replaying uses them
    without asking for them."""
    if device == "cpu":
        before = held_bytes()
        return before, before + added_bytes(work)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return before + _idle_in_graphs(), torch.cuda.max_memory_allocated() + _idle_in_graphs()


def _idle_in_graphs() -> int:
    """Bytes in the pools of CUDA graphs that no tensor refers to now."""
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)
    )
