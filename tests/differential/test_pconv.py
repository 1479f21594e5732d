"""A net with pseudo-convolutions: emitted step, reference interpreter and a numpy transcription agree in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from tests.differential.agreement import TOLERANCE, agrees
from tests.differential.numpy_pconv import (
    Array,
    activated,
    convolution_update,
    convolved,
    noise,
    product,
    weight_update,
)
from tests.models import ResidualCNN

LR, BETA, GAMMA, SIGMA = 0.05, 0.3, 0.2, 0.7
SIZE, STRIDE, CROP = (9, 7), (3, 2), (1, 0)
CHAIN = {4: 5, 3: 4, 2: 3, 1: 2}
FLAT = dict.fromkeys((1, 2, 3, 4), 5)


def net(maps: str = "buffers") -> nn.Sequential:
    """Region 2 has no activation of its own: what follows is region 3's noise."""
    torch.manual_seed(3)
    given = {"sigma": SIGMA, "maps": maps, "dtype": torch.float64}
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, dtype=torch.float64), nn.Tanh(),
        rg.PerturbativeConv2d(3, 4, size=SIZE, stride=STRIDE, crop=CROP, masks=2, seed=11, **given),
        rg.PerturbativeConv2d(4, 4, size=(3, 4), seed=12, **given),
        nn.Sigmoid(),
        rg.PerturbativeConv2d(4, 2, size=(3, 4), masks=3, seed=13, **given),
        nn.Flatten(), nn.Linear(24, 3, dtype=torch.float64),
    )  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 1, *SIZE, generator=generator, dtype=torch.float64), torch.tensor([0, 2, 1])


def sigmoid(h: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-h)))


class Oracle:
    """Parameters and synapses in numpy, and one step of the rule on them."""

    def __init__(
        self, parameters: Mapping[str, Tensor], synapses: Mapping[str, Tensor], parents: dict[int, int]
    ) -> None:
        self.P = {key: value.detach().numpy().copy() for key, value in parameters.items()}
        self.E = {i: synapses[f"{j}->{i}"].numpy().copy() for i, j in parents.items()}
        self.parents = parents
        self.maps = {
            2: noise(11, 6, SIZE[0] - 2 * CROP[0], SIZE[1] - 2 * CROP[1], SIGMA),
            3: noise(12, 4, 3, 4, SIGMA),
            4: noise(13, 12, 3, 4, SIGMA),
        }

    def sample(self, x: Array, target: int) -> tuple[dict[str, Array], dict[int, Array]]:
        """ΔW by parameter and ΔE by region (Eqs. 3 to 6)."""
        P = self.P
        phi = {1: np.tanh, 2: lambda h: h, 3: sigmoid, 4: lambda h: h}
        h, z, a = {}, {}, {}
        h[1] = convolved(P["0.weight"][:, 0], P["0.bias"], x[0])
        z[1] = np.tanh(h[1])
        for i, key in ((2, "2"), (3, "3"), (4, "5")):
            a[i] = activated(z[i - 1], self.maps[i], *((STRIDE, CROP) if i == 2 else ()))
            h[i] = product(P[f"{key}.weight"][:, :, 0, 0], P[f"{key}.bias"], a[i])
            z[i] = phi[i](h[i])
        logits = P["7.weight"] @ z[4].reshape(-1) + P["7.bias"]
        e = {5: np.exp(logits) / np.exp(logits).sum()}
        e[5][target] -= 1
        grown = {}
        for i in (4, 3, 2, 1):
            above = e[self.parents[i]].reshape(-1)
            d = self.E[i] @ above
            grown[i] = -GAMMA * np.outer(d, above)
            e[i] = z[i] - phi[i](h[i] - BETA * d.reshape(h[i].shape))
        changes = {
            "0.weight": convolution_update(e[1], x[0])[:, None], "0.bias": e[1].sum((1, 2)),
            "7.weight": np.outer(e[5], z[4].reshape(-1)), "7.bias": e[5],
        }  # fmt: skip
        for i, key in ((2, "2"), (3, "3"), (4, "5")):
            changes[f"{key}.weight"] = weight_update(e[i], a[i])[:, :, None, None]
            changes[f"{key}.bias"] = e[i].sum((1, 2))
        return changes, grown

    def step(self, inputs: Array, targets: Array) -> None:
        """Means over the batch, then plain SGD."""
        each = [self.sample(x, int(target)) for x, target in zip(inputs, targets, strict=True)]
        for key in each[0][0]:
            self.P[key] = self.P[key] - LR * np.mean([changes[key] for changes, _ in each], axis=0)
        for i in self.E:
            self.E[i] = self.E[i] + LR * np.mean([grown[i] for _, grown in each], axis=0)


