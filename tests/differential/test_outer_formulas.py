"""Outer products, readouts and responses to noise by themselves: against loops in numpy, autograd where a rule is a
derivative, and Eq. 6, which is the outer product of a displacement and an error."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reclra_graph.rules import mirror, outer, readout, synapse
from tests.differential.test_synapse_formulas import (
    AXES,
    BATCH,
    FIRST,
    GRIDS,
    WIDTHS,
    Array,
    Shape,
    averages,
    choices,
    rows,
    shape_of,
)

GAMMA = 0.3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("axes", AXES, ids=["first-first", "first-last", "last-first", "last-last"])
@pytest.mark.parametrize("widths", WIDTHS, ids=["widening", "narrowing"])
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_a_shared_synapse_between_any_two_shapes(name: str, widths: tuple[int, int], axes: tuple[int, int]) -> None:
    here, there, grid = GRIDS[name]
    source, target = shape_of(here, widths[0], axes[0]), shape_of(there, widths[1], axes[1])
    a, b, E = drawn(BATCH, *target), drawn(BATCH, *source, seed=1), drawn(widths[1], widths[0], seed=2)
    average, choice = averages(here, grid), choices(there, grid)
    gathered = (choice / choice.sum(0)).T @ rows(a, axes[1])  # the mean over the positions that hear the same
    pooled = average @ rows(b, axes[0])
    wanted = GAMMA * np.einsum("bpi,bpj->ij", gathered, pooled) / (BATCH * len(average))
    found = outer.token(a, b, GAMMA, BATCH, source, target, *axes)
    assert np.abs(found.numpy() - wanted).max() < 1e-12
    d = synapse.token_displace(b, E, source, target, *axes)
    eq6 = synapse.token_eq6(E, b, GAMMA, BATCH, True, source, target, *axes)
    torch.testing.assert_close(outer.token(d, b, GAMMA, BATCH, source, target, *axes), eq6, rtol=0, atol=1e-12)
    read = choices(here, grid) @ averages(there, grid) @ rows(a, axes[1]) @ E.numpy()
    logits = readout.token(a, E, source, target, *axes)
    assert logits.shape == (BATCH, *source)
    assert np.abs(rows(logits, axes[0]) - read).max() < 1e-12
    if axes == (FIRST, FIRST):
        assert torch.equal(outer.channel(a, b, GAMMA, BATCH, source, target), found)
        assert torch.equal(readout.channel(a, E, source, target), logits)


@pytest.mark.parametrize("last", [False, True])
def test_a_dense_synapse(last: bool) -> None:
    """Rows unit by unit, or position by position."""
    source, target = (2, 3), (4, 2, 2)
    a, b, E = drawn(BATCH, *target), drawn(BATCH, *source, seed=1), drawn(16, 6, seed=2)
    order = a.permute(0, 2, 3, 1) if last else a
    flat = order.reshape(BATCH, -1).numpy()
    wanted = GAMMA * sum(np.outer(x, y) for x, y in zip(flat, b.reshape(BATCH, -1).numpy(), strict=True)) / BATCH
    assert np.abs(outer.dense(a, b, GAMMA, BATCH, source, target, last).numpy() - wanted).max() < 1e-12
    logits = readout.dense(a, E, source, target, last)
    assert np.abs(logits.reshape(BATCH, -1).numpy() - flat @ E.numpy()).max() < 1e-12
    d = synapse.dense_displace(b, E, source, target, last)
    few = synapse.dense_eq6_few(E, b, GAMMA, BATCH, True, source)
    torch.testing.assert_close(outer.dense(d, b, GAMMA, BATCH, source, target, last), few, rtol=0, atol=1e-12)


CONVOLUTIONS: dict[str, tuple[Shape, Shape, Shape, int, Shape]] = {
    # kernel, stride, padding, groups, positions of the target
    "strided": ((3, 2), (2, 3), (1, 0), 1, (6, 7)),
    "grouped": ((2, 2), (1, 1), (1, 1), 2, (4, 5)),
    "one dimension": ((4,), (3,), (2,), 1, (9,)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_the_derivative_of_what_it_connects(name: str) -> None:
    """γ a bᵀ on shared entries is the derivative of ⟨a, E b⟩ by E; the readout is the adjoint of what E sends."""
    kernel, stride, padding, groups, size = CONVOLUTIONS[name]
    E = drawn(4, 4 // groups, *kernel).requires_grad_()
    dilation = (1,) * len(size)
    a = drawn(BATCH, 4, *size, seed=1)
    place: tuple[Any, ...] = (stride, padding, dilation, groups)
    logits = readout.conv(a, E, *place)
    b = drawn(*logits.shape, seed=2)
    (wanted,) = torch.autograd.grad((logits * b).sum(), E)
    positions = prod(logits.shape[2:])
    found = outer.conv(a, b, E.detach(), GAMMA, BATCH, positions, *place)
    torch.testing.assert_close(found, GAMMA * wanted / (BATCH * positions), rtol=0, atol=1e-12)
    more = tuple(
        there - ((here - 1) * s - 2 * p + k)
        for there, here, s, p, k in zip(size, logits.shape[2:], stride, padding, kernel, strict=True)
    )
    d = synapse.conv_displace(b, E, stride, padding, more, dilation, groups)
    torch.testing.assert_close((logits * b).sum(), (a * d).sum(), rtol=1e-12, atol=0)


def test_a_readout_descends_its_own_loss() -> None:
    """With γ = 1, z e'ᵀ is the derivative of the readout's loss by E: over units, and over the mean of positions."""
    labels = torch.tensor([0, 2, 1])
    for form, target, size in (("dense", (5,), (5, 4)), ("channel", (5, 2, 3), (5, 4))):
        E, z = drawn(*size).requires_grad_(), drawn(BATCH, *target, seed=1)
        logits = getattr(readout, form)(z, E, (4,), target)
        (wanted,) = torch.autograd.grad(F.cross_entropy(logits, labels), E)
        error = (torch.softmax(logits, 1) - F.one_hot(labels, 4)).detach()
        found = getattr(outer, form)(z, error, 1.0, BATCH, (4,), target)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


# -- responses to noise -----------------------------------------------------------------------------------------------

MANY = 40_000
"""Draws: their mean is off by about 1 / √MANY of a single one's deviation."""


