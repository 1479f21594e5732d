"""Looks at a step: they change nothing, on models of every kind, and say why where there is no number."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.bench.step_cases import CASES
from reclra_graph.diagnostics import WHAT, Look
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import STEPS, batch_for, dropouts, figure1, fresh, mlp, residual_cnn, same, tagger
from tests.unit.test_opaque_step import Net as OpaqueNet


def held(step: CompiledStep) -> dict[str, Tensor]:
    """Copies of all that a step holds, as it lies in memory: nothing is multiplied out."""
    found = {f"P.{key}": value for key, value in step.model.named_parameters()}
    found |= {f"B.{key}": value for key, value in step.model.named_buffers()}
    found |= {f"C.{key}": value for key, value in step.constants.items()}
    found |= {f"E.{key}": value for key, value in step.store.all().items()}
    found |= {f"O.{key}": value for key, value in step.optimiser_state.items()}
    return {key: value.detach().clone() for key, value in found.items()}


def draws() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]


def assert_untouched(step: CompiledStep, x: Any, target: Any, **options: Any) -> Look:
    model, mode = step.model, [item.training for item in step.model.modules()]
    addresses = {key: value.data_ptr() for key, value in step.model.state_dict().items()}
    before, random_before = held(step), draws()
    look = rg.Diagnostics(step, **options)(x, target)
    after = held(step)
    assert before.keys() == after.keys()
    assert [key for key in before if not same(before[key], after[key])] == []
    assert draws() == random_before
    assert step.model is model
    assert [item.training for item in model.modules()] == mode
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == addresses
    assert all(item.grad is None for item in model.parameters())
    return look


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_a_look_changes_nothing(make: Callable[[], CompiledStep]) -> None:
    step = fresh(make())
    x, target = batch_for(step)
    step(x, target)
    look = assert_untouched(step, x, target)
    outputs = step.plan.regions.outputs
    for region in look.regions:
        assert region.error is not None
        assert region.error > 0
        if region.id in outputs:  # e_L is the derivative of the loss, and so are the updates made of it
            assert region.cosine == pytest.approx(1, abs=1e-5)
            assert dict(region.why)["discrepancy"] == "an output has the loss's own error, and no target"
        else:
            assert region.discrepancy is not None
    assert all(edge.sent is not None and 0 <= edge.sent <= 180 for edge in look.edges)
    assert all(edge.angle is not None or "angle" in dict(edge.why) for edge in look.edges)


@pytest.mark.parametrize("options", [{"optimizer": "adamw"}, {"optimizer": "sgd"}, {"synapse": "implicit"}], ids=str)
def test_training_goes_on_as_if_nobody_had_looked(options: dict[str, Any]) -> None:
    """Bitwise, also where synapses learn through a matrix, which reading them would multiply out."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Tanh(), nn.Dropout(0.2), nn.Linear(40, 40), nn.Tanh(),
                        nn.Linear(40, 3))  # fmt: skip
    alone, watched = (rg.compile(copy.deepcopy(net), torch.zeros(5, 6), wiring="flat", **options) for _ in range(2))
    diagnostics = rg.Diagnostics(watched, every=1)
    batches = [(torch.randn(5, 6), torch.randint(3, (5,))) for _ in range(4)]
    for number, (x, target) in enumerate(batches):
        for step in (alone, watched):
            torch.manual_seed(number)
            step(x, target)
        diagnostics.after_step(number, None, (x, target))
    if options == {"optimizer": "sgd"}:
        assert watched.store.matrices
    first, second = held(alone), held(watched)
    assert [key for key in first if not same(first[key], second[key])] == []


def test_an_opaque_sub_module_stays_as_it_is() -> None:
    torch.manual_seed(0)
    step = rg.compile(OpaqueNet(), torch.randn(6, 4), lr=0.1)
    look = assert_untouched(step, torch.randn(6, 4), torch.arange(6) % 3)
    assert look.region[step.plan.regions.output].cosine == pytest.approx(1, abs=1e-5)
    assert all(region.cosine is not None for region in look.regions)


@pytest.mark.parametrize("case", ["resnet18", "vit-tiny", "gpt", "gpt2"])
def test_nets_of_every_kind(case: str) -> None:
    """Residual blocks with batch norms, transformers, tied weights; small ones."""
    torch.manual_seed(0)
    chosen = CASES[case]
    net = chosen.build(True)
    x, target = torch.utils.data.default_collate(
        [tuple(item) for item in zip(*(part[:4] for part in chosen.batches(net, 1, 0)[0]), strict=True)]
    )
    step = rg.compile(net.model, (x,), wiring="flat")
    look = assert_untouched(step, (x,), target)
    assert look.cosine is not None
    assert all(region.cosine is not None for region in look.regions)
    assert all(edge.sent is not None for edge in look.edges)
    angles = [edge for edge in look.edges if edge.angle is not None]
    assert angles or case == "vit-tiny"


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x)[0][:, -1])
        return logits


