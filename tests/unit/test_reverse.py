"""Edges against the connections of the forward pass: which there are, their names, from files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.api import make_options
from reclra_graph.export.dot import plan_dot
from reclra_graph.export.html import plan_html
from reclra_graph.export.plan_json import plan_json, read_plan
from reclra_graph.export.report import report_text, wiring_lines
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.text import from_text, to_text
from reclra_graph.ir.wiring import Edge, WiringPlan
from reclra_graph.passes.wire import wire
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.verify import verify
from tests.conftest import ROOT
from tests.differential.agreement import agrees
from tests.differential.reverse_nets import Block, Gated, LastState, PlainConvs, ProjectedSkip, SmallViT
from tests.models import Dropouts, LocalNet, ResidualCNN, Tagger, Tied, batch_for, mlp, regions_of, same
from tests.unit.broken import assert_named

Golden = Callable[[str, str], None]


@cache
def skips() -> RegionGraph:
    torch.manual_seed(0)
    return regions_of(ProjectedSkip(), torch.zeros(2, 5))


@cache
def convolutions() -> RegionGraph:
    return regions_of(PlainConvs(), torch.zeros(2, 2, 8, 8))


@cache
def resnet() -> CompiledStep:
    torch.manual_seed(1)
    return rg.compile(ResidualCNN(), torch.zeros(3, 1, 6, 6), gpus=2, wiring="reverse", rule="kp")


def wired(regions: RegionGraph, **options: Any) -> WiringPlan:
    return verify(wire(regions, make_options(**options)))


def refused(regions: RegionGraph, **options: Any) -> list[str]:
    """Codes and causes of what is wrong."""
    with pytest.raises(rg.ModelError) as error:
        wire(regions, make_options(**options))
    for problem in error.value.problems:
        assert problem.place
        assert problem.advice
    return [f"{problem.code} {problem.cause}" for problem in error.value.problems]


# -- which edges there are --------------------------------------------------------------------------------------------


def test_plan_of_a_small_resnet(golden: Golden) -> None:
    plan = resnet().plan
    lines = [*wiring_lines(plan), "", f"why: {plan.why}", "", to_text(plan.edges)]
    golden("reverse_resnet.plan.txt", "\n".join(lines))
    text = (ROOT / "tests/golden/reverse_resnet.plan.txt").read_text(encoding="utf-8")
    assert from_text(text[text.index("(\n    Edge(") :]) == plan.edges


def test_branches_have_names_of_their_own() -> None:
    plan = wired(skips(), wiring="reverse")
    assert {edge.name: edge.weight for edge in plan.edges} == {
        "4->3": "head.weight", "3->2.1": "c.weight", "3->2.2": "skip.weight", "3->1": "skip.weight", "2->1.1": "",
        "2->1.2": "b.weight",
    }  # fmt: skip
    by_name = {edge.name: edge for edge in plan.edges}
    assert by_name["2->1.1"] == Edge(2, 1, "adjoint", "fixed", (), 0, "", 1, "")
    assert by_name["3->1"] == Edge(3, 1, "adjoint", "eq6", (4, 6), 96, "", 0, "skip.weight")
    # One weight, one synapse: what the skip's layer sends goes to both that it reads.
    assert by_name["3->2.2"].synapse == "3->1"
    assert plan.synapse_bytes == sum(edge.bytes for edge in plan.edges if not edge.shared) == 4 * (36 + 24 + 24 + 12)
    assert (plan.depth, plan.relays, plan.level) == (3, (2, 3), {4: 0, 3: 1, 2: 2, 1: 3})


def test_one_convolution_over_two_maps_is_used_once() -> None:
    step = rg.compile(PlainConvs(), torch.zeros(2, 2, 8, 8), wiring="reverse", rule="kp")
    back = step.schedule.tasks.by_name["back:5"]
    assert [call.function for call in back.calls].count("rules.synapse.conv_displace") == 1
    assert len([edge for edge in step.plan.edges if edge.weight == "mixed.weight"]) == 2
    assert sum("mixed" in line for line in step.source.splitlines() if "optimise(" in line) == 1
    assert sum("optimise(E" in line for line in step.source.splitlines()) == len(step.synapses) == 6


def test_an_identity_costs_nothing() -> None:
    plan = wired(regions_of(SmallViT(), torch.zeros(2, 1, 4, 4)), wiring="reverse", rule="kp")
    bare = [edge for edge in plan.edges if not edge.weight]
    assert len(bare) == 4  # two normalisations, two skips; the last normalisation stands behind a sum
    assert all((edge.rule, edge.shape, edge.bytes, edge.stored) == ("fixed", (), 0, False) for edge in bare)
    tasks = rg.compile(SmallViT(), torch.zeros(2, 1, 4, 4), wiring="reverse").schedule.tasks
    assert "back:9" in tasks.by_name
    assert "back:7" not in tasks.by_name  # the error of a normalisation arrives as it is


def test_unrolled_layers_share_their_synapse() -> None:
    plan = wired(regions_of(LastState(), torch.zeros(2, 3, 3)), wiring="reverse")
    recurrent = {edge.name: edge.synapse for edge in plan.edges if edge.weight == "layer.weight_hh_l0"}
    assert recurrent == {"3->2": "3->2", "4->2": "3->2", "4->3": "3->2"}


def test_several_outputs_send_back_what_they_read() -> None:
    torch.manual_seed(2)
    losses = {"logits": "cross-entropy", "value": "mse"}
    x, target = torch.randn(3, 3, 4, dtype=torch.float64), {
        "logits": torch.randint(3, (3, 3)), "value": torch.randn(3, 2, dtype=torch.float64),
    }  # fmt: skip
    step = agrees(Tagger().double(), x, target, wiring="reverse", rule="kp", loss=losses)
    assert {edge.source for edge in step.plan.edges} >= set(step.plan.regions.outputs)
    assert not {edge.target for edge in step.plan.edges} & {0, *step.plan.regions.outputs}


class HalfRounded(nn.Module):
    """A layer behind a step function, beside one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.a(x))
        logits: Tensor = self.head(torch.tanh(self.b(torch.round(z))) + torch.tanh(self.c(z)))
        return logits


