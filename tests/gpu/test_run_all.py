"""The script that runs everything on a GPU machine: what it skips, resumes, ends and records."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import parts, run_all


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return tmp_path / "out"


def written(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run_all.json").read_text(encoding="utf-8"))
    return found


def test_the_list_writes_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in parts.PARTS)
    assert "not run yet" in listed
    assert not out.exists()


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_all.main(["--parts", "environment,nonsense"])
    assert ended.value.code == 2
    assert "there is no part nonsense" in capsys.readouterr().err


def test_a_part_that_is_done_is_not_run_again(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--dry-run-cpu", "--parts", "environment"]
    assert run_all.main(command) == 0
    first = written(out)["parts"]["environment"]
    assert first["status"] == "done"
    assert {"machine", "versions", "commit", "finished", "command", "result"} <= first.keys()
    assert run_all.main(command) == 0
    assert "environment: done before" in capsys.readouterr().err
    assert written(out)["parts"]["environment"] == first
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "run_all.json"]
    assert run_all.main([*command, "--again"]) == 0
    assert written(out)["parts"]["environment"] != first


def test_done_parts_are_taken_over_from_elsewhere(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {"environment": {"status": "done", "result": {}}, "tests": {"status": "failed"}}
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"format": 1, "kind": "cpu, small", "parts": before}))
    assert run_all.main(["--dry-run-cpu", "--parts", "environment", "--earlier", str(earlier)]) == 0
    assert "environment: done before" in capsys.readouterr().err
    assert written(out)["parts"] == {"environment": before["environment"]}


def test_no_part_starts_that_may_not_finish(out: Path) -> None:
    assert run_all.main(["--dry-run-cpu", "--parts", "environment", "--minutes", "1.2"]) == 3
    assert written(out)["parts"] == {}


def test_a_part_whose_needs_are_not_met_is_skipped_with_the_reason(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needing = replace(parts.PARTS["environment"], modules=("pytest", "no_such_module"))
    monkeypatch.setitem(parts.PARTS, "environment", needing)
    assert run_all.main(["--dry-run-cpu", "--parts", "environment"]) == 0
    assert written(out)["parts"]["environment"] == {"status": "skipped", "reason": "not installed: no_such_module"}


def test_checks_without_pytest_are_needless_with_it() -> None:
    assert parts.missing(parts.PARTS["checks"]) == "not needed where pytest is installed"
    assert parts.missing(parts.PARTS["tests"]) == ""


def test_a_part_that_runs_out_of_time_is_ended(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    started = time.monotonic()
    record = run_all.run_part("environment", 0, log, True)
    assert record["status"] == "timed out"
    assert record["reason"] == "it ran longer than 0 s"
    assert time.monotonic() - started < 30


def test_a_part_whose_process_fails_is_recorded_with_its_last_words(tmp_path: Path) -> None:
    record = run_all.run_part("no-such-part", 60, tmp_path / "log.txt", True)
    assert record["status"] == "failed"
    assert record["reason"] == "its process ended with status 2"
    assert "no-such-part" in "\n".join(record["last_words"])


def test_a_part_that_reports_a_failure_fails_the_run(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"status": "failed", "seconds": 1.0, "limit": 60, "reason": "2 of 3 tests failed"}
    monkeypatch.setattr(run_all, "run_part", lambda name, limit, log, small: record)
    assert run_all.main(["--dry-run-cpu", "--parts", "environment"]) == 1
    assert written(out)["parts"]["environment"] == record


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not JSON", "is no results file"),
        ('{"parts": {}}', "is no results file"),
        ('{"format": 1, "kind": "cuda", "parts": {}}', "another kind of run"),
    ],
)
def test_a_file_that_is_not_of_this_run_is_left_alone(out: Path, text: str, said: str) -> None:
    out.mkdir()
    (out / "run_all.json").write_text(text)
    with pytest.raises(SystemExit, match=said):
        run_all.main(["--dry-run-cpu", "--parts", "environment"])
    assert (out / "run_all.json").read_text() == text


def test_ctrl_c_keeps_what_is_done(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str, limit: int, log: Path, small: bool) -> dict[str, Any]:
        if name == "bench-mlp":
            raise KeyboardInterrupt
        return {"status": "done", "seconds": 1.0}

    monkeypatch.setattr(run_all, "run_part", part)
    assert run_all.main(["--dry-run-cpu", "--parts", "environment,bench-mlp,bench-lanes"]) == 130
    assert list(written(out)["parts"]) == ["environment"]


@pytest.mark.slow
def test_everything_runs_on_a_cpu(out: Path) -> None:
    assert run_all.main(["--dry-run-cpu", "--minutes", "30"]) == 0
    found = written(out)["parts"]
    assert {name: found[name]["status"] for name in parts.PARTS} == {
        name: "skipped" if parts.missing(part) else "done" for name, part in parts.PARTS.items()
    }
    for name in parts.PARTS:
        if name.startswith("bench-"):
            assert found[name]["result"]["ok"], name
