"""dkp, readout and mirror through the compiler: what they fit, what waits for what, and that nothing else changes the
numbers: lanes, micro-batches, graphs, files."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.api import make_options
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.schedule import Run
from reclra_graph.ir.wiring import WiringPlan
from reclra_graph.passes.lower import lower
from reclra_graph.passes.mirror_mode import mirrors_alone
from reclra_graph.passes.wire import wire
from reclra_graph.runtime import graphed
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.graphed import GraphedStep
from reclra_graph.runtime.loader import load_source
from reclra_graph.runtime.pieced import PiecedStep
from reclra_graph.runtime.pieces import TracedPiece
from reclra_graph.runtime.traced import flat_tensors, traced
from reclra_graph.verify import verify
from tests.models import (
    FIGURE_1,
    ResidualCNN,
    batch_for,
    build,
    changed,
    figure1_regions,
    fresh,
    mlp,
    regions_of,
    same,
    snapshot,
)
from tests.property.happens_before import faults
from tests.unit import test_opaque_step
from tests.unit.fake_cuda import Cuda, Torch, on_cuda
from tests.unit.record_models import Experts
from tests.unit.refusals import refused

RULES = ("dkp", "mirror", "readout")
BLOCKS = ("9->8", "9->5", "9->2", "8->7", "8->6", "5->4", "5->3", "2->1")
"""Figure 1's own wiring."""


@cache
def double() -> tuple[nn.Module, RegionGraph]:
    torch.manual_seed(1)
    model = mlp(*FIGURE_1).double()
    return model, regions_of(model, torch.zeros(4, 20, dtype=torch.float64))


def figure(rule: str, **options: Any) -> CompiledStep:
    return build(*double(), **{"rule": rule, "wiring": BLOCKS, "gamma": 0.5, "synapse_decay": 0.1, **options})


def after(step: CompiledStep, steps: int = 3) -> dict[str, Tensor]:
    """Everything that some steps have changed, and for mirrors some of mirror mode."""
    for seed in range(steps):
        inputs, target = batch_for(step, seed=seed)
        torch.manual_seed(seed)
        step(inputs, target)
        if "def mirror(" in step.source:
            step.mirror(inputs)
    return snapshot(step)


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[key] - value).abs().max()) for key, value in wanted.items())


# -- lanes, parts, graphs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_lanes_make_no_difference(rule: str) -> None:
    """Bit for bit, the noise of mirrors included; and schedules without a race, that of mirror mode too."""
    wanted = after(figure(rule, gpus=1))
    for options in ({"gpus": 2}, {"gpus": 5}, {"gpus": 3, "device": "h200"}, {"gpus": 3, "placement": "pipeline"},
                    {"gpus": 3, "overlap_steps": True}):  # fmt: skip
        step = figure(rule, **options)
        found = after(step)
        assert [key for key, value in wanted.items() if not same(found[key], value)] == [], options
        assert len(step.schedule.lanes) > 1
        plain = (
            not step.plan.placement
        )  # placed regions have parameters of their own, of which ``faults`` knows nothing
        assert not plain or faults(step.schedule) == set()
        alone = mirrors_alone(step.schedule)
        assert (alone is None) == (rule != "mirror")
        if alone is not None:
            assert verify(alone) == alone
            assert not plain or faults(alone) == set()


@pytest.mark.parametrize("rule", ["dkp", "readout"])
@pytest.mark.parametrize("options", [{}, {"class_weights": (1.0,) * 9 + (3.0,), "ignore_index": 1}], ids=str)
def test_micro_batches_learn_what_the_whole_batch_does(rule: str, options: dict[str, Any]) -> None:
    whole, parts = figure(rule, **options), figure(rule, **options, gpus=2, micro_batches=2)
    assert apart(after(parts), after(whole)) < 1e-12


def test_micro_batches_mirror_with_noise_of_their_own() -> None:
    """Half of a batch twice, the noise of each half drawn in its turn: the mean of what both would teach."""
    step, parts = (
        figure("mirror", **options) for options in ({"synapse_decay": 0.0}, {"micro_batches": 2, "synapse_decay": 0.0})
    )
    start = {key: value.clone() for key, value in step.synapses.items()}
    inputs, _ = batch_for(step, 8)
    wanted = {key: torch.zeros_like(value) for key, value in start.items()}
    torch.manual_seed(3)
    for half in inputs[0].chunk(2):
        for key, value in start.items():
            step.synapses[key].copy_(value)
        step.mirror(half)
        for key, value in start.items():
            wanted[key] += (step.synapses[key] - value) / 2
    torch.manual_seed(3)
    parts.mirror(inputs)
    for key, value in parts.synapses.items():
        torch.testing.assert_close(value - start[key], wanted[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("gpus", [1, 3])
def test_a_traced_step_is_the_step(rule: str, gpus: int) -> None:
    step, twin = figure(rule, gpus=gpus), figure(rule, gpus=gpus)
    rate = torch.tensor(step.lr, dtype=torch.float64)
    (x,), target = batch_for(step)
    found = traced(twin, [x], target, rate, lean=True)
    for seed in range(2):
        (x,), target = batch_for(step, seed=seed)
        torch.manual_seed(seed)
        step(x, target)
        flat = flat_tensors(twin, [x], [target], rate)
        torch.manual_seed(seed)
        with torch.no_grad():
            found.module(*[flat[index] for index in found.used])
    assert apart(snapshot(twin), snapshot(step)) < 1e-12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{"gpus": 1}, {"gpus": 5}], ids=str)
