"""A layer that runs several times hears its errors through one synapse, which learns from all of them together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reclra_graph.errors import VerificationError
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.verify import verify
from tests.differential.agreement import agrees
from tests.models import build, regions_of

RUNS, BETA, GAMMA, LR = 3, 0.3, 0.4, 0.5


class Repeated(nn.Module):
    """One layer, run three times, and a head."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.again, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(RUNS):
            x = torch.tanh(self.again(x))
        logits: Tensor = self.head(x)
        return logits


def compiled(**options: Any) -> tuple[CompiledStep, Tensor, Tensor]:
    model, x = Repeated().double(), torch.randn(5, 4, dtype=torch.float64)
    step = build(model, regions_of(model, x), beta=BETA, gamma=GAMMA, lr=LR, **options)
    return step, x, torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("gpus", [1, 3])
def test_by_hand(gpus: int) -> None:
    """Eqs. 3 to 6 for three runs of one layer under flat wiring: ΔW and ΔE are sums over the runs."""
    step, x, target = compiled(wiring="flat", gpus=gpus)
    (name,) = step.synapses
    E = step.synapses[name].clone()
    assert {edge.synapse for edge in step.plan.edges} == {name}
    W, b = (getattr(step.model.again, key).detach().clone() for key in ("weight", "bias"))  # type: ignore[union-attr]
    e = (torch.softmax(step.model(x), 1) - F.one_hot(target, 3)).detach()
    d = e @ E.T
    z, dW = x, torch.zeros_like(W)
    for _ in range(RUNS):
        h = F.linear(z, W, b)
        error = torch.tanh(h) - torch.tanh(h - BETA * d)
        dW += error.T @ z / 5
        z = torch.tanh(h)
    step(x, target)
    torch.testing.assert_close(step.model.again.weight.detach(), W - LR * dW, rtol=0, atol=1e-14)  # type: ignore[union-attr]
    wanted = E - LR * RUNS * GAMMA * (d.T @ e) / 5
    torch.testing.assert_close(step.synapses[name], wanted, rtol=0, atol=1e-14)


def test_runs_that_hear_from_different_regions_do_not_share() -> None:
    step, _, _ = compiled(wiring=("4->3", "4->2", "3->1"))
    assert {edge.name: edge.shared for edge in step.plan.edges} == {"4->2": "", "4->3": "4->2", "3->1": ""}
    assert len(step.synapses) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"wiring": "flat", "gpus": 3},
        {"wiring": ("4->3", "4->2", "3->1")},
        {"wiring": "flat", "sign": "printed", "gain": True},
        {"wiring": "flat", "rule": "fixed"},
        {"wiring": "flat", "update": "local_vjp", "gpus": 2},
        {"wiring": "chain"},
    ],
    ids=str,
)
def test_the_reference_agrees(options: dict[str, Any]) -> None:
    agrees(Repeated().double(), torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0]), **options)


class TwoShapes(nn.Module):
    """One convolution over maps of two sizes: dense synapses to them cannot be the same."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.again(x))
        z = torch.tanh(self.again(F.avg_pool2d(z, 2)))
        logits: Tensor = self.head(z.flatten(1))
        return logits


@pytest.mark.parametrize("entries", [1 << 22, 1])
def test_runs_of_other_sizes_share_where_the_synapse_fits_both(entries: int) -> None:
    step = agrees(
        TwoShapes().double(), torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2]),
        wiring="flat", synapse_entries=entries,
    )  # fmt: skip
    forms = {edge.form for edge in step.plan.edges}
    assert (forms, len(step.synapses)) == (({"dense"}, 2) if entries > 1 else ({"channel"}, 1))


def test_the_plan_counts_a_shared_synapse_once() -> None:
    step, _, _ = compiled(wiring="flat")
    (chosen,) = (item for item in step.plan.candidates if item.chosen)
    assert chosen.bytes == 4 * 3 * 8
    assert list(step.module.SYNAPSES) == list(step.synapses) == ["4->1"]
    assert step.state_dict().keys() == {"E.4->1"}


def test_sharing_what_does_not_fit_is_a_broken_plan() -> None:
    step, _, _ = compiled(wiring="flat")
    own = next(edge for edge in step.plan.edges if not edge.shared)
    others = [edge for edge in step.plan.edges if edge.shared]
    for broken in (
        (own, replace(others[0], shared="9->9"), others[1]),
        (own, replace(others[0], shared=others[1].name), others[1]),
        (own, replace(others[0], rule="fixed"), others[1]),
    ):
        with pytest.raises(VerificationError) as found:
            verify(replace(step.plan, edges=broken))
        assert "RG404" in found.value.codes
