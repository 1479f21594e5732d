"""One run of ``reclra bench epochs``: a learner over its epochs, on a clock that counts training alone."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.bench.epochs_data import Part, Samples
from reclra_graph.bench.step_probes import settle
from reclra_graph.data.split import order
from reclra_graph.methods.learner import Learner
from reclra_graph.train.loop import Length, stretch, warm_up
from reclra_graph.train.schedule import cosine as rate

__all__ = ["Course", "Length", "Run", "error_rate", "rate", "summary"]

_AT_ONCE = 500  # images that are judged at a time
_BETWEEN = 20.0  # seconds between two checkpoints, at least


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
        batch = self.samples.train.batch(torch.arange(self.batch, device=self.device))
        return warm_up(self.learner, batch, partial(settle, self.device))

    def chosen(self, step: int) -> Tensor:
        """The images of a step: every epoch has an order of its own, drawn from the seed."""
        epoch, at = divmod(step, self.length.epoch)
        if self._order is None or self._order[0] != epoch:
            found = order(len(self.samples.train.labels), self.seed, epoch)
            self._order = epoch, found.to(self.device)
        return self._order[1][at * self.batch : (at + 1) * self.batch]

    _order: tuple[int, Tensor] | None = None

    def batches(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of some steps."""
        return map(self.samples.train.batch, [self.chosen(step) for step in range(first, last)])

    def stretch(self, course: Course) -> None:
        """Train until the next evaluation, and judge."""
        last, steps = self.length.next_evaluation(course.steps), self.length.steps
        done = stretch(
            self.learner, self, lambda step: rate(self.lr, step, steps), course.steps, last,
            partial(settle, self.device),
        )  # fmt: skip
        course.seconds += done.seconds
        course.steps = last
        if not done.finite:
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
            self.learner.load(held["state"])
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
