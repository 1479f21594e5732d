"""Random networks compile, verify, and take the reference interpreter's step; what once failed stays here as a test."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import reclra_graph as rg
from reclra_graph.reference import reference_step
from tests.property.fuzz_nets import BATCH, CLASSES, FuzzNet, Gene

GENES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=7)
FOUND: tuple[tuple[int, tuple[Gene, ...]], ...] = ()
"""(kind, genes) of networks that failed once."""


def takes_the_reference_step(kind: int, genes: tuple[Gene, ...]) -> None:
    torch.manual_seed(0)
    model = FuzzNet(kind, genes).double()
    x = torch.randn(BATCH, *model.start, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (BATCH,))
    own = copy.deepcopy(model).train()
    step = rg.compile(model, x, gpus=2, lr=0.01)
    held = {key: value.detach().clone() for key, value in (*model.named_parameters(), *model.named_buffers())}
    held |= {key: value.clone() for key, value in step.constants.items()}
    synapses = {key: value.clone() for key, value in step.synapses.items()}
    for size in (BATCH, BATCH + 2):  # the batch stays free
        given = x if size == BATCH else torch.cat([x, x[:2]])
        goal = target if size == BATCH else torch.cat([target, target[:2]])
        torch.manual_seed(1)
        loss = step(given, goal)
        torch.manual_seed(1)
        expected = reference_step(step.plan, held, synapses, (given,), goal)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            torch.testing.assert_close(value.detach(), held[key], rtol=1e-9, atol=1e-10)
        for key, value in step.synapses.items():
            torch.testing.assert_close(value, synapses[key], rtol=1e-9, atol=1e-10)
    torch.manual_seed(1)
    own(x)
    learning = {key for region in step.plan.regions.regions for key in region.parameters}
    assert learning | set(dict(step.plan.regions.frozen)) == {key for key, _ in model.named_parameters()}


@settings(max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.integers(0, 2), GENES)
def test_random_networks(kind: int, genes: list[Gene]) -> None:
    takes_the_reference_step(kind, tuple(genes))


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2), GENES)
def test_many_random_networks(kind: int, genes: list[Gene]) -> None:
    takes_the_reference_step(kind, tuple(genes))


@pytest.mark.parametrize(("kind", "genes"), FOUND)
def test_networks_that_failed_once(kind: int, genes: tuple[Gene, ...]) -> None:
    takes_the_reference_step(kind, genes)