def test_graphs_and_pieces_are_the_step(
    rule: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Cuda()
    monkeypatch.setattr(graphed, "torch", Torch(made))
    plain = figure(rule, **options)
    step, twin = on_cuda(plain, made), fresh(plain)
    run = GraphedStep(step, warmup=0)
    inputs, target = batch_for(step)
    if rule != "mirror":  # whose noise a recorded graph draws again as it was captured: in another order
        for number in range(3):
            inputs, target = batch_for(step, seed=number)
            assert same(run(inputs, target), twin(inputs, target))
        assert all(same(value, snapshot(twin)[key]) for key, value in snapshot(step).items())
    else:
        run(inputs, target)
    assert run.why == ""
    assert made.log.count("begin") == 2

    def module(self: PiecedStep, traced: TracedPiece) -> Any:
        return traced.module

    monkeypatch.setattr(PiecedStep, "_machine_code", module)
    step, twin = fresh(plain), fresh(plain)
    pieced = PiecedStep(step, folder=tmp_path, places={lane.id: lane.id for lane in step.schedule.lanes})
    for number in range(2):
        inputs, target = batch_for(step, seed=number)
        torch.manual_seed(number)
        wanted = twin(inputs, target)
        torch.manual_seed(number)
        torch.testing.assert_close(pieced(inputs, target), wanted, rtol=1e-9, atol=1e-12)
    assert pieced.why == ""
    assert apart(snapshot(step), snapshot(twin)) < 1e-10


@pytest.mark.parametrize("rule", RULES)
def test_a_saved_step_goes_on_as_it_would_have(rule: str, tmp_path: Path) -> None:
    step = figure(rule, gpus=2)
    after(step, 1)
    again = rg.load(step.save(tmp_path / "saved"), copy.deepcopy(step.model))
    assert apart(after(again, 2), after(step, 2)) == 0.0


# -- what waits for what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", ["flat", BLOCKS], ids=["flat", "blocks"])
def test_no_error_below_the_output_waits_for_the_loss(wiring: Any) -> None:
    """Targets, errors and changes hang on the forward pass alone where all edges that leave the output are readouts;
    what is stored waits until the loss was looked at."""
    tasks = lower(wire(double()[1], make_options(rule="readout", wiring=wiring)))
    order = nx.DiGraph(tasks.edges)
    order.add_nodes_from(task.name for task in tasks.tasks)
    behind = nx.descendants(order, "loss")
    early = {task.name for task in tasks.tasks if task.kind in ("displace", "target", "error", "update", "synapse")}
    assert behind & early == {"update:9"}
    assert {task.name for task in tasks.tasks if task.kind in ("optimise", "buffer")} <= behind
    # With any other rule the loss comes first.
    tasks = lower(wire(double()[1], make_options(rule="dkp", wiring=wiring)))
    behind = nx.descendants(nx.DiGraph(tasks.edges), "loss")
    assert {task.name for task in tasks.tasks if task.kind in ("displace", "target", "update")} <= behind


def test_readouts_start_before_the_forward_pass_has_ended() -> None:
    """Where regions live on GPUs of their own, the first learns while the last still waits for its input."""
    model, regions = figure1_regions()
    options = {"gpus": 3, "placement": "pipeline", "wiring": "flat", "device": "h200"}
    order = {}
    for rule in ("dkp", "readout"):
        step = rg.compile(model, torch.zeros(4, 20), rule=rule, **options)
        runs = [action.task for action in step.schedule.actions if isinstance(action, Run)]
        order[rule] = {name: runs.index(name) for name in ("target:1", "target:4", "optimise:1", "loss", "forward:9")}
    assert regions.output == 9
    assert order["dkp"]["target:1"] > order["dkp"]["loss"]
    assert order["readout"]["target:1"] < order["readout"]["target:4"] < order["readout"]["forward:9"]
    assert order["readout"]["optimise:1"] > order["readout"]["loss"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{"gpus": 1}, {"gpus": 3}, {"gpus": 2, "placement": "pipeline"}], ids=str)