def mirrored(z: Tensor, function: Any, form: str, source: Shape, target: Shape, sigma: float) -> Tensor:
    """What a mirror of γ = 1 adds to E, the mean over so many samples as z has."""
    noise = mirror.noise(z)
    b = mirror.response(function(z), function(mirror.noisy(z, noise, sigma)), sigma)
    return -getattr(outer, form)(noise, b, 1.0, len(z), source, target)


def test_the_mean_response_is_the_jacobian_whatever_lies_between() -> None:
    """Of tanh layers: the Jacobian's mean over the noisy z, by autograd. Of a step: where it would have none."""
    W, V = drawn(4, 3), drawn(2, 4, seed=1)
    z, sigma = drawn(1, 3, seed=2).expand(MANY, 3), 0.5

    def layers(z: Tensor) -> Tensor:
        return torch.tanh(z @ W.T) @ V.T

    found = mirrored(z, layers, "dense", (2,), (3,), sigma)
    moved = (z + sigma * drawn(MANY, 3, seed=3)).requires_grad_()
    wanted = torch.stack([torch.autograd.grad(layers(moved)[:, row].sum(), moved)[0].mean(0) for row in range(2)]).T
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.03)
    steps = mirrored(z[:, :1], torch.sign, "dense", (1,), (1,), sigma)
    density = torch.exp(-((z[0, 0] / sigma) ** 2) / 2) / sigma * np.sqrt(2 / np.pi)  # twice the normal density at 0
    torch.testing.assert_close(steps, density.reshape(1, 1), rtol=0, atol=0.05)


def test_of_one_linear_layer_the_response_is_exact() -> None:
    W, z, noise = drawn(4, 3), drawn(5, 3, seed=1), drawn(5, 3, seed=2)
    found = mirror.response(z @ W.T, mirror.noisy(z, noise, 0.2) @ W.T, 0.2)
    torch.testing.assert_close(found, -noise @ W.T, rtol=0, atol=1e-12)
    assert float(mirror.size(found, 2 * found)) == pytest.approx(2.5 * float(found.square().mean()))
    assert torch.isnan(mirror.size(found, found * torch.nan))


def test_shared_synapses_mirror_the_mean_over_the_positions_that_they_connect() -> None:
    """A convolution of 3 taps between equal sequences, seen by a channel synapse, shows its middle one; a mean over all
    positions behind it, the sum of its taps over the number of positions, the ends apart."""
    W = drawn(2, 3, 3)
    z = drawn(1, 3, 6, seed=1).expand(MANY, 3, 6)
    found = mirrored(z, lambda z: F.conv1d(z, W, padding=1), "channel", (2, 6), (3, 6), 0.3)
    torch.testing.assert_close(found, W[:, :, 1].T, rtol=0, atol=0.03)
    whole = mirrored(z, lambda z: F.conv1d(z, W, padding=1).mean(2), "channel", (2,), (3, 6), 0.3)
    uses: Array = np.array([5, 6, 5]) / 36  # of each tap, over 6 positions of the mean and 6 of the noise
    torch.testing.assert_close(whole, (W @ torch.from_numpy(uses)).T, rtol=0, atol=0.01)
