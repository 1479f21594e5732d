"""The zoo's runner: limits, last words, interruption and resumption, with a stand-in for the process that measures."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reclra_graph.bench import zoo, zoo_report
from reclra_graph.bench.lists import Entry
from reclra_graph.bench.zoo import Row, Settings, run
from reclra_graph.errors import CODES

# Behaves as the name of its model says.
STAND_IN = """
import json, os, sys, time
source, name, path, seed, threads, memory = sys.argv[1:]
row = {"source": source, "name": name, "stage": "compile", "passed": False, "seconds": {}, "checks": {}, "failures": []}
json.dump(row, open(path, "w"))
if name == "slow":
    time.sleep(60)
if name == "crash":
    print("the end is near")
    sys.exit(7)
if name == "killed":
    os.kill(os.getpid(), 9)
if name == "hungry":
    held = bytearray(400 << 20)
    time.sleep(60)
row.update(stage="done", passed=name != "bad", pid=os.getpid())
if name == "bad":
    row["failures"] = [{"stage": "compile", "code": "RG303", "name": "no-update-rule", "cause": "none", "place": "a"}]
json.dump(row, open(path, "w"))
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr(zoo, "WORKER", (str(script),))
    monkeypatch.setattr(zoo, "_WATCH", 0.02)
    return Settings(jobs=2, timeout=30.0, memory=1.0, work=tmp_path / "work")


def entries(*names: str) -> tuple[Entry, ...]:
    return tuple(Entry("own", name) for name in names)


def failure(row: Row) -> tuple[str, str]:
    (found,) = row["failures"]
    return found["code"], found["stage"]


def test_rows_come_in_the_order_of_the_list(settings: Settings) -> None:
    told: list[tuple[int, int]] = []
    rows = run(entries("a", "bad", "c"), settings, lambda done, total, row, names: told.append((done, total)))
    assert [row["name"] for row in rows] == ["a", "bad", "c"]
    assert [row["passed"] for row in rows] == [True, False, True]
    assert told[0] == (0, 3)
    assert told[-1] == (3, 3)


def test_a_model_that_takes_too_long_is_stopped(settings: Settings) -> None:
    started = time.monotonic()
    (row,) = run(entries("slow"), Settings(timeout=1.0, work=settings.work))
    assert failure(row) == ("RG804", "compile")
    assert not row["passed"]
    assert time.monotonic() - started < 20


def test_what_a_limit_ended_is_run_again(settings: Settings) -> None:
    limits = Settings(timeout=30.0, memory=0.2, work=settings.work)
    assert failure(run(entries("hungry"), limits)[0]) == ("RG805", "compile")
    (path,) = settings.work.rglob("own.hungry.json")
    before = path.stat().st_mtime_ns
    run(entries("hungry"), limits)
    assert path.stat().st_mtime_ns > before


def test_a_model_that_takes_too_much_memory_is_stopped(settings: Settings) -> None:
    (row,) = run(entries("hungry"), Settings(timeout=30.0, memory=0.2, work=settings.work))
    assert failure(row) == ("RG805", "compile")


def test_a_process_that_dies_leaves_its_last_words(settings: Settings) -> None:
    crash, killed = run(entries("crash", "killed"), settings)
    assert failure(crash) == failure(killed) == ("RG806", "compile")
    assert "exit status 7: the end is near" in crash["failures"][0]["cause"]
    assert "SIGKILL" in killed["failures"][0]["cause"]


def test_a_finished_model_is_not_run_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(entries("a", "bad"), settings)
    second = run(entries("a", "bad", "c"), settings)
    assert [row.get("pid") for row in second[:2]] == [row.get("pid") for row in first]
    fresh = run(entries("a"), Settings(work=settings.work, fresh=True))
    assert fresh[0]["pid"] != first[0]["pid"]
    monkeypatch.setattr(zoo, "version", lambda settings: "another")
    changed = run(entries("a"), settings)
    assert changed[0]["pid"] != fresh[0]["pid"]


def test_a_damaged_row_is_made_again(settings: Settings) -> None:
    run(entries("a"), settings)
    (path,) = settings.work.rglob("own.a.json")
    path.write_text(path.read_text(encoding="utf-8")[:30], encoding="utf-8")
    (row,) = run(entries("a"), settings)
    assert row["passed"]


def test_an_interruption_keeps_what_is_finished_and_stops_the_rest(settings: Settings) -> None:
    def interrupt(done: int, total: int, row: Row | None, names: Sequence[str]) -> None:
        if row is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(entries("a", "slow", "c"), settings, interrupt)
    assert [path.name for path in settings.work.rglob("*.json")] == ["own.a.json"]
    started = time.monotonic()
    first, third = run(entries("a", "c"), settings)
    assert first["passed"]
    assert third["passed"]
    assert time.monotonic() - started < 20


def test_the_seed_and_the_code_decide_which_rows_are_kept(settings: Settings) -> None:
    assert zoo.version(settings) == zoo.version(Settings(jobs=9))
    assert zoo.version(settings) != zoo.version(Settings(seed=1))


def test_wrong_numbers_are_told() -> None:
    assert [problem.place for problem in Settings(0, -1.0, 0.0).problems()] == ["--jobs", "--timeout", "--memory"]


def row(source: str, name: str, code: str = "", ratio: float | None = 2.0) -> dict[str, Any]:
    failures = [{"stage": "compile", "code": code, "name": "n", "cause": "a | b", "place": ""}] if code else []
    return {
        "source": source, "name": name, "passed": not code, "failures": failures, "ratio": ratio, "checks": {},
        "seconds": {},
    }  # fmt: skip


def test_the_report_says_what_passes_and_what_does_not(tmp_path: Path) -> None:
    rows = [row("own", "a"), row("timm", "b", "RG303", 4.0), row("timm", "c", ratio=None), row("timm", "d", "uncoded")]
    content = zoo_report.report(rows, Settings(), "reclra bench zoo")
    found = content["summary"]
    assert found["sources"]["timm"] == {"models": 3, "passed": 1, "share": 0.3333}
    assert found["failures"] == {"RG303": 1, "uncoded": 1}
    assert found["uncoded"] == ["timm d"]
    assert found["compile_over_export"] == {"median": 2.0, "models": 3}
    files = zoo_report.write(tmp_path / "zoo.json", content)
    assert json.loads(files[0].read_text(encoding="utf-8"))["models"] == rows
    page = files[1].read_text(encoding="utf-8")
    assert "own: 1 of 1 pass (100.0 %)" in page
    assert "a \\| b" in page


def rows_of(source: str, passed: int, code: str = "", failed: int = 0) -> list[dict[str, Any]]:
    return [row(source, f"{source}{number}", code if number < failed else "") for number in range(passed + failed)]


@pytest.mark.parametrize(
    ("rows", "met"),
    [
        (rows_of("own", 1) + rows_of("timm", 97, "RG303", 3), True),
        (rows_of("timm", 96, "RG303", 4), False),
        (rows_of("own", 99, "RG303", 1), False),
        (rows_of("timm", 99, "uncoded", 1), False),
        ([row("own", "a", ratio=3.5)], False),
    ],
)
def test_the_bar(rows: list[dict[str, Any]], met: bool) -> None:
    assert zoo_report.bar_met(rows) is met


def test_codes_of_the_runner_are_known() -> None:
    assert {"RG804", "RG805", "RG806", "RG807"} <= set(CODES)
