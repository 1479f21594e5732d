"""The node-partition file, against ONNX Runtime itself: it takes the streams, and the result stays what it was."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

import reclra_graph as rg
from reclra_graph.export.node_partition import OPTION, node_partition
from reclra_graph.ir.schedule import Run, Schedule
from tests.models import mlp

REFUSED = "Invalid DeviceBasedPartitioner"


@cache
def schedule(gpus: int) -> Schedule:
    return rg.compile(mlp(5, 6, 4, 6, 3), torch.zeros(2, 5), gpus=gpus).schedule


def graph_of(timetable: Schedule) -> bytes:
    """An ONNX graph with two nodes for every task: the sum of what the tasks before it gave, and one more."""
    before = nx.DiGraph(timetable.tasks.edges).pred
    nodes = []
    for task in timetable.tasks.tasks:
        given = [f"{name}/out" for name in before.get(task.name, ())]
        nodes.append(helper.make_node("Sum", ["x", *given], [f"{task.name}/sum"], name=f"{task.name}/0"))
        nodes.append(helper.make_node("Add", ["one", f"{task.name}/sum"], [f"{task.name}/out"], name=f"{task.name}/1"))
    results = [f"{task.name}/out" for task in timetable.tasks.tasks]
    graph = helper.make_graph(
        nodes,
        "tasks",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [2])],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [2]) for name in results],
        [helper.make_tensor("one", TensorProto.DOUBLE, [1], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def run(model: bytes, path: Path | None) -> Sequence[np.ndarray]:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if path is not None:
        options.add_session_config_entry(OPTION, str(path))
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: Sequence[np.ndarray] = session.run(None, {"x": np.array([1.0, -2.0])})
    return found


def names(timetable: Schedule) -> dict[str, list[str]]:
    return {task.name: [f"{task.name}/0", f"{task.name}/1"] for task in timetable.tasks.tasks}


@pytest.mark.parametrize("gpus", [1, 3])
def test_onnx_runtime_takes_the_streams(gpus: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    timetable = schedule(gpus)
    path = tmp_path / "partition.json"
    path.write_text(node_partition(timetable, names(timetable), "cpu"), encoding="utf-8")
    model = graph_of(timetable)
    wanted, found = run(model, None), run(model, path)
    assert all(np.array_equal(one, other) for one, other in zip(wanted, found, strict=True))
    assert REFUSED not in capfd.readouterr().err
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "devices": ["0", *content["devices"]]}), encoding="utf-8")
    run(model, path)
    assert REFUSED in capfd.readouterr().err  # so that its silence says something


def test_a_stream_holds_a_lane_in_its_order() -> None:
    timetable = schedule(3)
    content = json.loads(node_partition(timetable, names(timetable)))
    assert content["devices"] == ["1"] * len(timetable.lanes)
    runs = [action for action in timetable.actions if isinstance(action, Run)]
    for lane, stream in zip(timetable.lanes, content["streams"], strict=True):
        tasks = [action.task for action in runs if action.lane == lane.id]
        assert stream == [f"{task}/{index}" for task in tasks for index in (0, 1)]


def test_what_it_refuses() -> None:
    timetable = schedule(1)
    nodes = names(timetable)
    for wrong in ({**nodes, "nobody": []}, dict(list(nodes.items())[1:])):
        with pytest.raises(ValueError, match="every task"):
            node_partition(timetable, wrong)
    with pytest.raises(ValueError, match="not one of"):
        node_partition(timetable, nodes, "tpu")
