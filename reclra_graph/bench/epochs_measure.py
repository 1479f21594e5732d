"""One cell of ``reclra bench epochs``, in one process: a trial of a candidate, or a whole run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from reclra_graph.bench import epochs_data as data
from reclra_graph.bench.epochs_arms import ARMS, learner
from reclra_graph.bench.epochs_cases import CASES, Candidate, Case
from reclra_graph.bench.epochs_train import Course, Length, Run, error_rate, summary
from reclra_graph.bench.jobs import Row
from reclra_graph.bench.measure import told
from reclra_graph.errors import Problem, ReclraError

QUICK_EPOCHS, QUICK_EVALUATIONS = 2.0, 2


@dataclass(frozen=True)
class Request:
    """What one process trains: an arm of a case with one candidate. ``trial``: for the candidate's sake alone, without
    test images. ``digest``: of the data in the folder ``data``. ``rule``: how error synapses learn."""

    case: str
    arm: str
    optimizer: str
    lr: float
    seed: int
    trial: bool
    data: str
    digest: str
    epochs: float
    batch: int
    width: int | None
    rule: str
    device: str = "cpu"
    tiny: bool = False

    @property
    def chosen(self) -> Case:
        """The case."""
        return CASES[self.case]

    @property
    def candidate(self) -> Candidate:
        """The optimiser and its rate."""
        return Candidate(self.optimizer, self.lr)

    @property
    def shown(self) -> str:
        """The cell's name."""
        kind = "trial" if self.trial else "run"
        return f"{self.case}, {self.arm}, {kind}, {self.candidate.name}, seed {self.seed}"

    def length(self, images: int) -> Length:
        """Of a run over so many training images."""
        evaluations = QUICK_EVALUATIONS if self.tiny else self.chosen.evaluations
        return Length.of(images, self.batch, self.epochs, evaluations)

    def begun(self) -> Row:
        """What its row holds before anything is done."""
        return {
            "source": "trial" if self.trial else "run", "name": self.case, "arm": self.arm,
            "optimizer": self.optimizer, "lr": self.lr, "seed": self.seed, "stage": "", "passed": False,
            "paused": False, "seconds": {}, "checks": {}, "failures": [],
        }  # fmt: skip


def measured(
    request: Request,
    report: Callable[[Row], None] = lambda row: None,
    checkpoint: Path | None = None,
    deadline: float | None = None,
) -> Row:
    """The row of a request; what goes wrong is in it, never raised. A row that is neither passed nor failed is paused:
    ``deadline`` (on the clock of ``time.time``) came first. ``report`` is given the row as it grows."""
    row = request.begun()
    if request.device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the libraries say of each other
            _measure(request, row, report, checkpoint, deadline)
    except Exception as error:
        name = Problem("RG809", "").name
        row["failures"] = [
            {**item, "stage": row["stage"], **({"code": "RG809", "name": name} if item["code"] == "uncoded" else {})}
            for item in told(error)
        ]
    row["passed"] = not row["failures"] and not row["paused"]
    row["stage"] = "done"
    report(row)
    if row["passed"] and checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return row


def _measure(
    request: Request, row: Row, report: Callable[[Row], None], checkpoint: Path | None, deadline: float | None
) -> None:
    def stage(text: str) -> None:
        row["stage"] = text
        report(row)

    case = request.chosen
    stage("data")
    found = data.samples(case, data.read(case.data, Path(request.data)), request.device, request.tiny)
    length = request.length(len(found.train.labels))
    row["images"] = {kind: len(getattr(found, kind).labels) for kind in ("train", "validation", "test")}
    row["length"] = {"steps": length.steps, "every": length.every, "epoch": length.epoch}
    stage("compiling")
    torch.manual_seed(request.seed)
    model = case.build(request.width or 0, request.tiny).to(request.device)
    if case.format == "channels_last":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not annotated by torch
    row["parameters"] = sum(item.numel() for item in model.parameters())
    inputs, _ = found.train.batch(slice(0, request.batch))
    made = learner(ARMS[request.arm], model, request.candidate, request.rule, inputs, request.seed)

    def tell(course: Course) -> None:
        row.update(summary(course))
        error = "" if row["error"] is None else f", error {100 * row['error']:.1f} %"
        stage(f"step {course.steps} of {length.steps}{error}")

    run = Run(
        made, found, length, request.batch, request.lr, request.seed, request.device, checkpoint, deadline, tell
    )  # fmt: skip
    course = run.go()
    row.update(summary(course))
    row["plan"] = made.plan()
    if why := made.why():
        raise ReclraError(Problem("RG809", f"the step ran as it is: {why}"))
    row["paused"] = course.steps < length.steps and not course.ended
    if not request.trial and not row["paused"] and not course.ended:
        stage("test images")
        row["test_error"] = round(error_rate(made, found.test), 6)
