"""Errors against the connections of the forward pass: the emitted step beside the reference interpreter and, with E set
to the weights, beside PyTorch's own gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.reference import reference_step
from reclra_graph.runtime.compiled import CompiledStep
from tests.differential.agreement import agrees
from tests.differential.reverse_nets import (
    Gated,
    LastState,
    PlainConvs,
    ProjectedSkip,
    SmallGPT,
    SmallViT,
    Volumes,
)
from tests.models import Dropouts, ResidualCNN, Tied
from tests.unit.test_traced import graph_of
from tests.unit.test_wire import chain_of, wired

BATCH = 4

MakeNet = Callable[[], tuple[nn.Module, Tensor, Tensor]]


def drawn(make: Callable[[], nn.Module], *sizes: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    return make().double(), torch.randn(BATCH, *sizes, dtype=torch.float64), torch.randint(3, (BATCH,))


def tokens() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    return SmallGPT().double(), torch.randint(7, (BATCH, 5)), torch.randint(7, (BATCH, 5))


NETS: dict[str, MakeNet] = {
    "skips": lambda: drawn(ProjectedSkip, 5),
    "convolutions": lambda: drawn(PlainConvs, 2, 8, 8),
    "dropout": lambda: drawn(lambda: PlainConvs(0.4), 2, 8, 8),
    "volumes": lambda: drawn(Volumes, 1, 3, 5, 4),
    "gate": lambda: drawn(Gated, 1, 5, 5),
    "norms": lambda: drawn(ResidualCNN, 1, 6, 6),
    "vit": lambda: drawn(SmallViT, 1, 4, 4),
    "gpt": tokens,
    "lstm": lambda: drawn(LastState, 3, 3),
    "tied": lambda: drawn(Tied, 6),
    "dropouts": lambda: drawn(Dropouts, 6),
}

RULES = ("fixed", "eq6", "kp", "sign")
CASES = [
    *product(("skips", "convolutions", "norms", "gpt", "lstm"), RULES, ({},)),
    *((net, "kp", {}) for net in ("dropout", "volumes", "gate", "vit", "tied", "dropouts")),
    *((net, "eq6", {"sign": "printed"}) for net in ("volumes", "tied")),
    ("norms", "kp", {"gpus": 2, "norm": 1, "gain": True}),
    ("vit", "eq6", {"gpus": 3, "update": "local_vjp"}),
    ("gpt", "kp", {"update": "local_vjp", "kappa": {3: 0.5}}),
]


@pytest.mark.parametrize(("net", "rule", "options"), CASES, ids=str)
def test_the_emitted_step_is_the_reference(net: str, rule: str, options: dict[str, Any]) -> None:
    model, x, target = NETS[net]()
    step = agrees(model, x, target, wiring="reverse", rule=rule, **options)
    weighted = [edge for edge in step.plan.edges if edge.weight]
    assert {edge.form for edge in step.plan.edges} == {"adjoint"}
    assert {edge.rule for edge in weighted} == {rule}
    assert set(step.synapses) == (set() if rule == "sign" else {edge.synapse for edge in weighted})


# -- E = W is backpropagation -----------------------------------------------------------------------------------------


def mirror(step: CompiledStep) -> None:
    """Set every E to the weight that it mirrors."""
    weights = dict(step.model.named_parameters())
    for edge in step.plan.edges:
        if edge.weight:
            step.synapses[edge.synapse].copy_(weights[edge.weight].detach())


def gradients(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of the mean cross-entropy, by autograd."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    logits = model.train()(x)
    loss = F.cross_entropy(logits.flatten(0, -2) if logits.dim() > 2 else logits, target.flatten())
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize(
    ("net", "options"),
    [
        *((net, {}) for net in ("skips", "convolutions", "dropout", "volumes", "gate", "lstm", "tied")),
        # Over a normalisation an error passes as it is, but in regions that learn by local derivatives; these take φ′
        # twice, which is once where it is 0 or 1.
        *((net, {"update": "local_vjp"}) for net in ("norms", "vit", "gpt")),
    ],
    ids=str,
)
def test_mirrored_weights_give_backprop(net: str, options: dict[str, Any]) -> None:
    model, x, target = NETS[net]()
    step = rg.compile(model, x, wiring="reverse", rule="fixed", beta=1e-6, gain=True, lr=1.0, **options)
    mirror(step)
    torch.manual_seed(7)
    wanted = gradients(model, x, target)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    torch.manual_seed(7)
    step(x, target)
    for name, value in model.named_parameters():
        moved = before[name] - value.detach()
        # A bias before a normalisation, or of keys, moves nothing: there only the rounding of φ(h) − φ(h − βd) is left.
        size = max(float(wanted[name].norm()), 1e-3)
        assert float((moved - wanted[name]).norm()) < 1e-6 * size, name


def test_other_weights_do_not() -> None:
    model, x, target = NETS["convolutions"]()
    step = rg.compile(model, x, wiring="reverse", rule="fixed", beta=1e-6, gain=True, lr=1.0)
    mirror(step)
    (shared,) = {edge.synapse for edge in step.plan.edges if edge.weight == "mixed.weight"}
    step.synapses[shared].mul_(1.01)
    wanted = gradients(model, x, target)
    rg.assign_grads(step, x, target)
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    changed = {name for name in found if float((found[name] - wanted[name]).norm()) > 1e-6 * float(wanted[name].norm())}
    # All that lies below the concatenation's convolution, which sends to both its parts by one synapse, and it alone.
    assert changed == {
        f"{layer}.{kind}" for layer in ("stem", "down", "wide", "skip", "up") for kind in ("weight", "bias")
    }


# -- any schedule, and the whole step as one graph --------------------------------------------------------------------


@pytest.mark.parametrize("net", ["convolutions", "vit", "lstm"])
@pytest.mark.parametrize("rule", ["kp", "eq6", "sign"])
def test_lanes_change_no_bit(net: str, rule: str) -> None:
    found = []
    for gpus in (1, 2, 5):
        model, x, target = NETS[net]()
        step = rg.compile(model, x, wiring="reverse", rule=rule, gpus=gpus)
        for _ in range(2):
            step(x, target)
        found.append({**step.storage(), **{f"E.{name}": value for name, value in step.synapses.items()}})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(value, other[key]) for key, value in found[0].items())


PLACED: tuple[dict[str, Any], ...] = (
    {"placement": "pipeline", "gpus": 3},
    {"placement": "pipeline", "gpus": 2, "overlap_steps": True},
    {"micro_batches": 2, "gpus": 2},
)


@pytest.mark.parametrize("options", PLACED, ids=str)
@pytest.mark.parametrize(("net", "rule"), [("convolutions", "kp"), ("vit", "eq6"), ("tied", "kp")])
def test_placed_steps_and_micro_batches(net: str, rule: str, options: dict[str, Any]) -> None:
    found = []
    for settings in ({}, options):
        model, x, target = NETS[net]()
        step = rg.compile(model, x, wiring="reverse", rule=rule, **settings)
        for _ in range(2):
            step(x, target)
        step.join()
        found.append({**step.storage(), **{f"E.{name}": value for name, value in step.synapses.items()}})
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=1e-12 if "micro_batches" in options else 0)


@pytest.mark.parametrize("rule", ["kp", "sign"])
def test_the_step_as_one_graph(rule: str) -> None:
    model, x, target = NETS["convolutions"]()
    step = rg.compile(model, x, wiring="reverse", rule=rule)
    twin = rg.compile(NETS["convolutions"]()[0], x, wiring="reverse", rule=rule)
    graph, tensors = graph_of(twin, x, target)
    with torch.no_grad():
        loss, finite = graph.module(*tensors)
    torch.testing.assert_close(loss, step(x, target), rtol=1e-12, atol=0)
    assert bool(finite)
    torch.testing.assert_close(dict(twin.model.state_dict()), dict(step.model.state_dict()), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(twin.synapses, step.synapses, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
@pytest.mark.parametrize("net", ["norms", "vit"])
def test_under_autocast(net: str, low: str) -> None:
    """Products in a low precision stay near those in float32, and the reference does them alike."""
    model, x, target = NETS[net]()
    model, x = model.float(), x.float()
    step = rg.compile(model, x, wiring="reverse", rule="kp", autocast=low)
    held = {key: value.detach().clone() for key, value in step.storage().items()}
    synapses = {key: value.clone() for key, value in step.synapses.items()}
    loss = step(x, target)
    wanted = reference_step(step.plan, held, synapses, [x], target)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for key, value in step.synapses.items():
        torch.testing.assert_close(value, synapses[key], rtol=2e-3, atol=2e-4)


def test_a_plain_chain_has_the_edges_of_chain() -> None:
    for layers in (2, 5):
        reverse, chain = (wired(chain_of(layers), wiring=name) for name in ("reverse", "chain"))
        assert [(edge.source, edge.target) for edge in reverse.edges] == [(e.source, e.target) for e in chain.edges]
        assert (reverse.depth, reverse.relays, reverse.level) == (chain.depth, chain.relays, chain.level)
