"""Every form of error synapse: the emitted step, the reference and numpy agree, and what stands for a dense synapse
(lowrank, implicit) does exactly what the dense one does.

The numpy oracle knows dense synapses alone: it is given A B, or the implicit entries, and trains them by Eq. 6 itself.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Edge
from reclra_graph.reference import reference_step
from reclra_graph.rules import synapse
from reclra_graph.rules.forms import what_learns
from reclra_graph.runtime.compiled import CompiledStep
from tests.differential.agreement import TOLERANCE, assert_close, held_by
from tests.differential.numpy_forms import Array, implicit, transposed_convolution
from tests.differential.numpy_reclra import Rule, train_step
from tests.differential.residual_mlps import ResidualMLP, array, batch, names_of, random_edges, to_numpy
from tests.differential.residual_mlps import build as residual
from tests.differential.residual_mlps import edge_of as pair_of
from tests.models import build, regions_of

WIRINGS = {"chain": "chain", "blocks": "blocks", "random": names_of(random_edges(7, seed=5))}


def whole(step: CompiledStep, edge: Edge, synapses: dict[str, Tensor]) -> Array:
    """The dense matrix that an edge's synapse is at this moment."""
    if edge.form.startswith("lowrank"):
        return array(synapses[f"{edge.synapse}.A"] @ synapses[f"{edge.synapse}.B"])
    if edge.form == "implicit":
        start = implicit(step.plan.seed, edge.synapse, edge.shape[0], edge.shape[1])
        matrix = step.plan.matrix_of.get(edge.name)
        return start @ array(synapses[matrix.name]) if matrix else start
    return array(synapses[edge.synapse])


@cache
def mlp_regions() -> RegionGraph:
    net = residual(2, True, "tanh")
    return regions_of(net, batch(net, "cross-entropy")[0])


# -- fully connected nets, three ways --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "wiring", "sign"),
    [
        ("lowrank(1)", "chain", "descend"),
        ("lowrank(2)", "random", "printed"),
        ("implicit", "chain", "printed"),
        ("implicit", "random", "descend"),
        ("implicit", "blocks", "printed"),
    ],
)
def test_an_mlp_three_ways(form: str, wiring: str, sign: str) -> None:
    """Ten steps of the emitted file, the reference and numpy with dense synapses, from the same numbers."""
    double = residual(2, True, "tanh")
    x, target = batch(double, "cross-entropy")
    rule = Rule(lr=0.05, beta=0.2, gamma=0.4, sign=sign)
    step = build(
        double, mlp_regions(), wiring=WIRINGS[wiring], synapse=form, beta=0.2, gamma=0.4, lr=0.05, sign=sign, seed=11,
        gpus=1 if sign == "descend" else 3,
    )  # fmt: skip
    net = cast(ResidualMLP, step.model)
    assert form in {edge.form for edge in step.plan.edges}
    E = {pair_of(edge.name): whole(step, edge, step.synapses) for edge in step.plan.edges}
    start = {key: value.copy() for key, value in E.items()}
    mine, held = to_numpy(net), double.state_dict()
    synapses = {name: value.clone() for name, value in step.synapses.items()}
    for _ in range(10):
        ours = train_step(mine, E, rule, array(x), array(target))
        losses = (step(x, target), reference_step(step.plan, held, synapses, (x,), target))
        assert max(abs(float(loss) - ours) for loss in losses) <= TOLERANCE
    for net_now, E_now in ((net, step.synapses), (double, synapses)):
        for number, layer in enumerate(net_now.linears, start=1):
            assert np.abs(array(layer.weight) - mine.W[number]).max() <= TOLERANCE
        for edge in step.plan.edges:
            assert np.abs(whole(step, edge, E_now) - E[pair_of(edge.name)]).max() <= TOLERANCE, edge.name
    moved = [np.abs(E[key] - value).max() for key, value in start.items()]
    assert min(moved) > 0  # a chain's errors shrink with each hop
    assert max(moved) > 1e-3


# -- convolutional nets and sequences ----------------------------------------------------------------------------------