def test_what_no_error_passes_is_left_out_and_said() -> None:
    plan = wired(regions_of(HalfRounded(), torch.zeros(2, 4)), wiring="reverse")
    assert {edge.name for edge in plan.edges} == {"4->3", "4->2", "3->1"}
    assert plan.why == (
        "reverse: asked for; no error goes back from region 2 to region 1, since aten.round.default is a step function"
    )


def test_regions_that_nobody_below_learns_from_hear_nothing() -> None:
    model = ResidualCNN()
    for part in (model.stem, model.norm, model.blocks[0]):
        part.requires_grad_(False)
    plan = wired(regions_of(model, torch.zeros(2, 1, 6, 6)), wiring="reverse", rule="kp")
    assert {edge.name for edge in plan.edges} == {"6->5", "5->4"}
    net = mlp(5, 4, 4, 3)
    net[2].requires_grad_(False)
    edges = {
        edge.name: edge.rule for edge in wired(regions_of(net, torch.zeros(2, 5)), wiring="reverse", rule="kp").edges
    }
    assert edges == {"3->2": "kp", "2->1": "fixed"}  # what its weight does not learn, E does not


# -- rules and options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["kp", "sign"])
def test_rules_that_mirror_take_reverse_by_themselves(rule: str) -> None:
    plan = wired(skips(), rule=rule)
    assert (plan.wiring, plan.rates.gamma) == ("reverse", 1.0)
    assert plan.why == f"reverse: the rule '{rule}' mirrors forward weights"
    assert wired(skips(), rule=rule, gamma=0.25).rates.gamma == 0.25
    assert wired(skips(), rule=rule, wiring="chain", synapse="adjoint").wiring == "chain"
    assert wired(skips()).rates.gamma == 0.01


