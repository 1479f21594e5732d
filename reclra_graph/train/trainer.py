"""One run: a learner over its epochs, judged as it goes, with checkpoints from which it goes on exactly."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from reclra_graph.circumstances import circumstances, write_json
from reclra_graph.errors import ModelError, Problem
from reclra_graph.methods.learner import Learner, Predicts
from reclra_graph.methods.objective import Objective
from reclra_graph.train import checkpoint
from reclra_graph.train.judge import check_classes, judge
from reclra_graph.train.log import Log, Record
from reclra_graph.train.loop import AfterStep, Length, stretch, warm_up
from reclra_graph.train.prepare import Samples
from reclra_graph.train.settings import Settings

LAST, BEST, LOG, SUMMARY = "last.pt", "best.pt", "log.jsonl", "summary.json"
"""Files of a run: where it goes on, what was best, the log, and what came of it."""
_TELL = 0.3  # seconds between two reports of progress, at least
DONE, PATIENCE, DIVERGED, PAUSED = "done", "patience", "diverged", "minutes"
"""Why a run ended."""


@dataclass
class Course:
    """How a run went so far. ``seconds`` of training, without compilation and evaluation; ``compile_seconds`` of every
    process that had a part in it. ``records``: of all evaluations. ``loss_sum`` and ``loss_count``: of the steps since
    the last one. ``best``: the least error, and behind which step; ``worse``: evaluations since then. ``ended``: why it
    cannot go on, or ""."""

    steps: int = 0
    seconds: float = 0.0
    compile_seconds: list[float] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    ended: str = ""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: ``step`` of ``steps``, the mean ``loss`` since the last evaluation, the last and the best
    ``error`` on the validation images, samples per second, and seconds that are ``left``; None where not known."""

    step: int
    steps: int
    epoch: float
    loss: float | None
    error: float | None
    best: float | None
    rate: float
    left: float | None


@dataclass(frozen=True)
class Result:
    """What came of a run. ``ended``: DONE, PATIENCE (early stopping), DIVERGED or PAUSED (the minutes were over).
    ``error``: the least on the validation images, behind ``best_step`` steps; ``test_error``: of the model as it was
    then, once, at the end; both None where there are none. ``summary``: what stands in summary.json."""

    folder: Path
    ended: str
    steps: int
    error: float | None
    best_step: int
    test_error: float | None
    train_error: float | None
    records: tuple[Record, ...]
    summary: dict[str, Any]


