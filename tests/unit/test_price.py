"""What tasks cost: arithmetic against PyTorch's own counter, bytes by hand, and what must hold of every device."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import reclra_graph as rg
from reclra_graph.export.html import plan_html
from reclra_graph.export.plan_json import plan_value
from reclra_graph.export.report import report_text
from reclra_graph.export.trace import trace_value
from reclra_graph.ir.device import DEVICES, UNIT, Device
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.ir.text import from_text, to_text
from reclra_graph.options import TOGETHER
from reclra_graph.passes.calls import sized
from reclra_graph.passes.costs import device_costs, unit_costs
from reclra_graph.passes.lower import lower
from reclra_graph.passes.price import price
from reclra_graph.passes.schedule import schedule
from reclra_graph.passes.wire import wire
from reclra_graph.verify import verify
from tests import models

NETS = {
    "mlp": models.figure1,
    "cnn": models.residual_cnn,
    "two inputs": models.two_inputs,
    "tied": models.tied,
    "dropouts": models.dropouts,
    "local derivatives": models.local_net,
    "sequence": models.tagger,
}
H200 = DEVICES["h200"]
NOTHING = Device("free work", 1e24, 1e24, 1e-6, 1e9, 1e-6, 10**9)
"""Arithmetic and memory cost nothing: a task takes as many µs as it has kernels."""


def tasks_of(net: str, batch: int, device: Device = H200) -> TaskGraph:
    """The tasks of a net, priced for a batch."""
    tasks = NETS[net]().schedule.tasks
    return price(replace(tasks, plan=replace(tasks.plan, device=device, batch=batch)), device)


def layers(*widths: int) -> TaskGraph:
    """Tasks of linear layers with tanh between them, batch free."""
    regions = models.regions_of(models.mlp(*widths), torch.zeros(4, widths[0]))
    return lower(wire(regions, rg.Options(wiring="flat")))


def at(tasks: TaskGraph, batch: int, device: Device = H200) -> TaskGraph:
    return price(replace(tasks, plan=replace(tasks.plan, device=device, batch=batch)), device)


@pytest.mark.parametrize("net", NETS)
def test_every_task_costs_something(net: str) -> None:
    for device in (item for item in DEVICES.values() if item != UNIT):
        for task in verify(tasks_of(net, 4, device)).tasks:
            assert isinstance(task.cost, int)
            assert task.cost >= 1, task.name
            assert task.flops >= 0
            assert task.bytes > 0 or task.flops == 0, task.name


@pytest.mark.parametrize("net", NETS)
def test_more_samples_never_cost_less(net: str) -> None:
    small, large = tasks_of(net, 4), tasks_of(net, 512)
    for before, after in zip(small.tasks, large.tasks, strict=True):
        assert (before.name, before.calls) == (after.name, after.calls)
        assert before.cost <= after.cost
        assert before.flops <= after.flops
        assert before.bytes <= after.bytes
    forward = [sum(task.flops for task in tasks.tasks if task.kind == "forward") for tasks in (small, large)]
    assert forward[1] > 20 * forward[0]


@pytest.mark.parametrize("net", NETS)
def test_unit_costs_stay_as_they_are(net: str) -> None:
    tasks = NETS[net]().schedule.tasks
    assert price(tasks, UNIT) is tasks
    assert tasks.plan.device == UNIT
    assert tasks.plan.batch == 0
    assert {task.cost for task in tasks.tasks} <= {0, 1}


@pytest.mark.parametrize("net", ["mlp", "cnn", "sequence", "tied"])
def test_flops_of_the_forward_pass_are_those_that_pytorch_counts(net: str) -> None:
    step = NETS[net]()
    inputs, _ = models.batch_for(step, 4)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        copy.deepcopy(step.model)(*inputs)
    forward = [task for task in tasks_of(net, 4).tasks if task.kind == "forward"]
    found = sum(task.flops for task in forward)
    # PyTorch counts products and convolutions alone; the rest is one operation for each number.
    elementwise = sum(task.bytes for task in forward)
    assert counter.get_total_flops() <= found <= counter.get_total_flops() + elementwise


def test_flops_and_bytes_of_a_layer_by_hand() -> None:
    tasks = at(layers(20, 30, 10), 8)
    by_name = tasks.by_name
    linear, tanh = 8 * 20 + 20 * 30 + 30 + 8 * 30, 2 * 8 * 30
    assert by_name["forward:1"].flops == 2 * 8 * 20 * 30 + 8 * 30
    assert by_name["forward:1"].bytes == 4 * (linear + tanh)
    assert by_name["displace:1"].flops == 2 * 8 * 10 * 30
    assert by_name["displace:1"].bytes == 4 * (8 * 10 + 10 * 30 + 8 * 30)
    # β d, h − β d, tanh: three kernels that read and write maps of 8 × 30 numbers.
    assert by_name["target:1"].bytes == 4 * 8 * 30 * (2 + 3 + 2)
    # z − y
    assert by_name["error:1"].bytes == 4 * 8 * 30 * 3


def test_a_kernel_costs_its_launch() -> None:
    by_name = at(layers(20, 30, 10), 8, NOTHING).by_name
    assert {name: by_name[name].cost for name in ("forward:1", "displace:1", "target:1", "error:1")} == {
        "forward:1": 2000,  # the product with its bias, tanh; transposing the weight is no kernel
        "displace:1": 1000,
        "target:1": 3000,
        "error:1": 1000,
    }


def test_the_roofline_takes_the_longer_of_the_two() -> None:
    tasks = layers(20, 30, 10)
    arithmetic = replace(NOTHING, flops=1e9, launch=1e-9)
    memory = replace(NOTHING, bandwidth=1e9, launch=1e-9)
    displace = at(tasks, 8, arithmetic).by_name["displace:1"]
    assert displace.cost == displace.flops + 1
    displace = at(tasks, 8, memory).by_name["displace:1"]
    assert displace.cost == displace.bytes + 1


def test_prices_are_the_same_every_time() -> None:
    assert tasks_of("cnn", 16) == tasks_of("cnn", 16)


def test_sizes_in_numbers() -> None:
    shown = ["B", "4*B", "B*4 + 2", "B//2", "2*B - 1", "Max(1, B)", 7]
    assert [sized(size, 6) for size in shown] == [6, 24, 26, 3, 11, 6, 7]


# -- costs by region --------------------------------------------------------------------------------------------------


def test_unit_costs_by_region() -> None:
    _, regions = models.figure1_regions()
    costs = unit_costs(regions, 5)
    count = len(regions.regions)
    assert (costs.clock, costs.batch) == ("unit", 5)
    assert costs.forward == (0,) * count
    assert costs.target == costs.update == (1,) * count
    assert costs.displace((4,), 0, (5,), 0, "dense") == costs.learn((4,), 0, (5,), 0, "dense") == 0
    assert costs.transfer(10**6) == 0
    assert costs.output_bytes[0] == 4 * 5 * 20


@pytest.mark.parametrize("net", NETS)
def test_device_costs_add_up_to_the_tasks(net: str) -> None:
    tasks = tasks_of(net, 4)
    flat, costs = tasks.plan, device_costs(tasks)
    assert (costs.device, costs.clock, costs.batch) == (H200, "ns", 4)
    assert sum(costs.forward) == sum(task.cost for task in tasks.tasks if task.kind == "forward")
    for region in flat.regions.regions:
        heard = sum(task.cost for task in tasks.tasks if task.group == f"target:{region.id}")
        assert costs.target[region.id] <= heard
        assert (costs.update[region.id] > 0) == region.learns
        if region.id in flat.level:
            assert costs.target[region.id] > 0 or region.id in flat.regions.outputs[1:]
        assert costs.activation_bytes[region.id] >= costs.output_bytes[region.id]
        if region.learns:
            assert costs.parameter_bytes[region.id] > 0


def test_synapse_costs_are_those_of_the_tasks() -> None:
    tasks = at(layers(20, 30, 40, 10), 64, replace(H200, launch=1e-9))
    costs = device_costs(tasks)
    assert costs.displace((10,), 0, (30,), 0, "dense") == tasks.by_name["displace:1"].cost
    assert costs.transfer(450) == 10_001


def test_forms_with_fewer_numbers_cost_less() -> None:
    _, regions = models.figure1_regions()
    costs = replace(unit_costs(regions, 32), device=replace(H200, launch=1e-12), clock="ns")
    source, target = (64, 8, 8), (128, 4, 4)
    found = [costs.displace(source, 0, target, 0, form) for form in ("dense", "lowrank(16)", "channel")]
    assert found[0] > found[1] > 0
    assert found[0] > found[2] > 0
    assert costs.learn(source, 0, target, 0, "dense") > costs.displace(source, 0, target, 0, "dense")


@pytest.mark.parametrize("form", ["dense", "lowrank(4)", "implicit"])
def test_every_form_of_a_synapse_has_its_price(form: str) -> None:
    _, regions = models.figure1_regions()
    tasks = at(lower(wire(regions, rg.Options(wiring="flat", synapse=form)), TOGETHER), 64, DEVICES["cpu"])
    costs = device_costs(tasks)
    ends = (regions.regions[9].shape, 0, regions.regions[3].shape, 0, form)
    displace = tasks.by_name["displace:3"]
    assert displace.flops >= 2 * 64 * (10 * 16 if form != "lowrank(4)" else 4 * 26)
    assert costs.displace(*ends) == pytest.approx(displace.cost, rel=0.05)
    synapses = [
        task.cost for task in tasks.tasks if task.kind != "update" and task.region == 3 and "synapses" in task.name
    ]
    assert costs.learn(*ends) == pytest.approx(sum(synapses), rel=0.25, abs=10)


# -- through the compiler ---------------------------------------------------------------------------------------------


def test_a_plan_for_a_device_says_so() -> None:
    model, x = models.mlp(6, 5, 4), torch.zeros(3, 6)
    step = rg.compile(model, x, device="v100", gpus=2)
    assert (step.plan.device, step.plan.batch) == (DEVICES["v100"], 3)
    assert all(task.cost > 0 for task in step.schedule.tasks.tasks)
    assert step.schedule.makespan > 1000
    assert from_text(to_text(step.schedule)) == step.schedule
    value = plan_value(step.program)
    assert (value["device"], value["clock"], value["makespan"]) == ("v100", "ns", step.schedule.makespan)
    report = report_text(step.program)
    assert "cost model of the device v100 for a batch of 3" in report
    assert f"makespan on 2 GPUs: {DEVICES['v100'].shown(step.schedule.makespan)}" in report
    page = plan_html(step.schedule)
    assert "predicted for the device v100 and a batch of 3" in page
    assert "time unit" not in page
    events = [event for event in trace_value(step.program)["traceEvents"] if event["ph"] == "X"]
    assert max(event["ts"] + event["dur"] for event in events) == pytest.approx(step.schedule.makespan / 1000)


@pytest.mark.parametrize(("name", "near"), [("mlp", 0.01), ("cnn", 0.2)])
@pytest.mark.parametrize("gpus", [1, 3])
def test_the_planner_predicts_what_the_timetable_gives(name: str, near: float, gpus: int) -> None:
    regions, device = NETS[name]().schedule.tasks.plan.regions, DEVICES["a100"]
    flat = replace(wire(regions, rg.Options(wiring="flat")), device=device, batch=16)
    plan = wire(regions, rg.Options(gpus=gpus, device="a100"), device_costs(price(lower(flat, TOGETHER), device)))
    (chosen,) = (row for row in plan.candidates if row.chosen)
    # Both count hand-overs one by one; the planner knows of h, z and e, not of values between operators of a region.
    found = schedule(price(lower(plan, TOGETHER), device)).makespan
    assert found == pytest.approx(chosen.makespan, rel=near)
    # What several regions share in the step itself makes it faster than was planned for, never slower.
    assert schedule(price(lower(plan), device)).makespan <= 1.01 * found
