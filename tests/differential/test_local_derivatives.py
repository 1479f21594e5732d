"""local_vjp and channel synapses: the emitted step against formulas and autograd of the test's own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.reference import reference_step


class _Tokens(nn.Module):
    """A parameter that is used through values derived from it: a table of positions, added to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.positions = nn.Parameter(torch.randn(1, 4, 6))
        self.head = nn.Linear(24, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(words) + self.positions.exp()).flatten(1))


def _slopes() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 8), nn.PReLU(), nn.LayerNorm(8), nn.Linear(8, 8), nn.GroupNorm(2, 8), nn.GELU(), nn.Linear(8, 5)
    )


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def _normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(7, 8)), nn.Tanh(), nn.Linear(8, 5))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


CASES = {
    "recurrent": (_Recurrent, (4, 3), {}),
    "slopes": (_slopes, (7,), {}),
    "convolutions": (_convolutions, (2, 8, 8), {"update": "local_vjp"}),
    "weight norm": (_normed, (7,), {}),
    "positions": (_Tokens, (4,), {}),
}


def _batch(shape: tuple[int, ...], words: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = (
        torch.randint(0, 11, (6, *shape), generator=generator)
        if words
        else torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    )
    return x, torch.randint(0, 5, (6,), generator=generator)


@pytest.mark.parametrize("name", CASES)
def test_the_emitted_step_equals_the_reference_interpreter(name: str) -> None:
    """Its own derivative, taken by torch.func.vjp inside each region, against the emitted file's plain operators."""
    build, shape, options = CASES[name]
    torch.manual_seed(0)
    model = build().double().train()
    x, target = _batch(shape, name == "positions")
    step = rg.compile(model, x, gpus=2, lr=0.05, beta=0.3, **options)
    assert "local_vjp" in dict(step.plan.update).values()
    twin = copy.deepcopy(model)
    held = {**{key: value.detach() for key, value in twin.named_parameters()}, **dict(twin.named_buffers())}
    synapses = {key: value.clone() for key, value in step.synapses.items()}
    for _ in range(3):
        loss = step(x, target)
        assert abs(float(loss - reference_step(step.plan, held, synapses, (x,), target))) < 1e-12
    for key, value in model.state_dict().items():
        assert float((value - held.get(key, value)).abs().max()) < 1e-12, key
    for key, value in step.synapses.items():
        assert float((value - synapses[key]).abs().max()) < 1e-12, key


def test_one_region_alone_learns_as_backprop_does() -> None:
    """A model of a single region has no border that a derivative could not cross: local_vjp is backprop there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(7, 5)), nn.LayerNorm(5)).double()
    x, target = _batch((7,), words=False)
    step = rg.compile(model, x, update="local_vjp")
    assert len(step.plan.regions.regions) == 2
    F.cross_entropy(model(x), target).backward()
    wanted = {key: value.grad for key, value in model.named_parameters()}
    rg.assign_grads(step, x, target)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert wanted[key] is not None
        assert float((parameter.grad - wanted[key]).abs().max()) < 1e-12, key


def test_strict_refuses_what_has_no_closed_form() -> None:
    with pytest.raises(rg.ModelError) as caught:
        rg.compile(_slopes(), torch.randn(6, 7), strict=True)
    assert caught.value.codes == ("RG304",)
    assert "1.weight" in str(caught.value)


def test_an_operator_without_any_derivative_is_an_error_of_the_model() -> None:
    class Gamma(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shape = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.gammainc(self.shape, x.abs())

    with pytest.raises(rg.ModelError) as caught:
        rg.compile(Gamma(), torch.randn(4, 3))
    assert caught.value.codes == ("RG303",)
    assert "special_gammainc" in str(caught.value) or "igamma" in str(caught.value)


@pytest.mark.parametrize(("source", "grid"), [("output", 1), ("block", 4)])
def test_channel_synapses_share_their_weights_over_positions(source: str, grid: int) -> None:
    """d = E e at every position; Eq. 6 is the mean over the batch and over the positions where E is applied."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5)).double()
    x, target = _batch((2, 8, 8), words=False)
    edges = ["3->2", "3->1"] if source == "output" else ["3->2", "2->1"]
    step = rg.compile(model, x, wiring=edges, synapse_entries=1, gamma=0.5, lr=0.2)
    (edge,) = [item for item in step.plan.edges if item.target == 1]
    assert edge.form == "channel"
    before = {key: value.clone() for key, value in step.synapses.items()}
    h1 = layers[0](x)
    h2 = layers[2](torch.tanh(h1))
    e3 = torch.softmax(model(x), 1) - F.one_hot(target, 5)
    d2 = torch.einsum("ij,bj->bi", before["3->2"], e3)[:, :, None, None].expand_as(h2)
    e2 = torch.tanh(h2) - torch.tanh(h2 - 0.1 * d2)
    if source == "output":
        sent = torch.einsum("ij,bj->bi", before["3->1"], e3)
        d1 = sent[:, :, None, None].expand_as(h1)
        moved = torch.einsum("bi,bj->ij", sent, e3) / 6
    else:
        sent = torch.einsum("ij,bjhw->bihw", before["2->1"], e2)
        d1 = sent.repeat_interleave(2, 2).repeat_interleave(2, 3)
        moved = torch.einsum("bihw,bjhw->ij", sent, e2) / (6 * grid * grid)
    e1 = torch.tanh(h1) - torch.tanh(h1 - 0.1 * d1)
    (wanted,) = torch.autograd.grad(h1, layers[0].weight, e1.detach() / 6)
    rg.assign_grads(step, x, target)
    assert layers[0].weight.grad is not None
    assert float((layers[0].weight.grad - wanted).detach().abs().max()) < 1e-12
    step(x, target)
    assert float((step.synapses[edge.name] - (before[edge.name] - 0.2 * 0.5 * moved)).detach().abs().max()) < 1e-12
