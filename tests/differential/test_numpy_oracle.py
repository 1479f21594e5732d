"""The oracle itself, checked against derivatives by finite differences, torch's activations and plain algebra."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.differential.numpy_reclra import (
    PHI,
    Array,
    Edge,
    Network,
    Rule,
    deltas,
    discrepancy,
    forward,
    output_error,
    output_loss,
    sample_deltas,
    trace,
    train_step,
)
from tests.differential.residual_mlps import ACTIVATIONS, algorithm_1_edges, build, random_edges, to_numpy

LAST = 7


def synapses(net: Network, edges: tuple[Edge, ...], seed: int = 0) -> dict[Edge, Array]:
    """Normal error synapses of the right shapes."""
    generator = np.random.default_rng(seed)
    units = {layer: len(bias) for layer, bias in net.b.items()}
    return {(j, i): generator.normal(size=(units[i], units[j])) / np.sqrt(units[j]) for j, i in edges}


def slope(function: Callable[[], float], values: Array, step: float = 1e-5) -> Array:
    """Central differences of a function of no arguments with respect to an array that it reads."""
    result = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        above = function()
        values[index] = kept - step
        below = function()
        values[index] = kept
        result[index] = (above - below) / (2 * step)
    return result


FLAT = tuple((LAST, layer) for layer in range(1, LAST))
CHAIN = tuple((layer + 1, layer) for layer in range(1, LAST))


@pytest.mark.parametrize("name", sorted(PHI))
def test_activations_are_torchs(name: str) -> None:
    h = np.concatenate([np.linspace(-30, 30, 2001), np.random.default_rng(0).normal(size=500)])
    theirs = ACTIVATIONS[name]()(torch.from_numpy(h)).numpy()
    assert np.max(np.abs(PHI[name](h) - theirs)) < 1e-14


@pytest.mark.parametrize(("g", "projected"), [(0, True), (2, False), (2, True), (3, False), (3, True)])
def test_forward_is_the_torch_models(g: int, projected: bool) -> None:
    model = build(g, projected, "mixed")
    net = to_numpy(model)
    assert set(net.P) == ({0: set(), 2: {2, 6}, 3: {3}}[g] if projected else set())
    assert set(net.skip) == {0: set(), 2: {2, 4, 6}, 3: {3, 6}}[g]
    x = np.random.default_rng(0).normal(size=len(net.W[1][0]))
    with torch.no_grad():
        expected = model(torch.from_numpy(x)[None])[0].numpy()
    assert np.max(np.abs(forward(net, x)[1][LAST] - expected)) < 1e-14


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "bce-with-logits"])
def test_output_error_is_the_gradient_of_the_loss_and_the_loss_is_torchs(loss: str) -> None:
    generator = np.random.default_rng(0)
    z = 2 * generator.normal(size=5)
    target = 3 if loss == "cross-entropy" else generator.uniform(size=5)
    numerical = slope(lambda: output_loss(loss, z, target), z)
    assert np.max(np.abs(numerical - output_error(loss, z, target))) < 1e-9
    logits = torch.from_numpy(z)
    functional = torch.nn.functional
    expected = {
        "cross-entropy": lambda: functional.cross_entropy(logits, torch.tensor(3)),
        "mse": lambda: 0.5 * functional.mse_loss(logits, torch.from_numpy(np.asarray(target)), reduction="sum"),
        "bce-with-logits": lambda: functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(np.asarray(target)), reduction="sum"
        ),
    }[loss]()
    assert abs(float(expected) - output_loss(loss, z, target)) < 1e-14


def test_output_layer_descends_the_loss() -> None:
    net = to_numpy(build(2, True, "tanh"))
    E = synapses(net, FLAT)
    x = np.random.default_rng(1).normal(size=6)
    rule = Rule()
    found = sample_deltas(net, E, rule, x, 2)
    for values, delta in ((net.W[LAST], found.W[LAST]), (net.b[LAST], found.b[LAST])):
        numerical = slope(lambda: output_loss("cross-entropy", forward(net, x)[1][LAST], 2), values)
        assert np.max(np.abs(numerical - delta)) < 1e-9


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("g", [0, 2, 3])
def test_weight_updates_are_the_slope_of_the_discrepancy_at_fixed_targets(norm: int, g: int) -> None:
    """For phi = identity, dD_i/dW_i with y_i held is e_i z_kT, skips and projections included (Eqs. 2, 4, 5)."""
    net = to_numpy(build(g, True, "identity"))
    rule = Rule(norm=norm, kappa={3: 0.5, 6: 2.0})
    E = synapses(net, algorithm_1_edges(LAST, g or 2))
    x = np.random.default_rng(1).normal(size=6)
    seen = trace(net, E, rule, x, 2)
    found = sample_deltas(net, E, rule, x, 2)

    for i in range(1, LAST):

        def distance(i: int = i) -> float:
            h = net.W[i] @ seen.z[i - 1] + net.b[i]
            if i in net.skip:
                carried = seen.z[net.skip[i]]
                h = h + (net.P[i] @ carried if i in net.P else carried)
            gap = h - seen.y[i]
            return rule.kappa.get(i, 1.0) * float(np.sum(np.abs(gap)) if norm == 1 else 0.5 * np.sum(gap**2))

        assert np.max(np.abs(slope(distance, net.W[i], 1e-6) - found.W[i])) < 1e-7
        assert np.max(np.abs(slope(distance, net.b[i], 1e-6) - found.b[i])) < 1e-7
        if i in net.P:
            assert np.max(np.abs(slope(distance, net.P[i], 1e-6) - found.P[i])) < 1e-7


def test_synapse_updates_are_the_slope_of_the_discrepancy() -> None:
    """For phi = identity, flat wiring, D_i = kappa_i/2 |beta E e|^2; its slope in E is kappa_i beta^2 d eT, Eq. 6."""
    net = to_numpy(build(2, True, "identity"))
    kappa = {1: 0.5, 4: 3.0}
    rule = Rule(beta=0.3, gamma=1.0, kappa=kappa)
    E = synapses(net, FLAT)
    x = np.random.default_rng(1).normal(size=6)
    found = sample_deltas(net, E, rule, x, 1)
    for j, i in FLAT:
        numerical = slope(lambda: discrepancy(net, E, rule, x, 1), E[j, i])
        assert np.max(np.abs(numerical + kappa.get(i, 1.0) * 0.3**2 * found.E[j, i])) < 1e-9


@pytest.mark.parametrize("sign", ["descend", "printed"])
def test_the_descending_sign_shrinks_the_discrepancy_and_the_printed_one_grows_it(sign: str) -> None:
    net = to_numpy(build(2, True, "tanh"))
    E = synapses(net, FLAT)
    rule = Rule(sign=sign, gamma=0.1, lr=0.1)
    x = np.random.default_rng(1).normal(size=(1, 6))
    before = discrepancy(net, E, rule, x[0], 1)
    kept = to_numpy(build(2, True, "tanh"))
    train_step(net, E, rule, x, np.array([1]))
    after = discrepancy(kept, E, rule, x[0], 1)
    assert after < before if sign == "descend" else after > before


def test_displacements_of_several_edges_add_and_each_synapse_learns_from_its_own() -> None:
    net = to_numpy(build(0, True, "tanh"))
    edges: tuple[Edge, ...] = ((7, 6), (7, 5), (6, 5), (7, 4), (6, 4), (5, 4), (4, 3), (4, 2), (4, 1))
    E = synapses(net, edges)
    x = np.random.default_rng(1).normal(size=6)
    rule = Rule(gamma=0.7)
    seen = trace(net, E, rule, x, 0)
    total = E[7, 4] @ seen.e[7] + E[6, 4] @ seen.e[6] + E[5, 4] @ seen.e[5]
    assert np.max(np.abs(seen.y[4] - np.tanh(seen.h[4] - 0.1 * total))) < 1e-15
    found = sample_deltas(net, E, rule, x, 0)
    assert np.max(np.abs(found.E[6, 4] + 0.7 * np.outer(E[6, 4] @ seen.e[6], seen.e[6]))) < 1e-15


@pytest.mark.parametrize("seed", range(20))
def test_every_region_of_a_random_wiring_aligns(seed: int) -> None:
    net = to_numpy(build(3, True, "mixed"))
    E = synapses(net, random_edges(LAST, seed))
    seen = trace(net, E, Rule(), np.random.default_rng(1).normal(size=6), 0)
    assert set(seen.e) == set(range(1, LAST + 1))
    assert set(seen.d) == set(E)


def test_gain_divides_every_error_below_the_output_by_beta() -> None:
    net = to_numpy(build(0, True, "identity"))
    E = synapses(net, CHAIN)
    x = np.random.default_rng(1).normal(size=6)
    plain, gained = (trace(net, E, Rule(beta=0.25, gain=gain), x, 0) for gain in (False, True))
    assert np.array_equal(plain.e[7], gained.e[7])
    for hops, layer in enumerate(range(6, 0, -1), start=1):
        assert np.max(np.abs(gained.e[layer] - plain.e[layer] / 0.25**hops)) < 1e-12


def test_updates_are_means_over_the_batch_from_values_before_the_step() -> None:
    net = to_numpy(build(2, True, "tanh"))
    E = synapses(net, CHAIN)
    generator = np.random.default_rng(1)
    x, target = generator.normal(size=(3, 6)), np.array([0, 3, 1])
    rule = Rule(lr=0.2, gamma=0.5)
    each = [sample_deltas(net, E, rule, x[k], target[k]) for k in range(3)]
    mean = deltas(net, E, rule, x, target)
    old_W, old_E, old_P = dict(net.W), dict(E), dict(net.P)
    loss = train_step(net, E, rule, x, target)
    assert abs(loss - sum(item.loss for item in each) / 3) < 1e-15
    for layer in net.W:
        assert np.max(np.abs(mean.W[layer] - sum(item.W[layer] for item in each) / 3)) < 1e-15
        assert np.array_equal(net.W[layer], old_W[layer] - 0.2 * mean.W[layer])
    for layer in net.P:
        assert np.array_equal(net.P[layer], old_P[layer] - 0.2 * mean.P[layer])
    for edge in E:
        assert np.array_equal(E[edge], old_E[edge] + 0.2 * mean.E[edge])
    fixed = dict(E)
    train_step(net, E, Rule(synapses="fixed"), x, target)
    assert all(np.array_equal(E[edge], fixed[edge]) for edge in E)