class Convolutional(nn.Module):
    """Strides, groups, dilation and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 6, 3, stride=2, groups=2)
        self.c = nn.Conv2d(6, 4, (2, 3), padding=(1, 2), dilation=(1, 2), bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.b(torch.tanh(self.a(x))))
        z = torch.relu(self.norm(self.c(z)))
        logits: Tensor = self.head(z.flatten(1))
        return logits


class Line(nn.Module):
    """Convolutions of one dimension, pooled in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 3, 3), nn.Conv1d(3, 4, 4, stride=3, padding=2)
        self.c, self.head = nn.Conv1d(4, 4, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.b(torch.tanh(self.a(x))))
        z = torch.tanh(self.c(nn.functional.avg_pool1d(z, 2)))
        logits: Tensor = self.head(z.flatten(1))
        return logits


class Sequence(nn.Module):
    """Linear layers over positions, with a normalisation, classified by the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = nn.Linear(3, 5), nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(torch.tanh(self.b(torch.tanh(self.a(x)))))
        logits: Tensor = self.head(z.mean(1))
        return logits


class Repeated(nn.Module):
    """One layer, run three times, between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for _ in range(3):
            x = torch.tanh(self.again(x))
        logits: Tensor = self.head(x)
        return logits


NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "maps": (Convolutional, (2, 11, 9)),
    "line": (Line, (2, 12)),
    "sequence": (Sequence, (4, 3)),
    "repeated": (Repeated, (4,)),
}


