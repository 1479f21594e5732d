"""Equilibrium propagation: both phases against a numpy transcription in float64, its theorem, and real learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reclra_graph.data import fashion_mnist
from reclra_graph.methods.build import build
from reclra_graph.methods.equilibrium import EquilibriumPropagation
from tests.differential.numpy_targets import equilibrium_propagation
from tests.differential.test_target_propagation import arrays
from tests.models import mlp

BATCH = 4


class Hard(nn.Hardtanh):
    """The hard sigmoid of the source."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)


def made(model: nn.Module, x: Tensor, **options: Any) -> EquilibriumPropagation:
    found = build("eprop", model, (x,), **options)
    assert isinstance(found, EquilibriumPropagation)
    return found


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
@pytest.mark.parametrize("start", ["forward", "zeros"])
@pytest.mark.parametrize("sign", ["positive", "random"])
@pytest.mark.parametrize("kind", ["tanh", "hard"])
def test_a_step_is_that_of_the_numpy_transcription(kind: str, sign: str, start: str, loss: str) -> None:
    torch.manual_seed(7)
    model = mlp(6, 5, 4, 3, activation=Hard if kind == "hard" else nn.Tanh).double()
    phi = [kind, kind, "identity"]
    if loss == "mse":  # the output has an activation too, as in the source
        model.append(Hard() if kind == "hard" else nn.Tanh())
        phi[2] = kind
    x = torch.rand(BATCH, 6).double()
    y = torch.rand(BATCH, 3).double() if loss == "mse" else torch.randint(0, 3, (BATCH,))
    learner = made(
        model, x, loss=loss, start=start, nudge=0.3, nudge_sign=sign, free_steps=7, clamped_steps=3, step_size=0.6
    )
    net = arrays(model, phi)
    draws = torch.Generator()
    draws.set_state(learner.state()["draws"])
    beta = 0.3 if sign == "positive" or int(torch.randint(2, (), generator=draws)) == 0 else -0.3
    each = [
        equilibrium_propagation(
            net, x[i].numpy(), y[i].numpy() if loss == "mse" else int(y[i]), loss, beta, 7, 3, 0.6, start == "forward"
        )
        for i in range(BATCH)
    ]
    np.testing.assert_allclose(learner.predict(x).numpy(), [item[2] for item in each], rtol=1e-12)
    learner.learn(x, y, 0.9)
    after = arrays(model, phi)
    for layer in range(3):
        want = net.W[layer] - 0.9 * np.mean([item[0][layer] for item in each], axis=0)
        np.testing.assert_allclose(after.W[layer], want, rtol=1e-10, atol=1e-12)
        want = net.b[layer] - 0.9 * np.mean([item[1][layer] for item in each], axis=0)
        np.testing.assert_allclose(after.b[layer], want, rtol=1e-10, atol=1e-12)


