"""Steps under autocast beside the same steps in float32, backprop under torch.autocast, and the reference interpreter.

What is compared are changes, by the norm of their difference. A number in bfloat16 is right to 2^-9 of itself, one in
float16 to 2^-12. On the way to a change there are some ten roundings: of inputs, weights and outputs of each product
before it, of the error, of the synapse. Bounds are eight of the last digits, 2^-5 and 2^-8.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.passes import pipeline
from reclra_graph.reference import reference_step
from reclra_graph.rules.precision import matmul, unit
from reclra_graph.runtime.compiled import CompiledStep
from tests.differential.autocast_nets import NETS, gap, net_and_batch

BOUNDS = {"bfloat16": 2**-5, "float16": 2**-8}
LOW = tuple(BOUNDS)
OPTIONS: dict[str, Any] = {"lr": 0.1, "beta": 0.3, "gamma": 0.2}


def changes(step: CompiledStep, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """All that a step would subtract, of parameters and synapses."""
    _, parameters, synapses = step.deltas(x, target)
    return {f"P.{key}": value for key, value in parameters.items()} | {f"E.{key}": v for key, v in synapses.items()}


def compare(low: str, net: nn.Module, x: Tensor, target: Tensor, *, slack: float = 1.0, **options: Any) -> CompiledStep:
    """The step under autocast and in float32: the same plan, float32 changes, and no more between them than the bound;
    returns the step."""
    step = rg.compile(copy.deepcopy(net), x, autocast=low, **OPTIONS, **options)
    plain = rg.compile(copy.deepcopy(net), x, **OPTIONS, **options)
    assert step.plan.edges == plain.plan.edges
    assert step.plan.regions.digest == plain.plan.regions.digest
    found, wanted = changes(step, x, target), changes(plain, x, target)
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        assert value.dtype == torch.float32, key
        assert gap(value, wanted[key]) < slack * BOUNDS[low], (key, gap(value, wanted[key]))
    return step


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("low", LOW)
def test_changes_are_those_of_float32(name: str, low: str) -> None:
    step = compare(low, *net_and_batch(name))
    types = [item.type for item in step.plan.regions.graph.operators if item.type is not None]
    assert any(kind.dtype == low for kind in types)
    assert {item.dtype for item in step.synapses.values()} == {torch.float32}


@pytest.mark.parametrize("form", ["dense", "channel", "conv", "lowrank(3)", "implicit"])
@pytest.mark.parametrize("low", LOW)
def test_all_forms_of_synapses(form: str, low: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip
    # Errors that are alike at all positions cancel where they are summed, and roundings do not: twice the bound.
    step = compare(low, net, torch.randn(8, 3, 8, 8), torch.arange(8) % 4, slack=2, synapse=form, wiring="chain")
    assert form in {edge.form for edge in step.plan.edges}


@pytest.mark.parametrize("low", LOW)
def test_local_derivatives(low: str) -> None:
    compare(low, *net_and_batch("transformer"), update="local_vjp")


@pytest.mark.parametrize("name", ["transformer", "unusual"])
def test_the_policy_of_a_gpu_on_this_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = pipeline.autocast
    monkeypatch.setattr(pipeline, "autocast", lambda regions, dtype, _, batch: usual(regions, dtype, "cuda", batch))
    step = compare("bfloat16", *net_and_batch(name))
    norms = [item for item in step.plan.regions.graph.operators if item.target == "aten.layer_norm.default"]
    assert norms
    assert {item.type.dtype for item in norms if item.type is not None} == {"float32"}


@pytest.mark.parametrize("name", ["convolutional", "transformer", "recurrent"])
@pytest.mark.parametrize("low", LOW)
def test_the_reference_says_the_same(name: str, low: str) -> None:
    net, x, target = net_and_batch(name)
    step = rg.compile(net, x, autocast=low, without=("straight", "factors"), **OPTIONS)
    held = {key: value.detach().clone() for key, value in step.storage().items()}
    start = {key: value.clone() for key, value in held.items()}
    synapses = {key: value.clone() for key, value in step.synapses.items()}
    before = {key: value.clone() for key, value in synapses.items()}
    loss = reference_step(step.plan, held, synapses, [x], target)
    torch.testing.assert_close(step(x, target), loss, rtol=1e-5, atol=0)
    for key, value in step.storage().items():
        if value.is_floating_point() and not torch.equal(held[key], start[key]):
            # Single numbers of a product may be rounded the other way.
            assert gap(value - start[key], held[key] - start[key]) < BOUNDS[low] / 16, key
    for key, value in step.synapses.items():
        assert gap(value - before[key], synapses[key] - before[key]) < BOUNDS[low], key  # E (e e'), or (E e) e'


ONE_LAYER = {
    "linear": (lambda: nn.Linear(6, 5), (6,), ()),
    "positions": (lambda: nn.Linear(6, 5), (4, 6), (4,)),
    "map": (lambda: nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)), (2, 4, 3), (4, 3)),
}


@pytest.mark.parametrize("name", ONE_LAYER)
@pytest.mark.parametrize("low", LOW)
def test_one_layer_learns_as_by_backprop_under_autocast(name: str, low: str) -> None:
    make, sample, places = ONE_LAYER[name]
    torch.manual_seed(1)
    net, x, target = make(), torch.randn(16, *sample), torch.randint(5, (16, *places))
    step = rg.compile(copy.deepcopy(net), x, autocast=low, update="local_vjp" if name == "map" else "analytic")
    with torch.autocast("cpu", getattr(torch, low)):
        logits = net(x)
        loss = F.cross_entropy(logits.movedim(-1, 1) if name == "positions" else logits, target)
    loss.backward()  # type: ignore[no-untyped-call]
    found = changes(step, x, target)
    torch.testing.assert_close(step.deltas(x, target)[0], loss.detach(), rtol=1e-5, atol=0)
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None
        if not (name == "map" and key == "0.bias"):  # in front of a batch norm its derivative is nothing but rounding
            assert gap(found[f"P.{key}"], parameter.grad) < BOUNDS[low], key


@pytest.mark.parametrize("low", LOW)
def test_a_chain_of_transposed_weights_is_backprop_under_autocast(low: str) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    x, target = torch.randn(16, 8), torch.randint(4, (16,))
    step = rg.compile(copy.deepcopy(net), x, autocast=low, wiring="chain", rule="fixed", beta=1e-3, gain=True)
    for name, layer in (("3->2", 4), ("2->1", 2)):
        step.synapses[name].copy_(net[layer].weight.detach().T)
    with torch.autocast("cpu", getattr(torch, low)):
        F.cross_entropy(net(x), target).backward()  # type: ignore[no-untyped-call]
    found = changes(step, x, target)
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert gap(found[f"P.{key}"], parameter.grad) < 2 * BOUNDS[low], key  # both sides have roundings of their own


# -- the range of float16 ---------------------------------------------------------------------------------------------


def sure(scale: float) -> tuple[nn.Module, Tensor, Tensor]:
    """A net that is nearly sure of the right classes: its errors are ``scale``, and its inputs larger than 1."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
    with torch.no_grad():
        net[3].weight.mul_(0.01)
        net[3].bias.copy_(-torch.tensor([0.0, 1.0, 1.0, 1.0]) * round(-torch.log(torch.tensor(scale)).item()))
    return net, torch.randn(64, 8) * 4, torch.zeros(64, dtype=torch.int64)


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9])
def test_small_errors_do_not_vanish(scale: float) -> None:
    net, x, target = sure(scale)
    # Regions without an activation, since in float32 too h - beta d is h where beta d is so small.
    options: dict[str, Any] = {"wiring": "flat", "lr": 1.0, "gamma": 1e6}
    low, plain = (rg.compile(copy.deepcopy(net), x, autocast=name, **options) for name in ("float16", None))
    found, wanted = changes(low, x, target), changes(plain, x, target)
    for key in ("P.2.weight", "P.3.weight", "P.2.bias", "P.3.bias", "E.3->2"):
        assert 0 < float(wanted[key].abs().max()) < 1e3, key
        # logits of up to 20 are rounded to 2^-6 before the loss sees them
        assert gap(found[key], wanted[key]) < 2**-6, (key, gap(found[key], wanted[key]))
    if scale == 1e-9:
        with torch.autocast("cpu", torch.float16):
            F.cross_entropy(net(x), target).backward()  # type: ignore[no-untyped-call]
        assert net[3].weight.grad is not None
        assert float(net[3].weight.grad.abs().max()) == 0.0  # backprop would need its loss scaled


