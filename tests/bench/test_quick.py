"""The benchmarks run, in their quick modes; nothing here looks at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "keys"),
    [
        ("compile_time.py", {"config", "models"}),
        ("scaling.py", {"kinds"}),
        ("stacked.py", {"config", "cases"}),
        ("step_limit.py", {"cases"}),
        ("cost_model.py", {"config", "device", "probe", "rank_correlation", "pairs"}),
        (
            "implicit_resnet50.py",
            {
                "config",
                "model",
                "parameters",
                "regions",
                "synapses",
                "training",
                "compile seconds",
                "largest resident memory, bytes",
            },
        ),
    ],
)
def test_quick(script: str, keys: set[str], tmp_path: Path) -> None:
    out = tmp_path / "results" / "quick.json"
    command = [sys.executable, str(BENCHES / script), "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    report = json.loads(out.read_text(encoding="utf-8"))
    assert {*keys, "command", "finished", "commit", "machine", "versions", "what"} == set(report)
    assert f"tests/bench/{script}" in report["command"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["compile_time.py", "scaling.py", "stacked.py", "implicit_resnet50.py"])
def test_quick_writes_nothing_by_itself(script: str, tmp_path: Path) -> None:
    results = BENCHES.parents[1] / "docs" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()} if results.exists() else {}
    command = [sys.executable, str(BENCHES / script), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert list(tmp_path.iterdir()) == []
    after = {path: path.stat().st_mtime_ns for path in results.iterdir()} if results.exists() else {}
    assert after == before
