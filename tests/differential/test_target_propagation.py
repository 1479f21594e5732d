"""TP and DTP: a step against a numpy transcription in float64, the Gauss-Newton property, and real learning."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reclra_graph.data import fashion_mnist
from reclra_graph.methods.build import build
from reclra_graph.methods.target_propagation import TargetPropagation
from tests.differential.numpy_targets import Inverses, Layers, target_propagation
from tests.models import ResidualCNN, mlp

BATCH = 5
SIGMA = 0.3
RATE = 0.2


def made(model: nn.Module, x: Tensor, **options: Any) -> TargetPropagation:
    found = build("dtp", model, (x,), **options)
    assert isinstance(found, TargetPropagation)
    return found


def arrays(model: nn.Sequential, phi: list[str]) -> Layers:
    linear = [item for item in model if isinstance(item, nn.Linear)]
    return Layers(
        [item.weight.detach().numpy().copy() for item in linear],
        [item.bias.detach().numpy().copy() for item in linear],
        phi,
    )


@pytest.mark.parametrize("difference", [True, False])
@pytest.mark.parametrize("first", ["penultimate", "output"])
@pytest.mark.parametrize("activation", ["own", "identity"])
def test_a_step_is_that_of_the_numpy_transcription(difference: bool, first: str, activation: str) -> None:
    torch.manual_seed(3)
    model = mlp(6, 5, 4, 7, 3).double()
    x, y = torch.randn(BATCH, 6).double(), torch.randint(0, 3, (BATCH,))
    net = arrays(model, ["tanh", "tanh", "tanh", "identity"])
    learner = build(
        "dtp" if difference else "tp", model, (x,), first_target=first, target_rate=RATE, noise=SIGMA,
        inverse_activation=activation, inverse_optimizer="sgd", inverse_lr=0.7,
    )  # fmt: skip
    state = learner.state()
    layers = (2, 3, 4) if first == "output" else (2, 3)
    inverses = Inverses(
        {layer: state["inverses"][f"{layer}.weight"].numpy() for layer in layers},
        {layer: state["inverses"][f"{layer}.bias"].numpy() for layer in layers},
        dict.fromkeys(layers, "tanh" if activation == "own" else "identity"),
    )
    draws = torch.Generator()
    draws.set_state(state["draws"])
    widths = {2: 5, 3: 4, 4: 7}
    noise = {
        layer: SIGMA * torch.randn(BATCH, widths[layer], generator=draws, dtype=torch.float64).numpy()
        for layer in layers
    }
    each = [
        target_propagation(
            net, inverses, x[i].numpy(), int(y[i]), difference, first, RATE,
            {layer: noise[layer][i] for layer in layers},
        )
        for i in range(BATCH)
    ]  # fmt: skip
    learner.learn(x, y, 0.9)
    after, moved = arrays(model, net.phi), learner.state()["inverses"]
    for layer in range(4):
        want = net.W[layer] - 0.9 * np.mean([item.W[layer] for item in each], axis=0)
        np.testing.assert_allclose(after.W[layer], want, rtol=1e-12, atol=1e-14)
        want = net.b[layer] - 0.9 * np.mean([item.b[layer] for item in each], axis=0)
        np.testing.assert_allclose(after.b[layer], want, rtol=1e-12, atol=1e-14)
    for layer in layers:
        want = inverses.V[layer] - 0.7 * np.mean([item.V[layer] for item in each], axis=0)
        np.testing.assert_allclose(moved[f"{layer}.weight"].numpy(), want, rtol=1e-12, atol=1e-14)
        want = inverses.c[layer] - 0.7 * np.mean([item.c[layer] for item in each], axis=0)
        np.testing.assert_allclose(moved[f"{layer}.bias"].numpy(), want, rtol=1e-12, atol=1e-14)


def test_with_perfect_inverses_targets_are_a_gauss_newton_step() -> None:
    """Linear layers with G = f⁻¹: z_l − y_l = η̂ J⁻¹ e_L, J = ∂z_L/∂z_l, and the inverses have nothing to learn."""
    torch.manual_seed(5)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))).double()
    x, y = torch.randn(BATCH, 4).double(), torch.randint(0, 4, (BATCH,))
    learner = made(
        model, x, first_target="output", target_rate=RATE, inverse_optimizer="sgd", inverse_lr=0.5, noise=SIGMA
    )
    state = learner.state()
    weights = [item.weight.detach().clone() for item in model]  # type: ignore[union-attr]
    for layer in (2, 3):
        inverse = torch.linalg.inv(weights[layer - 1])
        state["inverses"][f"{layer}.weight"] = inverse
        state["inverses"][f"{layer}.bias"] = -inverse @ model[layer - 1].bias.detach()  # type: ignore[operator]
    learner.load(state)
    with torch.no_grad():
        z = [x]
        for layer in model:
            z.append(layer(z[-1]))
        e = torch.softmax(z[3], 1) - nn.functional.one_hot(y, 4)
    learner.learn(x, y, 1.0)
    for layer, beyond in ((1, weights[2] @ weights[1]), (2, weights[2])):
        step = RATE * torch.linalg.solve(beyond, e.T).T  # J⁻¹ e, sample by sample
        moved = weights[layer - 1] - model[layer - 1].weight.detach()  # type: ignore[operator]
        torch.testing.assert_close(moved, step.T @ z[layer - 1] / BATCH, rtol=1e-9, atol=1e-12)
    after = learner.state()["inverses"]
    for key, value in state["inverses"].items():
        torch.testing.assert_close(after[key], value, rtol=1e-9, atol=1e-12)


def test_the_last_link_learns_by_the_loss_alone() -> None:
    torch.manual_seed(0)
    model = mlp(6, 5, 3).double()
    twin = copy.deepcopy(model)
    x, y = torch.randn(BATCH, 6).double(), torch.randint(0, 3, (BATCH,))
    nn.functional.cross_entropy(twin(x), y).backward()
    loss = made(model, x).learn(x, y, 1.0)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(twin(x), y).detach())
    torch.testing.assert_close(twin[2].weight.detach() - twin[2].weight.grad, model[2].weight.detach())


def test_a_block_learns_by_its_own_derivative_and_no_other() -> None:
    """Block 2 of a residual net: with y_l = z_l − η̂ ∂C/∂z_l its update is η̂ times backprop's, which leads through the
    last layer and the block. Block 1 hears through a learned inverse: its update is another."""
    torch.manual_seed(1)
    model = ResidualCNN().double()
    twin = copy.deepcopy(model)
    x, y = torch.randn(BATCH, 1, 8, 8).double(), torch.randint(0, 3, (BATCH,))
    nn.functional.cross_entropy(twin(x), y).backward()
    before = {name: item.detach().clone() for name, item in model.named_parameters()}
    made(model, x, target_rate=RATE).learn(x, y, 1.0)
    others: list[tuple[Tensor, Tensor]] = []
    for name, item in twin.named_parameters():
        moved, grad = before[name] - model.get_parameter(name).detach(), item.grad
        assert grad is not None
        if name.startswith("blocks.1"):
            torch.testing.assert_close(moved, RATE * grad, rtol=1e-9, atol=1e-12)
        elif name.startswith("head"):
            torch.testing.assert_close(moved, grad)
        else:
            others.append((moved.flatten(), grad.flatten()))
    one, other = (torch.cat(side) for side in zip(*others, strict=True))
    assert abs(float(nn.functional.cosine_similarity(one, other, dim=0))) < 0.9
    torch.testing.assert_close(model.norm.running_mean, twin.norm.running_mean)
    assert int(model.norm.num_batches_tracked) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "steps", "falls"), [("dtp", 200, 0.35), ("tp", 200, 0.6)])
def test_it_learns_fashion_mnist(method: str, steps: int, falls: float, root: Any) -> None:
    data = fashion_mnist(root / "examples" / "data" / "fashion-mnist")
    images, labels = data.train_images.flatten(1), data.train_labels
    torch.manual_seed(0)
    model = mlp(784, 64, 64, 10)
    learner = build(method, model, (images[:50],), optimizer="adamw")
    order = torch.randint(len(images), (steps, 50))
    losses = [float(learner.learn(images[chosen], labels[chosen], 1e-3)) for chosen in order]
    assert sum(losses[-20:]) < falls * sum(losses[:20])
