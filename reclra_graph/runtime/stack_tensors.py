"""The tensors of several runs in one: stacked, checked, and read again from what was saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reclra_graph.errors import ModelError, Problem
from reclra_graph.runtime.compiled import CompiledStep


def stacked(found: Sequence[Mapping[str, Tensor]], runs: Sequence[CompiledStep]) -> dict[str, Tensor]:
    """The tensors of all runs, each name's in one. Raises ModelError RG621 where they do not fit together."""
    problems = []
    for number, (mine, run) in enumerate(zip(found, runs, strict=True)):
        if run.source != runs[0].source or mine.keys() != found[0].keys():
            problems.append(Problem("RG621", f"run {number} has another step than run 0", f"run {number}"))
            continue
        for name, value in mine.items() if number else ():
            first = found[0][name]
            if (value.shape, value.dtype, value.device) != (first.shape, first.dtype, first.device):
                cause = f"{name} is {_kind(value)} in run {number}, {_kind(first)} in run 0"
                problems.append(Problem("RG621", cause, f"run {number}"))
    taken: dict[int, tuple[int, str]] = {}
    for number, mine in enumerate(found):
        for name, value in mine.items():
            other, known = taken.setdefault(value.data_ptr(), (number, name)) if value.numel() else (number, name)
            if other != number:
                cause = f"run {number} and run {other} have one tensor for {known}: what one learns, the other forgets"
                problems.append(Problem("RG621", cause, f"run {number}", "Give each run a model of its own."))
    if problems:
        raise ModelError(problems)
    return {name: torch.stack([mine[name] for mine in found]) for name in found[0]}


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} on {value.device}"


def check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ModelError RG605 unless a state has these parts, in these shapes."""
    problems = [Problem("RG605", f"the stack has no {name}", name) for name in state if name not in wanted]
    for name, value in wanted.items():
        given = state.get(name)
        if given is None:
            problems.append(Problem("RG605", f"the state has no {name}", name))
        elif given.shape != value.shape:
            cause = f"{name} is {tuple(given.shape)} in the state, {tuple(value.shape)} in the stack"
            problems.append(Problem("RG605", cause, name))
    if problems:
        raise ModelError(problems)
