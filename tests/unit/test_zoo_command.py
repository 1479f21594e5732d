"""``reclra bench zoo``: one model file through a process of its own to the report; wrong usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.command import HEAD, Call

NET = HEAD + (
    "model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))\n"
    "example_inputs = (torch.arange(24.0).view(6, 4) / 10,)\n"
)


@pytest.fixture
def listed(reclra: Call, tmp_path: Path) -> str:
    Path("net.py").write_text(NET, encoding="utf-8")
    Path("broken.py").write_text("model = 3\n", encoding="utf-8")
    Path("list.txt").write_text(f"file {tmp_path}/net.py\nfile {tmp_path}/broken.py\n", encoding="utf-8")
    return "list.txt"


def test_models_are_measured_and_written_down(reclra: Call, listed: str, tmp_path: Path) -> None:
    result = reclra("bench", "zoo", "--list", listed, "--out", "zoo.json", "--jobs", "2")
    assert result.status == 1, result.err  # one of two does not meet the bar
    content = json.loads(Path("zoo.json").read_text(encoding="utf-8"))
    good, bad = content["models"]
    assert good["passed"], good["failures"]
    assert set(good["checks"]) == {"parameters", "falls", "eval", "reference", "forward", "buffers"}
    assert good["checks"]["reference"]["difference"] < 1e-12
    assert good["ratio"] > 0
    assert [item["code"] for item in bad["failures"]] == ["RG104", "RG106"]
    assert {"command", "finished", "commit", "machine", "versions", "config", "summary"} <= set(content)
    assert Path("zoo.md").read_text(encoding="utf-8").startswith("# The zoo")
    assert result.err == ""
    again = reclra("bench", "zoo", "--list", listed, "--models", f"{tmp_path}/net.py")
    assert again.out.splitlines()[0] == "file: 1 of 1 pass (100.0 %)"
    assert not Path("docs").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--list", "nowhere.txt"), "RG801"),
        (("--models", "nothing_of_that_name"), "RG801"),
        (("--models", ","), "RG801"),
        (("--list", "own", "--jobs", "0"), "RG405"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], code: str, reclra: Call) -> None:
    result = reclra("bench", "zoo", *arguments)
    assert result.status == 2
    assert code in result.err
    assert not Path("build").exists()
