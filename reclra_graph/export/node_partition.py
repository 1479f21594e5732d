"""A schedule as ONNX Runtime's node-partition file: which nodes of a graph run on which of its streams.

ONNX Runtime reads the file that its session option ``session.node_partition_config_file`` names, and gives every list
of nodes a stream of its own; it orders streams by the values that pass between them. Nodes go by their names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from reclra_graph.ir.schedule import Run, Schedule

OPTION = "session.node_partition_config_file"
"""The session option that takes the path of the file."""
DEVICES = {"cpu": "0", "cuda": "1"}
"""ONNX Runtime's numbers for kinds of devices."""


def node_partition(schedule: Schedule, nodes: Mapping[str, Sequence[str]], device: str = "cuda") -> str:
    """The text of the file: a stream for every lane, on ``device`` ("cuda" or "cpu").

    nodes: for every task of the schedule the names of the ONNX nodes that it became, in the order in which they run;
    empty where it became none. Raises ValueError where a task is missing or unknown, and for an unknown device.
    """
    order = [action for action in schedule.actions if isinstance(action, Run)]
    odd = sorted(set(nodes) ^ {action.task for action in order})
    if odd:
        raise ValueError(f"nodes are needed for every task of the schedule and no others; look at {odd[0]!r}")
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}, not one of {', '.join(map(repr, DEVICES))}")
    streams = [
        [node for action in order if action.lane == lane.id for node in nodes[action.task]] for lane in schedule.lanes
    ]
    used = [stream for stream in streams if stream]
    content = {"type": "DeviceBasedPartitioner", "streams": used, "devices": [DEVICES[device]] * len(used)}
    return json.dumps(content, indent=1) + "\n"