def test_large_sums_do_not_overflow() -> None:
    torch.manual_seed(4)
    net, x = nn.Linear(4, 3), 300 + torch.rand(4096, 4)
    target = torch.zeros(4096, 3)
    options: dict[str, Any] = {"loss": "mse"}
    with torch.no_grad():
        net.bias.add_(1000.0)  # all errors are large, and of one sign
    found = changes(rg.compile(copy.deepcopy(net), x, autocast="float16", **options), x, target)
    wanted = changes(rg.compile(copy.deepcopy(net), x, **options), x, target)
    for key, value in found.items():
        assert gap(value, wanted[key]) < BOUNDS["float16"], key
    assert float((wanted["P.weight"] * 4096).abs().max()) > 65504  # what the product itself sums to


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e30])
def test_the_unit_is_a_power_of_two_and_drops_out(scale: float) -> None:
    torch.manual_seed(5)
    a, b = torch.randn(5, 300) * scale, torch.randn(300, 7)
    size = unit(a, 300)
    assert float(torch.frexp(size)[0]) == 0.5
    if scale:
        assert float((a * size).abs().max()) <= 1
    product = matmul(a, b, "float16")
    if scale > 1e-18 or scale == 0:
        torch.testing.assert_close(product, a @ b, rtol=2e-2, atol=2e-3 * scale * 300**0.5)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "optimizer", "lr"), [("perceptron", "adamw", 0.01), ("convolutional", "sgd", 0.1)])
@pytest.mark.parametrize("low", LOW)
def test_the_loss_falls_and_masters_stay_float32(name: str, optimizer: str, lr: float, low: str) -> None:
    net, x, target = net_and_batch(name, 32)
    step = rg.compile(net, x, autocast=low, optimizer=optimizer, lr=lr)
    losses = [float(step(x, target)) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.05
    assert losses[-1] == min(losses) or losses[-1] < 0.8 * losses[0]
    held = [*net.parameters(), *step.synapses.values()]
    held += [value for key, value in step.optimiser_state.items() if value.dim()]
    assert {item.dtype for item in held} == {torch.float32}


def test_micro_batches_learn_the_same() -> None:
    net, x, target = net_and_batch("perceptron")
    whole = changes(rg.compile(copy.deepcopy(net), x, autocast="bfloat16", **OPTIONS), x, target)
    parts = changes(rg.compile(copy.deepcopy(net), x, autocast="bfloat16", micro_batches=2, **OPTIONS), x, target)
    for key, value in whole.items():
        assert gap(parts[key], value) < BOUNDS["bfloat16"], key
