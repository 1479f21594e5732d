"""Emitted files as they should read. Rewritten by ``pytest --update-golden``; beside each, a test of what it does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import reclra_graph as rg
from reclra_graph.reference import reference_step
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.loader import load_source
from tests.golden.nets import TinyResNet, figure_1

Golden = Callable[[str, str], None]


@cache
def compiled(name: str) -> CompiledStep:
    torch.manual_seed(0)
    if name == "figure_1":
        return rg.compile(figure_1(20, 16, 4, 16, 16, 4, 16, 16, 4, 10), torch.zeros(6, 20), gpus=5)
    return rg.compile(TinyResNet(), torch.zeros(6, 1, 6, 6), gpus=1)


def text_of(step: CompiledStep) -> str:
    """The file without its digest, which is of all the compiler's values and not of this text."""
    assert step.source.count(step.program.digest) == 2
    return step.source.replace(step.program.digest, "0" * 16)


NAMES = ("figure_1", "tiny_resnet")


@pytest.mark.parametrize("name", NAMES)
def test_text(name: str, golden: Golden) -> None:
    golden(f"{name}.step.txt", text_of(compiled(name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_file_trains_as_the_reference_does(name: str, root: Path) -> None:
    step = compiled(name)
    kept = load_source((root / "tests" / "golden" / f"{name}.step.txt").read_text(encoding="utf-8"), f"<{name}>")
    twin = copy.deepcopy(step.model)
    P, E = twin.state_dict(), kept.synapses(seed=3)
    start = {key: value.clone() for key, value in P.items()}
    slow_P = {key: value.clone() for key, value in P.items()}
    slow_E = {key: value.clone() for key, value in E.items() if key not in kept.SHARED}
    losses = []
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(5, *step.plan.regions.regions[0].shape)
        target = torch.randint(step.plan.regions.regions[-1].shape[0], (5,))
        losses.append(kept.step(P, E, x, target))
        wanted = reference_step(step.plan, slow_P, slow_E, (x,), target)
        torch.testing.assert_close(losses[-1], wanted)
    torch.testing.assert_close(P, slow_P)
    kept.settle(E)
    torch.testing.assert_close({key: E[key] for key in slow_E}, slow_E)
    assert [key for key, value in P.items() if torch.equal(value, start[key])] == []


def test_reading_order_of_figure_1() -> None:
    source = compiled("figure_1").source
    body = source[source.index("def step(") :]
    positions = [
        body.index(word) for word in ("z1 = torch.tanh(h1)", "e9 = torch.softmax(z9, 1)", "d8 = ", "with lane(1):")
    ]
    assert positions == sorted(positions)
    for number in (1, 2, 3, 4):
        assert f"with lane({number}):" in body
    assert body.rstrip().endswith("return loss")
    # Every lane ends with an event that lane 0 waits for at the end.
    tail = body[body.index("# -- lane 0: wait for all lanes") :]
    assert tail.count("wait(") == 4
