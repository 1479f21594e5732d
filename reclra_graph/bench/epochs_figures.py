"""The figures of ``reclra bench epochs``, from what its processes measured. Nothing here measures, or needs torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from reclra_graph.bench.jobs import Row

Curve = Sequence[Sequence[float]]


def reached(curve: Curve, target: float) -> tuple[float, int]:
    """(seconds, steps) of the first evaluation whose error is at most ``target``; (infinite, 0) where there is none."""
    for steps, seconds, error in curve:
        if error <= target:
            return seconds, int(steps)
    return math.inf, 0


def middle(values: Sequence[float]) -> float | None:
    """The median, infinite ones among the values; None where it is not finite, or there is no value."""
    found = statistics.median(values) if values else math.inf
    return found if math.isfinite(found) else None


def best(trials: Sequence[Row]) -> Row | None:
    """The trial with the lowest error on the validation images; of equals the first. None where every one ended before
    its last step, or failed."""
    sound = [row for row in trials if row.get("error") is not None and row["passed"]]
    return min(sound, key=lambda row: row["error"], default=None)


def at_edge(trials: Sequence[Row], chosen: Row) -> bool:
    """Whether the chosen rate is the lowest or highest of those that its optimiser was tried with."""
    rates = [row["lr"] for row in trials if row["optimizer"] == chosen["optimizer"]]
    return chosen["lr"] in (min(rates), max(rates))


def arm_figures(trials: Sequence[Row], runs: Sequence[Row], targets: Sequence[float]) -> dict[str, Any]:
    """What is reported of one arm. Medians are over seeds; a run that never reaches a target counts as one that takes
    forever, so that a median is only told where more than half of the runs reach it."""
    done = [row for row in runs if row["passed"]]
    chosen = best(trials)
    found: dict[str, Any] = {
        "candidate": None,
        "trials": [
            {
                **{key: row.get(key) for key in ("optimizer", "lr", "error", "train_seconds", "steps")},
                "ended": row.get("ended") or ("" if row["passed"] else "not done"),
            }
            for row in trials
        ],
        "runs": [
            {
                key: row.get(key)
                for key in (
                    "seed", "steps", "train_seconds", "compile_seconds", "error", "test_error", "ended", "curve",
                )
            }
            for row in done
        ],
    }  # fmt: skip
    if chosen is not None:
        keys = ("optimizer", "lr", "error")
        found["candidate"] = {**{key: chosen[key] for key in keys}, "at_edge": at_edge(trials, chosen)}
    if not done:
        return found
    found["plan"] = done[0].get("plan", {})
    found["parameters"] = done[0]["parameters"]
    finished = [row for row in done if not row["ended"]]
    found["milliseconds"] = middle([1e3 * row["train_seconds"] / row["steps"] for row in finished])
    found["train_seconds"] = middle([row["train_seconds"] for row in finished])
    found["compile_seconds"] = middle([row["compile_seconds"][0] for row in done])
    for key in ("error", "test_error"):
        found[key] = middle([math.inf if row.get(key) is None else row[key] for row in done])
    found["targets"] = []
    for target in targets:
        times = [reached(row["curve"], target) for row in done]
        seconds = middle([time for time, _ in times])
        steps = middle([count if math.isfinite(time) else math.inf for time, count in times])
        count = sum(math.isfinite(time) for time, _ in times)
        found["targets"].append(
            {"target": target, "reached": count, "of": len(done), "seconds": seconds, "steps": steps}
        )  # fmt: skip
    return found


def compare(arms: Mapping[str, dict[str, Any]], peers: Sequence[str]) -> None:
    """Add to every arm's targets how many times as fast it is as the fastest backpropagation that reaches them
    (``speedup``; None where either does not), and to every arm what it costs in accuracy against that backpropagation's
    best and against ``dense`` synapses: differences of errors."""
    for name, arm in arms.items():
        for index, item in enumerate(arm.get("targets", ())):
            theirs = [arms[peer]["targets"][index]["seconds"] for peer in peers if "targets" in arms.get(peer, {})]
            known = [seconds for seconds in theirs if seconds is not None]
            own = item["seconds"]
            item["speedup"] = round(min(known) / own, 4) if known and own else None
        arm["cost"] = {
            kind: _difference(arm, [arms[other] for other in others if other in arms and other != name])
            for kind, others in (("backprop", peers), ("dense", ("dense",)))
        }


def _difference(arm: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> float | None:
    """The arm's test error less the lowest of the others'."""
    known = [other["test_error"] for other in others if other.get("test_error") is not None]
    own = arm.get("test_error")
    return round(own - min(known), 6) if known and own is not None else None
