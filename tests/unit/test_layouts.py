"""Where the batch stands: every claim of a layout against the samples that the numbers themselves name."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reclra_graph.ir.layouts import BATCH_FIRST, Layout
from reclra_graph.ir.operators import OperatorGraph
from reclra_graph.rules.layout import to_samples
from reclra_graph.rules.operators import function, resolve
from tests.models import captured

Move = Callable[[Tensor], Tensor]


def samples(size: int, *shape: int) -> Tensor:
    """[size, *shape], in which every number says which sample it belongs to."""
    return torch.arange(float(size)).reshape(size, *(1,) * len(shape)).expand(size, *shape).contiguous()


class Moves(nn.Module):
    """Each of the moves, made of the input and ended by abs(); what they give does not matter."""

    def __init__(self, moves: Sequence[Move], fixed: bool = False) -> None:
        super().__init__()
        self.moves, self.fixed = moves, fixed

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed:
            assert len(x) > 0  # torch.export takes len() for a constant
        total = sum(move(x).abs().flatten()[0] for move in self.moves)
        return x + 0 * total


def values_of(graph: OperatorGraph, x: Tensor, held: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Every value of the graph, run operator by operator; ``held``: parameters and buffers by their values' names."""
    values: dict[str, Any] = {**(held or {}), graph.inputs[0].name: x}
    for operator in graph.operators:
        args = [resolve(item, values, x.device) for item in operator.args]
        kwargs = {key: resolve(item, values, x.device) for key, item in operator.kwargs}
        values[operator.name] = function(operator.target)(*args, **kwargs)
    return values


def assert_true(graph: OperatorGraph, x: Tensor) -> int:
    """Every layout that the graph claims is right for x; returns how many were not plain."""
    values, odd = values_of(graph, x), 0
    for name, layout in graph.layouts.items():
        moved = to_samples(values[name], layout.dim, layout.before, layout.after)
        assert moved.shape[0] == x.shape[0], (name, layout)
        assert torch.equal(moved, samples(x.shape[0], *moved.shape[1:])), (name, layout)
        odd += not layout.plain
    return odd


def windows(z: Tensor) -> Tensor:
    """[B, 4, 6] in windows of 2 by 3: [B · 4, 2, 3]."""
    return z.reshape(z.shape[0], 2, 2, 2, 3).permute(0, 1, 3, 2, 4).reshape(-1, 2, 3)


