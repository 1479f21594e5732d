"""The loop itself: steps one after the other, on a clock that counts training alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reclra_graph.errors import StepError
from reclra_graph.methods.learner import Learner

WARM_UP = 2
"""Steps that compile, at a rate of 0; what is remembered of them is taken back."""


class Batches(Protocol):
    """Where the batches of a run come from."""

    def batches(self, first: int, last: int) -> Iterable[tuple[Any, Tensor]]:
        """Those of the steps ``first`` to ``last`` - 1, (inputs, targets) each. Which samples these are is settled when
        this is called; they are put together one after the other."""


class AfterStep(Protocol):
    """What is told of every step."""

    def after_step(self, step: int, learner: Learner, batch: tuple[Any, Tensor]) -> None:
        """``step`` steps are done, the last one with this batch."""


@dataclass(frozen=True)
class Length:
    """``steps`` of a run, ``every`` how many of them it is judged, and how many batches an epoch has."""

    steps: int
    every: int
    epoch: int

    @classmethod
    def of(cls, images: int, batch: int, epochs: float, evaluations: float) -> Length:
        """The length of ``epochs`` over so many images, judged so often in each. What is left of an epoch behind its
        last whole batch is not learned from; the next epoch has another order."""
        epoch = images // batch
        return cls(max(1, round(epochs * epoch)), max(1, round(epoch / evaluations)), epoch)

    def next_evaluation(self, step: int) -> int:
        """The step behind which the run is judged next."""
        return min(self.steps, (step // self.every + 1) * self.every)


@dataclass(frozen=True)
class Stretch:
    """``last``: the step behind which it ended; ``seconds`` of training; ``finite``: whether the loss is a number."""

    last: int
    seconds: float
    finite: bool


def stretch(
    learner: Learner,
    source: Batches,
    rate: Callable[[int], float],
    first: int,
    last: int,
    settle: Callable[[], None] = lambda: None,
    watchers: Sequence[AfterStep] = (),
    each: Callable[[int, Tensor], bool] | None = None,
) -> Stretch:
    """Learn in the steps ``first`` to ``last`` - 1, or until ``each``, told the number of steps done and the last loss,
    says that it is enough.

    ``rate``: of a step by its number. ``settle`` waits until the device has done what it was given. A loss that is not
    finite ends it: what a learner refuses it does not learn from; what none has looked at is seen at the end.
    """
    batches = source.batches(first, last)
    rates = [rate(step) for step in range(first, last)]
    loss: Tensor | None = None
    step, finite = first, True
    settle()
    start = time.perf_counter()
    try:
        for (x, y), lr in zip(batches, rates, strict=True):
            loss = learner.learn(x, y, lr)
            step += 1
            for watcher in watchers:
                watcher.after_step(step, learner, (x, y))
            if each is not None and each(step, loss):
                break
        settle()
        finite = loss is None or math.isfinite(float(loss))
    except StepError as error:
        if error.codes != ("RG604",):
            raise
        finite = False
    return Stretch(step, time.perf_counter() - start, finite)


def warm_up(learner: Learner, batch: tuple[Any, Tensor], settle: Callable[[], None] = lambda: None) -> float:
    """Seconds of the first steps, which compile; the learner is then as it was before, and so is what it drew random
    numbers from."""
    begun = learner.state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        started = time.perf_counter()
        for _ in range(WARM_UP):
            learner.learn(*batch, 0.0)
        settle()
        seconds = time.perf_counter() - started
    learner.load(begun)
    return round(seconds, 3)
