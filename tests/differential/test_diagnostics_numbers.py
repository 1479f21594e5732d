"""What diagnostics say of a step, against NumPy in float64, PyTorch's own backward(), and matrices built by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.diagnostics import Look
from reclra_graph.rules import implicit
from tests.differential.numpy_reclra import Array, Edge, Network, Rule, deltas, trace
from tests.differential.residual_mlps import (
    ResidualMLP,
    array,
    batch,
    build,
    draw_synapses,
    names_of,
    random_edges,
    to_numpy,
)

LAST = 7


def degrees(a: Any, b: Any) -> float:
    a, b = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def keys_of(net: ResidualMLP, mine: Mapping[int, Array], biases: Mapping[int, Array], P: Mapping[int, Array]) -> Any:
    """The oracle's arrays by the parameters' keys."""
    names = {id(item): name for name, item in net.named_parameters()}
    found = {names[id(net.linears[k - 1].weight)]: value for k, value in mine.items()}
    found |= {names[id(net.linears[k - 1].bias)]: value for k, value in biases.items()}
    return found | {names[id(net.projections[k].weight)]: value for k, value in P.items()}


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("gain", [False, True])
def test_every_number_of_a_residual_mlp_is_the_oracles(norm: int, gain: bool) -> None:
    net = build(3, True, "tanh", seed=norm)
    x, target = batch(net, "cross-entropy", size=6)
    edges, kappa = random_edges(LAST, 3 + norm), {2: 0.5, 4: 3.0}
    step = rg.compile(net, (x,), wiring=names_of(edges), norm=norm, gain=gain, kappa=kappa, beta=0.3, gamma=0.7)
    E = draw_synapses(step.synapses)
    mine, rule = to_numpy(net), Rule(beta=0.3, gamma=0.7, kappa=kappa, norm=norm, gain=gain)
    look = rg.Diagnostics(step)(x, target)

    seen = [trace(mine, E, rule, array(sample), int(t)) for sample, t in zip(x, target, strict=True)]
    change = deltas(mine, E, rule, array(x), target.numpy())
    assert look.loss == pytest.approx(change.loss, rel=1e-12)
    expected = {
        i: kappa.get(i, 1.0) * np.mean([np.sum(np.abs(item.z[i] - item.y[i]) ** norm) for item in seen])
        for i in range(1, LAST)
    }
    for i, value in expected.items():
        assert look.region[i].discrepancy == pytest.approx(value, rel=1e-9)
        d = [np.sum([item.d[edge] for edge in edges if edge[1] == i], axis=0) for item in seen]
        assert look.region[i].displacement == pytest.approx(np.mean([np.linalg.norm(item) for item in d]), rel=1e-9)
    assert look.discrepancy == pytest.approx(sum(expected.values()), rel=1e-9)
    assert look.region[LAST].discrepancy is None
    for i in range(1, LAST + 1):
        assert look.region[i].error == pytest.approx(np.mean([np.linalg.norm(item.e[i]) for item in seen]), rel=1e-9)
    for edge in edges:
        held = look.edge[f"{edge[0]}->{edge[1]}"]
        assert held.synapse == pytest.approx(np.linalg.norm(E[edge]), rel=1e-9)
        assert held.change == pytest.approx(np.linalg.norm(change.E[edge]), rel=1e-9)

    updates = keys_of(net, change.W, change.b, change.P)
    F.cross_entropy(net(x), target).backward()
    gradients = {name: array(item.grad) for name, item in net.named_parameters()}
    for region in look.regions:
        mine_all = np.concatenate([updates[key].ravel() for key in region.parameters])
        theirs = np.concatenate([gradients[key].ravel() for key in region.parameters])
        assert region.cosine == pytest.approx(math.cos(math.radians(degrees(mine_all, theirs))), abs=1e-9)
        assert region.update == pytest.approx(np.linalg.norm(mine_all), rel=1e-9)
    for parameter in look.parameters:
        assert parameter.gradient == pytest.approx(np.linalg.norm(gradients[parameter.key]), rel=1e-9)
    whole = [np.concatenate([table[key].ravel() for key in sorted(updates)]) for table in (updates, gradients)]
    assert look.cosine == pytest.approx(math.cos(math.radians(degrees(*whole))), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_angles_of_a_plain_mlp_are_those_of_its_matrices(seed: int) -> None:
    """E against W_{i+1}ᵀ … W_jᵀ, and what it sends against the same with φ′ between."""
    net = build(0, True, "tanh", seed=seed)
    x, target = batch(net, "cross-entropy", size=5)
    edges = random_edges(LAST, seed)
    step = rg.compile(net, (x,), wiring=names_of(edges), beta=0.2)
    E, mine = draw_synapses(step.synapses), to_numpy(net)
    look = rg.Diagnostics(step, what=("angle", "sent"))(x, target)
    seen = [trace(mine, E, Rule(beta=0.2), array(sample), int(t)) for sample, t in zip(x, target, strict=True)]
    for edge in edges:
        j, i = edge
        held = look.edge[f"{j}->{i}"]
        if j < i:  # an edge that runs with the forward pass
            assert (held.angle, held.sent) == (None, None)
            assert dict(held.why)["angle"] == f"region {i} does not lead to region {j}"
            assert "does not depend" in dict(held.why)["sent"]
            continue
        product = np.linalg.multi_dot([mine.W[k] for k in range(j, i, -1)]) if j > i + 1 else mine.W[j]
        assert held.angle == pytest.approx(degrees(E[edge], product.T), abs=1e-6)
        sent = [item.d[edge] for item in seen]
        carried = [derivative(mine, item.z, edge).T @ item.e[j] for item in seen]
        assert held.sent == pytest.approx(degrees(sent, carried), abs=1e-6)
        assert len(held.weights) == j - i


def derivative(net: Network, z: Mapping[int, Array], edge: Edge) -> Array:
    """∂h_j/∂z_i of a plain net of tanh units."""
    j, i = edge
    found = net.W[i + 1]
    for layer in range(i + 2, j + 1):
        found = net.W[layer] @ np.diag(1 - z[layer - 1] ** 2) @ found
    return found


def test_transposed_weights_with_gain_are_backprop() -> None:
    net = build(0, True, "tanh")
    x, target = batch(net, "cross-entropy")
    step = rg.compile(net, (x,), wiring="chain", rule="fixed", beta=1e-6, gain=True)
    for layer in range(1, LAST):
        step.synapses[f"{layer + 1}->{layer}"].copy_(net.linears[layer].weight.detach().T)
    look = rg.Diagnostics(step)(x, target)
    assert look.cosine == pytest.approx(1.0, abs=1e-9)
    assert [region.cosine for region in look.regions] == pytest.approx([1.0] * LAST, abs=1e-9)
    assert [edge.angle for edge in look.edges] == pytest.approx([0.0] * (LAST - 1), abs=1e-4)
    assert [edge.sent for edge in look.edges] == pytest.approx([0.0] * (LAST - 1), abs=1e-4)


def test_opposite_synapses_point_the_other_way() -> None:
    net = build(0, True, "tanh")
    x, target = batch(net, "cross-entropy")
    step = rg.compile(net, (x,), wiring="chain", rule="fixed", beta=1e-6, gain=True)
    step.synapses["7->6"].copy_(-net.linears[6].weight.detach().T)
    look = rg.Diagnostics(step)(x, target)
    assert look.edge["7->6"].angle == pytest.approx(180, abs=1e-4)
    assert look.region[6].cosine == pytest.approx(-1, abs=1e-9)


def test_random_synapses_stand_at_right_angles() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 300), nn.Tanh(), nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 10))
    step = rg.compile(net, torch.zeros(4, 9), wiring="chain")
    look = rg.Diagnostics(step, what="angle")(torch.randn(4, 9), torch.arange(4))
    assert [edge.angle for edge in look.edges] == pytest.approx([90, 90], abs=3)


def test_equation_6_alone_turns_no_synapse_towards_its_weights() -> None:
    """With the weights held, E(t) = E(0) M(t), which knows nothing of W; what moves E towards Wᵀ is seen to do so."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 6)).double()
    x, target = torch.randn(16, 8).double(), torch.arange(16) % 6
    step = rg.compile(net, x, wiring="chain", lr=1.0, gamma=1.0)
    held = {key: value.detach().clone() for key, value in net.named_parameters()}
    diagnostics = rg.Diagnostics(step, what="angle")

    def angle() -> float:
        found = diagnostics(x, target).edge["2->1"].angle
        assert found is not None
        return found

    first, size = angle(), float(step.synapses["2->1"].norm())
    for _ in range(30):
        step(x, target)
        with torch.no_grad():
            for key, value in net.named_parameters():
                value.copy_(held[key])
    assert float(step.synapses["2->1"].norm()) < 0.8 * size  # it has learned
    assert angle() > first - 3
    turned = [angle()]
    for _ in range(5):
        step.synapses["2->1"].mul_(0.7).add_(net[2].weight.detach().T, alpha=0.3)
        turned.append(angle())
    assert turned == sorted(turned, reverse=True)
    assert turned[-1] < 30


