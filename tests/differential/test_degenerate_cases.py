"""Where rec-LRA must fall together with known rules: backpropagation and direct feedback alignment, by autograd here.

With beta -> 0 the finite difference (phi(h) - phi(h - beta d)) / beta becomes phi'(h) d. The gain option keeps the
division by beta in the rule; without it the direction is the same, at depths where the error is still representable.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import reclra_graph as rg
from tests.differential.residual_mlps import ResidualMLP, batch, build, names_of

LAST = 7
BETA = 1e-6
SMOOTH = ("identity", "tanh", "sigmoid", "gelu", "silu", "elu", "relu")


def backprop(net: ResidualMLP, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy for every parameter."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(functional.cross_entropy(net(x), target), parameters)
    return dict(zip(names, gradients, strict=True))


def movement(net: ResidualMLP, step: rg.CompiledStep, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What one step with lr = 1 takes away from every parameter."""
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    step(x, target)
    return {name: before[name] - value.detach() for name, value in net.named_parameters()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], *, magnitude: bool) -> None:
    """Every parameter: cosine above 0.9999 and, where asked for, a relative difference below 1e-4."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert float(wanted.norm()) > 0, name
        assert float(found[name].norm()) > 0, name
        cosine = float((found[name] / found[name].norm() * wanted / wanted.norm()).sum())
        assert cosine > 0.9999, (name, cosine)
        if magnitude:
            assert float((found[name] - wanted).norm() / wanted.norm()) < 1e-4, name


def write(step: rg.CompiledStep, name: str, value: Tensor) -> None:
    """Set one synapse."""
    assert step.synapses[name].shape == value.shape
    with torch.no_grad():
        step.synapses[name].copy_(value)


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_a_chain_of_transposed_weights_is_backprop(activation: str) -> None:
    net = build(0, True, activation)
    x, target = batch(net, "cross-entropy")
    step = rg.compile(net, (x,), wiring="chain", rule="fixed", beta=BETA, gain=True, lr=1.0)
    for layer in range(1, LAST):
        write(step, f"{layer + 1}->{layer}", net.linears[layer].weight.T)
    expected = backprop(net, x, target)
    assert_same(movement(net, step, x, target), expected, magnitude=True)


def test_a_chain_without_gain_keeps_the_direction_of_backprop() -> None:
    torch.manual_seed(0)
    net = ResidualMLP((6, 5, 4, 5, 3), ("tanh", "identity", "tanh"), 0).double()
    x, target = batch(net, "cross-entropy")
    # three hops of 1e-3 each: the first layer's error, about 1e-10, still stands far above the rounding of z - y
    step = rg.compile(net, (x,), wiring="chain", rule="fixed", beta=1e-3, lr=1.0)
    for layer in range(1, 4):
        write(step, f"{layer + 1}->{layer}", net.linears[layer].weight.T)
    expected = backprop(net, x, target)
    rg.assign_grads(step, x, target)
    found = {name: value.grad.detach().clone() for name, value in net.named_parameters() if value.grad is not None}
    assert_same(found, expected, magnitude=False)
    shrinkage = [float(found[f"body.{k}.0.weight"].norm() / expected[f"body.{k}.0.weight"].norm()) for k in range(3)]
    assert shrinkage == pytest.approx([1e-9, 1e-6, 1e-3], rel=1e-2)


@pytest.mark.parametrize("activation", SMOOTH)
def test_edges_along_the_skips_make_a_residual_net_backprop(activation: str) -> None:
    """Error edges mirror every forward edge: E = WT below each layer, PT or the identity below each skip."""
    g = 2 if activation in ("identity", "tanh", "elu") else 3
    net = build(g, True, activation)
    x, target = batch(net, "cross-entropy", size=32)
    chain = [(layer + 1, layer) for layer in range(1, LAST)]
    skips = [(layer, layer - g) for layer in range(2 * g, LAST, g)]
    step = rg.compile(net, (x,), wiring=names_of([*chain, *skips]), rule="fixed", beta=BETA, gain=True, lr=1.0)
    for source, target_region in chain:
        write(step, f"{source}->{target_region}", net.linears[source - 1].weight.T)
    for source, target_region in skips:
        units = net.linears[source - 1].out_features
        projection = net.projections.get(source)
        value = torch.eye(units, dtype=torch.float64) if projection is None else projection.weight.T
        write(step, f"{source}->{target_region}", value)
    expected = backprop(net, x, target)
    assert_same(movement(net, step, x, target), expected, magnitude=True)


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_flat_with_fixed_synapses_is_direct_feedback_alignment(activation: str, gain: bool) -> None:
    net = build(2, True, activation)
    x, target = batch(net, "cross-entropy")
    step = rg.compile(net, (x,), wiring="flat", rule="fixed", beta=BETA, gain=gain, lr=1.0)

    # DFA by its formula: dW_i = mean of (phi'(h_i) * E_i e_L) z_{i-1}T
    pre: dict[int, Tensor] = {}
    fed: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, inputs, __, i=i: fed.update({i: inputs[0]}))
        for i, layer in enumerate(net.linears, start=1)
    ]
    activations = [module for module in net.modules() if type(module).__name__.lower() == activation]
    hooks += [
        module.register_forward_hook(lambda _, inputs, __, i=i: pre.update({i: inputs[0]}))
        for i, module in enumerate(activations, start=1)
    ]
    projected: dict[int, Tensor] = {}
    hooks += [
        layer.register_forward_hook(lambda _, inputs, __, i=i: projected.update({i: inputs[0]}))
        for i, layer in net.projections.items()
    ]
    error = torch.softmax(net(x), dim=1) - functional.one_hot(target, 4)
    for hook in hooks:
        hook.remove()

    key = {id(parameter): name for name, parameter in net.named_parameters()}
    expected: dict[str, Tensor] = {}
    for i, layer in enumerate(net.linears, start=1):
        if i == LAST:
            local = error
        else:
            (slope,) = torch.autograd.grad(activations[i - 1](pre[i]).sum(), pre[i])
            local = slope * (error @ step.synapses[f"{LAST}->{i}"].T) * (1.0 if gain else BETA)
        expected[key[id(layer.weight)]] = (local.T @ fed[i]).detach() / len(x)
        expected[key[id(layer.bias)]] = local.mean(0).detach()
        if i in projected:
            expected[key[id(net.projections[i].weight)]] = (local.T @ projected[i]).detach() / len(x)

    found = movement(net, step, x, target)
    assert_same(found, expected, magnitude=gain)