class ConvNet(nn.Module):
    """A strided, grouped convolution, average pooling, a transposed convolution, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=1, padding=1, groups=2)
        self.pool = nn.AvgPool2d(2)
        self.second = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.second(self.pool(torch.tanh(self.first(x)))))
        logits: Tensor = self.head(z.flatten(1))
        return logits


def unrolled_conv(net: Any, x: Tensor, steps: int) -> Tensor:
    """The output's fixed point, by autograd's own adjoints of the layers."""

    def up(states: list[Tensor]) -> list[Tensor]:
        return [
            net.first(x),
            net.second(net.pool(states[0])),
            net.head(states[1].flatten(1)),
        ]

    def phi(states: list[Tensor]) -> Tensor:
        return torch.stack([(s * h).sum() for s, h in zip(states, up(states), strict=True)]).sum()

    states = [torch.zeros_like(h) for h in (net.first(x), net.second(net.pool(net.first(x))), torch.zeros(len(x), 3))]
    states = [item.double().requires_grad_() for item in states]
    for _ in range(steps):
        drives = torch.autograd.grad(phi(states), states, create_graph=True)
        states = [torch.tanh(drives[0]), torch.tanh(drives[1]), drives[2]]
    return states[-1]


def unrolled_mlp(net: Any, x: Tensor, steps: int) -> Tensor:
    first, second, third = (item for item in net if isinstance(item, nn.Linear))
    s1, s2, s3 = x.new_zeros(len(x), 5), x.new_zeros(len(x), 4), x.new_zeros(len(x), 3)
    for _ in range(steps):
        s1, s2, s3 = (
            torch.tanh(first(x) + s2 @ second.weight),
            torch.tanh(second(s1) + s3 @ third.weight),
            third(s2),
        )
    return s3


@pytest.mark.parametrize(
    ("make", "unrolled", "shape"),
    [(lambda: mlp(6, 5, 4, 3), unrolled_mlp, (6,)), (ConvNet, unrolled_conv, (2, 4, 4))],
    ids=["mlp", "conv"],
)
def test_for_small_beta_it_is_the_derivative_at_the_fixed_point(
    make: Callable[[], nn.Module], unrolled: Callable[[Any, Tensor, int], Tensor], shape: tuple[int, ...]
) -> None:
    """The theorem of Scellier & Bengio: the contrast tends to the gradient of the loss of what the free phase settles
    at, here taken by autograd through the settling itself."""
    torch.manual_seed(2)
    model = make().double()
    with torch.no_grad():
        for item in model.parameters():
            item.mul_(0.6)
    x, y = torch.randn(BATCH, *shape).double(), torch.randint(0, 3, (BATCH,))
    output = unrolled(model, x, 60)
    loss = nn.functional.cross_entropy(output, y)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    before = [item.detach().clone() for item in model.parameters()]
    learner = made(
        model, x, nudge=1e-5, nudge_sign="both", free_steps=200, clamped_steps=200, step_size=0.9, start="zeros"
    )
    torch.testing.assert_close(learner.predict(x), output.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(learner.learn(x, y, 1.0), loss.detach(), rtol=1e-9, atol=1e-10)
    for old, item, grad in zip(before, model.parameters(), grads, strict=True):
        torch.testing.assert_close(old - item.detach(), grad, rtol=1e-4, atol=1e-7)


def moved_by(nudge: float, sign: str) -> tuple[Tensor, Tensor, Tensor]:
    """One step of a small net, with weak weights: what it moved by, the gradient at the fixed point, and backprop's."""
    torch.manual_seed(4)
    model = mlp(6, 5, 4, 3).double()
    with torch.no_grad():
        for item in model.parameters():
            item.mul_(0.6)
    x, y = torch.randn(BATCH, 6).double(), torch.randint(0, 3, (BATCH,))
    held = list(model.parameters())
    settled = torch.autograd.grad(nn.functional.cross_entropy(unrolled_mlp(model, x, 60), y), held)
    plain = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), held)
    before = [item.detach().clone() for item in held]
    made(model, x, nudge=nudge, nudge_sign=sign, free_steps=200, clamped_steps=200).learn(x, y, 1.0)
    moved = [old - item.detach() for old, item in zip(before, held, strict=True)]
    one, other, third = (torch.cat([item.flatten() for item in part]) for part in (moved, settled, plain))
    return one, other, third


def test_what_beta_leaves_out_is_of_first_order_with_one_sign_and_of_second_with_both() -> None:
    errors = {}
    for sign in ("positive", "both"):
        for nudge in (0.1, 0.01):
            moved, settled, _ = moved_by(nudge, sign)
            errors[sign, nudge] = float((moved - settled).norm())
    assert 8 < errors["positive", 0.1] / errors["positive", 0.01] < 12
    assert 80 < errors["both", 0.1] / errors["both", 0.01] < 120


def test_for_small_beta_it_has_the_direction_of_backprop() -> None:
    moved, _, plain = moved_by(1e-3, "positive")
    assert float(nn.functional.cosine_similarity(moved, plain, dim=0)) > 0.9


def test_rates_of_layers() -> None:
    torch.manual_seed(0)
    model = mlp(6, 5, 3).double()
    twin = mlp(6, 5, 3).double()
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(BATCH, 6).double(), torch.randint(0, 3, (BATCH,))
    before = [item.detach().clone() for item in model.parameters()]
    made(model, x, layer_rates=(1.0, 1.0)).learn(x, y, 0.5)
    made(twin, x, layer_rates=(3.0, 0.0)).learn(x, y, 0.5)
    for factor, old, one, other in zip((3, 3, 0, 0), before, model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.detach() - old, factor * (one.detach() - old))


def test_it_learns_fashion_mnist(root: Any) -> None:
    data = fashion_mnist(root / "examples" / "data" / "fashion-mnist")
    images, labels = data.train_images.flatten(1), data.train_labels
    torch.manual_seed(0)
    model = mlp(784, 64, 64, 10)
    learner = made(model, images[:50], optimizer="adamw", nudge_sign="both", free_steps=20, clamped_steps=5)
    order = torch.randint(len(images), (150, 50))
    losses = [float(learner.learn(images[chosen], labels[chosen], 1e-3)) for chosen in order]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    wrong = learner.predict(data.test_images.flatten(1)).argmax(1) != data.test_labels
    assert float(wrong.float().mean()) < 0.35