# -- forms of a synapse ------------------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    """Convolutions, one of them in groups, with a norm between; a whole map, or its mean, is classified."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.norm, self.mean = nn.BatchNorm2d(4), mean
        self.head = nn.Linear(6 if mean else 6 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.b(torch.relu(self.norm(self.a(x)))))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(z, 1).flatten(1) if self.mean else z.flatten(1))
        return logits


def convolved(mean: bool, **options: Any) -> tuple[Convolutions, rg.CompiledStep, Tensor, Tensor]:
    torch.manual_seed(1)
    net = Convolutions(mean).double()
    x, target = torch.randn(3, 2, 6, 6).double(), torch.arange(3)
    return net, rg.compile(net, x, beta=0.2, **options), x, target


def looked(step: rg.CompiledStep, x: Any, target: Any) -> Look:
    return rg.Diagnostics(step, what=("angle", "sent"))(x, target)


def jacobian(module: Any, shape: tuple[int, ...]) -> Tensor:
    """[outputs, inputs] of a linear module, per sample."""
    found: Any = torch.autograd.functional.jacobian(module, torch.zeros(1, *shape, dtype=torch.float64))
    return found.reshape(-1, math.prod(shape))  # type: ignore[no-any-return]


def without_bias(module: nn.Conv2d) -> Any:
    return lambda x: F.conv2d(x, module.weight, None, module.stride, module.padding, groups=module.groups)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_dense_synapses_of_convolutions(mean: bool, memory_format: str) -> None:
    net, step, x, target = convolved(mean, wiring="flat", synapse="dense", memory_format=memory_format)
    middle = torch.eye(6 * 9).double().reshape(-1, 6, 3, 3)
    last = net.head(middle.mean((2, 3)) if mean else middle.flatten(1)) - net.head.bias  # [units of 2, classes]
    product = (last.T @ jacobian(without_bias(net.b), (4, 6, 6))).T.detach()
    for edge, wanted, shape in (("3->2", last.detach(), (6, 3, 3)), ("3->1", product, (4, 6, 6))):
        before = looked(step, x, target).edge[edge]
        E = step.synapses[edge].reshape(*shape[1:], shape[0], 3).movedim(2, 0).flatten(0, 2) if (
            memory_format == "channels_last") else step.synapses[edge]  # fmt: skip
        assert before.angle == pytest.approx(degrees(E, wanted), abs=1e-6)
        rows = wanted.reshape(*shape, 3)
        rows = rows.movedim(0, 2).flatten(0, 2) if memory_format == "channels_last" else wanted
        step.synapses[edge].copy_(rows)
        after = looked(step, x, target).edge[edge]
        assert after.angle == pytest.approx(0, abs=1e-4)
        assert after.weights == (("head.weight",) if edge == "3->2" else ("head.weight", "b.weight"))
        if edge == "3->2":
            assert after.sent == pytest.approx(0, abs=1e-4)


