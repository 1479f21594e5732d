"""The error at the output against autograd of PyTorch's own loss, and against a transcription in numpy, in float64.

e_L is B times the derivative of the loss by z_L, in every layout of classes and for every option of the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reclra_graph.rules import loss

Array = NDArray[np.float64]

BATCH, CLASSES = 3, 5
WEIGHTS = (0.5, 2.0, 0.0, 1.25, 0.3)
# Shape of the logits, axis of the classes, positions of a sample.
LAYOUTS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "vector": ((BATCH, CLASSES), 1, 1),
    "map": ((BATCH, CLASSES, 2, 3), 1, 6),
    "map of one position": ((BATCH, CLASSES, 1, 1), -3, 1),
    "signal": ((BATCH, CLASSES, 4), 1, 4),
    "sequence": ((BATCH, 4, CLASSES), -1, 4),
    "sequence of one": ((BATCH, 1, CLASSES), -1, 1),
    "grid, classes last": ((BATCH, 2, 3, CLASSES), -1, 6),
}
PLAIN = list(product(LAYOUTS, (0.0, 0.1), (None, -100, 2, 255), (None, WEIGHTS), (False,)))
SHIFTED = list(product(("sequence",), (0.0, 0.1), (None, -100, 2), (None, WEIGHTS), (True,)))
Options = tuple[str, float, int | None, tuple[float, ...] | None, bool]


def drawn(layout: str, ignore: int | None) -> tuple[Tensor, Tensor]:
    """Logits, and targets of which some are ignored."""
    shape, axis, _ = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(len(layout))
    z = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    sizes = list(shape)
    del sizes[axis]
    target = torch.randint(CLASSES, sizes, generator=generator)
    target.view(-1)[0] = 1  # at least one that counts, with a weight
    if ignore is not None:
        target.view(-1)[1::3] = ignore
    return z, target


def in_numpy(
    z: Array, target: NDArray[np.int64], smoothing: float, ignore: int | None, weights: tuple[float, ...] | None
) -> tuple[float, Array]:
    """The loss and B times its derivative; z: [B, …, C], one target after the other, as PyTorch documents the loss."""
    w = np.ones(z.shape[-1]) if weights is None else np.array(weights)
    total, mass, gradient = 0.0, 0.0, np.zeros_like(z)
    for place in np.ndindex(*target.shape):
        t = int(target[place])
        if t == ignore:
            continue
        logits = z[place]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        q = np.array([w[c] * ((1 - smoothing) * (c == t) + smoothing / len(p)) for c in range(len(p))])
        total -= float(np.sum(q * np.log(p)))
        gradient[place] = p * q.sum() - q
        mass += w[t]
    return total / mass, gradient * len(z) / mass


@pytest.mark.parametrize(("layout", "smoothing", "ignore", "weights", "shift"), [*PLAIN, *SHIFTED])
def test_cross_entropy(
    layout: str, smoothing: float, ignore: int | None, weights: tuple[float, ...] | None, shift: bool
) -> None:
    shape, axis, positions = LAYOUTS[layout]
    z, target = drawn(layout, ignore)
    z.requires_grad_()
    front = z.movedim(axis, 1)
    wanted = F.cross_entropy(
        front[:, :, :-1] if shift else front,
        target[:, 1:] if shift else target,
        torch.tensor(weights, dtype=torch.float64) if weights else None,
        ignore_index=-100 if ignore is None else ignore,
        label_smoothing=smoothing,
    )
    (gradient,) = torch.autograd.grad(wanted, z)
    z = z.detach()
    value = loss.cross_entropy(z, target, axis, smoothing, ignore, weights, shift)
    torch.testing.assert_close(value, wanted.detach(), rtol=0, atol=1e-12)
    args = (CLASSES, positions, axis, smoothing, ignore, weights, shift)
    error = loss.cross_entropy_error(z, target, *args)
    assert error.shape == shape
    assert error.dtype == torch.float64
    assert float((error - BATCH * gradient).abs().max()) < 1e-12
    if shift:
        assert not error[:, -1].any()
    if ignore is not None and not shift:
        assert not error.movedim(axis, -1)[target == ignore].any()
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    held = loss.cross_entropy_error(z, target, *args[:5], tensor, shift, BATCH)
    assert torch.equal(held, error)
    last = z.movedim(axis, -1).numpy()
    if shift:
        last, target = last[:, :-1], target[:, 1:]
    slow, slow_error = in_numpy(last, target.numpy(), smoothing, ignore, weights)
    assert abs(float(value) - slow) < 1e-12
    found = error.movedim(axis, -1).numpy()
    assert np.abs((found[:, :-1] if shift else found) - slow_error).max() < 1e-12


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_without_a_target_that_counts_the_loss_is_nan_and_the_error_nothing(
    axis: int, smoothing: float, weights: tuple[float, ...] | None
) -> None:
    z = torch.randn((2, 4, CLASSES) if axis == -1 else (2, CLASSES, 4), dtype=torch.float64)
    target = torch.full((2, 4), -100)
    assert loss.cross_entropy(z, target, axis, smoothing, -100, weights).isnan()
    assert not loss.cross_entropy_error(z, target, CLASSES, 4, axis, smoothing, -100, weights).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_only_the_proportions_of_class_weights_count(smoothing: float) -> None:
    z, target = drawn("sequence", 2)
    small = tuple(weight / 1000 for weight in WEIGHTS)
    errors = [loss.cross_entropy_error(z, target, CLASSES, 4, -1, smoothing, 2, item) for item in (WEIGHTS, small)]
    torch.testing.assert_close(errors[0], errors[1], rtol=0, atol=1e-12)


def test_an_error_is_as_a_mean_over_the_batch_wants_it_wherever_the_batch_stands() -> None:
    z, target = torch.randn(7, 4, CLASSES, dtype=torch.float64), torch.randint(CLASSES, (7, 4))
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(loss.cross_entropy(z, target, -1, ignore=2), z)
    error = loss.cross_entropy_error(z.detach(), target, CLASSES, 7, -1, ignore=2, batch=4)
    assert float((error - 4 * gradient).abs().max()) < 1e-12


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_with_probabilities(layout: str, smoothing: float, weights: tuple[float, ...] | None) -> None:
    shape, axis, positions = LAYOUTS[layout]
    z, _ = drawn(layout, None)
    target = torch.rand(shape, dtype=torch.float64)  # need not sum to 1
    z.requires_grad_()
    tensor = torch.tensor(weights, dtype=torch.float64) if weights else None
    wanted = F.cross_entropy(z.movedim(axis, 1), target.movedim(axis, 1), tensor, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(wanted, z)
    value = loss.soft_cross_entropy(z.detach(), target, axis, smoothing, weights)
    torch.testing.assert_close(value, wanted.detach(), rtol=0, atol=1e-12)
    error = loss.soft_cross_entropy_error(z.detach(), target, CLASSES, positions, axis, smoothing, weights)
    assert error.shape == shape
    assert float((error - BATCH * gradient).abs().max()) < 1e-12


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2)])
@pytest.mark.parametrize(
    ("value", "error"),
    [(loss.mse, loss.mse_error), (loss.bce_with_logits, loss.bce_with_logits_error)],
    ids=["mse", "bce"],
)
def test_losses_of_values(shape: tuple[int, ...], value: Callable[..., Tensor], error: Callable[..., Tensor]) -> None:
    z, target = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.rand(shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(value(z, target), z)
    assert float((error(z, target) - shape[0] * gradient).detach().abs().max()) < 1e-12
    (gradient,) = torch.autograd.grad(value(z, target, 7), z)
    assert float((error(z, target) - 7 * gradient).detach().abs().max()) < 1e-12