def test_a_loss_that_is_not_finite_changes_nothing(rule: str, options: dict[str, Any]) -> None:
    """Neither where the input is not, nor where the output alone is not, and every readout finite."""
    step = figure(rule, **options)
    (x,), target = batch_for(step)
    bias = dict(step.model.named_parameters())["16.bias"]
    for place, work in ((x, "input"), (bias, "output")):
        kept = place.detach().clone()
        with torch.no_grad():
            place.view(-1)[0] = float("nan")
        before = snapshot(step)
        refused(rg.StepError, lambda: step(x, target), "RG604")
        if rule == "mirror":
            refused(rg.StepError, lambda: step.mirror(x), "RG604")
        assert changed(step, before) == set(), work
        with torch.no_grad():
            place.copy_(kept)
    step(x, target)


def test_the_file_says_what_it_does() -> None:
    body = figure("readout").source
    assert "o5 = z5 @ E['9->5']" in body
    assert "e9_5 = torch.softmax(o5, 1) - F.one_hot(target, 10)" in body
    assert "d5 = e9_5 @ E['9->5'].T" in body
    assert "dE_9_5 = gamma / B * (z5.T @ e9_5)" in body
    assert "dE_5_4 = gamma / B * (z4.T @ e5)" in body
    assert "def mirror(" not in body
    body = figure("mirror").source
    for line in ("n5 = torch.randn_like(z5)", "z5_n5 = z5 + 0.1 * n5", "r9_5 = (z9 - z9_n5) / 0.1",
                 "dE_9_5 = gamma / B * (n5.T @ r9_5)", "# r5: how r9 responds to noise here"):  # fmt: skip
        assert body.count(line) == 2, line  # in step and in mirror
    assert body.count("# noise at the regions whose synapses are mirrors") == 2
    assert body.count("check(loss, input)") == 2


# -- mirror mode ------------------------------------------------------------------------------------------------------


def test_mirror_mode_changes_mirrors_alone() -> None:
    """Buffers too stay as they are; the emitted file does it by hand, with the optimiser that it is given."""
    torch.manual_seed(2)
    step = rg.compile(ResidualCNN(), torch.zeros(3, 1, 6, 6), rule="mirror", wiring="chain", optimizer="momentum")
    (x,), _ = batch_for(step)
    before = snapshot(step)
    assert changed(step, before) == set()
    size = step.mirror(x)
    assert size.shape == ()
    assert changed(step, before) == {f"E.{edge.synapse}" for edge in step.plan.edges}
    assert {key.partition("|")[0] for key in step.optimiser_state} == {f"E.{name}" for name in step.synapses}
    module = load_source(step.source, "<by hand>")
    P, E = step.model.state_dict(), module.synapses(0)
    seen = []
    module.mirror(P, E, x, gamma=1.0, optimise=lambda store, name, delta, lr: seen.append((name, float(lr))))
    assert seen == [(name, step.lr) for name, _ in seen]
    assert {name for name, _ in seen} == set(E)


def test_mirror_mode_is_refused_where_it_cannot_be() -> None:
    refused(rg.UsageError, lambda: figure("dkp").mirror(torch.zeros(4, 20, dtype=torch.float64)), "RG405")
    step = figure("mirror")
    refused(rg.StepError, lambda: step.mirror(torch.zeros(4, 19, dtype=torch.float64)), "RG601")
    refused(rg.StepError, lambda: step.mirror("x"), "RG601")
    refused(rg.StepError, lambda: step.mirror(torch.zeros(4, 20)), "RG601")


def test_a_wiring_of_several_rules_mirrors_what_is_a_mirror(tmp_path: Path) -> None:
    """Rules edge by edge, from a file; in mirror mode the others stay."""
    rules = {"4->3": "mirror", "4->2": "dkp", "3->2": "mirror", "2->1": "eq6", "4->1": "readout"}
    step = mixed(tmp_path, rules)
    assert {edge.name: edge.rule for edge in step.plan.edges} == rules
    (x,), target = batch_for(step)
    before = snapshot(step)
    step.mirror(x)
    assert changed(step, before) == {"E.4->3", "E.3->2"}
    step(x, target)
    assert changed(step, before) == set(before)


def mixed(tmp_path: Path, rules: dict[str, str], **said: str) -> CompiledStep:
    """A step of a small net whose wiring file gives every edge a rule."""
    ends = {name: [int(end) for end in name.split("->")] for name in rules}
    edges = [{"source": ends[name][0], "target": ends[name][1], "rule": rules[name], **said} for name in rules]
    path = tmp_path / "wiring.json"
    path.write_text(json.dumps({"edges": edges}), encoding="utf-8")
    return rg.compile(mlp(5, 6, 4, 6, 3), torch.zeros(2, 5), wiring=str(path), lr=0.5)


# -- what does not fit ------------------------------------------------------------------------------------------------