def test_a_kernel_between_neighbours() -> None:
    net, step, x, target = convolved(False, wiring=("3->2", "2->1"), synapse="conv")
    assert looked(step, x, target).edge["2->1"].angle == pytest.approx(
        degrees(step.synapses["2->1"], net.b.weight.detach()), abs=1e-6
    )
    step.synapses["2->1"].copy_(net.b.weight.detach())
    step.synapses["3->2"].copy_(net.head.weight.detach().T)
    held = looked(step, x, target).edge["2->1"]
    assert held.angle == pytest.approx(0, abs=1e-4)
    assert held.sent == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("mean", [False, True])
def test_synapses_that_positions_share(mean: bool) -> None:
    net, step, x, target = convolved(mean, wiring="flat", synapse="channel")
    weight = net.head.weight.detach()
    last = weight if mean else weight.reshape(3, 6, 9).sum(2)
    kernel = torch.block_diag(*net.b.weight.detach().sum((2, 3)).chunk(2))
    for edge, product in (("3->2", last), ("3->1", last @ kernel)):
        wanted = product.T
        found = looked(step, x, target).edge[edge].angle
        assert found == pytest.approx(degrees(step.synapses[edge], wanted), abs=1e-6)
        step.synapses[edge].copy_(wanted)
        assert looked(step, x, target).edge[edge].angle == pytest.approx(0, abs=1e-4)


