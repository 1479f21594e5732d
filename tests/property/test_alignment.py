"""What synapse rules are for: E comes to point where the weights that it answers to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import mlp

WIDTHS = (8, 7, 6, 5, 4)


def compiled(**options: Any) -> CompiledStep:
    torch.manual_seed(4)
    return rg.compile(mlp(*WIDTHS).double(), torch.zeros(4, 8, dtype=torch.float64), wiring="chain", **options)


def batches(count: int, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    """Samples of a teacher's, so that there is something to learn."""
    draw = torch.Generator().manual_seed(1)
    teacher = torch.randn(8, 4, generator=draw, dtype=torch.float64)
    inputs = torch.randn(count, size, 8, generator=draw, dtype=torch.float64)
    return [(x, (x @ teacher).argmax(1)) for x in inputs]


def weights(step: CompiledStep) -> dict[str, Tensor]:
    """Wᵀ of the layer that leads from an edge's target to its source, by the edge."""
    layers = [layer for layer in step.model.modules() if isinstance(layer, nn.Linear)]
    return {f"{index + 1}->{index}": layers[index].weight.detach().T.clone() for index in range(1, len(layers))}


def angles(step: CompiledStep) -> dict[str, float]:
    """Degrees between E and Wᵀ, as vectors of all entries."""
    found = {}
    for name, weight in weights(step).items():
        cosine = torch.cosine_similarity(step.synapses[name].flatten(), weight.flatten(), dim=0)
        found[name] = float(torch.rad2deg(torch.acos(cosine)))
    return found


def test_direct_kolen_pollack_between_neighbours_forgets_how_both_began() -> None:
    """With γ = 1, E and Wᵀ change alike; what they differ in decays by (1 − lr · decay) a step, to the last digit."""
    step = compiled(rule="dkp", gamma=1.0, gain=True, lr=0.1, weight_decay=0.1)
    before, start = weights(step), angles(step)
    apart = {name: step.synapses[name] - weight for name, weight in before.items()}
    losses = [float(step(*batch)) for batch in batches(300)]
    for name, weight in weights(step).items():
        wanted = (1 - 0.1 * 0.1) ** 300 * apart[name]
        torch.testing.assert_close(step.synapses[name] - weight, wanted, rtol=0, atol=1e-12)
    after = angles(step)
    assert min(start.values()) > 60
    assert max(after.values()) < 15
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize("engaged", [False, True], ids=["mirror mode", "training steps"])
def test_mirrors_come_to_point_along_the_weights(engaged: bool) -> None:
    """With decay, E settles at γ / decay of Wᵀ; the weights hold still in mirror mode, and move in training."""
    step = compiled(rule="mirror", gamma=0.5, synapse_decay=0.5, gain=True, lr=0.1)
    start, before = angles(step), weights(step)
    torch.manual_seed(5)
    for x, target in batches(150, 64):
        step(x, target) if engaged else step.mirror(x)
    after = angles(step)
    assert min(start.values()) > 60
    assert max(after.values()) < (15 if engaged else 8)
    held = all(torch.equal(weight, before[name]) for name, weight in weights(step).items())
    assert held is not engaged
    for name, weight in weights(step).items():
        assert float(step.synapses[name].norm() / weight.norm()) == pytest.approx(1.0, abs=0.2)


def test_a_mirror_of_a_long_way_points_along_its_jacobian() -> None:
    """An edge over three layers, from the output: the mean over the data of what each sample's derivative is."""
    torch.manual_seed(4)
    step = rg.compile(mlp(*WIDTHS).double(), torch.zeros(4, 8, dtype=torch.float64), wiring="flat", rule="mirror",
                      gamma=0.5, synapse_decay=0.5, lr=0.1)  # fmt: skip
    (x, _), *_ = batches(1, 512)
    torch.manual_seed(5)
    for _ in range(150):
        step.mirror(x)
    layers: Any = step.model
    z = layers[:2](x).detach().requires_grad_()
    jacobian = torch.stack([torch.autograd.grad(layers[2:](z)[:, row].sum(), z)[0].mean(0) for row in range(4)]).T
    cosine = torch.cosine_similarity(step.synapses["4->1"].flatten(), jacobian.flatten(), dim=0)
    assert float(cosine) > 0.98