@cache
def small() -> RegionGraph:
    return regions_of(mlp(5, 6, 4, 6, 3), torch.zeros(2, 5))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["implicit", "lowrank(2)"])
def test_forms_that_store_no_whole_synapse(rule: str, form: str, tmp_path: Path) -> None:
    found = refused(rg.ModelError, lambda: wire(small(), make_options(rule=rule, synapse=form)), "RG442")
    assert f"has the form {form!r}" in str(found)
    assert "edge 2->1" in str(found)
    refused(rg.ModelError, lambda: mixed(tmp_path, dict.fromkeys(("4->3", "4->2", "4->1"), rule), form=form),
            *["RG442"] * 3)  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_budget_is_held_by_forms_that_fit(rule: str) -> None:
    regions = regions_of(ResidualCNN(), torch.zeros(3, 1, 6, 6))
    plan = wire(regions, make_options(rule=rule, wiring="flat", synapse_memory=1000))
    assert {edge.form for edge in plan.edges} == {"channel", "dense"}
    refused(rg.ModelError, lambda: wire(small(), make_options(rule=rule, wiring="flat", synapse_memory=100)), "RG440")
    eq6: WiringPlan = wire(small(), make_options(wiring="flat", synapse_memory=100))
    assert {edge.form for edge in eq6.edges} != {"dense"}


def test_only_an_output_has_something_to_read_out(tmp_path: Path) -> None:
    found = refused(rg.ModelError, lambda: mixed(tmp_path, {"4->3": "readout", "3->2": "readout", "2->1": "dkp"}),
                    "RG442")  # fmt: skip
    assert "edge 3->2 has the rule 'readout', but region 3 is no output" in str(found)
    plan = wire(small(), make_options(rule="readout", wiring="chain"))
    assert {edge.name: edge.rule for edge in plan.edges} == {"4->3": "readout", "3->2": "dkp", "2->1": "dkp"}


class Branches(nn.Module):
    """Two layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.cat([torch.tanh(self.a(x)), torch.tanh(self.b(x))], 1))
        return scores


def test_a_mirror_needs_a_way_from_the_one_region_to_the_other() -> None:
    regions = regions_of(Branches(), torch.zeros(2, 4))
    found = refused(rg.ModelError, lambda: wire(regions, make_options(rule="mirror", wiring=("3->2", "2->1"))), "RG442")
    assert "edge 2->1 mirrors nothing: region 2 does not read what region 1 puts out" in str(found)
    assert wire(regions, make_options(rule="mirror", wiring="flat"))
    assert wire(regions, make_options(rule="dkp", wiring=("3->2", "2->1")))


def test_a_mirror_looks_through_nothing_that_runs_as_it_is() -> None:
    def compiled(**options: Any) -> CompiledStep:
        return rg.compile(test_opaque_step.Net(), torch.randn(6, 4), **options)

    found = refused(rg.ModelError, lambda: compiled(rule="mirror", wiring="flat"), *["RG442"] * 1)
    assert "inner is a sub-module that runs as it is" in str(found)
    step = compiled(rule="dkp", wiring="flat")
    after(step, 1)


class Attention(nn.Module):
    """Dropout inside attention: its mask is nowhere to be read."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.inner, self.head = nn.MultiheadAttention(6, 2, dropout=dropout, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.inner(x, x, x, need_weights=False)[0].mean(1))
        return scores


def test_a_mirror_draws_nothing_anew() -> None:
    x = torch.zeros(2, 4, 6)
    options = make_options(rule="mirror", wiring="chain")
    found = refused(rg.ModelError, lambda: wire(regions_of(Attention(0.1), x), options), "RG442")
    assert "aten.scaled_dot_product_attention.default draws other numbers anew" in str(found)
    assert wire(regions_of(Attention(0.0), x), options)
    assert wire(regions_of(Attention(0.1), x), make_options(rule="readout", wiring="chain"))


def test_a_mirror_moves_no_sizes() -> None:
    """Which rows go to which expert, and how many, depends on numbers."""
    regions = regions_of(Experts(), torch.randn(8, 6))
    options = make_options(rule="mirror", wiring="flat", loss={"logits": "cross-entropy"})
    with pytest.raises(rg.ModelError) as error:
        wire(regions, options)
    assert set(error.value.codes) == {"RG442"}
    assert "gives another number of values anew" in str(error.value)


@pytest.mark.parametrize("options", [{"mirror_noise": 0.0}, {"mirror_noise": "much"}, {"synapse_decay": -0.1},
                                     {"rule": "hope"}], ids=str)  # fmt: skip
def test_numbers_that_cannot_be(options: dict[str, Any]) -> None:
    refused(rg.UsageError, lambda: rg.compile(mlp(4, 3, 2), torch.zeros(2, 4), **options), "RG405")