def test_what_does_not_fit_is_refused() -> None:
    assert refused(skips(), wiring="flat", rule="kp") == [
        f"RG442 edge 4->{number} has the rule 'kp', which needs a weight to mirror; it is dense" for number in (1, 2, 3)
    ]
    local = regions_of(LocalNet(), torch.zeros(2, 6))
    assert {text.partition(" of")[0] for text in refused(local, rule="kp")} == {
        "RG442 edge 3->2 has the rule 'kp', but t", "RG442 edge 4->3 has the rule 'kp', but t",
    }  # fmt: skip
    assert wired(local, rule="sign").edges
    (unreached,) = refused(regions_of(_stepped(), torch.zeros(2, 4)), wiring="reverse")
    assert unreached.startswith("RG445 reverse does not reach region 1 (0): on the way from region 2, aten.round")
    assert refused(skips(), wiring="reverse", depth=1) == [
        "RG402 depth 1 was asked for, but reverse wiring as given has depth 3"
    ]
    assert refused(skips(), wiring="reverse", relays=(2,))[0].startswith("RG403")
    assert refused(skips(), wiring="reverse", synapse_memory=300)[0].startswith("RG440 the error synapses take 384 B")
    assert wired(skips(), wiring="reverse", rule="sign", synapse_memory=1).synapse_bytes == 0


def _stepped() -> nn.Module:
    class Rounded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self[1](torch.round(torch.tanh(self[0](x))))
            return found

    return Rounded(nn.Linear(4, 3), nn.Linear(3, 2))


def test_strict_refuses_derivatives_on_the_way_alone() -> None:
    assert wired(convolutions(), wiring="reverse", strict=True).edges
    blocks = nn.Sequential(nn.Linear(4, 8), Block(8, 2, apart=True, causal=False), nn.Flatten(), nn.Linear(24, 3))
    found = refused(regions_of(blocks, torch.zeros(2, 3, 4)), wiring="reverse", strict=True)
    assert found == [
        "RG304 edge 6->3 goes back over aten.scaled_dot_product_attention.default, which has no closed adjoint"
    ]
    gate = refused(regions_of(Gated(), torch.zeros(2, 1, 5, 5)), wiring="reverse", strict=True)
    assert [text.split(" ")[6] for text in gate] == ["aten.mul.Tensor,"]


def test_costs_of_a_device_count_what_goes_back() -> None:
    step = rg.compile(ResidualCNN(), torch.zeros(8, 1, 6, 6), wiring="reverse", rule="kp", device="h200", gpus=2)
    rows = {row.name: row for row in step.plan.candidates}
    assert set(rows) == {"reverse", "flat", "chain"}
    assert [row.name for row in step.plan.candidates if row.chosen] == ["reverse"]
    assert rows["reverse"].makespan_one > 0
    busy = sum(task.cost for task in step.schedule.tasks.tasks)
    assert rows["reverse"].makespan_one == pytest.approx(busy, rel=0.35)
    unit = {row.name: row for row in resnet().plan.candidates}["reverse"]
    assert unit.makespan == resnet().schedule.makespan
    assert unit.bytes == resnet().plan.synapse_bytes


def test_other_options_make_the_same_step() -> None:
    """Activations made again, fewer optimisations, one fused group: no option changes what is learned."""
    x, target = batch_for(resnet())
    found = []
    for options in ({}, {"recompute": True}, {"without": ("straight", "factors")}, {"memory_format": "channels_last"}):
        torch.manual_seed(1)
        step = rg.compile(ResidualCNN(), torch.zeros(3, 1, 6, 6), wiring="reverse", rule="kp", **options)  # type: ignore[arg-type]
        step(x, target)
        found.append({**step.storage(), **step.synapses})
    for other in found[1:]:
        assert all(same(value, other[key]) for key, value in found[0].items())


def test_updates_go_to_any_optimiser_and_to_files(tmp_path: Path) -> None:
    step = resnet()
    x, target = batch_for(step)
    rg.assign_grads(step, x, target)
    weights = dict(step.model.named_parameters())
    for edge in step.plan.edges:
        if edge.weight:
            assert torch.equal(step.synapses[edge.synapse].grad, weights[edge.weight].grad)  # type: ignore[arg-type]
    step.save(tmp_path / "net")
    loaded = rg.load(tmp_path / "net", step.model)
    assert loaded.plan == step.plan
    assert read_plan((tmp_path / "net" / "plan.json").read_text(encoding="utf-8")).edges == step.plan.edges


