"""What a run is made of, all but its seed; and the trainer of one seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.api import make_options
from reclra_graph.check_model import plain_model
from reclra_graph.data.sets import Data
from reclra_graph.errors import Problem, UsageError
from reclra_graph.methods.build import build, option_problems
from reclra_graph.methods.objective import objective
from reclra_graph.methods.registry import METHODS
from reclra_graph.options import Options
from reclra_graph.structure import arguments, called
from reclra_graph.train.loop import AfterStep, Length
from reclra_graph.train.parts import Fit
from reclra_graph.train.prepare import prepare
from reclra_graph.train.settings import Settings, chosen_run
from reclra_graph.train.trainer import Progress, Result, Trainer


@dataclass(frozen=True)
class Job:
    """A run, all but its seed.

    make: from a seed the model, with weights of that seed, and an example of what forward() takes: one tensor, of
    which shape and dtype count, or None where that is what the data are. method, options, optimizer, arguments, run: as
    ``reclra_graph.methods.build`` takes them, ``run`` also "auto". settings: with the first seed. folder: of all files;
    with several seeds each has one of its own in it.
    """

    make: Callable[[int], tuple[nn.Module, Any]]
    data: Data
    settings: Settings
    folder: Path
    method: str = "reclra"
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    run: str = "auto"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    callbacks: Sequence[AfterStep] = ()
    tensorboard: Path | None = None
    fresh: bool = False
    command: str = ""
    phase: Callable[[str], None] = lambda text: None
    progress: Callable[[Progress], None] = lambda progress: None

    def of_seed(self, seed: int, several: bool) -> Job:
        """The same with another seed; where there are several, in a folder of its own."""
        name = f"seed-{seed}"
        return replace(
            self,
            settings=replace(self.settings, seed=seed),
            folder=self.folder / name if several else self.folder,
            tensorboard=self.tensorboard / name if several and self.tensorboard is not None else self.tensorboard,
        )


def trained(job: Job) -> Result:
    """One run, of the job's own seed. Raises as ``trainer`` and ``Trainer.run`` do."""
    made = trainer(job)
    job.phase("training")
    return made.run()


def trainer(job: Job) -> Trainer:
    """Everything of one run: the model with weights of its seed, its samples, and its learner.

    Raises UsageError RG405 for settings that cannot be, UsageError and ModelError as rg.compile does, ReclraError RG713
    where data and model do not fit.
    """
    settings = job.settings
    if problems := [*settings.problems(), *option_problems(job.method, job.options)]:
        raise UsageError(problems)
    torch.manual_seed(settings.seed)
    model, example = job.make(settings.seed)
    model = plain_model(model).to(job.device)
    last = job.options.get("memory_format") == "channels_last"
    if last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not annotated by torch
    shape, dtype = _input(example, job, model)
    job.phase("preparing the data")
    samples = prepare(job.data, settings, Fit(shape, dtype, last and len(shape) == 3), job.device)
    aim = objective(job.options)
    length = Length.of(len(samples.train), settings.batch, settings.epochs, settings.evaluations)
    run = chosen_run(job.run, job.device.type, job.optimizer, length.steps, settings.schedule, job.method)
    inputs, _, _ = next(iter(samples.train.judged(settings.batch)))
    identity = {
        "method": job.method, "optimizer": job.optimizer, "optimizer_args": dict(job.arguments), "run": run,
        "device": job.device.type, "weights": _digest(model), "option": _changed(job.method, job.options),
    }  # fmt: skip
    job.phase("compiling")
    learner = build(
        job.method, model, (inputs.clone(),), {"seed": settings.seed, **job.options}, optimizer=job.optimizer,
        arguments=job.arguments, run=run, progress=lambda name: job.phase(f"compiling: {name}"),
    )  # fmt: skip
    return Trainer(
        learner, samples, settings, aim, job.folder, identity=identity, fresh=job.fresh, callbacks=job.callbacks,
        tensorboard=job.tensorboard, progress=job.progress, command=job.command,
    )  # fmt: skip


def _input(example: Any, job: Job, model: nn.Module) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape of one sample as the model takes it, and the dtype. Raises UsageError RG713 for several inputs."""
    usual = next((item.dtype for item in model.parameters() if item.is_floating_point()), torch.float32)
    if example is None:
        shape = getattr(job.data, "shape", (3, 224, 224))
        return tuple(shape), usual
    found = [item for _, item in arguments(*called(example))]
    if len(found) != 1:
        cause = f"the model takes {len(found)} tensors; a data set has one input"
        advice = "Wrap it in a module whose forward() takes one tensor."
        raise UsageError(Problem("RG713", cause, type(model).__name__, advice))
    return tuple(found[0].shape[1:]), found[0].dtype


def _changed(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not as they are by themselves, whether they were given, left out, or the method's; and those
    of the method's own loop."""
    usual, chosen = Options(), {**METHODS[method].options, **options}
    names = [item.name for item in fields(usual)]
    given = make_options(**{name: value for name, value in chosen.items() if name in names})
    found = {name: getattr(given, name) for name in names if getattr(given, name) != getattr(usual, name)}
    return found | {name: value for name, value in chosen.items() if name not in names}


def _digest(model: nn.Module) -> str:
    """Sixteen hex digits of all parameters and buffers: other weights, another digest."""
    found = hashlib.sha256()
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, item in tensors:
        found.update(f"{name} {tuple(item.shape)}".encode())
        found.update(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
