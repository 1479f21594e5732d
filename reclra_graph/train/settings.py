"""The settings of a run, and their check: everything wrong is found at once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from reclra_graph.data.whitening import EPSILON
from reclra_graph.errors import Problem
from reclra_graph.methods.registry import METHODS
from reclra_graph.options import OPTIMIZERS
from reclra_graph.train.schedule import Schedule

RUNS = ("auto", "eager", "fused", "graphed")
_RATES = {"sgd": 0.1, "momentum": 0.01}
_RATE = 1e-3
_NOT_THE_RUN = ("workers", "minutes", "checkpoint_seconds")
"""Settings that leave the numbers of a run as they are."""
_OPTION = {
    "name": "schedule", "lr": "lr", "end": "lr_end", "power": "lr_power", "warmup": "warmup",
    "milestones": "lr_steps", "factor": "lr_factor", "by": "lr_by",
}  # fmt: skip
"""The parts of a schedule, as users call them."""


def usual_rate(optimizer: str) -> float:
    """The learning rate where none is given."""
    return _RATES.get(optimizer, _RATE)


@dataclass(frozen=True)
class Settings:
    """How long a run is, what it sees, and how it is judged.

    epochs: passes over the training images; a part of one will do. batch: images per step. schedule: learning rates.
    validation: training images that are held out to judge by; None: the set's own number. evaluations: how often in an
    epoch; 0.5 is every other epoch. patience: evaluations without a lower error after which a run ends; None: never.
    seed: of the order of images and of all that is drawn while training. augment, normalise: None as is usual with the
    set. whiten: contrast normalisation and ZCA (``reclra_graph.data.whitening``), with ``whiten_epsilon``. workers:
    processes that read image files. eval_batch: images that are judged at a time. checkpoint_seconds: the least time
    between two checkpoints. minutes: after which a run pauses.
    """

    epochs: float = 10.0
    batch: int = 50
    schedule: Schedule = field(default_factory=Schedule)
    validation: int | None = None
    evaluations: float = 1.0
    patience: int | None = None
    seed: int = 0
    augment: bool | None = None
    normalise: bool | None = None
    whiten: bool = False
    whiten_epsilon: float = EPSILON
    workers: int = 0
    eval_batch: int = 500
    checkpoint_seconds: float = 30.0
    minutes: float | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers of a run depend on."""
        found = {name: value for name, value in asdict(self).items() if name not in _NOT_THE_RUN}
        rates = found.pop("schedule")
        return {**found, **{_OPTION[name]: value for name, value in rates.items()}}

    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong with the settings themselves, whatever the data (RG405)."""
        found = list(self.schedule.problems())
        positive = (("epochs", self.epochs), ("evaluations", self.evaluations))
        for name, number in positive:
            if not math.isfinite(number) or number <= 0:
                found.append(Problem("RG405", f"{name} is {number!r}", name, "Give a number above 0."))
        at_least = (
            ("batch", self.batch, 1), ("validation", self.validation, 0), ("patience", self.patience, 1),
            ("workers", self.workers, 0), ("eval-batch", self.eval_batch, 1),
            ("checkpoint-seconds", self.checkpoint_seconds, 0), ("minutes", self.minutes, 0),
            ("whiten-epsilon", self.whiten_epsilon, 0),
        )  # fmt: skip
        for name, value, least in at_least:
            if value is not None and not value >= least:
                found.append(Problem("RG405", f"{name} is {value!r}", name, f"Give a number of at least {least}."))
        if not 0 <= self.seed < 1 << 31:
            found.append(Problem("RG405", f"seed is {self.seed!r}", "seed", "Give a whole number from 0 to 2**31 - 1."))
        if self.patience is not None and self.validation == 0:
            cause = "patience looks at validation images, and none are held out"
            found.append(Problem("RG405", cause, "patience", "Hold some out, or leave patience out."))
        return tuple(found)


def chosen_run(run: str, device: str, optimizer: str, steps: int, schedule: Schedule, method: str) -> str:
    """How a step is run where that is left to us. On CUDA it is captured as CUDA graphs where its rate changes with the
    epochs at most, since each rate is captured anew, else compiled by Inductor; on the CPU compiled where the run is
    long enough to win back the half minute that this takes."""
    if run != "auto":
        return run
    if optimizer not in OPTIMIZERS or METHODS[method].loop != "step":
        return "eager"
    if device == "cuda":
        return "graphed" if schedule.by == "epoch" or schedule.name in ("constant", "step") else "fused"
    return "fused" if steps >= LONG else "eager"


LONG = 5000
"""Steps of a run that is worth compiling for on the CPU."""
