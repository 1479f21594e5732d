"""WiringPlan → TaskGraph: the tasks of one step, what they read and write, and the order they must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from reclra_graph.ir.operators import Ref, references
from reclra_graph.ir.tasks import KINDS, Call, Task, TaskGraph
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import STEPS, batch_for, build, figure1, figure1_regions, fresh, mlp, regions_of, residual_cnn, tied
from tests.property.happens_before import touched


def tasks_of(**options: object) -> TaskGraph:
    model, regions = figure1_regions()
    return build(model, regions, **{"without": ("shared",), **options}).schedule.tasks


def functions(task: Task) -> list[str]:
    return [call.function.removeprefix("rules.") for call in task.calls]


def test_tasks_of_figure_1() -> None:
    tasks = tasks_of(gpus=5)
    assert Counter(task.kind for task in tasks.tasks) == {
        "forward": 9, "loss": 1, "displace": 8, "target": 8, "error": 8, "update": 9, "synapse": 8, "optimise": 17,
    }  # fmt: skip
    assert {task.kind for task in tasks.tasks} <= set(KINDS)
    assert functions(tasks.by_name["loss"]) == ["loss.cross_entropy", "check", "loss.cross_entropy_error"]
    assert functions(tasks.by_name["displace:5"]) == ["synapse.dense_displace"]
    assert functions(tasks.by_name["target:5"]) == ["target.target"]
    assert functions(tasks.by_name["error:5"]) == ["discrepancy.mismatch"]
    assert functions(tasks.by_name["update:5"]) == ["updates.linear_weight", "updates.linear_bias"]
    assert functions(tasks.by_name["optimise:5"]) == ["optimise"] * 2
    assert functions(tasks.by_name["synapses:5"]) == ["synapse.dense_eq6_few"]
    assert functions(tasks.by_name["optimise:synapses:5"]) == ["optimise"]
    # The output learns from e_L itself; no error arrives there over a synapse.
    assert functions(tasks.by_name["update:9"]) == ["updates.linear_weight", "updates.linear_bias"]
    assert tasks.by_name["displace:5"].reads == ("e9", "E[9->5]")
    assert tasks.by_name["displace:5"].writes == ("d5",)
    assert tasks.by_name["target:5"].reads == ("h5", "d5")
    assert tasks.by_name["error:5"].reads == ("z5", "y5")
    assert set(tasks.by_name["update:5"].reads) == {"e5", "z4"}
    assert tasks.by_name["optimise:5"].writes == ("P[8.weight]", "P[8.bias]")
    assert tasks.by_name["displace:4"].reads == ("e5", "E[5->4]")
    for task in tasks.tasks:
        number = task.name.rpartition(":")[2]
        assert task.region == (9 if task.name == "loss" else int(number))
    groups = {task.group for task in tasks.tasks if task.region == 5}
    assert groups == {"forward", "target:5", "update:5", "synapses:5"}


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_what_every_task_graph_keeps(make: Callable[[], CompiledStep]) -> None:
    tasks = make().schedule.tasks
    order = nx.DiGraph(tasks.edges)
    order.add_nodes_from(task.name for task in tasks.tasks)
    assert nx.is_directed_acyclic_graph(order)
    place = {task.name: index for index, task in enumerate(tasks.tasks)}
    assert all(place[before] < place[after] for before, after in tasks.edges)
    assert len(place) == len(tasks.tasks)
    assert len(set(tasks.edges)) == len(tasks.edges)
    writers: Counter[str] = Counter()
    for task in tasks.tasks:
        reads, writes = touched(task)
        assert (set(task.reads), set(task.writes)) == (reads, writes)
        writers.update(writes)
        assert task.cost == (1 if task.kind in ("loss", "target", "update") else 0)
        assert min(task.flops, task.bytes) >= 0
        for call in task.calls:
            if call.function.startswith("rules."):
                assert len(call.results) == len(call.types) == 1
            assert not call.unpack or len(call.results) == len(call.types)
    assert set(writers.values()) == {1}
    # Everything that changes the model comes after the loss was found finite.
    for task in tasks.tasks:
        if any(name[:2] in ("P[", "E[") for name in task.writes):
            assert nx.has_path(order, "loss", task.name), task.name


def test_costs_add_up_to_one_gpu() -> None:
    for make in STEPS:
        plan = make().plan
        tasks = make().schedule.tasks
        assert sum(task.cost for task in tasks.tasks) == next(row.makespan_one for row in plan.candidates if row.chosen)


def test_flops_of_dense_and_convolutions() -> None:
    dense = figure1().schedule.tasks
    assert dense.by_name["forward:2"].flops == 2 * 16 * 4 + 4
    conv = residual_cnn().schedule.tasks
    # 4 maps of 6 × 6, each from 9 weights, then norm, ReLU and pooling.
    assert conv.by_name["forward:1"].flops >= 2 * 4 * 36 * 9
    assert conv.by_name["forward:1"].flops <= 2 * 4 * 36 * 9 + 8 * 4 * 36


def test_tied_parameters_are_optimised_once_from_the_sum() -> None:
    tasks = tied().schedule.tasks
    shared = [
        task
        for task in tasks.tasks
        if task.name in ("optimise:first.weight", "optimise:again.weight", "optimise:again.bias")
    ]
    assert len(shared) == 3
    for task in shared:
        assert functions(task) == ["target.total", "optimise"]
        assert len(task.calls[0].args) == 2
        assert task.kind == "optimise"
    written = [name for task in tasks.tasks for name in task.writes if name.startswith("P[")]
    assert sorted(written) == sorted({f"P[{item.key}]" for item in tied().plan.regions.graph.parameters})


def test_buffers_move_after_the_loss() -> None:
    tasks = residual_cnn().schedule.tasks
    buffers = tasks.by_name["buffers"]
    assert "loss" in buffers.reads
    assert {name for name in buffers.writes if name.startswith("P[")} == {
        f"P[{key}]" for key, _ in residual_cnn().model.named_buffers()
    }
    # Counting batches is no business of the forward pass: it must not run before the check.
    assert not any("num_batches" in name for task in tasks.tasks if task.kind == "forward" for name in task.reads)
    assert "buffers" not in figure1().schedule.tasks.by_name


def test_fixed_synapses_are_never_written() -> None:
    tasks = tasks_of(rule="fixed")
    assert not any(name.startswith("E[") for task in tasks.tasks for name in task.writes)
    assert all("eq6" not in function for task in tasks.tasks for function in functions(task))


def test_the_signs_of_equation_6_are_opposite() -> None:
    model, regions = figure1_regions()
    found = []
    for sign in ("descend", "printed"):
        step = build(model, regions, sign=sign, gamma=1.0)
        found.append(step.deltas(*batch_for(step))[2])
    for name, delta in found[0].items():
        assert bool(delta.abs().sum() > 0)
        torch.testing.assert_close(delta, -found[1][name], rtol=0, atol=0)


def test_kappa_norm_and_gain() -> None:
    tasks = tasks_of(kappa=((9, 0.5), (4, 3.0)), norm=1, gain=True)
    assert functions(tasks.by_name["loss"])[-1] == "discrepancy.scaled"
    assert tasks.by_name["loss"].calls[-1].args[1] == 0.5
    for number in (4, 5):
        mismatch, gained = tasks.by_name[f"error:{number}"].calls
        assert mismatch.args[2:] == (1, 3.0 if number == 4 else 1.0)
        assert gained.function == "rules.discrepancy.gained"
        assert gained.args[1] == Ref("beta")


@pytest.mark.parametrize("loss", ["mse", "bce-with-logits"])
def test_losses(loss: str) -> None:
    name = loss.replace("-", "_")
    assert functions(tasks_of(loss=loss).by_name["loss"]) == [f"loss.{name}", "check", f"loss.{name}_error"]


def test_several_displacements_add() -> None:
    edges = ("9->8", "9->7", "8->7", "9->6", "8->6", "7->6", "6->5", "5->4", "4->3", "3->2", "2->1")
    displace = tasks_of(wiring=edges).by_name["displace:6"]
    assert functions(displace) == ["synapse.dense_displace"] * 3 + ["target.total"]
    assert [call.args[1] for call in displace.calls[:3]] == [Ref("E[9->6]"), Ref("E[8->6]"), Ref("E[7->6]")]
    assert displace.writes[-1] == "d6"
    assert [call.results for call in displace.calls[:3]] == [("d6_9",), ("d6_8",), ("d6_7",)]
    # Each synapse learns from its own displacement, not from the sum.
    update = tasks_of(wiring=edges).by_name["synapses:6"]
    learned = [set(references(call.args)) for call in update.calls if "eq6" in call.function]
    assert [names & {"e9", "e8", "e7"} for names in learned] == [{"e9"}, {"e8"}, {"e7"}]
    for names, source in zip(learned, (9, 8, 7), strict=True):
        assert names & {f"d6_{source}", f"E[{source}->6]"}
        assert "d6" not in names


def test_phi_of_the_target_is_the_activation_with_a_place_for_h() -> None:
    model, regions = figure1_regions()
    call: Call = build(model, regions).schedule.tasks.by_name["target:3"].calls[0]
    assert call.args == (Ref("h3"), Ref("d3"), Ref("beta"), (("aten.tanh.default", (Ref("_"),), ()),))


def test_an_input_called_as_an_error_is_does_not_stand_in_for_it() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp(6, 5, 3)

        def forward(self, e1: Tensor) -> Tensor:
            out: Tensor = self.layers(e1)
            return out

    model = Named()
    step = build(model, regions_of(model, torch.zeros(4, 6)))
    assert set(step.schedule.tasks.by_name["update:1"].reads) == {"e1", "x"}


def test_what_two_parameters_learn_alike_is_computed_once() -> None:
    step = fresh(residual_cnn())
    update, optimised = (step.schedule.tasks.by_name[f"{name}:1"] for name in ("update", "optimise"))
    assert functions(update) == ["updates.conv_weight", "updates.channel_bias", "updates.batch_norm_scale"]
    taken = {call.args[0]: call.args[1] for call in optimised.calls}
    assert taken[Ref("P[stem.bias]")] == taken[Ref("P[norm.bias]")] == Ref("db1")
    _, found, _ = step.deltas(*batch_for(step))
    first, second = found["stem.bias"], found["norm.bias"]
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()  # one may be clipped in place