def test_reports_and_pictures_name_the_branches() -> None:
    step = rg.compile(ProjectedSkip(), torch.zeros(2, 5), wiring="reverse", rule="kp")
    report = report_text(step.program)
    assert "`- 1 (a)  [3->1 adjoint 4x6]" in report
    assert "[2->1.1 adjoint without weights]" in report
    for text in (plan_html(step.schedule), plan_dot(step.schedule)):
        assert "2-&gt;1.2" in text or "2->1.2" in text or "2-\\u003e1.2" in text
    assert "mirrors skip.weight" in plan_html(step.schedule)


# -- wirings from files -----------------------------------------------------------------------------------------------


def planned(folder: Path, content: object, regions: RegionGraph, **options: Any) -> WiringPlan:
    path = folder / "wiring.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return wired(regions, wiring=str(path), **options)


def test_a_plan_gives_its_own_wiring_again(tmp_path: Path) -> None:
    step = rg.compile(ProjectedSkip(), torch.zeros(2, 5), wiring="reverse", rule="kp")
    again = planned(tmp_path, plan_json(step.program), step.plan.regions)
    assert again.edges == step.plan.edges


def test_adjoint_edges_beside_others(tmp_path: Path) -> None:
    """A region may hear over both: the displacements add."""
    content = {"edges": ["4->3", "3->2", "4->2", "2->1", "4->1"], "forms": {"3->2": "adjoint", "2->1": "adjoint"}}
    plan = planned(tmp_path, content, skips())
    assert {edge.name: edge.form for edge in plan.edges} == {
        "4->3": "dense", "3->2.1": "adjoint", "3->2.2": "adjoint", "4->2": "dense", "2->1.1": "adjoint",
        "2->1.2": "adjoint", "4->1": "dense",
    }  # fmt: skip
    torch.manual_seed(4)
    x, target = torch.randn(5, 5, dtype=torch.float64), torch.randint(3, (5,))
    for options in ({}, {"gpus": 3}, {"without": ("straight", "factors", "shared")}):
        agrees(ProjectedSkip().double(), x, target, wiring=str(tmp_path / "wiring.json"), **options)


def test_rules_of_single_branches(tmp_path: Path) -> None:
    edges = [
        {"source": 4, "target": 3, "form": "adjoint", "rule": "kp"},
        {"source": 3, "target": 2, "form": "adjoint", "branch": 1, "rule": "sign"},
        {"source": 3, "target": 2, "form": "adjoint", "branch": 2, "rule": "eq6"},
        {"source": 2, "target": 1, "form": "adjoint", "rule": "kp"},
    ]
    plan = planned(tmp_path, {"edges": edges}, skips(), rule="fixed")
    assert {edge.name: edge.rule for edge in plan.edges} == {
        "4->3": "kp", "3->2.1": "sign", "3->2.2": "eq6", "2->1.1": "fixed", "2->1.2": "kp",
    }  # fmt: skip
    torch.manual_seed(4)
    x, target = torch.randn(5, 5, dtype=torch.float64), torch.randint(3, (5,))
    agrees(ProjectedSkip().double(), x, target, wiring=str(tmp_path / "wiring.json"), rule="fixed")


