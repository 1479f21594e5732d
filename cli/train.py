"""``reclra train``: a model on a data set, by any method, with checkpoints, a log and a summary."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from reclra_graph.cli import option_types
from reclra_graph.cli.compile_options import REWRITING, parts, read_options, signature_with, typed
from reclra_graph.errors import Problem, StepError, UsageError
from reclra_graph.methods.registry import METHODS
from reclra_graph.options import OPTIMIZERS
from reclra_graph.train.schedule import SCHEDULES

PANELS = {
    "Data": (
        "data", "data_dir", "validation", "batch", "augment", "normalise", "whiten", "whiten_epsilon", "workers",
    ),
    "Method and optimiser": (
        "method", "method_args", "epochs", "optimizer", "optimizer_args", "lr", "schedule", "lr_end", "lr_power",
        "lr_steps", "lr_factor", "lr_by", "warmup", "momentum", "betas", "eps", "weight_decay",
    ),
    "The run": (
        "seed", "seeds", "evaluations", "patience", "eval_batch", "run", "device", "threads", "minutes",
        "checkpoint_seconds", "out", "fresh", "tensorboard", "inputs", "as_json", "quiet",
    ),
}  # fmt: skip
REST = "Compilation, as `reclra compile` has it"
_SETS = "mnist, fashion-mnist, cifar10, digits"
_USUAL = "as is usual with the data set"


def train(
    ctx: typer.Context,
    model: option_types.Model,
    data: Annotated[
        str,
        typer.Option(
            help=f"{_SETS}; a folder with the files of one, with train/CLASS/*.jpg and val/CLASS/*.jpg, or with "
            "train.pt and test.pt; or one file of tensors (.pt).",
            show_default=False,
        ),
    ],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where a set is that is asked for by name.", show_default="data, then the user's own"),
    ] = None,
    validation: Annotated[
        int | None, typer.Option(help="Training images held out to judge by.", show_default=_USUAL)
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 50,
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="Random crops, mirrored where that is usual.", show_default=_USUAL),
    ] = None,
    normalise: Annotated[
        bool | None,
        typer.Option(
            "--normalise/--no-normalise", help="Take out mean and deviation of each channel.", show_default=_USUAL
        ),
    ] = None,
    whiten: Annotated[bool, typer.Option("--whiten", help="Contrast normalisation and ZCA whitening.")] = False,
    whiten_epsilon: Annotated[
        float | None, typer.Option(help="Regulariser of the whitening.", show_default="3.3e-5")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read image files.")] = 0,
    method: Annotated[str, typer.Option(help=f"How the model learns: {', '.join(METHODS)}.")] = "reclra",
    method_args: Annotated[
        list[str] | None,
        typer.Option(help="Number of a method with a loop of its own, such as noise=0.1; repeat it."),
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the training images.")] = 10.0,
    optimizer: Annotated[
        str, typer.Option(help=f"{', '.join(OPTIMIZERS)}, or one of torch.optim, such as torch:RMSprop.")
    ] = "sgd",
    optimizer_args: Annotated[
        list[str] | None, typer.Option(help="An argument of a torch: optimiser, such as alpha=0.9; repeat it.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate.", show_default="0.1 for sgd, 0.01 momentum, 0.001 others")
    ] = None,
    schedule: Annotated[str, typer.Option(help=f"How the rate changes: {', '.join(SCHEDULES)}.")] = "cosine",
    lr_end: Annotated[float, typer.Option(help="Rate at the end: cosine, polynomial.")] = 0.0,
    lr_power: Annotated[float, typer.Option(help="Of the schedule polynomial.")] = 1.0,
    lr_steps: Annotated[
        str | None, typer.Option(help="Epochs at which the schedule step lowers the rate, such as 60,120.")
    ] = None,
    lr_factor: Annotated[float, typer.Option(help="By which it does.")] = 0.1,
    lr_by: Annotated[str, typer.Option(help="Whether the rate changes with each step, or each epoch.")] = "step",
    warmup: Annotated[int, typer.Option(help="First steps, in which the rate rises.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, synapses, batches and all that is drawn.")] = 0,
    seeds: Annotated[int, typer.Option(help="Runs, with this many seeds from --seed on.")] = 1,
    evaluations: Annotated[float, typer.Option(help="How often in an epoch the model is judged.")] = 1.0,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many of them without a lower error.", show_default="never")
    ] = None,
    eval_batch: Annotated[int, typer.Option(help="Images that are judged at a time.")] = 500,
    run: Annotated[
        str, typer.Option(help="How the step runs: eager, fused (compiled by Inductor), graphed (CUDA graphs), auto.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="Where to train: cpu, cuda, cuda:1.", show_default="a GPU where there is one")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch.", show_default="one for each core")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Pause after so long; the same command goes on.", show_default="no limit")
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="The least time between two checkpoints.")] = 30.0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for last.pt, best.pt, log.jsonl and summary.json; a run that stands there is gone on with.",
            show_default="build/train-NAME",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, whatever stands there.")] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's files.")] = None,
    plan_for: Annotated[
        str, typer.Option(help="Whose costs to plan with: unit, cpu, v100, a100, h200, or a JSON file.")
    ] = "unit",
    inputs: option_types.Inputs = None,
    as_json: option_types.Json = False,
    quiet: option_types.Quiet = False,
    **compilation: Any,
) -> None:
    """Train a model on a data set, judge it by validation images as it goes, and once, at its best, by test images.

    Run the same command again to go on where it was stopped, to the same numbers bit for bit. Exit status 0 where the
    run came to its end; 1 where it diverged, or is left because the minutes were over; 2 for wrong usage, such as other
    settings than the run in the folder has; 130 after Ctrl-C.
    """
    given = dict(locals())
    from reclra_graph.cli import app, render

    left: list[str] = []

    def work(phase: Callable[[str], None]) -> tuple[dict[str, Any], Callable[[], None]]:
        with render.training(hidden=as_json or quiet) as (phase, progress):
            summary, ended, folder = _trained(given, phase, progress)
        diverged = [seed for seed, how in ended.items() if how == "diverged"]
        if diverged:
            those = f" with seed {', '.join(map(str, diverged))}" if seeds > 1 else ""
            cause = (
                f"the loss stopped being finite{those}; the run is over, and {folder / 'summary.json'} has its curve"
            )
            raise StepError(Problem("RG604", cause, model, "Lower --lr, and begin anew with --fresh or another --out."))
        left.extend(how for how in ended.values() if how == "minutes")
        return summary, lambda: render.trained(summary, folder)

    try:
        app.report(model, work, as_json, quiet, bar=True)
    except KeyboardInterrupt:
        render.note("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    if left:
        render.note("the minutes are over; run the same command again to go on")
        raise typer.Exit(1)


def command(compile_command: Callable[..., None]) -> Callable[..., None]:
    """``train`` with the options of ``compile_command`` behind its own, in groups."""
    without = ("device", "profile")  # --device is where to train; costs measured there differ from run to run
    signature = signature_with(compile_command, train, PANELS, REST, without)
    setattr(train, "__signature__", signature)  # noqa: B010  # which functions have, and mypy does not know
    return train


def _trained(
    given: dict[str, Any], phase: Callable[[str], None], progress: Callable[[Any], None]
) -> tuple[dict[str, Any], dict[int, str], Path]:
    """Everything checked, read and trained: the summary, how the run of each seed ended, and the folder."""
    phase("importing torch")
    import torch

    from reclra_graph.api import make_options
    from reclra_graph.cli import app
    from reclra_graph.cli.replace_conv import replacement_problems, rewritten
    from reclra_graph.data.sets import open_data
    from reclra_graph.export.artifacts import unwritable
    from reclra_graph.ir.device import find_device
    from reclra_graph.methods.build import option_problems
    from reclra_graph.methods.optimizers import optimizer_problems, read_arguments
    from reclra_graph.model_file import LoadedModel, load_model, neighbours
    from reclra_graph.train.fit import chosen_device, settings_of
    from reclra_graph.train.job import Job, trained
    from reclra_graph.train.several import with_seeds

    model, out, seed, seeds = (given[name] for name in ("model", "out", "seed", "seeds"))
    options = typed(given["ctx"], read_options(given["compilation"]))
    if given["plan_for"] != "unit":
        options["device"] = given["plan_for"]
    usage: list[Problem] = []
    options |= _checked(lambda: read_arguments(given["method_args"] or [], "--method-args"), usage) or {}
    kind, masks, sigma = (given["compilation"].get(name) for name in REWRITING)
    usage += [*option_problems(given["method"], options), *find_device(given["plan_for"])[1]]
    usage += replacement_problems(kind, masks, sigma)
    milestones = _numbers(given["lr_steps"], usage)
    settings = settings_of({**given, "lr_steps": milestones})
    usage += [*settings.problems(), *optimizer_problems(given["optimizer"])]
    for name, value in (("seeds", seeds), ("threads", given["threads"])):
        if value is not None and value < 1:
            usage.append(Problem("RG405", f"{name} is {value}", f"--{name}", "Give a whole number of at least 1."))
    device, arguments = _checked(lambda: chosen_device(given["device"]), usage), _checked(
        lambda: read_arguments(given["optimizer_args"] or []), usage
    )  # fmt: skip
    if given["threads"] and not usage:
        torch.set_num_threads(given["threads"])
    with neighbours(model):
        phase(f"reading {model}")
        torch.manual_seed(seed)
        first = app.load(model, given["inputs"] or [], usage, list(unwritable(out)) if out is not None else [])
        ready: dict[int, LoadedModel] = {seed: first}

        def make(number: int) -> tuple[Any, Any]:
            found = ready.pop(number, None) or load_model(model, given["inputs"] or [])
            found, _ = rewritten(found, kind, masks, sigma, make_options(seed=number))
            return found.model, (found.example_kwargs or found.example_inputs)

        phase(f"reading {given['data']}")
        folder = out if out is not None else Path("build") / f"train-{first.name}"
        job = Job(
            make, open_data(given["data"], given["data_dir"]), settings, folder, given["method"], options,
            given["optimizer"], arguments or {}, given["run"], device or torch.device("cpu"),
            tensorboard=given["tensorboard"], fresh=given["fresh"],
            command=" ".join(["reclra", *map(shlex.quote, sys.argv[1:])]), phase=phase, progress=progress,
        )  # fmt: skip
        if seeds == 1:
            result = trained(job)
            return result.summary, {seed: result.ended}, folder
        several = with_seeds(job, seeds)
        ended = {number: item.ended for number, item in zip(range(seed, seed + seeds), several.results, strict=False)}
        return several.summary, ended, folder


def _checked(work: Callable[[], Any], usage: list[Problem]) -> Any:
    """What ``work`` gives; None where it finds wrong usage, which is noted."""
    try:
        return work()
    except UsageError as error:
        usage += error.problems
        return None


def _numbers(text: str | None, usage: list[Problem]) -> tuple[float, ...]:
    """``60,120``; what is no number is noted."""
    found = []
    for part in parts(text or ""):
        try:
            found.append(float(part))
        except ValueError:
            usage.append(Problem("RG405", f"{part!r} is no number", "--lr-steps", "Give epochs, such as 60,120."))
    return tuple(found)
