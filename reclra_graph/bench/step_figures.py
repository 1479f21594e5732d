"""The figures of ``reclra bench step``, from what its processes measured. Nothing here measures, or needs torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from reclra_graph.bench.jobs import Row
from reclra_graph.bench.record import spread

SAME = 0.02
"""How far apart the losses may be with which two arms begin, relative to the first arm's."""


def verdict(losses: Sequence[tuple[int, float | None]], begins: float | None) -> tuple[dict[str, Any], str]:
    """({first, last}, what is wrong, or "") of one arm's (batch, loss before its step), in order; None: not finite.

    First and last are means over the batches that were met twice at least. ``begins``: the loss with which the other
    arms began."""
    if any(loss is None or not math.isfinite(loss) for _, loss in losses):
        return {"first": None, "last": None}, "a loss is not finite"
    by_batch: dict[int, list[float]] = {}
    for batch, loss in losses:
        by_batch.setdefault(batch, []).append(loss or 0.0)
    ends = [(found[0], found[-1]) for found in by_batch.values() if len(found) > 1]
    if not ends:
        return {"first": None, "last": None}, "no batch was met twice, so that no loss could fall"
    first, last = (statistics.fmean(values) for values in zip(*ends, strict=True))
    found = {"first": round(first, 6), "last": round(last, 6)}
    if last >= first:
        return found, f"the loss does not fall: {first:.6g} at first, {last:.6g} at last"
    started = losses[0][1] or 0.0
    if begins is not None and abs(started - begins) > SAME * max(abs(begins), 1e-6):
        return found, f"it begins with a loss of {started:.6g}, other arms with {begins:.6g}"
    return found, ""


def figures(row: Row, memory: Mapping[str, Row]) -> dict[str, Any]:
    """What is reported of one case: its row with, for every cell that was measured, the spread of its milliseconds,
    how many times as fast as the best backpropagation it is (the ratio within each round), its share of the machine's
    peaks, and its memory; where it leaves out an optimisation, how much longer it takes and how much more memory than
    with it (``gain``, ``memory_gain``). ``memory``: the rows of the cells' memory, by cell."""
    cells = row.get("cells", {})
    failures = [*row["failures"], *(item for found in memory.values() for item in found["failures"])]
    sound = [name for name in cells if cells[name].get("sound")]
    peers = [name for name in sound if cells[name]["peer"]]
    best = min(peers, key=lambda name: statistics.median(cells[name]["seconds"]), default=None)
    base = None if best is None else cells[best]["seconds"]
    least = None if best is None else memory.get(best, {}).get("peak_bytes")
    table = {}
    for name, cell in cells.items():
        found = dict(cell)
        if name in sound:
            middle = statistics.median(cell["seconds"])
            found["milliseconds"] = spread([1e3 * value for value in cell["seconds"]])
            if base is not None:
                found["speedup"] = spread([theirs / own for theirs, own in zip(base, cell["seconds"], strict=True)])
            if (whole := cell.get("beside", "")) in sound:
                pairs = zip(cell["seconds"], cells[whole]["seconds"], strict=True)
                found["gain"] = spread([slower / faster for slower, faster in pairs])
            found["peak_shares"] = {
                kind: round(cell[kind] / middle / row["probes"][probe], 4)
                for kind, probe in (("flops", "flops"), ("bytes", "bandwidth"))
            }
        if (peak := memory.get(name, {}).get("peak_bytes")) is not None:
            found["peak_bytes"], found["bytes_before"] = peak, memory[name]["before_bytes"]
            found["memory_ratio"] = round(peak / least, 4) if least else None
            if other := memory.get(cell.get("beside", ""), {}).get("peak_bytes"):
                found["memory_gain"] = round(peak / other, 4)
        table[name] = found
    return {
        "name": row["name"],
        **row.get("case", {}),
        "skipped": row.get("skipped", ""),
        "probes": row.get("probes"),
        "best_peer": best,
        "cells": table,
        "absent": row.get("absent", {}),
        "failures": failures,
        "seconds": row["seconds"],
    }


def headlines(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each case the fastest cell that is not backpropagation, against the best that is."""
    found = []
    for case in cases:
        cells = case["cells"]
        ours = [name for name, cell in cells.items() if not cell["peer"] and not cell["without"] and "speedup" in cell]
        if not ours:
            continue
        best = max(ours, key=lambda name: cells[name]["speedup"]["median"])
        speedup = cells[best]["speedup"]
        found.append(
            {
                "case": case["name"],
                "cell": best,
                "peer": case["best_peer"],
                "speedup": speedup["median"],
                "quartiles": speedup["quartiles"],
                "memory_ratio": cells[best].get("memory_ratio"),
                "bar": case["bar"],
                "bar_met": None if case["bar"] is None else speedup["median"] >= case["bar"],
            }
        )
    return found
