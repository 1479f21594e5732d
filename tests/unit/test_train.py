"""Training runs: rates, what is learned and written, early stopping, divergence, several seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.methods.learner import Learner
from reclra_graph.train import trainer
from reclra_graph.train.log import read_log
from reclra_graph.train.schedule import Schedule
from reclra_graph.train.settings import Settings, chosen_run
from reclra_graph.train.several import spread, with_seeds
from tests.unit.image_files import write_own
from tests.unit.training import Net, held, run, same

# -- rates ------------------------------------------------------------------------------------------------------------


def rates(schedule: Schedule, steps: int = 100, epoch: int = 10) -> list[float]:
    return [schedule.rate(step, steps, epoch) for step in range(steps)]


def test_schedules_follow_their_formulas() -> None:
    assert rates(Schedule("constant", 0.3)) == [0.3] * 100
    cosine = rates(Schedule("cosine", 0.2, end=0.1))
    wanted = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=0.2), 100, eta_min=0.1)
    for value in cosine:
        assert value == pytest.approx(wanted.get_last_lr()[0])
        wanted.optimizer.step()
        wanted.step()
    # The paper's: polynomial from 1e-2 to 1e-5, with a warm-up of 40 steps.
    paper = rates(Schedule("polynomial", 1e-2, 1e-5, warmup=40))
    assert paper[:40] == pytest.approx([1e-2 * (step + 1) / 40 for step in range(40)])
    assert paper[40:] == pytest.approx([1e-5 + (1e-2 - 1e-5) * (1 - step / 60) for step in range(60)])
    assert rates(Schedule("polynomial", 1.0, power=2.0))[50] == pytest.approx(0.25)
    assert rates(Schedule("step", 1.0, milestones=(2, 5), factor=0.1))[19:51:10] == pytest.approx([1, 0.1, 0.1, 0.1])
    assert rates(Schedule("step", 1.0, milestones=(2, 5), factor=0.1))[50] == pytest.approx(0.01)
    by_epoch = rates(Schedule("cosine", 0.2, by="epoch"))
    assert len(set(by_epoch)) == 10
    assert by_epoch[10:20] == [rates(Schedule("cosine", 0.2))[10]] * 10


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule("linear"), Schedule(lr=0.0), Schedule(lr=float("nan")), Schedule(end=-1.0), Schedule(power=0.0),
        Schedule(warmup=-1), Schedule("step"), Schedule("step", milestones=(5, 2)), Schedule(by="day"),
    ],
)  # fmt: skip
def test_schedules_that_cannot_be(schedule: Schedule) -> None:
    assert [item.code for item in schedule.problems()] == ["RG405"]


def test_settings_that_cannot_be_are_all_told_at_once() -> None:
    wrong = Settings(
        epochs=0, batch=0, validation=-1, evaluations=0, patience=0, seed=-1, whiten_epsilon=-1.0, workers=-1,
        eval_batch=0, checkpoint_seconds=-1, minutes=-1,
    )  # fmt: skip
    names = {item.place for item in wrong.problems()}
    assert names == {
        "epochs", "batch", "validation", "evaluations", "patience", "seed", "whiten-epsilon", "workers", "eval-batch",
        "checkpoint-seconds", "minutes",
    }  # fmt: skip
    assert [item.place for item in Settings(validation=0, patience=3).problems()] == ["patience"]
    assert Settings().problems() == ()


def test_how_a_step_runs_where_that_is_left_open() -> None:
    def chosen(device: str, steps: int, schedule: Schedule, optimizer: str = "sgd", method: str = "reclra") -> str:
        return chosen_run("auto", device, optimizer, steps, schedule, method)

    assert chosen("cpu", 100, Schedule()) == "eager"
    assert chosen("cpu", 100_000, Schedule()) == "fused"
    assert chosen("cpu", 100_000, Schedule(), "torch:RMSprop") == "eager"
    assert chosen("cpu", 100_000, Schedule(), "sgd", "bp") == "eager"
    assert chosen("cuda", 100, Schedule()) == "fused"
    assert chosen("cuda", 100, Schedule(by="epoch")) == chosen("cuda", 100, Schedule("constant")) == "graphed"
    assert chosen_run("eager", "cuda", "sgd", 1, Schedule(), "reclra") == "eager"


# -- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_writes_what_it_did(tmp_path: Path) -> None:
    told: list[trainer.Progress] = []
    result = run(tmp_path, progress=told.append)
    assert (result.ended, result.steps) == ("done", 60)
    assert result.error is not None
    assert result.test_error is not None
    assert result.error < 0.3
    assert result.test_error < 0.35
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["step"] for record in records] == [10, 20, 30, 40, 50, 60]
    assert records == list(result.records)
    assert records[-1]["loss"] < records[0]["loss"]
    assert min(record["error"] for record in records) == result.error
    assert result.best_step == next(record["step"] for record in records if record["error"] == result.error)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_error"] == result.test_error
    assert summary["curve"] == records
    assert summary["settings"]["data"]["train"] == 80
    assert summary["settings"]["option"] == {"gain": True}
    assert {"machine", "versions", "commit", "command"} <= set(summary)
    assert told[-1].step == told[-1].steps == 60
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"last.pt", "best.pt", "log.jsonl", "summary.json"}
    # The same again: nothing is left to train, and the same comes out.
    again = run(tmp_path)
    assert (again.test_error, again.records) == (result.test_error, result.records)


def test_the_test_images_are_seen_once_and_by_the_best_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    usual = trainer.judge

    def judged(model: nn.Module, objective: Any, part: Any, size: int, *more: Any) -> dict[str, float]:
        seen.append(len(part))
        # of the validation images the second evaluation is the best
        validation = len(part) == 20
        return {"error": 0.1 + 0.05 * abs(len(seen) - 2)} if validation else usual(model, objective, part, size, *more)

    monkeypatch.setattr(trainer, "judge", judged)
    model = Net()
    result = run(tmp_path, model=model)
    assert seen == [20] * 6 + [40, 80]
    assert (result.error, result.best_step) == (0.1, 20)
    assert same(dict(model.state_dict()), dict(held(tmp_path / "run", "best.pt")["state"]["model"]))
    assert not same(dict(model.state_dict()), dict(held(tmp_path / "run")["state"]["model"]))


def test_without_validation_images_the_last_model_is_judged(tmp_path: Path) -> None:
    model = Net()
    result = run(tmp_path, model=model, validation=0)
    assert (result.error, result.best_step) == (None, result.steps)
    assert result.test_error is not None
    assert all(record["error"] is None for record in result.records)
    assert same(dict(model.state_dict()), dict(held(tmp_path / "run")["state"]["model"]))


def test_a_model_that_does_not_get_better_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = itertools.chain([0.5, 0.4, 0.4, 0.45], itertools.repeat(0.3))
    monkeypatch.setattr(trainer, "judge", lambda *given: {"error": next(errors)})
    result = run(tmp_path, patience=2)
    assert (result.ended, result.steps, result.error, result.best_step) == ("patience", 40, 0.4, 20)
    assert run(tmp_path, patience=2).ended == "patience"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["bp", "reclra"])
def test_a_run_that_diverges_says_so(tmp_path: Path, method: str) -> None:
    result = run(tmp_path, method=method, lr=1e38, schedule="constant", model=lambda: nn.Linear(4, 3))
    assert (result.ended, result.test_error) == ("diverged", None)
    assert result.steps < 60
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ended"] == "diverged"
    state = held(tmp_path / "run")["state"]["model"]
    assert all(bool(value.isfinite().all()) for value in state.values())


class Watch:
    """A callback that looks at every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def after_step(self, step: int, learner: Learner, batch: tuple[Any, Tensor]) -> None:
        self.seen.append((step, len(batch[1])))

    def figures(self) -> Mapping[str, float]:
        return {"seen": float(len(self.seen)), "odd": float("inf")}