@pytest.mark.parametrize("maps", ["buffers", "regenerated"])
@pytest.mark.parametrize(("wiring", "parents"), [("flat", FLAT), ("chain", CHAIN)])
def test_the_step_is_the_transcription(maps: str, wiring: str, parents: dict[int, int]) -> None:
    inputs, targets = batch()
    model = net(maps)
    step = rg.compile(model, inputs, wiring=wiring, lr=LR, beta=BETA, gamma=GAMMA, synapse="dense")
    assert {(edge.source, edge.target) for edge in step.plan.edges} == {(j, i) for i, j in parents.items()}
    oracle = Oracle(dict(model.named_parameters()), step.synapses, parents)
    for _ in range(2):
        step(inputs, targets)
        oracle.step(inputs.numpy(), targets.numpy())
    for key, value in model.named_parameters():
        assert np.max(np.abs(value.detach().numpy() - oracle.P[key])) < TOLERANCE, key
    for i, j in parents.items():
        assert np.max(np.abs(step.synapses[f"{j}->{i}"].numpy() - oracle.E[i])) < TOLERANCE, i


@pytest.mark.parametrize(
    "options", [{}, {"rule": "fixed", "gain": True}, {"update": "local_vjp"}, {"norm": 1}], ids=str
)
@pytest.mark.parametrize("maps", ["buffers", "regenerated"])
def test_the_step_is_the_reference(maps: str, options: dict[str, object]) -> None:
    inputs, targets = batch()
    agrees(net(maps), inputs, targets, wiring="flat", **options)


def test_the_recorded_path_is_the_reference() -> None:
    inputs, targets = batch()
    step = agrees(net(), inputs, targets, frontend="record")
    assert step.plan.regions.regions[2].activation == ()


def replaced_cnn(masks: int = 2) -> nn.Module:
    model = rg.replace_conv(ResidualCNN(), torch.zeros(2, 1, 8, 8), masks=masks, sigma=0.5, seed=4)
    return model.double()


@pytest.mark.parametrize("wiring", ["flat", "blocks", "chain"])
def test_a_residual_net_is_the_reference(wiring: str) -> None:
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    agrees(replaced_cnn(), x, torch.tensor([0, 2, 1, 1]), wiring=wiring)


@pytest.mark.parametrize("wiring", ["flat", "blocks"])
def test_lanes_and_micro_batches_change_no_number(wiring: str) -> None:
    x, y = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    model = replaced_cnn()
    trained = []
    for more in ({}, {"gpus": 3}, {"without": ("straight", "factors", "shared")}, {"recompute": True}):
        mine = copy.deepcopy(model)
        step = rg.compile(mine, x, wiring=wiring, **more)
        losses = [float(step(x, y)) for _ in range(2)]
        trained.append((losses, mine.state_dict()))
    (first, state), *others = trained
    for index, (losses, other) in enumerate(others):
        exact = index != 1  # other products in another order
        assert losses == first if exact else losses == pytest.approx(first, abs=TOLERANCE)
        for key, value in other.items():
            gap = float((value.double() - state[key].double()).abs().max())
            assert gap == 0 if exact else gap < TOLERANCE, key


def test_an_output_region_learns_as_backpropagation_does() -> None:
    """In the last region the error is the loss's own, so that the rule is the weights' gradient (autograd)."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), rg.PerturbativeConv2d(3, 4, size=(5, 6), stride=2, masks=3, sigma=0.6, seed=2)
    ).double()
    x, y = torch.randn(3, 1, 5, 6, dtype=torch.float64), torch.randn(3, 4, 3, 3, dtype=torch.float64)
    step = rg.compile(model, x, loss="mse")
    rg.assign_grads(step, x, y)
    last = model[1]
    found = {key: parameter.grad for key, parameter in last.named_parameters()}
    model.zero_grad()
    (0.5 * (model(x) - y).square().sum() / 3).backward()
    for key, parameter in last.named_parameters():
        assert parameter.grad is not None
        mine = found[key]
        assert mine is not None
        assert float((mine - parameter.grad).abs().max()) < TOLERANCE, key


def test_a_saved_step_loads_with_the_same_replacement(tmp_path: Path) -> None:
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([0, 2, 1, 1])
    bare = ResidualCNN()
    one, other = (rg.replace_conv(bare, x, masks=2, seed=9, maps=maps) for maps in ("buffers", "regenerated"))
    other.load_state_dict({**other.state_dict(), **{k: v for k, v in one.state_dict().items() if "maps" not in k}})
    step = rg.compile(one, x, wiring="flat")
    step.save(tmp_path / "step")
    again = rg.load(tmp_path / "step", copy.deepcopy(one))
    regenerated = rg.compile(other, x, wiring="flat")
    for _ in range(2):
        assert float(step(x, y)) == float(again(x, y)) == float(regenerated(x, y))
