"""``reclra bench epochs``: the arithmetic of times to an error, one run with its clock and checkpoints, and its row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reclra_graph as rg
from reclra_graph.bench import epochs_data, epochs_train
from reclra_graph.bench.epochs_arms import ARMS, learner
from reclra_graph.bench.epochs_cases import CASES, MOMENTUM, Candidate
from reclra_graph.bench.epochs_figures import arm_figures, at_edge, best, compare, middle, reached
from reclra_graph.bench.epochs_measure import Request, measured
from reclra_graph.bench.epochs_train import Course, Length, Run, error_rate, rate
from reclra_graph.data import fashion_mnist
from tests.unit.image_files import write_cifar, write_fashion

# -- the arithmetic of times ------------------------------------------------------------------------------------------


def row_of(seed: int, *curve: tuple[int, float, float], **other: Any) -> dict[str, Any]:
    """A row of a run; its last point is its end."""
    return {
        "passed": True, "seed": seed, "optimizer": "momentum", "lr": 0.01, "ended": "", "curve": curve,
        "steps": curve[-1][0], "train_seconds": curve[-1][1], "error": curve[-1][2], "test_error": curve[-1][2] + 0.01,
        "compile_seconds": [1.5, 0.2], "parameters": 7, **other,
    }  # fmt: skip


def test_a_target_is_reached_at_the_first_evaluation_that_is_not_above_it() -> None:
    curve = [(10, 1.0, 0.5), (20, 2.0, 0.3), (30, 3.0, 0.35), (40, 4.0, 0.2)]
    assert reached(curve, 0.4) == (2.0, 20)
    assert reached(curve, 0.3) == (2.0, 20)
    assert reached(curve, 0.25) == (4.0, 40)
    assert reached(curve, 0.1) == (math.inf, 0)
    assert reached([], 0.1) == (math.inf, 0)


def test_a_median_is_told_where_more_than_half_of_the_runs_arrive() -> None:
    assert middle([3.0, 1.0, 2.0]) == 2.0
    assert middle([1.0, 2.0, math.inf]) == 2.0
    assert middle([1.0, math.inf, math.inf]) is None
    assert middle([1.0, math.inf]) is None
    assert middle([]) is None


def test_the_best_trial_is_that_with_the_lowest_error_of_those_that_ended_well() -> None:
    trials = [
        {"optimizer": "momentum", "lr": 0.01, "error": 0.3, "passed": True},
        {"optimizer": "momentum", "lr": 0.03, "error": None, "passed": True},
        {"optimizer": "adamw", "lr": 1e-4, "error": 0.2, "passed": True},
        {"optimizer": "adamw", "lr": 3e-4, "error": 0.2, "passed": True},
        {"optimizer": "adamw", "lr": 1e-3, "error": 0.1, "passed": False},
    ]
    chosen = best(trials)
    assert chosen is trials[2]
    assert at_edge(trials, trials[2])
    assert not at_edge(trials, trials[3])
    assert best(trials[1:2]) is None


def test_the_figures_of_arms_are_those_of_their_rows() -> None:
    trials = [row_of(0, (5, 1.0, 0.3))]
    slow = [row_of(seed, (10, 2.0 + seed, 0.4), (20, 6.0 + seed, 0.2)) for seed in range(3)]
    fast = [row_of(seed, (10, 1.0 + seed, 0.4), (20, 3.0 + seed, 0.25)) for seed in range(2)]
    fast += [row_of(2, (10, 3.0, 0.6), error=None, test_error=None, ended="diverged")]
    targets = (0.5, 0.25, 0.2)
    arms = {
        "backprop-compiled": arm_figures(trials, slow, targets),
        "dense": arm_figures(trials, fast, targets),
        "channel": arm_figures(trials, [row_of(0, (10, 0.5, 0.45))], targets),
        "token": arm_figures([], [], targets),
    }
    compare(arms, ["backprop-compiled"])
    peer, dense, channel = (arms[name] for name in ("backprop-compiled", "dense", "channel"))
    assert [item["seconds"] for item in peer["targets"]] == [3.0, 7.0, 7.0]
    assert [item["steps"] for item in peer["targets"]] == [10, 20, 20]
    assert [item["seconds"] for item in dense["targets"]] == [2.0, 4.0, None]
    assert [(item["reached"], item["of"]) for item in dense["targets"]] == [(2, 3), (2, 3), (0, 3)]
    assert [item["speedup"] for item in dense["targets"]] == [1.5, 1.75, None]
    assert [item["speedup"] for item in peer["targets"]] == [1, 1, 1]
    assert peer["milliseconds"] == pytest.approx(350)
    assert dense["milliseconds"] == pytest.approx(175)  # of the two runs that came to their end
    assert peer["compile_seconds"] == 1.5
    assert (peer["test_error"], dense["test_error"]) == (pytest.approx(0.21), pytest.approx(0.26))
    assert dense["cost"] == {"backprop": pytest.approx(0.05), "dense": None}
    assert channel["cost"] == {"backprop": pytest.approx(0.25), "dense": pytest.approx(0.2)}
    assert peer["cost"]["backprop"] is None
    assert arms["token"]["candidate"] is None
    json.dumps(arms, allow_nan=False)


# -- one run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_fashion(folder / "FashionMNIST" / "raw")
    write_cifar(folder / "cifar-10-batches-bin")
    return folder


def run_of(
    files: Path, arm: str = "dense-eager", candidate: Candidate | None = None, epochs: float = 2.5, **other: Any
) -> Run:
    torch.manual_seed(3)
    case = CASES["mlp"]
    candidate = candidate or Candidate("momentum", 0.02)
    found = epochs_data.samples(case, fashion_mnist(files), "cpu")
    inputs, _ = found.train.batch(slice(0, 8))
    made = learner(ARMS[arm], case.build(0, True), candidate, "fixed", inputs, 3)
    return Run(made, found, Length.of(len(found.train.labels), 8, epochs, 5), 8, candidate.lr, 3, **other)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def test_lengths_and_rates() -> None:
    assert Length.of(100, 8, 2.5, 5) == Length(30, 2, 12)
    assert Length.of(100, 8, 0.01, 50) == Length(1, 1, 12)
    assert rate(0.1, 0, 10) == 0.1
    assert rate(0.1, 5, 10) == pytest.approx(0.05)
    assert 0 < rate(0.1, 9, 10) < 0.01


@pytest.mark.parametrize("arm", ["backprop-eager", "dense-eager"])
def test_a_run_learns_and_is_judged_as_it_goes(files: Path, arm: str) -> None:
    told: list[int] = []
    run = run_of(files, arm, Candidate("momentum", 0.05), 6, tell=lambda course: told.append(course.steps))
    first = error_rate(run.learner, run.samples.validation)
    course = run.go()
    assert run.length == Length(60, 2, 10)  # a fifth of 100 images is held out
    assert [point[0] for point in course.curve] == told == list(range(2, 61, 2))
    times = [point[1] for point in course.curve]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(course.seconds, abs=1e-3)
    assert len(course.compile_seconds) == 1
    assert course.curve[-1][2] < 0.2 < first
    assert course.ended == ""


def test_an_epoch_meets_every_image_once_in_an_order_of_its_own(files: Path) -> None:
    run = run_of(files)
    epochs = [torch.cat([run.chosen(10 * epoch + step) for step in range(10)]) for epoch in range(2)]
    for order in epochs:
        assert order.sort().values.tolist() == list(range(80))
    assert not torch.equal(*epochs)
    assert torch.equal(run.chosen(13), epochs[1][24:32])


@pytest.mark.parametrize("arm", ["backprop-eager", "dense-eager"])
@pytest.mark.parametrize("candidate", [Candidate("momentum", 0.02), Candidate("adamw", 0.003), Candidate("sgd", 0.1)])
def test_what_stopped_goes_on_as_if_it_had_not(files: Path, arm: str, candidate: Candidate, tmp_path: Path) -> None:
    whole = run_of(files, arm, candidate)
    course = whole.go()
    checkpoint = tmp_path / "run.pt"
    clock = iter(range(1000))
    stopped = run_of(
        files, arm, candidate, checkpoint=checkpoint, deadline=5, clock=lambda: float(next(clock))
    ).go()  # fmt: skip
    assert 0 < stopped.steps < course.steps
    assert checkpoint.is_file()
    again = run_of(files, arm, candidate, checkpoint=checkpoint)
    found = again.go()
    assert [(step, error) for step, _, error in found.curve] == [(step, error) for step, _, error in course.curve]
    assert found.curve[: len(stopped.curve)] == stopped.curve
    assert found.seconds > stopped.seconds
    assert len(found.compile_seconds) == 2
    assert same(again.learner.state(), whole.learner.state())


def test_the_warm_up_teaches_nothing(files: Path) -> None:
    for arm in ("backprop-eager", "dense-eager"):
        run = run_of(files, arm, Candidate("adamw", 0.01))
        run.learner.learn(*run.samples.train.batch(run.chosen(0)), 0.01)
        before = run.learner.state()
        assert run.warm_up() > 0
        assert same(run.learner.state(), before)


def test_a_damaged_checkpoint_is_not_gone_on_from(files: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    run = run_of(files, checkpoint=checkpoint)
    before = run.learner.state()
    checkpoint.write_bytes(b"no checkpoint")
    assert run.resumed() == Course()
    torch.save({"state": {"model": {}, "step": {}}, "course": {}}, checkpoint)
    assert run.resumed() == Course()
    assert same(run.learner.state(), before)


def test_both_kinds_of_arm_make_the_same_momentum(files: Path) -> None:
    # The last layer's error is the loss's own in both: with the same optimiser its bias learns the same at first.
    last = []
    for arm in ("backprop-eager", "dense-eager"):
        run = run_of(files, arm)
        for step in range(2):
            run.learner.learn(*run.samples.train.batch(run.chosen(0)), 0.02 / (step + 1))
            last.append(list(run.learner.model.parameters())[-1].detach().clone())
    assert torch.allclose(last[0], last[2], atol=1e-6)
    assert MOMENTUM == 0.9


# -- a cell's row -----------------------------------------------------------------------------------------------------


def request(files: Path, arm: str, case: str = "mlp", **other: Any) -> Request:
    given: dict[str, Any] = {
        "optimizer": "momentum", "lr": 0.01, "seed": 0, "trial": False, "digest": "", "epochs": 2.0, "batch": 4,
        "width": None if case != "resnet18" else 4, "rule": "fixed", "tiny": True,
    }  # fmt: skip
    return Request(case, arm, data=str(files), **{**given, **other})


def test_a_run_is_told_with_its_test_error_and_a_trial_without(files: Path, tmp_path: Path) -> None:
    told: list[str] = []
    row = measured(request(files, "dense-eager"), lambda row: told.append(row["stage"]), tmp_path / "x.pt")
    assert row["passed"], row["failures"]
    assert told[:2] == ["data", "compiling"]
    assert told[-2:] == ["test images", "done"]
    assert row["images"] == {"train": 32, "validation": 20, "test": 32}
    assert row["length"] == {"steps": 16, "every": 4, "epoch": 8}
    assert [point[0] for point in row["curve"]] == [4, 8, 12, 16]
    assert row["plan"]["synapses"] == {"dense": 2}
    assert 0 <= row["test_error"] <= 1
    assert not (tmp_path / "x.pt").exists()
    trial = measured(request(files, "backprop-eager", trial=True))
    assert trial["passed"]
    assert "test_error" not in trial
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(("case", "form"), [("resnet18", "channel"), ("vit-tiny", "token")])
def test_images_of_cifar10_and_the_fast_forms(
    files: Path, case: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rg.CompiledStep, "fused", lambda step: step)
    row = measured(request(files, form, case))
    assert row["passed"], row["failures"]
    assert row["plan"]["synapses"][form] > 0
    assert row["test_error"] <= 1


def test_pixels_of_cifar10_are_normalised_by_the_training_images(files: Path) -> None:
    for case in ("resnet18", "vit-tiny"):
        found = epochs_data.samples(CASES[case], epochs_data.read("cifar10", files), "cpu")
        images, _ = found.train.batch(slice(0, len(found.train.labels)))
        assert images.shape == (80, 3, 32, 32)
        assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
        assert torch.allclose(images.std((0, 2, 3)), torch.ones(3), atol=1e-4)
        assert images.is_contiguous(memory_format=torch.channels_last) == (case == "resnet18")
        assert len(found.validation.labels) == 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arm", ["backprop-eager", "dense-eager"])
def test_numbers_that_are_not_finite_end_a_run(files: Path, arm: str) -> None:
    row = measured(request(files, arm, "mlp-relu", lr=1e30))
    assert row["passed"], row["failures"]
    assert row["ended"] == "diverged"
    assert row["error"] is None
    assert "test_error" not in row
    assert row["steps"] == 4


def test_what_goes_wrong_has_a_code(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = measured(request(tmp_path, "dense-eager"))
    assert not row["passed"]
    assert [(item["code"], item["stage"]) for item in row["failures"]] == [("RG703", "data")]

    def broken(*given: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(epochs_train.Run, "stretch", broken)
    row = measured(request(files, "backprop-eager"))
    assert [item["code"] for item in row["failures"]] == ["RG809"]
    assert "out of luck" in row["failures"][0]["cause"]


def test_a_step_that_is_not_compiled_after_all_is_no_measurement(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fused:
        why = "there is no compiler"

        def __init__(self, step: rg.CompiledStep) -> None:
            self.step = step

        def __call__(self, inputs: Tensor, target: Tensor) -> Tensor:
            return self.step(inputs, target)

    monkeypatch.setattr(rg.CompiledStep, "fused", lambda step: Fused(step))
    row = measured(request(files, "dense"))
    assert [item["code"] for item in row["failures"]] == ["RG809"]
    assert "there is no compiler" in row["failures"][0]["cause"]


def test_a_deadline_pauses_and_the_next_process_goes_on(files: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    row = measured(request(files, "dense-eager"), checkpoint=checkpoint, deadline=0.0)
    assert (row["paused"], row["passed"], row["failures"], row["steps"]) == (True, False, [], 4)
    row = measured(request(files, "dense-eager"), checkpoint=checkpoint)
    assert row["passed"], row["failures"]
    assert len(row["compile_seconds"]) == 2
    assert [point[0] for point in row["curve"]] == [4, 8, 12, 16]
    assert not checkpoint.exists()
