"""``rg.fit``: train a model on a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reclra_graph.data.sets import Data, open_data
from reclra_graph.data.whitening import EPSILON
from reclra_graph.errors import Problem, UsageError
from reclra_graph.methods.optimizers import optimizer_problems
from reclra_graph.train.job import Job, trained
from reclra_graph.train.loop import AfterStep
from reclra_graph.train.schedule import Schedule
from reclra_graph.train.settings import Settings, usual_rate
from reclra_graph.train.trainer import Progress, Result


def fit(
    model: nn.Module | Callable[[], nn.Module],
    data: Data | str | Path,
    *,
    out: str | Path,
    example_inputs: Any = None,
    method: str = "reclra",
    options: Mapping[str, Any] | None = None,
    optimizer: str = "sgd",
    optimizer_args: Mapping[str, Any] | None = None,
    epochs: float = 10.0,
    batch: int = 50,
    lr: float | None = None,
    schedule: str = "cosine",
    lr_end: float = 0.0,
    lr_power: float = 1.0,
    lr_steps: Sequence[float] = (),
    lr_factor: float = 0.1,
    lr_by: str = "step",
    warmup: int = 0,
    validation: int | None = None,
    evaluations: float = 1.0,
    patience: int | None = None,
    seed: int = 0,
    augment: bool | None = None,
    normalise: bool | None = None,
    whiten: bool = False,
    whiten_epsilon: float = EPSILON,
    workers: int = 0,
    eval_batch: int = 500,
    run: str = "auto",
    device: str | torch.device | None = None,
    data_dir: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    minutes: float | None = None,
    fresh: bool = False,
    callbacks: Sequence[AfterStep] = (),
    tensorboard: str | Path | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Train ``model`` on ``data``, judge it by validation images as it goes, and once, at its best, by test images. The
    model holds its best weights then.

    model: an nn.Module that takes one tensor, or a function that makes one, its weights then being those of the seed.
    data: "mnist", "fashion-mnist", "cifar10", "digits", the path of a folder or a file (docs/training.md), or what
        ``reclra_graph.data.open_data`` gave. data_dir: where sets are that are asked for by name.
    out: folder for checkpoints, log and summary. Called again with the same settings, it goes on where it was stopped,
        to the same numbers bit for bit; fresh: begin anew.
    example_inputs: what forward() takes, where that is not simply an image of the data.
    method: "reclra" or "bp". options: rg.compile's own, by name; its ``seed`` is this seed unless given.
    optimizer: "sgd", "momentum", "adamw" (the step's own), or any of torch.optim as "torch:RMSprop", with
        optimizer_args.
    lr: by default 0.1 for sgd, 0.01 for momentum, 0.001 for others. schedule, lr_end, lr_power, lr_steps (milestones in
        epochs), lr_factor, lr_by, warmup (steps): ``reclra_graph.train.schedule.Schedule``.
    epochs, batch, validation to eval_batch, checkpoint_seconds, minutes: ``reclra_graph.train.settings.Settings``.
    run: "eager", "fused" or "graphed" (``reclra_graph.methods.step_learner.RUNS``); "auto" chooses. device: where to
        train; by default a GPU where there is one.
    callbacks, tensorboard, progress: ``reclra_graph.train.trainer.Trainer``.

    PyTorch's and Python's random numbers are seeded. Raises UsageError for impossible settings, ReclraError RG703,
    RG704 and RG713 for the data, ModelError as rg.compile does, and what ``Trainer.run`` raises. A run that diverges
    raises nothing: the result's ``ended`` says so.
    """
    given = dict(locals())
    settings = settings_of(given)
    if problems := [*settings.problems(), *optimizer_problems(optimizer)]:
        raise UsageError(problems)
    found = open_data(data, data_dir) if isinstance(data, (str, Path)) else data

    def make(seed: int) -> tuple[nn.Module, Any]:
        return (model if isinstance(model, nn.Module) else model()), example_inputs

    job = Job(
        make, found, settings, Path(out), method, options or {}, optimizer, optimizer_args or {}, run,
        chosen_device(device), callbacks, None if tensorboard is None else Path(tensorboard), fresh, "rg.fit()",
        progress=progress,
    )  # fmt: skip
    return trained(job)


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings among named arguments as ``fit`` takes them; None is what is usual."""
    rate, epsilon = given["lr"], given["whiten_epsilon"]
    rates = Schedule(
        given["schedule"], usual_rate(given["optimizer"]) if rate is None else rate, given["lr_end"],
        given["lr_power"], given["warmup"], tuple(given["lr_steps"]), given["lr_factor"], given["lr_by"],
    )  # fmt: skip
    plain = {item.name: given[item.name] for item in fields(Settings) if item.name in given}
    return Settings(**{**plain, "schedule": rates, "whiten_epsilon": EPSILON if epsilon is None else epsilon})


def chosen_device(name: str | torch.device | None) -> torch.device:
    """A device by name; by default a GPU where there is one. Raises UsageError RG405."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UsageError(Problem("RG405", f"device is {name!r}", "device", "Give cpu, cuda or cuda:1.")) from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(Problem("RG405", f"device is {str(name)!r}, and there is no GPU", "device", "Give cpu."))
    return found