def test_callbacks_see_every_step_and_add_to_the_log(tmp_path: Path) -> None:
    watch = Watch()
    result = run(tmp_path, callbacks=[watch])
    assert watch.seen == [(step, 8) for step in range(1, 61)]
    assert [record["seen"] for record in result.records] == [10, 20, 30, 40, 50, 60]
    assert {record["odd"] for record in result.records} == {None}


@pytest.mark.parametrize(
    "given",
    [
        {"method": "bp", "optimizer": "torch:RMSprop", "optimizer_args": {"alpha": 0.9}, "lr": 0.01},
        {"optimizer": "torch:Adagrad", "schedule": "step", "lr_steps": (2, 4)},
        {"optimizer": "adamw", "lr": 0.01, "schedule": "polynomial", "warmup": 5, "lr_by": "epoch"},
    ],
)
def test_other_methods_optimisers_and_schedules(tmp_path: Path, given: dict[str, Any]) -> None:
    result = run(tmp_path, **given)
    assert result.ended == "done"
    assert result.error is not None
    assert result.error < 0.4


def test_targets_that_are_no_classes(tmp_path: Path) -> None:
    x = torch.randn(80, 4)
    part = {"inputs": x, "targets": x[:, :2] * 0.5}
    torch.save({"train": part, "test": part}, tmp_path / "own.pt")
    result = run(tmp_path, model=lambda: nn.Linear(4, 2), options={"loss": "mse"}, epochs=12)
    assert result.error is not None
    assert result.error < result.records[0]["error"] / 4
    assert result.summary["settings"]["data"]["classes"] == 0


def test_several_seeds_have_folders_of_their_own(tmp_path: Path) -> None:
    from reclra_graph.data import open_data
    from reclra_graph.train.job import Job

    data = open_data(write_own(tmp_path / "own.pt", train=60))
    settings = Settings(1, 8, validation=12, seed=5, schedule=Schedule(lr=0.1))
    job = Job(lambda seed: (Net(), None), data, settings, tmp_path / "runs", run="eager")
    several = with_seeds(job, 3)
    assert several.whole
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["seed-5", "seed-6", "seed-7", "summary.json"]
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert [item["seed"] for item in summary["runs"]] == [5, 6, 7]
    assert len({item["weights"] for item in summary["runs"]}) == 3
    errors = [item.test_error for item in several.results]
    assert summary["test_error"] == spread(errors)
    assert spread([0.1, 0.3]) == {"mean": 0.2, "sd": 0.141421, "count": 2}
    assert spread([None]) == {"mean": None, "sd": None, "count": 0}
    paused = with_seeds(Job(**{**vars(job), "settings": Settings(1, 8, minutes=0), "folder": tmp_path / "late"}), 3)
    assert [item.ended for item in paused.results] == ["minutes"]
    assert not paused.whole


def test_the_public_names() -> None:
    from reclra_graph.train.fit import fit

    assert rg.fit is fit
    assert rg.Trainer is trainer.Trainer
