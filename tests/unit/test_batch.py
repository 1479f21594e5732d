"""One product for all synapses that leave a region: they are views of one buffer, and tensors like any others."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import batch_for, mlp, same

NAMES = ("4->3", "4->2", "4->1")
FORM: dict[str, Any] = {"device": "h200", "wiring": "flat"}


def compiled(
    make: Callable[[], nn.Module] = lambda: mlp(6, 8, 7, 9, 3), shape: tuple[int, ...] = (4, 6), **options: Any
) -> CompiledStep:
    torch.manual_seed(2)
    return rg.compile(make().double(), torch.zeros(shape, dtype=torch.float64), **{**FORM, **options})


def trained(step: CompiledStep, run: Any = None, steps: int = 2) -> dict[str, Tensor]:
    for number in range(steps):
        (run or step)(*batch_for(step, seed=number))
    return {**dict(step.model.named_parameters()), **step.synapses}


def assert_alike(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("without", [(), ("shared",)])
def test_synapses_are_views_of_one_buffer(without: tuple[str, ...]) -> None:
    step, plain = compiled(without=without), compiled(without=(*without, "batch"))
    assert step.module.BESIDE == (NAMES,)
    assert list(step.synapses) == list(plain.synapses)
    assert all(same(value, plain.synapses[name]) for name, value in step.synapses.items())  # the same numbers are drawn
    whole = step.module.beside(*(step.synapses[name] for name in NAMES))
    assert whole.data_ptr() == step.synapses["4->3"].data_ptr()
    assert same(whole, torch.cat([step.synapses[name] for name in NAMES]))
    assert_alike(trained(step), trained(plain))
    assert step.module.beside(*(step.synapses[name] for name in NAMES)).data_ptr() == whole.data_ptr()


def test_synapses_that_lie_elsewhere_are_copied() -> None:
    step, plain = compiled(), compiled(without="batch")
    for other in (step, plain):
        other.synapses["4->2"] = other.synapses["4->2"] * 2
    parts = [step.synapses[name] for name in NAMES]
    assert step.module.beside(*parts).data_ptr() not in {part.data_ptr() for part in parts}
    assert_alike(trained(step), trained(plain))
    kept = io.BytesIO()
    torch.save(step.store.all(), kept)
    kept.seek(0)
    again = step.module.lay_out(torch.load(kept, weights_only=True))
    assert step.module.beside(*(again[name] for name in NAMES)).data_ptr() == again["4->3"].data_ptr()
    assert all(same(again[name], step.store.all()[name]) for name in again)


def test_a_saved_step_goes_on(tmp_path: Path) -> None:
    step = compiled(optimizer="momentum")
    trained(step)
    step.save(tmp_path / "net")
    again = rg.load(tmp_path / "net", step.model)
    assert again.state_dict().keys() == step.state_dict().keys()
    assert all(same(value, step.state_dict()[name]) for name, value in again.state_dict().items())
    plain = compiled(optimizer="momentum", without="batch")
    plain.load_state_dict(step.state_dict())
    assert_alike(dict(plain.synapses), dict(step.synapses))


@pytest.mark.parametrize("without", [(), ("shared",)])
def test_the_traced_step_changes_the_buffer(without: tuple[str, ...]) -> None:
    from reclra_graph.runtime.traced import flat_tensors, traced

    step, plain = compiled(without=without), compiled(without="batch")
    inputs, target = batch_for(step)
    given, goal = step.arguments(inputs, target)
    assert isinstance(goal, Tensor)
    rate = torch.tensor(step.lr, dtype=torch.float64)
    found = traced(step, given, goal, rate)
    flat = flat_tensors(step, given, [goal], rate)
    assert len(flat) == len(found.used) == 8 + 1 + ("shared" not in without) + 3
    with torch.no_grad():
        found.module(*[flat[index] for index in found.used])
    plain(inputs, target)
    assert_alike(dict(step.synapses), dict(plain.synapses))
    assert_alike(dict(step.model.named_parameters()), dict(plain.model.named_parameters()))


def test_large_targets_and_several_lanes_are_left_alone() -> None:
    assert not hasattr(compiled(gpus=2).module, "BESIDE")
    assert not hasattr(compiled(device="cpu").module, "BESIDE")
    assert not hasattr(compiled(device="unit").module, "BESIDE")
    wide = compiled(lambda: mlp(6, 2048, 7, 9, 3), synapse="dense")
    assert (NAMES[:2],) == wide.module.BESIDE


def test_many_targets_are_several_products() -> None:
    step = compiled(lambda: mlp(6, *[1500] * 8, 3), optimizer="momentum", synapse="dense")
    assert [len(names) for names in step.module.BESIDE] == [5, 3]


def test_sources_of_many_units_learn_from_the_product() -> None:
    step, plain = (compiled(lambda: mlp(6, 8, 7, 40), without=("shared", *other)) for other in ((), ("batch",)))
    assert "D3.T @ e3" in step.source
    assert_alike(trained(step), trained(plain))


def test_maps_and_sums_of_displacements() -> None:
    def net() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Flatten(),
            nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 3),
        )  # fmt: skip

    edges = ("4->3", "4->2", "4->1", "3->2", "3->1")
    step, plain = (compiled(net, (4, 1, 4, 4), wiring=edges, without=other) for other in ((), ("batch",)))
    assert step.module.BESIDE == (("4->3", "4->2", "4->1"), ("3->2", "3->1"))
    assert_alike(trained(step), trained(plain))