def test_synapses_between_tokens() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, target = torch.randn(2, 7, 4).double(), torch.randint(3, (2, 7))
    step = rg.compile(net, x, wiring=("3->2", "3->1"))
    assert {edge.form for edge in step.plan.edges} == {"token"}
    last, before = net[4].weight.detach(), net[2].weight.detach()
    step.synapses["3->2"].copy_(last.T)
    look = looked(step, x, target)
    assert look.edge["3->2"].angle == pytest.approx(0, abs=1e-4)
    assert look.edge["3->2"].sent == pytest.approx(0, abs=1e-4)
    assert look.edge["3->1"].angle == pytest.approx(degrees(step.synapses["3->1"], (last @ before).T), abs=1e-6)


def test_what_stands_for_a_dense_synapse() -> None:
    """A low-rank synapse as A B, an implicit one as E(0) M."""
    net, step, x, target = convolved(False, wiring="flat", synapse="lowrank(2)")
    middle = net.head.weight.detach().T
    product = (net.head.weight.detach() @ jacobian(without_bias(net.b), (4, 6, 6))).T
    for edge, wanted in (("3->2", middle), ("3->1", product)):
        E = step.synapses[f"{edge}.A"] @ step.synapses[f"{edge}.B"]
        held = rg.Diagnostics(step)(x, target).edge[edge]
        assert held.angle == pytest.approx(degrees(E, wanted.detach()), abs=1e-6)
        assert held.synapse == pytest.approx(float(E.norm()), rel=1e-9)

    net, step, x, target = convolved(False, wiring="flat", synapse="implicit", lr=0.5, gamma=1.0)
    for _ in range(3):
        step(x, target)
    M = step.synapses["3->*"]
    assert not torch.equal(M, torch.eye(3).double())
    middle = net.head.weight.detach().T
    E = implicit.matrix(step.synapses["3->2"], 54, 3) @ M
    assert looked(step, x, target).edge["3->2"].angle == pytest.approx(degrees(E, middle), abs=1e-6)


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("cross-entropy", {}),
        ("cross-entropy", {"label_smoothing": 0.2, "class_weights": (1.0, 2.0, 0.5), "ignore_index": 1}),
        ("causal-lm", {"ignore_index": 2}),
        ("mse", {}),
        ("bce-with-logits", {}),
    ],
)
def test_gradients_are_those_of_the_loss(loss: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    sequence = loss == "causal-lm"
    x = torch.randn(*((6, 5, 4) if sequence else (6, 4))).double()
    target = torch.rand(6, 3).double() if loss in ("mse", "bce-with-logits") else torch.randint(3, x.shape[:-1])
    step = rg.compile(net, x, loss=loss, wiring="chain", rule="fixed", gain=True, beta=1e-6, **options)
    synapse = step.synapses["2->1"]
    synapse.copy_(net[2].weight.detach().T)
    z = net(x)
    if loss == "mse":
        value = (z - target).square().sum() / 12
    elif loss == "bce-with-logits":
        value = F.binary_cross_entropy_with_logits(z, target, reduction="sum") / 6
    else:
        weights = torch.tensor(options.get("class_weights", (1.0, 1.0, 1.0))).double()
        z, t = (z[:, :-1].flatten(0, 1), target[:, 1:].flatten()) if sequence else (z, target)
        value = F.cross_entropy(
            z, t, weights, ignore_index=options.get("ignore_index", -100),
            label_smoothing=options.get("label_smoothing", 0.0),
        )  # fmt: skip
    value.backward()
    look = rg.Diagnostics(step)(x, target)
    assert look.loss == pytest.approx(float(value.detach()), rel=1e-9)
    assert look.cosine == pytest.approx(1, abs=1e-9)
    for parameter in look.parameters:
        wanted = net.get_parameter(parameter.key).grad
        assert wanted is not None
        assert parameter.gradient == pytest.approx(float(wanted.norm()), rel=1e-9)
        assert parameter.update == pytest.approx(float(wanted.norm()), rel=1e-5)
