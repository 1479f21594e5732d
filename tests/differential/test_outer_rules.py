"""Rules that learn by an outer product: the emitted step, the reference interpreter and a numpy oracle agree in
float64, on fully connected nets; emitted step and reference also on maps, sequences and several outputs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.reference import reference_mirror, reference_step
from reclra_graph.runtime.compiled import CompiledStep
from tests.differential.agreement import agrees, assert_close, held_by
from tests.differential.numpy_reclra import Edge, Rule
from tests.differential.numpy_rules import train_step
from tests.differential.residual_mlps import (
    algorithm_1_edges,
    array,
    batch,
    build,
    differences,
    draw_synapses,
    names_of,
    random_edges,
    to_numpy,
)
from tests.models import Dropouts, ResidualCNN, SmallCNN, Tagger

TOLERANCE = 1e-12
LAST = 7
SIGMA = 0.3


@dataclass(frozen=True)
class Case:
    """One combination of settings."""

    rule: str
    wiring: str
    activation: str
    g: int
    projected: bool
    loss: str
    gpus: int = 1
    gain: bool = False
    norm: int = 2
    kappa: tuple[tuple[int, float], ...] = ()
    decay: float = 0.0

    def __str__(self) -> str:
        return f"{self.rule}-{self.wiring}-{self.activation}-{self.g}-{self.loss}-{self.gpus}"


K = ((2, 0.5), (5, 3.0), (7, 1.5))
CASES = (
    Case("dkp", "flat", "tanh", 2, False, "cross-entropy", 3, kappa=K),
    Case("dkp", "chain", "relu", 3, True, "mse", 1, gain=True),
    Case("dkp", "blocks", "signum", 2, True, "bce-with-logits", 2, norm=1),
    Case("dkp", "random", "mixed", 3, True, "cross-entropy", 3, decay=0.3),
    Case("readout", "flat", "mixed", 2, True, "cross-entropy", 3, kappa=K, decay=0.3),
    Case("readout", "flat", "elu", 3, False, "mse", 1, gain=True),
    Case("readout", "chain", "sigmoid", 2, True, "bce-with-logits", 2),
    Case("readout", "blocks", "tanh", 3, True, "cross-entropy", 4, kappa=K),
    Case("readout", "algorithm 1", "gelu", 2, False, "mse", 2, norm=1),
    Case("readout", "random", "silu", 2, True, "bce-with-logits", 3, kappa=K),
    Case("mirror", "flat", "tanh", 2, True, "cross-entropy", 3, kappa=K),
    Case("mirror", "chain", "mixed", 3, True, "mse", 1, gain=True, decay=0.3),
    Case("mirror", "chain", "signum", 2, False, "cross-entropy", 5),
    Case("mirror", "blocks", "relu", 2, True, "bce-with-logits", 2, norm=1),
    Case("mirror", "forward", "gelu", 3, False, "cross-entropy", 4, decay=0.3),
)


def edges_of(case: Case) -> tuple[Edge, ...] | None:
    """The edges that are asked for one by one, in some wirings."""
    if case.wiring == "algorithm 1":
        return algorithm_1_edges(LAST, case.g)
    if case.wiring == "forward":  # a mirror looks at layers behind its own
        return ((7, 6), (7, 5), (6, 5), (7, 4), (5, 4), (6, 3), (4, 2), (5, 2), (3, 1))
    return random_edges(LAST, seed=case.g) if case.wiring == "random" else None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_three_ways_agree(case: Case) -> None:
    """One step and five, and for mirrors one of mirror mode behind them."""
    net = build(case.g, case.projected, case.activation)
    x, target = batch(net, case.loss)
    rule = Rule(case.loss, 0.05, 0.2, 0.7, dict(case.kappa), case.norm, synapses=case.rule, gain=case.gain)
    edges = edges_of(case)
    step = rg.compile(
        net, (x[:3],), gpus=case.gpus, wiring=names_of(edges) if edges else case.wiring, rule=case.rule,
        beta=rule.beta, gamma=rule.gamma, kappa=dict(case.kappa), norm=case.norm, gain=case.gain, loss=case.loss,
        lr=rule.lr, mirror_noise=SIGMA, synapse_decay=case.decay,
    )  # fmt: skip
    wanted = "dkp" if case.rule == "readout" else case.rule
    assert {edge.rule for edge in step.plan.edges if edge.source != LAST} <= {wanted}
    assert {edge.rule for edge in step.plan.edges if edge.source == LAST} == {case.rule}
    mine, E = to_numpy(net), draw_synapses(step.synapses)
    double = build(case.g, case.projected, case.activation)
    P, S = double.state_dict(), {name: synapse.clone() for name, synapse in step.synapses.items()}
    start = {name: synapse.clone() for name, synapse in S.items()}
    for number in range(1, 6):
        noises = drawn(step, x, number)
        ours = train_step(mine, E, rule, array(x), array(target), noises, SIGMA, case.decay)
        torch.manual_seed(number)
        losses = [float(step(x, target))]
        torch.manual_seed(number)
        losses.append(float(referred(step, P, S, x, target, case.decay)))
        assert max(abs(loss - ours) for loss in losses) <= TOLERANCE
        if number in (1, 5):
            compare(differences(net, step.synapses, mine, E), differences(double, S, mine, E))
    still = [name for name, value in step.synapses.items() if torch.equal(value, start[name])]
    assert not still or (case.rule == "dkp" and case.activation == "signum")  # whose e is often 0
    if case.rule == "mirror":
        before = copy.deepcopy(net.state_dict())
        noises = drawn(step, x, 9)
        train_step(mine, E, rule, array(x), array(target), noises, SIGMA, case.decay, engaged=False)
        torch.manual_seed(9)
        size = step.mirror(x)
        torch.manual_seed(9)
        referred(step, P, S, x, None, case.decay)
        compare(differences(net, step.synapses, mine, E), differences(double, S, mine, E))
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert float(size) > 0


def referred(
    step: CompiledStep, P: dict[str, Tensor], S: dict[str, Tensor], x: Tensor, target: Any, decay: float
) -> Tensor | None:
    """A step of the reference interpreter, which knows no decay, or one of mirror mode where there is no target."""
    before = {name: value.clone() for name, value in S.items()}
    loss = reference_step(step.plan, P, S, (x,), target) if target is not None else None
    if target is None:
        reference_mirror(step.plan, P, S, (x,))
    for name, value in S.items():
        value.sub_(step.lr * decay * before[name])
    return loss


def drawn(step: CompiledStep, x: Tensor, seed: int) -> dict[int, Any]:
    """The noise of a step under a seed: the regions in order, each as large as its representation."""
    torch.manual_seed(seed)
    numbers = sorted({edge.target for edge in step.plan.edges if edge.rule == "mirror"})
    units = {number: step.plan.regions.regions[number].units for number in numbers}
    return {number: array(torch.randn(len(x), units[number], dtype=torch.float64)) for number in numbers}


def compare(*tables: dict[str, float]) -> None:
    wrong = {name: gap for table in tables for name, gap in table.items() if not gap <= TOLERANCE}
    assert not wrong, wrong


# -- other nets, against the reference interpreter ---------------------------------------------------------------------


class Wide(nn.Module):
    """A map of scores, so that the output has positions: another grid than the stem's, the same as the body's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 3, stride=2)
        self.head = nn.Conv2d(5, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, 8, 8] to [B, 3, 7, 7]."""
        scores: Tensor = self.head(torch.relu(self.up(torch.tanh(self.body(torch.tanh(self.stem(x)))))))
        return scores


class Encoder(nn.Module):
    """One block of a transformer without dropout in its attention, a score for every position or for the whole."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.drop, self.head, self.whole = nn.Dropout(0.2), nn.Linear(6, 3), whole

    def forward(self, x: Tensor) -> Tensor:
        """[B, 5, 6] to [B, 5, 3] or [B, 3]."""
        z = self.drop(self.block(x))
        scores: Tensor = self.head(z.mean(1) if self.whole else z)
        return scores


