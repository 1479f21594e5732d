"""``reclra bench epochs``: trials choose, runs follow, what is finished stays; the report, the command, its usage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from reclra_graph.bench import epochs_bench, epochs_report, jobs
from reclra_graph.bench.epochs_bench import Settings
from reclra_graph.bench.epochs_cases import CASES
from reclra_graph.bench.epochs_measure import Request, measured
from reclra_graph.bench.epochs_picture import curves_svg
from reclra_graph.bench.jobs import Job, Row
from reclra_graph.bench.record import write_json
from tests.unit.command import Call
from tests.unit.image_files import write_cifar, write_fashion

EAGER = ("backprop-eager", "dense-eager")
ARMS = ",".join(EAGER)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_fashion(folder)
    write_cifar(folder)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Cells are measured in this process; what was asked of them."""
    asked: list[Request] = []

    def run(given: Sequence[Job], limits: Any, anew: Any, progress: Any, watch: float) -> list[Row]:
        (job,) = given
        *_, request, _, _, checkpoint, deadline = job.command
        asked.append(Request(**json.loads(request)))
        job.path.parent.mkdir(parents=True, exist_ok=True)
        row = measured(asked[-1], checkpoint=Path(checkpoint), deadline=None if deadline == "none" else float(deadline))
        row["seconds"]["all"] = 1.0
        write_json(job.path, row)
        row = json.loads(job.path.read_text(encoding="utf-8"))
        progress(1, 1, row, [job.name])
        return [row]

    monkeypatch.setattr(jobs, "run", run)
    return asked


def settings_of(files: Path, work: Path, **other: Any) -> Settings:
    return Settings(files, models=("mlp",), arms=EAGER, quick=True, threads=1, device="cpu", work=work, **other)


def test_every_arm_has_the_same_trials_and_runs_with_its_best(files: Path, tmp_path: Path, here: list[Request]) -> None:
    settings = settings_of(files, tmp_path, seeds=2, seed=5)
    seen: list[int] = []
    digests = epochs_bench.check_data(settings)
    (found,) = epochs_bench.run(settings, digests, lambda done, total, row, names: seen.append(done))
    candidates = CASES["mlp"].candidates[: epochs_bench.QUICK_CANDIDATES]
    trials, runs = here[:4], here[4:]
    assert [(item.arm, item.candidate) for item in trials] == [(arm, one) for arm in EAGER for one in candidates]
    assert {item.seed for item in trials} == {5}
    assert [(item.seed, item.arm) for item in runs] == [(seed, arm) for seed in (5, 6) for arm in EAGER]
    for arm in EAGER:
        errors = [row["error"] for row in found.trials[arm]]
        wanted = candidates[errors.index(min(errors))]
        assert {item.candidate for item in runs if item.arm == arm} == {wanted}
    assert all(item.digest == digests["fashion-mnist"] for item in here)
    assert {item.rule for item in here if item.arm == "backprop-eager"} == {""}
    assert found.left == 0
    count = len(here)
    (again,) = epochs_bench.run(settings, digests)
    assert len(here) == count
    assert (again.trials, again.runs) == (found.trials, found.runs)
    epochs_bench.run(replace(settings, seeds=3), digests)
    assert len(here) == count + 2  # the third seed of both arms
    epochs_bench.run(replace(settings, fresh=True), digests)
    assert len(here) == 2 * count + 2
    assert max(seen) <= count


def test_what_the_minutes_do_not_suffice_for_is_left_for_the_next_run(
    files: Path, tmp_path: Path, here: list[Request]
) -> None:
    settings = settings_of(files, tmp_path, minutes=1.0)
    digests = epochs_bench.check_data(settings)
    times = iter([0.0, 0.0, 0.0, 60.0, 60.0, 60.0, 60.0])  # the deadline is a minute after the first
    (found,) = epochs_bench.run(settings, digests, clock=lambda: next(times))
    # Every process finds that deadline long over by its own clock: one evaluation of each trial is all there is.
    assert found.trials == {arm: [] for arm in EAGER}
    assert found.left == 6
    content = epochs_report.report([found], settings, "reclra bench epochs")
    assert not content["ok"]
    assert content["left"] == 6
    assert "6 runs left; run the same command again" in epochs_report.lines(content)[-1]
    assert "**Not finished: 6 runs left.**" in epochs_report.markdown(content, "x.svg")
    assert "Nothing was measured" in curves_svg(content["cases"])
    (found,) = epochs_bench.run(replace(settings, minutes=None), digests)
    assert found.left == 0
    first, second, *_ = (row for rows in found.trials.values() for row in rows)
    assert (len(first["compile_seconds"]), len(second["compile_seconds"])) == (2, 2)  # of both processes
    assert len(found.trials["dense-eager"][-1]["compile_seconds"]) == 1  # not begun before