class Trainer:
    """Trains a learner on samples, into a folder. ``run()`` goes on where the folder's checkpoint stands, and brings
    the same numbers, bit for bit, as a run that was never stopped."""

    def __init__(
        self,
        learner: Learner,
        samples: Samples,
        settings: Settings,
        objective: Objective,
        folder: Path,
        *,
        identity: Mapping[str, Any] | None = None,
        fresh: bool = False,
        callbacks: Sequence[AfterStep] = (),
        tensorboard: Path | None = None,
        progress: Callable[[Progress], None] = lambda progress: None,
        command: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """identity: what the numbers depend on beside settings and data; a checkpoint with another is refused. fresh:
        begin anew, whatever stands in the folder. callbacks: told of every step (``after_step(step, learner, batch)``);
        one that has ``figures()`` is asked for figures by name at every evaluation, which go into the log. progress:
        told where the run stands, a few times a second at most. command: for the summary.

        Raises ReclraError RG713 where the model tells fewer classes apart than the data have.
        """
        self.learner, self.samples, self.settings, self.objective = learner, samples, settings, objective
        self.folder, self.fresh, self.callbacks = folder, fresh, tuple(callbacks)
        self.progress, self.command, self.clock = progress, command, clock
        self.device = next(learner.model.parameters()).device
        self.length = Length.of(len(samples.train), settings.batch, settings.epochs, settings.evaluations)
        self.identity = checkpoint.plain({**settings.identity, **(identity or {}), "data": samples.about})
        self.log = Log(folder / LOG, tensorboard)
        self.feed = samples.train.feed(settings.batch, settings.seed, self.length.epoch, self.length.steps)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.stopped = False
        self.first = 0
        self.begun = self.saved = self.told = clock()
        check_classes(
            learner.model, objective, samples.train, settings.eval_batch, samples.classes, str(samples.about["name"])
        )  # fmt: skip

    def run(self) -> Result:
        """Train to the end, and judge the best model by the test images; the learner is then as it was at its best.

        Raises ReclraError: RG701 where the folder cannot be written, as on a full disk (the last checkpoint is whole);
        RG710 where the folder holds a run with other settings; RG711 where its checkpoint is damaged. KeyboardInterrupt
        (Ctrl-C) is passed on behind the step that is being done, and a checkpoint; a second one at once.
        """
        self.learner.model.train()
        course = self.resumed()
        self.begun = self.saved = self.told = self.clock()
        self.log.begin(course.records)
        try:
            with self._interruptible():
                self._stretches(course)
        finally:
            self.log.close()
        return self._finished(course)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _stretches(self, course: Course) -> None:
        while course.steps < self.length.steps and not course.ended:
            self._stretch(course)
            finished = course.ended or course.steps >= self.length.steps
            if finished or self.stopped or self.late or self._due():
                self.save(course)
            if self.stopped:
                raise KeyboardInterrupt
            if self.late:
                return

    def _stretch(self, course: Course) -> None:
        """Train until the next evaluation, and judge; or until a checkpoint is due before that."""
        last = self.length.next_evaluation(course.steps)
        self.loss_sum.fill_(course.loss_sum)

        def each(step: int, loss: Tensor) -> bool:
            self.loss_sum += loss
            course.loss_count += 1
            if self.clock() - self.told > _TELL:
                self._tell(course, step, float(self.loss_sum) / course.loss_count)
            return self.stopped or self.late or self._due()

        rate = partial(self.settings.schedule.rate, steps=self.length.steps, epoch=self.length.epoch)
        done = stretch(
            self.learner, self.feed, rate, course.steps, last, self._settle, self.callbacks, each
        )  # fmt: skip
        course.seconds += done.seconds
        course.steps = done.last
        course.loss_sum = float(self.loss_sum)
        if not done.finite:
            course.ended = DIVERGED
        elif done.last == last:
            self._evaluate(course)

    def _evaluate(self, course: Course) -> None:
        """Judge by the validation images; keep the model where it is the best so far."""
        record: Record = {
            "step": course.steps,
            "epoch": round(course.steps / self.length.epoch, 4),
            "seconds": round(course.seconds, 4),
            "lr": self.settings.schedule.rate(course.steps - 1, self.length.steps, self.length.epoch),
            "loss": course.loss_sum / max(1, course.loss_count),
            "error": None,
            "samples_per_second": round(course.steps * self.settings.batch / max(course.seconds, 1e-9), 1),
        }
        course.loss_sum, course.loss_count = 0.0, 0
        if self.samples.validation is not None:
            record.update(self._judged(self.samples.validation))
        for callback in self.callbacks:
            figures: Callable[[], Mapping[str, float]] | None = getattr(callback, "figures", None)
            if figures is not None:
                record.update(figures())
        record = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                  for name, value in record.items()}  # fmt: skip
        course.records.append(record)
        error = record["error"]
        if error is not None and (course.best is None or error < course.best):
            course.best, course.best_step, course.worse = error, course.steps, 0
            checkpoint.write(
                self.folder / BEST, {"identity": self.identity, "step": course.steps, "state": self.learner.state()}
            )  # fmt: skip
        else:
            course.worse += 1
        self.log.write(record)
        self._tell(course, course.steps, record["loss"])
        if self.settings.patience is not None and course.worse >= self.settings.patience:
            course.ended = PATIENCE

    def _judged(self, part: Any) -> dict[str, float]:
        predict = self.learner.predict if isinstance(self.learner, Predicts) else None
        return judge(self.learner.model, self.objective, part, self.settings.eval_batch, self.samples.classes, predict)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def late(self) -> bool:
        """Whether the minutes are over."""
        return self.settings.minutes is not None and self.clock() - self.begun > 60 * self.settings.minutes

    def _due(self) -> bool:
        return self.clock() - self.saved > self.settings.checkpoint_seconds

    def _tell(self, course: Course, step: int, loss: float | None) -> None:
        self.told = self.clock()
        spent = self.told - self.begun
        done = step - self.first
        rate = done * self.settings.batch / spent if spent > 0 else 0.0
        left = spent / done * (self.length.steps - step) if done else None
        error = course.records[-1]["error"] if course.records else None
        self.progress(
            Progress(step, self.length.steps, step / self.length.epoch, loss, error, course.best, rate, left)
        )  # fmt: skip

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let a first Ctrl-C wait for the end of the step: a model that it stops half way through one is no state to go
        on from."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = signal.getsignal(signal.SIGINT)

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped = True
            signal.signal(signal.SIGINT, usual)

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save(self, course: Course) -> None:
        """Write the checkpoint from which the run goes on. Raises ModelError RG701."""
        content = {
            "identity": self.identity, "course": asdict(course), "state": self.learner.state(),
            "random": checkpoint.random_state(),
        }  # fmt: skip
        checkpoint.write(self.folder / LAST, content)
        self.saved = self.clock()

    def resumed(self) -> Course:
        """The course of the run: a new one, or that in the folder's checkpoint, the learner and all random numbers
        being as they were then. The step is compiled before either.

        Raises UsageError RG710, ModelError RG711, RG605."""
        path = self.folder / LAST
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.fresh:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise ModelError(Problem("RG701", f"cannot be written: {error.strerror}", str(self.folder))) from None
        held = checkpoint.read(path, self.device) if path.is_file() else None
        if held is not None:
            checkpoint.check_same(held["identity"], self.identity, str(self.folder))
        course = Course() if held is None else Course(**held["course"])
        if course.steps < self.length.steps and not course.ended:
            (batch,) = self.feed.batches(0, 1)
            compiling = warm_up(self.learner, batch, self._settle)
            course = replace(course, compile_seconds=[*course.compile_seconds, compiling])
        self.first = course.steps
        if held is None:
            random.seed(self.settings.seed)
            torch.manual_seed(self.settings.seed)
            return course
        try:
            self.learner.load(held["state"])
            checkpoint.set_random_state(held["random"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            said = (str(error).splitlines() or [""])[0]
            raise ModelError(Problem("RG711", f"does not fit the model: {said}", str(path))) from None
        return course

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finished(self, course: Course) -> Result:
        """Judge by the test images, once, and write the summary. Raises ModelError RG701, RG711."""
        ended = course.ended or (DONE if course.steps >= self.length.steps else PAUSED)
        figures: dict[str, Any] = {"test_error": None, "train_error": None}
        best_step = course.best_step or course.steps
        if ended in (DONE, PATIENCE):
            if course.best is not None:
                self.learner.load(checkpoint.read(self.folder / BEST, self.device)["state"])
            for kind in ("test", "train"):
                part = getattr(self.samples, kind)
                if kind == "test" or part.in_memory:  # decoding all training images takes an epoch's time
                    figures.update({f"{kind}_{name}": value for name, value in self._judged(part).items()})
        summary = {
            **circumstances(self.command),
            "settings": self.identity,
            "length": asdict(self.length),
            "ended": ended,
            "steps": course.steps,
            "error": course.best,
            "best_step": best_step,
            **figures,
            "train_seconds": round(course.seconds, 4),
            "compile_seconds": course.compile_seconds,
            "curve": course.records,
        }
        write_json(self.folder / SUMMARY, summary)
        return Result(
            self.folder, ended, course.steps, course.best, best_step, figures["test_error"], figures["train_error"],
            tuple(course.records), summary,
        )  # fmt: skip
