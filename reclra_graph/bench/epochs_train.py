"""One run of ``reclra bench epochs``: a learner over its epochs, on a clock that counts training alone."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.bench.epochs_arms import Learner, State
from reclra_graph.bench.epochs_data import Part, Samples
from reclra_graph.bench.step_probes import settle
from reclra_graph.errors import StepError

WARM_UP = 2
"""Steps that compile, at a rate of 0; what statistics and optimisers remember of them is taken back."""
_AT_ONCE = 500  # images that are judged at a time
_BETWEEN = 20.0  # seconds between two checkpoints, at least


@dataclass(frozen=True)
class Length:
    """``steps`` of a run, ``every`` how many of them it is judged, and how many batches an epoch has."""

    steps: int
    every: int
    epoch: int

    @classmethod
    def of(cls, images: int, batch: int, epochs: float, evaluations: int) -> Length:
        """The length of ``epochs`` over so many images, judged so often in each. What is left of an epoch behind its
        last whole batch is not learned from; the next epoch has another order."""
        epoch = images // batch
        return cls(max(1, round(epochs * epoch)), max(1, round(epoch / evaluations)), epoch)


@dataclass
class Course:
    """How a run went so far. ``seconds`` of training, without compilation and validation; ``compile_seconds`` of every
    process that had a part in it. ``curve``: (steps, seconds, error on the validation images), errors as shares.
    ``ended``: why it cannot go on, "diverged", or ""."""

    steps: int = 0
    seconds: float = 0.0
    compile_seconds: list[float] = field(default_factory=list)
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    ended: str = ""


def rate(lr: float, step: int, steps: int) -> float:
    """The learning rate of a step: half a cosine from ``lr`` to 0 over the run."""
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def error_rate(learner: Learner, part: Part) -> float:
    """The share of images classified wrongly, in evaluation mode."""
    learner.model.eval()
    wrong = 0
    for at in range(0, len(part.labels), _AT_ONCE):
        images, labels = part.batch(slice(at, at + _AT_ONCE))
        wrong += int((learner.model(images).argmax(1) != labels).sum())
    learner.model.train()
    return wrong / len(part.labels)


@dataclass
class Run:
    """A learner, its data and its settings. ``checkpoint``: the file that a run is gone on from, and that holds it
    where it stops before its end. ``deadline``: on ``clock``, in seconds; None: none."""

    learner: Learner
    samples: Samples
    length: Length
    batch: int
    lr: float
    seed: int
    device: str = "cpu"
    checkpoint: Path | None = None
    deadline: float | None = None
    tell: Callable[[Course], None] = lambda course: None
    clock: Callable[[], float] = time.time

    def go(self) -> Course:
        """Compile, go on where the checkpoint stands, and train: to the end, until the numbers are not finite, or until
        the deadline; the course then has fewer steps than the run."""
        compiling = self.warm_up()
        course = self.resumed()
        course.compile_seconds.append(compiling)
        saved = self.clock()
        while course.steps < self.length.steps and not course.ended:
            self.stretch(course)
            self.tell(course)
            late = self.deadline is not None and self.clock() > self.deadline
            if late or self.clock() - saved > _BETWEEN:
                self.save(course)
                saved = self.clock()
            if late:
                break
        return course

    def warm_up(self) -> float:
        """Seconds of the first steps, which compile; the learner is then as it was before."""
        begun = self.learner.state()
        started = time.perf_counter()
        chosen = torch.arange(self.batch, device=self.device)
        for _ in range(WARM_UP):
            self.learner.learn(*self.samples.train.batch(chosen), 0.0)
        settle(self.device)
        seconds = time.perf_counter() - started
        self.learner.load(begun)
        return round(seconds, 3)

    def chosen(self, step: int) -> Tensor:
        """The images of a step: every epoch has an order of its own, drawn from the seed."""
        epoch, at = divmod(step, self.length.epoch)
        if self._order is None or self._order[0] != epoch:
            draw = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
            order = torch.randperm(len(self.samples.train.labels), generator=draw).to(self.device)
            self._order = epoch, order
        return self._order[1][at * self.batch : (at + 1) * self.batch]

    _order: tuple[int, Tensor] | None = None

    def stretch(self, course: Course) -> None:
        """Train until the next evaluation, and judge."""
        steps = self.length.steps
        last = min(steps, (course.steps // self.length.every + 1) * self.length.every)
        numbers = [(self.chosen(step), rate(self.lr, step, steps)) for step in range(course.steps, last)]
        settle(self.device)
        start = time.perf_counter()
        try:
            for chosen, lr in numbers:
                loss = self.learner.learn(*self.samples.train.batch(chosen), lr)
            settle(self.device)
            finite = math.isfinite(float(loss))
        except StepError as error:
            if error.codes != ("RG604",):
                raise
            finite = False
        course.seconds += time.perf_counter() - start
        course.steps = last
        if not finite:
            course.ended = "diverged"
            return
        course.curve.append(
            (last, round(course.seconds, 4), round(error_rate(self.learner, self.samples.validation), 6))
        )

    def save(self, course: Course) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.checkpoint is None:
            return
        partial = self.checkpoint.with_name(f"{self.checkpoint.name}.partial")
        torch.save({"course": asdict(course), "state": self.learner.state()}, partial)
        os.replace(partial, self.checkpoint)

    def resumed(self) -> Course:
        """The course in the checkpoint, its state loaded; a new one where there is none that can be read."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return Course()
        begun = self.learner.state()
        try:
            held = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            state: State = held["state"]
            self.learner.load(state)
            return Course(**held["course"])
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, EOFError, pickle.UnpicklingError):
            self.learner.load(begun)  # a damaged file: from the beginning
            return Course()


def summary(course: Course) -> dict[str, Any]:
    """What is kept of a run's course."""
    return {
        "steps": course.steps, "train_seconds": round(course.seconds, 4), "compile_seconds": course.compile_seconds,
        "curve": course.curve, "ended": course.ended,
        "error": course.curve[-1][2] if course.curve and not course.ended else None,
    }  # fmt: skip
