"""The table of devices, the reader of device files, and how costs are shown."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reclra_graph as rg
from reclra_graph.ir.device import DEVICES, UNIT, Device, find_device
from reclra_graph.ir.text import from_text, to_text

NUMBERS: dict[str, Any] = {
    "flops": 2e12, "bandwidth": 3e11, "launch": 4e-6, "link": 5e10, "latency": 6e-6, "memory": 7e9,
}  # fmt: skip


def written(tmp_path: Path, value: object) -> str:
    path = tmp_path / "mine.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def test_the_table() -> None:
    assert list(DEVICES) == ["unit", "cpu", "v100", "a100", "h200"]
    assert [device.clock for device in DEVICES.values()] == ["unit", "ns", "ns", "ns", "ns"]
    for name, device in DEVICES.items():
        assert find_device(name) == (device, ())
        assert from_text(to_text(device)) == device
    gpus = [DEVICES[name] for name in ("v100", "a100", "h200")]
    for slower, faster in itertools.pairwise(gpus):
        assert slower.flops < faster.flops
        assert slower.bandwidth < faster.bandwidth
        assert slower.memory < faster.memory


def test_the_roofline() -> None:
    device = replace(DEVICES["cpu"], flops=1e9, bandwidth=1e6, launch=1e-6, link=1e6, latency=5e-6)
    assert device.nanoseconds(1000, 0) == 1000 + 1000
    assert device.nanoseconds(0, 3) == 3000 + 1000
    assert device.nanoseconds(1000, 3, kernels=4) == 3000 + 4000
    assert device.transfer(2) == 5000 + 2000
    assert (UNIT.nanoseconds(10**9, 10**9), UNIT.transfer(10**9)) == (0, 0)


def test_a_file_describes_a_device(tmp_path: Path) -> None:
    device, problems = find_device(written(tmp_path, NUMBERS))
    assert problems == ()
    assert device == Device("mine", 2e12, 3e11, 4e-6, 5e10, 6e-6, 7 * 10**9)
    named, _ = find_device(written(tmp_path, {**NUMBERS, "name": "my card"}))
    assert named.name == "my card"
    assert from_text(to_text(named)) == named


@pytest.mark.parametrize(
    ("change", "causes"),
    [
        ({"flops": 0}, ["flops is 0, not a number"]),
        ({"link": -1.5}, ["link is -1.5, not a number"]),
        ({"flops": "fast"}, ["flops is fast, not a number"]),
        ({"launch": True}, ["launch is True"]),
        ({"memory": None}, ["memory is None"]),
        ({"memory": 10**400}, ["memory is 1000"]),
        ({"bandwidth": float("nan")}, ["bandwidth is nan"]),
        ({"bandwidth": float("inf"), "launch": 0}, ["bandwidth is inf", "launch is 0"]),
        ({"speed": 3}, ["says speed, which no device has"]),
        ({"name": "h200"}, ["name is 'h200'"]),
        ({"name": ["x"]}, ["name is"]),
    ],
)
def test_wrong_numbers(change: dict[str, Any], causes: list[str], tmp_path: Path) -> None:
    device, problems = find_device(written(tmp_path, {**NUMBERS, **change}))
    assert device == UNIT
    assert [problem.code for problem in problems] == ["RG431"] * len(causes)
    for problem, cause in zip(problems, causes, strict=True):
        assert problem.cause.startswith(cause)
        assert problem.place.endswith("mine.json")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "null", "[" * 100_000, "\0"])
def test_files_that_are_no_device(text: str, tmp_path: Path) -> None:
    _, problems = find_device(written(tmp_path, text))
    assert [problem.code for problem in problems] == ["RG431"]


def test_a_file_says_what_it_lacks(tmp_path: Path) -> None:
    _, (problem,) = find_device(written(tmp_path, {"flops": 1, "launch": 1, "link": 1, "latency": 1}))
    assert problem.cause == "does not say bandwidth, memory"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("none.json", "folder.json", "bytes.json"):
        _, (problem,) = find_device(str(tmp_path / name))
        assert problem.code == "RG431"


@pytest.mark.parametrize("name", ["h300", "", "H200", "cpu.txt"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(rg.UsageError) as caught:
        rg.compile(nn.Linear(2, 2), torch.zeros(3, 2), device=name, gpus=0)
    assert [problem.code for problem in caught.value.problems] == ["RG401", "RG430"]
    assert "'h200'" in caught.value.problems[1].advice


def test_costs_for_people() -> None:
    cpu = DEVICES["cpu"]
    shown = [cpu.shown(cost) for cost in (0, 7, 1500, 18_250, 123_456, 1_240_000, 45_600_000, 2_310_000_000)]
    assert shown == ["0 ns", "7 ns", "1.50 µs", "18.2 µs", "123 µs", "1.24 ms", "45.6 ms", "2.31 s"]
    assert [UNIT.shown(cost) for cost in (0, 5, 18)] == ["0", "5", "18"]