def test_the_report_has_a_page_and_a_picture(files: Path, tmp_path: Path, here: list[Request]) -> None:
    settings = settings_of(files, tmp_path / "work", targets=(0.95, 0.01), seeds=2)
    found = epochs_bench.run(settings, epochs_bench.check_data(settings))
    content = epochs_report.report(found, settings, "reclra bench epochs")
    paths = epochs_report.write(tmp_path / "epochs.json", content)
    assert [path.name for path in paths] == ["epochs.json", "epochs.md", "epochs.svg"]
    (case,) = json.loads(paths[0].read_text(encoding="utf-8"))["cases"]
    assert case["title"].endswith("a tiny net")
    assert case["seeds"] == [0, 1]
    assert len(case["candidates"]) == 2
    for arm in case["arms"].values():
        assert len(arm["trials"]) == len(arm["runs"]) == 2
        assert arm["candidate"]["lr"] in [item["lr"] for item in case["candidates"]]
        assert [item["target"] for item in arm["targets"]] == [0.95, 0.01]
    page = paths[1].read_text(encoding="utf-8")
    assert "| dense-eager |" in page
    assert "not reached" in page
    assert "Tiny nets" in page
    titles = [item.text or "" for item in ElementTree.parse(paths[2]).getroot().iter() if item.tag.endswith("title")]
    assert [title.split(":")[0] for title in titles] == [f"mlp, {arm}, seed {seed}" for arm in EAGER for seed in (0, 1)]
    assert len(epochs_report.lines(content)) == 2