def normal(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def classes(*sizes: int) -> Tensor:
    return torch.randint(3, sizes, generator=torch.Generator().manual_seed(4))


NETS: dict[str, tuple[Any, Any, Any]] = {
    "cnn": (ResidualCNN, normal(3, 1, 6, 6), classes(3)),
    "convolutions": (lambda: SmallCNN(4), normal(3, 2, 8, 8), classes(3)),
    "map of scores": (Wide, normal(3, 2, 8, 8), classes(3, 7, 7)),
    "dropouts": (Dropouts, normal(4, 6), classes(4)),
    "sequence": (lambda: Encoder(False), normal(3, 5, 6), classes(3, 5)),
    "pooled sequence": (lambda: Encoder(True), normal(3, 5, 6), classes(3)),
    "two outputs": (Tagger, normal(4, 3, 4), {"logits": classes(3, 4), "value": normal(4, 2)}),
}
FORMS = {
    "cnn": ({"synapse": "dense"}, {"synapse": "channel"}, {"synapse": "conv", "wiring": "chain"}),
    "convolutions": ({"synapse": "channel"}, {"synapse": "conv", "wiring": "chain"}),
    "map of scores": ({"synapse": "channel"}, {"synapse": "conv", "wiring": "chain"}, {"synapse": "dense"}),
    "dropouts": ({}, {"wiring": "chain", "gpus": 3}),
    "sequence": ({"synapse": "token"}, {"wiring": "chain", "synapse": "dense"}),
    "pooled sequence": ({"synapse": "token"}, {"synapse": "dense", "gpus": 2}),
    "two outputs": ({"kappa": {1: 2.0}}, {"gpus": 3}),
}


@pytest.mark.parametrize("rule", ["dkp", "mirror", "readout"])
@pytest.mark.parametrize(
    ("net", "options"), [(net, options) for net, found in FORMS.items() for options in found], ids=str
)
def test_other_nets_agree_with_the_reference(net: str, options: dict[str, Any], rule: str) -> None:
    make, inputs, target = NETS[net]
    torch.manual_seed(1)
    losses: dict[str, Any] = {}
    if net == "two outputs":
        losses = {"loss": {"logits": "cross-entropy", "value": "mse"}, "label_smoothing": 0.1, "ignore_index": 1}
    step = agrees(make().double(), inputs, target, **{"rule": rule, "wiring": "flat", **losses, **options})
    assert {edge.rule for edge in step.plan.edges} <= {rule, "dkp"}
    asked = options.get("synapse")
    assert asked is None or asked in {edge.form for edge in step.plan.edges}
    if rule == "mirror":
        held, synapses = held_by(step), {key: value.clone() for key, value in step.synapses.items()}
        torch.manual_seed(8)
        step.mirror(inputs)
        torch.manual_seed(8)
        reference_mirror(step.plan, held, synapses, (inputs,))
        assert_close(step.synapses, synapses)
        assert_close({key: value.detach() for key, value in step.storage().items()}, held, 0.0)


@pytest.mark.parametrize("rule", ["dkp", "mirror", "readout"])
@pytest.mark.parametrize(
    ("net", "options"),
    [("cnn", {"recompute": True}), ("cnn", {"device": "h200", "gpus": 2}), ("dropouts", {"update": "local_vjp"}),
     ("cnn", {"memory_format": "channels_last", "synapse": "dense"})],
    ids=str,
)  # fmt: skip
def test_other_ways_to_the_same_step(net: str, options: dict[str, Any], rule: str) -> None:
    torch.manual_seed(1)
    make, inputs, target = NETS[net]
    agrees(make().double(), inputs, target, rule=rule, wiring="chain", **options)


@pytest.mark.parametrize("rule", ["dkp", "mirror", "readout"])
@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_products_in_a_low_precision(low: str, rule: str) -> None:
    """z_i and the responses come from the low forward pass; the emitted step and the reference round alike."""
    torch.manual_seed(1)
    make, inputs, target = NETS["cnn"]
    x = inputs.float()
    step = rg.compile(make(), x, rule=rule, wiring="flat", autocast=low, gamma=0.2)
    held, synapses = held_by(step), {key: value.clone() for key, value in step.synapses.items()}
    torch.manual_seed(8)
    loss = step(x, target)
    torch.manual_seed(8)
    torch.testing.assert_close(loss, reference_step(step.plan, held, synapses, (x,), target))
    assert_close(step.synapses, synapses, 1e-6)
    assert_close({key: value.detach() for key, value in step.storage().items()}, held, 1e-6)
    assert all(value.dtype == torch.float32 for value in step.synapses.values())
