"""rg.assign_grads against the oracle's updates, and any torch optimiser on top of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import reclra_graph as rg
from tests.differential.numpy_reclra import Rule, deltas
from tests.differential.residual_mlps import (
    ResidualMLP,
    array,
    batch,
    build,
    draw_synapses,
    edge_of,
    names_of,
    random_edges,
    to_numpy,
)

LAST = 7
KAPPA = ((2, 0.5), (6, 2.0), (7, 1.5))


def compiled(sign: str, rule: str = "eq6") -> tuple[ResidualMLP, rg.CompiledStep, Tensor, Tensor]:
    """A net with a random wiring, its step, and a batch; the same at every call."""
    net = build(2, True, "mixed")
    x, target = batch(net, "cross-entropy")
    wiring = names_of(random_edges(LAST, seed=5))
    step = rg.compile(
        net, (x,), gpus=2, wiring=wiring, rule=rule, sign=sign, kappa=dict(KAPPA), beta=0.2, gamma=0.3, lr=0.1
    )
    return net, step, x, target


def values(net: ResidualMLP, step: rg.CompiledStep) -> dict[str, Tensor]:
    """Copies of all parameters and synapses."""
    pairs = [*net.state_dict().items(), *step.synapses.items()]
    return {name: value.detach().clone() for name, value in pairs}


@pytest.mark.parametrize("sign", ["descend", "printed"])
def test_gradients_are_the_oracles_updates_and_nothing_moves(sign: str) -> None:
    net, step, x, target = compiled(sign)
    E = draw_synapses(step.synapses)
    wanted = deltas(to_numpy(net), E, Rule(beta=0.2, gamma=0.3, kappa=dict(KAPPA), sign=sign), array(x), array(target))
    before = values(net, step)
    loss = rg.assign_grads(step, x, target)
    assert loss.shape == ()
    assert abs(float(loss) - wanted.loss) < 1e-12
    after = values(net, step)
    assert all(torch.equal(after[name], before[name]) for name in before)

    def close(parameter: Tensor, delta: object) -> bool:
        assert parameter.grad is not None
        return bool(np.max(np.abs(array(parameter.grad) - np.asarray(delta))) < 1e-12)

    for i, layer in enumerate(net.linears, start=1):
        assert close(layer.weight, wanted.W[i]), i
        assert close(layer.bias, wanted.b[i]), i
    for i, layer in net.projections.items():
        assert close(layer.weight, wanted.P[i]), i
    for name, synapse in step.synapses.items():
        # W <- W - lr dW, but E <- E + lr dE descends: the gradient to give an optimiser is -dE
        delta = wanted.E[edge_of(name)]
        assert close(synapse, -delta if sign == "descend" else delta), name


@pytest.mark.parametrize("sign", ["descend", "printed"])
def test_sgd_on_the_gradients_is_the_built_in_step(sign: str) -> None:
    net, step, x, target = compiled(sign)
    by_hand, other, _, _ = compiled(sign)
    draw_synapses(step.synapses)
    draw_synapses(other.synapses)
    optimizer = torch.optim.SGD([*by_hand.parameters(), *other.synapses.values()], lr=0.1)
    for _ in range(5):
        expected = step(x, target)
        optimizer.zero_grad()
        loss = rg.assign_grads(other, x, target)
        optimizer.step()
        assert abs(float(loss) - float(expected)) < 1e-12
    first, second = values(net, step), values(by_hand, other)
    for name, value in first.items():
        assert float((value - second[name]).abs().max()) < 1e-12, name


def test_fixed_synapses_ask_for_no_change() -> None:
    _, step, x, target = compiled("descend", rule="fixed")
    rg.assign_grads(step, x, target)
    assert all(synapse.grad is None or not synapse.grad.any() for synapse in step.synapses.values())


def test_clipping_a_scheduler_and_adam_work_on_top() -> None:
    net, step, x, target = compiled("descend")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(float(rg.assign_grads(step, x, target)))
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        assert float(norm) > 0
        optimizer.step()
        scheduler.step()
    assert losses[-1] < 0.8 * losses[0]