def drawn(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    kind, shape = NETS[name]
    return kind().double(), torch.randn(5, *shape, dtype=torch.float64), torch.randint(3, (5,))


@cache
def regions(name: str, dtype: torch.dtype) -> RegionGraph:
    model, x, _ = drawn(name)
    return regions_of(model.to(dtype), x.to(dtype))


def compiled(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[CompiledStep, Tensor, Tensor]:
    """A step over a fresh copy of a net, an input and a target."""
    model, x, target = drawn(name)
    settings = {"gamma": 0.3, "beta": 0.3, "lr": 0.05, **options}
    return build(model.to(dtype), regions(name, dtype), **settings), x.to(dtype), target


@pytest.mark.parametrize(
    ("name", "form", "options", "forms"),
    [
        ("maps", "conv", {"wiring": "chain", "sign": "printed", "gpus": 2, "update": "local_vjp"}, {"conv", "dense"}),
        ("line", "conv", {"wiring": "chain"}, {"conv", "dense"}),
        ("sequence", "conv", {"wiring": "flat"}, {"dense", "token"}),
        ("maps", "lowrank(2)", {"wiring": "flat", "gpus": 3}, {"lowrank(2)"}),
        ("maps", "implicit", {"wiring": "blocks", "gpus": 2}, {"implicit"}),
        ("maps", "implicit", {"wiring": "flat", "rule": "fixed"}, {"implicit"}),
        ("sequence", "implicit", {"wiring": "chain", "gpus": 2}, {"implicit"}),
        ("repeated", "implicit", {"wiring": "chain", "gain": True}, {"implicit"}),
        ("maps", "channel", {"wiring": "flat"}, {"channel"}),
    ],
)
def test_the_reference_agrees(name: str, form: str, options: dict[str, Any], forms: set[str]) -> None:
    step, x, target = compiled(name, synapse=form, **options)
    held, synapses = held_by(step), {key: value.clone() for key, value in step.synapses.items()}
    start = {key: value.clone() for key, value in synapses.items()}
    for _ in range(3):
        wanted = reference_step(step.plan, held, synapses, (x,), target)
        assert abs(float(step(x, target) - wanted)) <= TOLERANCE
    assert_close(held_by(step), held)
    assert_close(step.synapses, synapses)
    learning = {what_learns(step.plan, edge) for edge in step.plan.edges if edge.rule == "eq6"}
    assert {key for key, value in synapses.items() if not torch.equal(value, start[key])} == learning
    assert {edge.form for edge in step.plan.edges} <= forms
    assert step.plan.synapse_bytes == sum(item.numel() * item.element_size() for item in step.synapses.values())
    assert list(step.synapses) == [name for name in step.module.SYNAPSES if name not in step.store.matrices]


@pytest.mark.parametrize(
    ("form", "name", "wiring", "sign"),
    [
        ("implicit", "maps", "flat", "printed"),
        ("implicit", "maps", "chain", "descend"),
        ("implicit", "sequence", "chain", "printed"),
        ("implicit", "repeated", "flat", "descend"),
        ("lowrank(1)", "maps", "chain", "printed"),
        ("lowrank(1)", "repeated", "flat", "printed"),
    ],
)
def test_as_dense_synapses_that_start_with_the_same_numbers(form: str, name: str, wiring: str, sign: str) -> None:
    """Parameters after twenty steps, and the dense synapses that the others amount to then."""
    step, x, target = compiled(name, synapse=form, wiring=wiring, sign=sign)
    other, _, _ = compiled(name, synapse="dense", wiring=wiring, sign=sign)
    assert {edge.form for edge in other.plan.edges} == {"dense"}
    forms = {edge.name: edge.form for edge in step.plan.edges}
    assert form in forms.values()
    for edge in step.plan.edges:
        other.synapses[edge.synapse].copy_(torch.from_numpy(whole(step, edge, step.synapses)))
    before = {key: value.clone() for key, value in other.synapses.items()}
    for _ in range(20):
        assert abs(float(step(x, target) - other(x, target))) <= TOLERANCE
    for (_, mine), (_, theirs) in zip(step.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert float((mine - theirs).detach().abs().max()) <= TOLERANCE
    for edge in step.plan.edges:
        gap = whole(step, edge, step.synapses) - other.synapses[edge.synapse].numpy()
        assert np.abs(gap).max() <= TOLERANCE, edge.name
        assert not torch.equal(other.synapses[edge.synapse], before[edge.synapse])


def test_a_layer_that_runs_several_times_has_a_matrix_of_its_own() -> None:
    step, _, _ = compiled("repeated", wiring="flat", synapse="implicit")
    assert list(step.synapses) == ["5->*3", "5->2", "5->*", "5->1"]
    assert [step.plan.matrix_of[edge.name].runs for edge in step.plan.edges] == [1, 3, 3, 3]


@pytest.mark.parametrize("form", ["implicit", "lowrank(2)"])
def test_momentum_and_decay_are_exact_and_adam_is_not(form: str) -> None:
    """SGD's moves are sums of what E(0), or A, is multiplied by; Adam's are not."""
    for optimizer, exact in (("sgd", True), ("adam", False)):
        steps = []
        for kind in (form, "dense"):
            step, x, target = compiled("maps", wiring="flat", synapse=kind)
            if steps:
                for edge in steps[0].plan.edges:
                    step.synapses[edge.synapse].copy_(torch.from_numpy(whole(steps[0], edge, steps[0].synapses)))
            steps.append(step)
        makers = [list(item.model.parameters()) + list(item.synapses.values()) for item in steps]
        choose: Any = {
            "sgd": lambda held: torch.optim.SGD(held, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
            "adam": lambda held: torch.optim.Adam(held, lr=0.01),
        }[optimizer]
        optimizers = [choose(held) for held in makers]
        for _ in range(6):
            for item, one in zip(steps, optimizers, strict=True):
                rg.assign_grads(item, x, target)
                one.step()
        gaps = [
            float(np.abs(whole(steps[0], edge, steps[0].synapses) - steps[1].synapses[edge.synapse].numpy()).max())
            for edge in steps[0].plan.edges
        ]
        assert (max(gaps) <= TOLERANCE) is exact
        assert exact or max(gaps) > 1e-4


# -- transposed convolutions against loops -----------------------------------------------------------------------------

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel": (3, 3), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "size": (5, 4)},
    "strided, a remainder": {
        "kernel": (3, 2), "stride": (2, 3), "padding": (1, 0), "dilation": (1, 1), "groups": 1, "size": (6, 7),
    },
    "dilated, grouped": {
        "kernel": (2, 2), "stride": (1, 2), "padding": (1, 1), "dilation": (2, 1), "groups": 2, "size": (5, 5),
    },
    "one dimension": {"kernel": (4,), "stride": (3,), "padding": (2,), "dilation": (1,), "groups": 1, "size": (9,)},
    "three dimensions": {
        "kernel": (2, 1, 2), "stride": (1, 2, 1), "padding": (0, 0, 1), "dilation": (1, 1, 1), "groups": 2,
        "size": (3, 4, 2),
    },
    "channel by channel": {
        "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 4, "size": (3, 3),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CONVOLUTIONS))
def test_a_transposed_convolution_in_loops(name: str) -> None:
    case = CONVOLUTIONS[name]
    stride, padding, dilation, groups, size = (case[key] for key in ("stride", "padding", "dilation", "groups", "size"))
    torch.manual_seed(0)
    E = torch.randn(4, 4 // groups, *case["kernel"], dtype=torch.float64)
    forward: Any = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(size) - 1]
    z = torch.randn(2, 4, *size, dtype=torch.float64)
    e = torch.randn_like(forward(z, E, None, stride, padding, dilation, groups))
    more = tuple(
        there - ((here - 1) * s - 2 * p + d * (k - 1) + 1)
        for there, here, s, p, d, k in zip(size, e.shape[2:], stride, padding, dilation, case["kernel"], strict=True)
    )
    d = synapse.conv_displace(e, E, stride, padding, more, dilation, groups)
    positions = e[0, 0].numel()
    delta = synapse.conv_eq6(d, e, E, 0.3, 2, True, positions, stride, padding, dilation, groups)
    wanted, moved = transposed_convolution(array(e), array(E), (4, *size), stride, padding, dilation, groups, 0.3)
    assert np.abs(array(d) - wanted).max() <= TOLERANCE
    assert np.abs(array(delta) - moved).max() <= TOLERANCE
    grown = synapse.conv_eq6(d, e, E, 0.3, 2, False, positions, stride, padding, dilation, groups)
    assert torch.equal(grown, -delta)
    # The adjoint: ⟨conv(z), e⟩ = ⟨z, E e⟩.
    assert abs(float((forward(z, E, None, stride, padding, dilation, groups) * e).sum() - (z * d).sum())) < 1e-10


def test_a_pointwise_convolution_is_a_channel_synapse() -> None:
    torch.manual_seed(0)
    e, E = torch.randn(3, 4, 5, 2, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    place: tuple[Any, ...] = ((1, 1), (0, 0), (0, 0), (1, 1), 1)
    d = synapse.conv_displace(e, E[:, :, None, None], *place)
    torch.testing.assert_close(d, synapse.channel_displace(e, E.T, (4, 5, 2), (6, 5, 2)), rtol=0, atol=1e-13)
    found = synapse.conv_eq6(d, e, E[:, :, None, None], 0.3, 3, True, 10, (1, 1), (0, 0), (1, 1), 1)
    wanted = synapse.channel_eq6(E.T.contiguous(), e, 0.3, 3, True, (4, 5, 2), (6, 5, 2))
    torch.testing.assert_close(found[:, :, 0, 0], wanted.T, rtol=0, atol=1e-13)


# -- single precision, saving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["implicit", "lowrank(2)", "conv"])
def test_single_precision_and_saving(form: str, tmp_path: Any) -> None:
    """Two steps of one seed are equal bit for bit; a step that was saved goes on as the one that was not."""
    settings: dict[str, Any] = {"wiring": "chain", "synapse": form}
    step, x, target = compiled("maps", torch.float32, **settings)
    twin, _, _ = compiled("maps", torch.float32, **settings)
    losses = [[float(item(x, target)) for _ in range(2)] for item in (step, twin)]
    assert losses[0] == losses[1]
    assert_close(step.synapses, twin.synapses, 0.0)
    loaded = rg.load(step.save(tmp_path / "kept"), twin.model)
    assert_close(loaded.synapses, step.synapses, 0.0)
    assert all(value.dtype == step.synapses[key].dtype for key, value in loaded.synapses.items())
    assert float(step(x, target)) == float(loaded(x, target))
    (double, x_double, _), (single, _, _) = compiled("maps", **settings), compiled("maps", torch.float32, **settings)
    for key, value in double.synapses.items():
        torch.testing.assert_close(single.synapses[key].double(), value.double(), rtol=1e-6, atol=0)
    losses_double = [float(double(x_double, target)) for _ in range(2)]
    assert losses[0] == pytest.approx(losses_double, rel=1e-4)