def unwindowed(z: Tensor) -> Tensor:
    """The inverse of ``windows``."""
    return z.reshape(z.shape[0] // 4, 2, 2, 2, 3).permute(0, 1, 3, 2, 4).reshape(-1, 4, 6)


CASES: dict[str, tuple[Move, Layout | None]] = {
    "sequence first": (lambda z: z.transpose(0, 1), Layout(1)),
    "last": (lambda z: z.permute(1, 2, 0), Layout(2)),
    "folded with what follows": (lambda z: z.flatten(0, 1), Layout(0, 1, 4)),
    "folded with what leads": (lambda z: z.transpose(0, 1).flatten(0, 1), Layout(0, 4, 1)),
    "folded with both": (lambda z: z.transpose(0, 1).flatten(), Layout(0, 4, 6)),
    "partly unfolded": (lambda z: z.flatten().unflatten(0, (-1, 2, 3)), Layout(0, 1, 4)),
    "leading size taken out": (lambda z: z.permute(1, 2, 0).flatten().unflatten(0, (2, -1)), Layout(1, 12, 1)),
    "windows": (windows, Layout(0, 1, 4)),
    "windows and back": (lambda z: unwindowed(torch.relu(windows(z))), BATCH_FIRST),
    "twice, one behind the other": (lambda z: torch.cat((z, z)), Layout(0, 2, 1)),
    "a mean over positions": (lambda z: z.transpose(0, 1).mean(0), BATCH_FIRST),
    "one position": (lambda z: z.permute(2, 0, 1)[3], BATCH_FIRST),
    "a size of one in front": (lambda z: z.unsqueeze(0), Layout(1)),
    "heads in front": (lambda z: z.reshape(z.shape[0], 4, 2, 3).permute(2, 1, 0, 3), Layout(2)),
    "a mean over the batch": (lambda z: z.mean(0), None),
    "samples torn apart": (lambda z: z.flatten().unflatten(0, (2, -1)), None),
    "two batches": (lambda z: z.flatten(1).amin(1)[:, None].expand(-1, z.shape[0]).clone(), None),
}


@cache
def cases(fixed: bool) -> tuple[OperatorGraph, dict[str, str]]:
    """The graph of all cases in one, and the value at the end of each."""
    graph = captured(Moves([move for move, _ in CASES.values()], fixed), samples(4, 4, 6))
    ends = [item.name for item in graph.operators if item.target == "aten.abs.default"]
    return graph, dict(zip(CASES, ends, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_layout_behind(name: str) -> None:
    graph, ends = cases(fixed=False)
    end, wanted = ends[name], CASES[name][1]
    assert graph.batch == "B"
    assert graph.layouts.get(end) == wanted
    if wanted is not None:
        value = values_of(graph, samples(6, 4, 6))[end]
        sample = to_samples(value, wanted.dim, wanted.before, wanted.after)[0]
        assert graph.sample_shape(end) == wanted.sample(graph.types[end].shape) == tuple(sample.shape)


def test_all_layouts_are_true() -> None:
    graph, _ = cases(fixed=False)
    for size in (2, 6):
        assert assert_true(graph, samples(size, 4, 6)) > 20


# With a batch of a fixed size the sizes alone do not tell: a batch that does not lead is lost in a fold.
LOST = {
    "folded with what follows", "folded with what leads", "folded with both", "partly unfolded", "windows",
    "leading size taken out", "windows and back", "twice, one behind the other", "two batches",
}  # fmt: skip


def test_a_fixed_batch_as_large_as_another_size() -> None:
    graph, ends = cases(fixed=True)
    assert graph.batch == 4
    assert_true(graph, samples(4, 4, 6))
    for name, end in ends.items():
        if name not in LOST:
            assert graph.layouts.get(end) == CASES[name][1], name


def random_move(seed: int) -> Move:
    """A chain of six random transpositions, folds and unfolds that works on any batch."""
    chance = random.Random(seed)
    steps: list[Move] = []

    def apply(z: Tensor) -> Tensor:
        for step in steps:
            z = step(z)
        return z

    for _ in range(6):
        here = apply(samples(5, 4, 6))
        rank, kind = here.dim(), chance.choice(("transpose", "fold", "unfold", "unfold", "unsqueeze", "mean"))
        one, two = chance.randrange(rank), chance.randrange(rank)
        if kind == "transpose":
            steps.append(lambda z, one=one, two=two: z.transpose(one, two))  # type: ignore[misc]
        elif kind == "fold" and one + 1 < rank:
            steps.append(lambda z, one=one: z.flatten(one, one + 1))  # type: ignore[misc]
        elif kind == "unfold" and rank < 5:
            parts = chance.choice(((2, -1), (-1, 2), (3, -1), (-1, 4)))
            if all(apply(samples(size, 4, 6)).shape[one] % -prod(parts) == 0 for size in (5, 7)):
                steps.append(lambda z, one=one, parts=parts: z.unflatten(one, parts))  # type: ignore[misc]
        elif kind == "unsqueeze" and rank < 4:
            steps.append(lambda z, one=one: z.unsqueeze(one))  # type: ignore[misc]
        elif kind == "mean" and rank > 2 and here.shape[one] % 5:
            steps.append(lambda z, one=one: z.mean(one))  # type: ignore[misc]
    return apply


@cache
def random_moves() -> tuple[Move, ...]:
    return tuple(random_move(seed) for seed in range(16))


def test_random_moves() -> None:
    graph = captured(Moves(random_moves()), samples(5, 4, 6))
    assert graph.batch == "B"
    assert assert_true(graph, samples(7, 4, 6)) > 20


def test_random_moves_with_a_fixed_batch() -> None:
    graph = captured(Moves(random_moves(), fixed=True), samples(5, 4, 6))
    assert graph.batch == 5
    assert assert_true(graph, samples(5, 4, 6)) > 5


def test_moves_of_a_batch_as_large_as_everything_else() -> None:
    moves: list[Move] = [lambda z: z.transpose(0, 1), lambda z: z.permute(2, 1, 0), lambda z: z.mean(1)]
    moves += [lambda z: z.permute(1, 2, 0), *(lambda z, m=m: m(z).flatten(0, 1) for m in moves)]  # type: ignore[misc]
    graph = captured(Moves(moves, fixed=True), samples(4, 4, 4))
    assert graph.batch == 4
    assert assert_true(graph, samples(4, 4, 4)) > 2