def test_a_recurrent_net_has_one_synapse_and_one_weight_in_many_regions() -> None:
    torch.manual_seed(0)
    step = rg.compile(Recurrent(), torch.zeros(4, 3, 3))
    look = assert_untouched(step, torch.randn(4, 3, 3), torch.arange(4) % 3)
    shared = [region for region in look.regions if "layer.weight_hh_l0" in region.parameters]
    assert len(shared) > 1
    assert len({region.parameters for region in shared}) < len(shared)  # the sum of the updates, in each of them
    assert all(edge.synapse is not None for edge in look.edges)


@pytest.mark.parametrize(
    "options",
    [
        {"update": "local_vjp"},
        {"micro_batches": 2, "gpus": 2},
        {"gpus": 2, "placement": "pipeline", "overlap_steps": True},
        {"autocast": "bfloat16"},
        {"autocast": "float16"},
        {"recompute": True, "optimizer": "momentum"},
    ],
    ids=str,
)
def test_steps_of_every_kind(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    step = rg.compile(mlp(6, 8, 7, 4), torch.zeros(4, 6), wiring="chain", **options)
    x, target = torch.randn(4, 6), torch.arange(4)
    step(x, target)
    look = assert_untouched(step, x, target)
    assert look.region[3].cosine == pytest.approx(1, abs=1e-3)
    assert all(region.cosine is not None for region in look.regions)
    assert all(parameter.gradient for parameter in look.parameters)


def test_a_step_from_files_and_one_that_is_fused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = mlp(6, 8, 4)
    step = rg.compile(net, torch.zeros(4, 6))
    x, target = torch.randn(4, 6), torch.arange(4)
    wanted = rg.Diagnostics(step)(x, target)
    loaded = rg.load(step.save(tmp_path / "net"), net)
    for other in (loaded, step.fused()):
        found = rg.Diagnostics(other)(x, target)
        assert (found.cosine, found.edges) == (wanted.cosine, wanted.edges)


def test_inputs_come_as_the_step_takes_them() -> None:
    step = fresh(tagger())
    (x,), target = batch_for(step)
    found = [rg.Diagnostics(step)(given, target).cosine for given in (x, (x,))]
    assert found[0] == found[1]
    with_keywords = rg.compile(step.model, {"x": x}, loss={"logits": "cross-entropy", "value": "mse"})
    found = [rg.Diagnostics(with_keywords)(given, target).cosine for given in (x, {"x": x})]
    assert found[0] == found[1]


# -- what is asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", WHAT)
def test_what_is_not_asked_for_is_neither_there_nor_excused(what: str) -> None:
    step = fresh(figure1())
    x, target = batch_for(step)
    look = rg.Diagnostics(step, what=what)(x, target)
    there = {
        "cosine": {"cosine", "gradient"},
        "angle": {"angle", "weights"},
        "sent": {"sent"},
        "discrepancy": {"discrepancy"},
        "flips": {"flips", "update_flips", "change_flips"},
        "norms": {"error", "displacement", "update", "weight", "synapse", "change"},
    }[what]
    named = {"id", "name", "form", "rule", "parameters", "why", "key"}
    found = look.as_dict()
    for group in ("regions", "edges", "parameters"):
        for item in found.get(group, []):
            assert set(item) - named <= there, group
    assert (look.loss is None) == (what == "angle")


def test_flips_are_counted_from_look_to_look() -> None:
    step = fresh(residual_cnn())
    x, target = batch_for(step)
    diagnostics = rg.Diagnostics(step, what="flips")
    first = diagnostics(x, target)
    assert {dict(item.why)["flips"] for item in first.regions} == {"nothing was seen before"}
    stem, head = step.model.get_parameter("stem.weight"), step.model.get_parameter("head.weight")
    with torch.no_grad():
        stem.view(-1)[:3].neg_()
        head[0, 0] = 0.0
    step.synapses["6->1"][0, :2].neg_()
    second = diagnostics(x, target)
    size = sum(step.model.get_parameter(key).numel() for key in second.region[1].parameters)
    assert second.region[1].flips == 3 / size
    assert second.region[6].flips == 1 / sum(item.numel() for item in step.model.head.parameters())  # type: ignore[union-attr]
    assert second.region[3].flips == 0
    assert second.edge["6->1"].flips == 2 / step.synapses["6->1"].numel()
    assert second.edge["6->5"].flips == 0
    third = diagnostics(x, target)
    assert [item.flips for item in third.regions] == [0] * 6
    assert [item.update_flips for item in third.regions] == [0] * 6


def test_the_same_masks_are_drawn_by_every_part_of_a_look() -> None:
    """Updates and gradients are those of the same dropouts: at the output they are the same numbers."""
    step = fresh(dropouts())
    x, target = batch_for(step)
    for seed in range(3):
        torch.manual_seed(seed)
        look = rg.Diagnostics(step)(x, target)
        head = next(item for item in look.parameters if item.key == "head.weight")
        assert head.cosine == pytest.approx(1, abs=1e-6)
        assert head.update == pytest.approx(head.gradient or 0, rel=1e-6)


def test_what_cannot_be_said_has_a_reason() -> None:
    torch.manual_seed(0)

    class Steps(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return torch.sign(h)

    net = nn.Sequential(nn.Linear(4, 5), Steps(), nn.Linear(5, 5), Steps(), nn.Linear(5, 3))
    step = rg.compile(net, torch.zeros(4, 4), wiring="flat", rule="fixed", beta=20.0)
    step.synapses["3->2"].zero_()
    look = rg.Diagnostics(step)(torch.randn(4, 4), torch.arange(4) % 3)
    assert dict(look.region[2].why)["cosine"] == "the update is zero"
    assert dict(look.region[1].why)["cosine"] == "backprop's gradient is zero"
    assert dict(look.edge["3->2"].why) == {
        "angle": "the synapse is zero", "sent": "what is sent is zero", "change": "it does not learn",
        "flips": "nothing was seen before",
    }  # fmt: skip
    assert dict(look.edge["3->1"].why)["sent"] == "the derivative is zero"
    assert look.edge["3->1"].angle is not None
    assert look.region[2].discrepancy == 0


def test_several_ways_are_no_route() -> None:
    step = fresh(residual_cnn())
    look = rg.Diagnostics(step, what="angle")(*batch_for(step))
    assert dict(look.edge["6->1"].why)["angle"] == "several ways lead from region 1 to region 6"
    assert look.edge["5->4"].weights == ("blocks.1.conv2.weight",)


# -- in a training loop ------------------------------------------------------------------------------------------------


class Kept:
    def __init__(self) -> None:
        self.looks: list[Look] = []

    def write(self, look: Look) -> None:
        self.looks.append(look)


def test_after_step_looks_every_so_often() -> None:
    step = fresh(figure1())
    x, target = batch_for(step)
    kept = Kept()
    diagnostics = rg.Diagnostics(step, every=3, what="angle", writers=[kept])
    for number in range(8):
        diagnostics.after_step(number, object(), (x, target))
    assert [look.step for look in kept.looks] == [0, 3, 6]
    assert diagnostics.last is kept.looks[-1]


def test_a_loss_that_is_not_finite_ends_no_run() -> None:
    step = fresh(figure1())
    x, target = batch_for(step)
    bad = (torch.full_like(x[0], math.nan),)
    kept = Kept()
    diagnostics = rg.Diagnostics(step, every=1, writers=[kept])
    before = held(step)
    diagnostics.after_step(7, None, (bad, target))
    look = kept.looks[0]
    assert diagnostics.last is look
    assert (look.step, look.loss, look.regions) == (7, None, ())
    assert "not finite" in dict(look.why)["loss"]
    for what in WHAT[:1], ("discrepancy",):
        with pytest.raises(rg.StepError) as caught:
            rg.Diagnostics(step, what=what)(bad, target)
        assert caught.value.codes == ("RG604",)
    assert all(same(value, before[key]) for key, value in held(step).items())


def test_a_wrong_batch_is_refused_as_the_step_refuses_it() -> None:
    step = fresh(figure1())
    (x,), target = batch_for(step)
    for inputs, goal, code in (((x, x), target, "RG601"), ((x[:, :3],), target, "RG601"), ((x,), None, "RG602")):
        for what in WHAT:
            with pytest.raises(rg.StepError) as caught:
                rg.Diagnostics(step, what=what).after_step(0, None, (inputs, goal))
            assert caught.value.codes == (code,)


def test_a_model_that_takes_more_than_the_step_is_told_so() -> None:
    class More(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            logits: Tensor = self.layer(x) * scale
            return logits

    step = rg.compile(More(), (torch.zeros(4, 4), 2.0))
    x, target = torch.randn(4, 4), torch.arange(4) % 3
    step((x,), target)  # the constant is the step's own
    with pytest.raises(rg.StepError, match="scale") as caught:
        rg.Diagnostics(step)((x,), target)
    assert caught.value.codes == ("RG601",)
    assert rg.Diagnostics(step)((x, 2.0), target).cosine == pytest.approx(1, abs=1e-6)


def test_wrong_options_are_found_at_once() -> None:
    step = figure1()
    with pytest.raises(rg.UsageError) as caught:
        rg.Diagnostics(step, every=0, what=("cosine", "charm"))
    assert caught.value.codes == ("RG405", "RG405")
    assert "'charm'" in str(caught.value)
    with pytest.raises(rg.UsageError, match="is a Sequential"):
        rg.Diagnostics(nn.Sequential())
