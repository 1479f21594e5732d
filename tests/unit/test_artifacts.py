"""The files of a compilation: all of them rendered, the same in every process, and written all or none."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import reclra_graph as rg
from reclra_graph.errors import ModelError
from reclra_graph.export.artifacts import FILES, STATE, render_all, unwritable, write_all, write_files
from reclra_graph.ir.program import StepProgram
from reclra_graph.runtime.compiled import CompiledStep
from tests.unit.programs import MAKERS, figure1


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def program(request: pytest.FixtureRequest) -> StepProgram:
    made: StepProgram = request.param().program
    return made


@pytest.fixture(scope="module")
def paper() -> StepProgram:
    return figure1().program


def test_all_files_are_rendered(program: StepProgram) -> None:
    files = render_all(program)
    assert tuple(files) == FILES
    assert all(files.values())
    assert files["step.py"].decode() == program.source


def test_the_same_bytes_in_another_process_and_under_another_hash_seed(root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from torch import nn; import torch; import reclra_graph as rg\n"
        "model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))\n"
        "step = rg.compile(model, (torch.zeros(4, 8),), gpus=2); step.seconds = (); step.save(sys.argv[1])\n"
    )
    made = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", code, str(tmp_path / seed)]
        subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=120)
        made.append({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()})
    assert set(made[0]) == {*FILES, *STATE}
    assert made[0] == made[1]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_write_all_makes_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "build" / "net"
    assert write_all(figure1(), target) == target
    assert {path.name for path in target.iterdir()} == {*FILES, *STATE}
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["net"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_saved_loads_again(tmp_path: Path, make: Callable[[], CompiledStep]) -> None:
    step = make()
    step.save(tmp_path / "net")
    again = rg.load(tmp_path / "net", step.model)
    assert again.plan == step.plan
    assert again.source == step.source
    assert again.constants.keys() == step.constants.keys()
    assert all(torch.equal(again.synapses[name], value) for name, value in step.synapses.items())


def test_an_existing_folder_keeps_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "a").write_text("old")
    write_files({"a": b"new", "b": b"new"}, tmp_path)
    assert snapshot(tmp_path) == {"mine.txt": b"keep", "a": b"new", "b": b"new"}


def test_a_link_to_a_folder_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_files({"a": b"new"}, tmp_path / "link")
    assert (tmp_path / "real" / "a").read_bytes() == b"new"


@pytest.mark.parametrize("path", ["file", "file/below", "file/far/below", "dangling", "nul\0l", "x" * 300])
def test_unwritable_folders_leave_nothing_behind(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("I am a file")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = snapshot(tmp_path)
    with pytest.raises(ModelError) as caught:
        write_files({"a": b"new"}, tmp_path / path)
    assert caught.value.codes == ("RG701",)
    assert snapshot(tmp_path) == before


def test_unwritable_is_known_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am a file")
    assert unwritable(tmp_path / "new" / "folder") == ()
    assert unwritable(tmp_path) == ()
    for path in ("file", "file/below", "nul\0l"):
        assert [problem.code for problem in unwritable(tmp_path / path)] == ["RG701"]
    assert snapshot(tmp_path) == {"file": b"I am a file"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the super-user may write anywhere")
def test_permissions(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert [problem.code for problem in unwritable(locked / "net")] == ["RG701"]
    with pytest.raises(ModelError):
        write_files({"a": b""}, locked / "net")


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_failure_half_way_puts_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").write_text("old c")
    before = snapshot(tmp_path)
    replace, calls = os.replace, iter(range(1, 100))

    def failing(source: str | Path, target: str | Path) -> None:
        if next(calls) == fail_at:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(ModelError) as caught:
        write_files({"a": b"1", "b": b"2", "c": b"3"}, tmp_path)
    assert "No space left" in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    before = snapshot(tmp_path)
    with pytest.raises(ModelError):
        write_files({"a": b"1", "b": b"2"}, tmp_path)
    assert snapshot(tmp_path) == before


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    for target in (tmp_path / "new" / "folder", tmp_path):
        with pytest.raises(KeyboardInterrupt):
            write_files({"a": b"1"}, target)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/etc/a", "a/b", "a\\b", "a\0"])
def test_no_file_name_escapes(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        write_files({name: b""}, tmp_path / "out")
    assert snapshot(tmp_path) == {}


def test_a_model_name_cannot_reach_the_file_system(paper: StepProgram) -> None:
    plan = paper.schedule.tasks.plan
    graph = dataclasses.replace(plan.regions.graph, model='../../<b>evil</b>\n"quoted"')
    regions = dataclasses.replace(plan.regions, graph=graph)
    tasks = dataclasses.replace(paper.schedule.tasks, plan=dataclasses.replace(plan, regions=regions))
    odd = dataclasses.replace(paper, schedule=dataclasses.replace(paper.schedule, tasks=tasks))
    files = render_all(odd)
    assert tuple(files) == FILES
    assert json.loads(files["plan.json"])["model"] == graph.model
    json.loads(files["schedule.json"])
