"""Learning rates by the number of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reclra_graph.errors import Problem

SCHEDULES = ("constant", "cosine", "polynomial", "step")
UNITS = ("step", "epoch")


def cosine(lr: float, step: float, steps: float) -> float:
    """Half a cosine from ``lr`` to 0 over the run."""
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class Schedule:
    """The rate of every step of a run, with s = share of the steps behind the warm-up that are done:

    constant: lr. cosine: half a cosine, end + (lr − end)·(1 + cos πs)/2. polynomial: end + (lr − end)·(1 − s)^power, as
    the paper trains its convolutional nets (lr 1e-2, end 1e-5, warm-up 40). step: lr·factor^n behind the n-th of the
    ``milestones``, in epochs. In the first ``warmup`` steps the rate rises in a straight line, (step + 1) / warmup of
    lr. ``by``: whether it changes from step to step, or with each epoch only (with a step captured as CUDA graphs each
    change captures anew).
    """

    name: str = "cosine"
    lr: float = 0.1
    end: float = 0.0
    power: float = 1.0
    warmup: int = 0
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    by: str = "step"

    def rate(self, step: int, steps: int, epoch: int) -> float:
        """The rate of a step, of a run of ``steps`` with ``epoch`` of them in an epoch."""
        at = step if self.by == "step" else step - step % epoch
        if step < self.warmup:  # a few steps, whatever the unit
            return self.lr * (step + 1) / self.warmup
        done, of = max(0, at - self.warmup), max(1, steps - self.warmup)
        if self.name == "cosine":
            return self.end + cosine(self.lr - self.end, done, of)
        if self.name == "polynomial":
            share: float = (1 - done / of) ** self.power
            return self.end + (self.lr - self.end) * share
        if self.name == "step":
            falls: float = self.factor ** sum(at >= item * epoch for item in self.milestones)
            return self.lr * falls
        return self.lr

    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong with its numbers (RG405)."""
        found = []
        for name, value, choices in (("schedule", self.name, SCHEDULES), ("lr-by", self.by, UNITS)):
            if value not in choices:
                advice = f"Choose one of {', '.join(map(repr, choices))}."
                found.append(Problem("RG405", f"{name} is {value!r}", name, advice))
        numbers = (("lr", self.lr, True), ("lr-end", self.end, False), ("lr-power", self.power, True),
                   ("lr-factor", self.factor, True))  # fmt: skip
        for name, number, positive in numbers:
            if not math.isfinite(number) or number < 0 or (positive and not number):
                wanted = "a number above 0" if positive else "a number of at least 0"
                found.append(Problem("RG405", f"{name} is {number!r}", name, f"Give {wanted}."))
        if self.warmup < 0:
            found.append(Problem("RG405", f"warmup is {self.warmup}", "warmup", "Give a number of at least 0."))
        if list(self.milestones) != sorted(self.milestones) or any(item <= 0 for item in self.milestones):
            cause = f"lr-steps is {', '.join(f'{item:g}' for item in self.milestones)}"
            found.append(Problem("RG405", cause, "lr-steps", "Give epochs above 0, in their order, such as 60,120."))
        if self.name == "step" and not self.milestones:
            cause = "the schedule step has no epochs at which the rate falls"
            found.append(Problem("RG405", cause, "lr-steps", "Give them, such as 60,120."))
        return tuple(found)