def test_a_trial_that_fails_fails_the_report_and_does_not_choose(
    files: Path, tmp_path: Path, here: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = jobs.run

    def run(given: Sequence[Job], *others: Any) -> list[Row]:
        (row,) = whole(given, *others)
        if row["arm"] == "dense-eager":
            row.update(passed=False, failures=[{"code": "RG809", "name": "x", "cause": "out of luck", "stage": "data"}])
        return [row]

    monkeypatch.setattr(jobs, "run", run)
    settings = settings_of(files, tmp_path)
    found = epochs_bench.run(settings, epochs_bench.check_data(settings))
    assert found[0].runs["dense-eager"] == []
    content = epochs_report.report(found, settings, "reclra bench epochs")
    assert not content["ok"]
    assert sum("out of luck" in line for line in epochs_report.lines(content)) == 2
    assert "## What fails" in epochs_report.markdown(content, "x.svg")


def test_a_width_that_is_not_the_usual_one_stands_in_the_title() -> None:
    case = CASES["resnet18"]
    assert case.entitled(64, False) == "CIFAR-10, ResNet-18"
    assert case.entitled(16, False) == "CIFAR-10, ResNet-18, width 16 instead of 64"
    settings = Settings(Path(), width=16)
    assert settings.request(case, "dense", case.candidates[0], 0, True, "").width == 16
    assert settings.width_of(CASES["mlp"]) is None
    assert not settings.whole
    assert Settings(Path()).whole


def test_every_fast_form_has_dense_beside_it() -> None:
    for case in CASES.values():
        assert "backprop-compiled" in case.arms
        assert "dense" in case.arms
        assert case.targets == tuple(sorted(case.targets, reverse=True))


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_trains_reports_and_goes_on(reclra: Call, files: Path) -> None:
    command = ("bench", "epochs", "--data", str(files), "--quick", "--models", "mlp", "--threads", "1")
    command = (*command, "--arms", "backprop-eager")
    result = reclra(*command, "--out", "results/epochs.json")
    assert result.status == 0, result.out + result.err
    assert result.out.startswith("mlp: backprop-eager: 15 % ")
    assert result.out.splitlines()[-1] == "written: results/epochs.svg"
    content = json.loads(Path("results/epochs.json").read_text(encoding="utf-8"))
    assert {"command", "finished", "commit", "machine", "versions", "what", "config"} <= set(content)
    rows = {path: path.stat().st_mtime_ns for path in Path("build/epochs").rglob("*.json")}
    assert len(rows) == 3
    again = reclra(*command, "--json")
    assert again.status == 0
    assert again.json()["cases"] == content["cases"]
    assert again.json()["files"] == []
    assert rows == {path: path.stat().st_mtime_ns for path in Path("build/epochs").rglob("*.json")}
    assert not Path("docs").exists()


def test_an_interruption_says_how_to_go_on(reclra: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "run", interrupted)
    result = reclra("bench", "epochs", "--quick", "--data", str(files))
    assert result.status == 130
    assert "run the same command again" in result.err


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (("--models", "resnet19"), ["--models"]),
        (("--models", ","), ["--models"]),
        (("--arms", "adam,eve"), ["--arms", "--arms"]),
        (("--models", "mlp", "--arms", "channel,dense"), []),
        (("--models", "mlp", "--arms", "channel"), ["--arms", "--arms"]),
        (("--models", "resnet18", "--arms", "backprop-compiled,channel"), ["--arms"]),
        (("--seeds", "0", "--width", "0", "--batch", "0", "--threads", "0"),
         ["--seeds", "--width", "--batch", "--threads"]),
        (("--epochs", "0", "--trial-epochs", "inf", "--minutes", "-1"), ["--epochs", "--trial-epochs", "--minutes"]),
        (("--targets", "15,0,100"), ["--targets", "--targets"]),
        (("--targets", "15,low"), ["--targets"]),
        (("--targets", ","), ["--targets"]),
        (("--rule", "golden"), ["--rule"]),
        (("--seed", "-1"), ["--seed"]),
        (("--device", "abacus"), ["--device"]),
    ],
)  # fmt: skip
def test_wrong_usage_is_told(
    arguments: tuple[str, ...], places: list[str], reclra: Call, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs_bench, "run", lambda *given: [])
    result = reclra("bench", "epochs", "--data", str(files), *arguments, "--json")
    assert result.status == (2 if places else 0)
    if places:
        assert result.codes() == ["RG405"] * len(places)
        assert [error["place"] for error in result.json()["errors"]] == places
        assert not Path("build").exists()


def test_data_that_are_not_named_missing_or_damaged_are_told(reclra: Call, files: Path, tmp_path: Path) -> None:
    result = reclra("bench", "epochs", "--json")
    assert (result.status, result.codes()) == (2, ["RG405"])
    (tmp_path / "empty").mkdir()
    result = reclra("bench", "epochs", "--data", "empty", "--json")
    assert (result.status, result.codes()) == (1, ["RG703", "RG703"])  # both data sets
    result = reclra("bench", "epochs", "--data", "empty", "--models", "resnet18", "--json")
    assert (result.status, result.codes()) == (1, ["RG703"])
    write_cifar(tmp_path / "bad")
    (tmp_path / "bad" / "test_batch.bin").write_bytes(b"bad")
    result = reclra("bench", "epochs", "--data", "bad", "--models", "resnet18", "--json")
    assert (result.status, result.codes()) == (1, ["RG704"])
    result = reclra("bench", "epochs", "--data", str(files), "--models", "mlp", "--batch", "81", "--json")
    assert (result.status, result.codes()) == (2, ["RG405"])
    write_fashion(tmp_path / "few", train=4)
    result = reclra("bench", "epochs", "--data", "few", "--models", "mlp", "--batch", "1", "--json")
    assert (result.status, result.codes()) == (1, ["RG704"])


def test_a_gpu_that_is_not_there_is_told(reclra: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reclra("bench", "epochs", "--data", str(files), "--device", "cuda", "--json").codes() == ["RG405"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(reclra: Call, files: Path) -> None:
    Path("file").write_text("", encoding="utf-8")
    result = reclra("bench", "epochs", "--data", str(files), "--quick", "--out", "file/epochs.json", "--json")
    assert result.status == 1
    assert result.codes() == ["RG701"]