FILES: dict[str, tuple[object, str]] = {
    "no connection": (
        {"edges": ["4->3", "4->2", "3->1"], "forms": {"4->2": "adjoint"}},
        "RG442 edge 4->2 has the form 'adjoint'",
    ),
    "a branch too few": (
        [{"source": 3, "target": 2, "form": "adjoint", "branch": 1}, "4->3", "2->1"],
        "RG442 the file lists the branches [1] of edge 3->2, whose branches are 3->2.1, 3->2.2",
    ),
    "a branch too many": (
        [{"source": 4, "target": 3, "form": "adjoint", "branch": 1}, "3->2", "2->1"],
        "RG442 the file lists the branches [1] of edge 4->3, whose branches are none",
    ),
    "branches of another form": ([{"source": 4, "target": 3, "branch": 1}, "3->2", "2->1"], "RG442 the file lists"),
    "no number": ([{"source": 4, "target": 3, "branch": "one"}], "RG441 the branch of 4->3 is 'one'"),
    "below 0": ([{"source": 4, "target": 3, "branch": -1}], "RG441 the branch of 4->3 is -1"),
    "a wrong shape": (
        [{"source": 4, "target": 3, "form": "adjoint", "shape": [4, 3]}, "3->2", "2->1"],
        "RG442 edge 4->3 has the shape (4, 3); adjoint needs (3, 4)",
    ),
    "a rule without a weight": (
        ["4->3", {"source": 3, "target": 2, "rule": "kp"}, "2->1"],
        "RG442 edge 3->2 has the rule 'kp'",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_do_not_fit(name: str, tmp_path: Path) -> None:
    content, wanted = FILES[name]
    path = tmp_path / "wiring.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(rg.ModelError) as error:
        wire(skips(), make_options(wiring=str(path)))
    assert any(f"{problem.code} {problem.cause}".startswith(wanted) for problem in error.value.problems), str(
        error.value
    )


# -- the verifier -----------------------------------------------------------------------------------------------------


def broken(name: str, **changes: Any) -> WiringPlan:
    plan = wired(skips(), wiring="reverse", rule="kp")
    assert name in {edge.name for edge in plan.edges}
    return replace(plan, edges=tuple(replace(edge, **changes) if edge.name == name else edge for edge in plan.edges))


def without(name: str) -> WiringPlan:
    plan = wired(skips(), wiring="reverse", rule="kp")
    return replace(plan, edges=tuple(edge for edge in plan.edges if edge.name != name))


PLANS: dict[str, tuple[Callable[[], WiringPlan], str, str]] = {
    "a shape that is not the weight's": (lambda: broken("4->3", shape=(4, 3)), r"^edge 4->3$", r"\(4, 3\).*\(3, 4\)"),
    "another weight": (lambda: broken("4->3", weight="c.weight"), r"^edge 4->3$", "not those of the connection"),
    "a branch lost": (lambda: without("2->1.1"), r"^edge 2->1$", "not those of the connection"),
    "a branch that is none": (lambda: broken("4->3", branch=1), r"^edge 4->3$", "not those of the connection"),
    "a wrong size": (lambda: broken("4->3", bytes=7), r"^edge 4->3$", "7 bytes"),
    "a rule that nothing follows": (lambda: broken("2->1.1", rule="kp"), r"^edge 2->1\.1$", "cannot have the rule"),
    "an unknown rule": (lambda: broken("4->3", rule="magic"), r"^edge 4->3$", "magic"),
    "a mirror without a weight": (
        lambda: replace(wired(skips(), wiring="chain"), edges=tuple(
            replace(edge, rule="kp") for edge in wired(skips(), wiring="chain").edges)),
        r"^edge 4->3$", "no weight for the rule kp",
    ),
    "a weight on another form": (
        lambda: replace(wired(skips(), wiring="chain"), edges=tuple(
            replace(edge, weight="a.weight") for edge in wired(skips(), wiring="chain").edges)),
        r"^edge 4->3$", "and yet the branch of a connection",
    ),
    "no connection": (lambda: broken("4->3", target=1), r"^edge 4->1$", "no error can go back from region 4"),
    "the synapse of another weight": (lambda: broken("4->3", shared="3->1"), r"^4->3$", "cannot share"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_broken_plans(name: str) -> None:
    make, place, cause = PLANS[name]
    assert_named(make(), place, cause)


def test_a_synapse_that_no_task_moves() -> None:
    tasks = resnet().schedule.tasks
    for index, task in enumerate(tasks.tasks):
        if task.name == "optimise:synapses:5->4":
            cut = replace(tasks, tasks=(*tasks.tasks[:index], *tasks.tasks[index + 1 :]))
            edges = tuple(pair for pair in cut.edges if task.name not in pair)
            assert_named(replace(cut, edges=edges), r"^edge 5->4$", "learns by kp, but no task updates it")
            return
    raise AssertionError


def test_dropouts_and_tied_weights_move_once() -> None:
    for make, sizes in ((Dropouts, 6), (Tied, 6)):
        step = rg.compile(make(), torch.zeros(4, sizes), wiring="reverse", rule="kp")
        stored = [line.strip() for line in step.source.splitlines() if "optimise(E" in line]
        assert len(stored) == len(step.synapses) == len({edge.synapse for edge in step.plan.edges if edge.weight})


def test_random_numbers_that_are_drawn_anew_stop_an_error() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            logits: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
            return logits

    (cause,) = refused(regions_of(Dropped(), torch.zeros(2, 3, 4)), wiring="reverse")
    assert "aten.scaled_dot_product_attention.default draws random numbers" in cause
