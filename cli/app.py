"""The commands, their options and their exit status. torch is imported only after the arguments are read."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from reclra_graph.cli import option_types
from reclra_graph.cli.bench import bench_app
from reclra_graph.cli.compile_options import read_options, with_method
from reclra_graph.cli.diagnostics import diagnostics_command
from reclra_graph.cli.search import search_command
from reclra_graph.cli.train import command as train_command
from reclra_graph.errors import Problem, ReclraError, UsageError
from reclra_graph.options import Options

if TYPE_CHECKING:
    from reclra_graph.model_file import LoadedModel

DEFAULT = Options()


def compile_command(
    ctx: typer.Context,
    model: option_types.Model,
    method: option_types.Method = None,
    gpus: option_types.Gpus = DEFAULT.gpus,
    depth: option_types.Depth = "auto",
    relays: option_types.Relays = None,
    wiring: option_types.Wiring = "auto",
    synapse_memory: option_types.SynapseMemory = None,
    gpu_memory: option_types.GpuMemory = None,
    rule: option_types.Rule = DEFAULT.rule,
    beta: option_types.Beta = DEFAULT.beta,
    gamma: option_types.Gamma = DEFAULT.gamma,
    kappa: option_types.Kappa = None,
    norm: option_types.Norm = DEFAULT.norm,
    sign: option_types.Sign = DEFAULT.sign,
    gain: option_types.Gain = False,
    loss: option_types.Loss = "cross-entropy",
    output: option_types.Output = None,
    label_smoothing: option_types.LabelSmoothing = DEFAULT.label_smoothing,
    ignore_index: option_types.IgnoreIndex = None,
    class_weights: option_types.ClassWeights = None,
    frontend: option_types.Frontend = DEFAULT.frontend,
    micro_batches: option_types.MicroBatches = DEFAULT.micro_batches,
    placement: option_types.Placement = DEFAULT.placement,
    overlap_steps: option_types.OverlapSteps = DEFAULT.overlap_steps,
    without: option_types.Without = None,
    recompute: option_types.Recompute = False,
    memory_format: option_types.MemoryFormat = DEFAULT.memory_format,
    autocast: option_types.Autocast = None,
    device: option_types.Device = DEFAULT.device,
    profile: option_types.Profile = False,
    optimizer: option_types.Optimizer = DEFAULT.optimizer,
    lr: option_types.Lr = DEFAULT.lr,
    momentum: option_types.Momentum = DEFAULT.momentum,
    betas: option_types.Betas = "0.9,0.999",
    eps: option_types.Eps = DEFAULT.eps,
    weight_decay: option_types.WeightDecay = DEFAULT.weight_decay,
    synapse_decay: option_types.SynapseDecay = None,
    mirror_noise: option_types.MirrorNoise = DEFAULT.mirror_noise,
    update: option_types.Update = DEFAULT.update,
    strict: option_types.Strict = False,
    seed: option_types.Seed = DEFAULT.seed,
    synapse: option_types.Synapse = DEFAULT.synapse,
    replace_conv: option_types.ReplaceConv = None,
    masks: option_types.Masks = None,
    sigma: option_types.Sigma = None,
    inputs: option_types.Inputs = None,
    out: option_types.Out = None,
    as_json: option_types.Json = False,
    quiet: option_types.Quiet = False,
) -> None:
    """Compile a model into a training step without backpropagation, and write it with its plan and pictures."""
    given = read_options(locals())

    def work(phase: Callable[[str], None]) -> tuple[dict[str, Any], Callable[[], None]]:
        options = given if method is None else with_method(method, ctx, given)
        from reclra_graph.cli import render, summary

        phase("importing torch")
        from reclra_graph import api
        from reclra_graph.cli.replace_conv import replacement_problems, rewritten
        from reclra_graph.export.artifacts import FILES, STATE, unwritable
        from reclra_graph.ir.device import find_device
        from reclra_graph.model_file import neighbours

        wanted = api.make_options(**options)
        usage = [*wanted.problems(), *find_device(device)[1], *replacement_problems(replace_conv, masks, sigma)]
        other = list(unwritable(out)) if out is not None else []
        phase(f"reading {model}")
        with neighbours(model):
            started = time.perf_counter()
            loaded, convolutions = rewritten(
                load(model, inputs or [], usage, other), replace_conv, masks, sigma, wanted
            )
            reading = time.perf_counter() - started
            step = api.compile(
                loaded.model,
                loaded.example_inputs,
                example_kwargs=loaded.example_kwargs,
                progress=lambda name: phase(f"compiling {loaded.name}: {name}"),
                **options,
            )
        folder = out if out is not None else Path("build") / loaded.name
        phase(f"writing {folder}")
        started = time.perf_counter()
        step.save(folder)
        files = [folder / name for name in (*FILES, *STATE)]
        seconds = (("read", reading), *step.seconds, ("write", time.perf_counter() - started))
        value = summary.compiled(loaded.name, step.program, folder, seconds, files, convolutions)
        return value, lambda: render.compiled(value, step.program)

    report(model, work, as_json, quiet)


def explain_command(
    model: option_types.Model,
    inputs: option_types.Inputs = None,
    output: option_types.Output = None,
    frontend: option_types.Frontend = DEFAULT.frontend,
    as_json: option_types.Json = False,
) -> None:
    """Say which parts of a model would learn, and how, before anything is built."""

    def work(phase: Callable[[str], None]) -> tuple[dict[str, Any], Callable[[], None]]:
        from reclra_graph.cli import render, summary

        phase("importing torch")
        from reclra_graph.api import make_options
        from reclra_graph.model_file import neighbours
        from reclra_graph.passes.pipeline import explain_model
        from reclra_graph.structure import called

        phase(f"reading {model}")
        with neighbours(model):
            loaded = load(model, inputs or [], [], [])
            phase(f"reading the operators of {loaded.name}")
            options = make_options(frontend=frontend, output=output)
            regions = explain_model(loaded.model, *called(loaded.example_inputs, loaded.example_kwargs), options)
        value = summary.explained(loaded.name, regions)
        return value, lambda: render.explained(value)

    report(model, work, as_json, False)


app = typer.Typer(
    help="Train existing PyTorch models without backpropagation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("compile")(compile_command)
app.command("explain")(explain_command)
app.command("train")(train_command(compile_command))
app.command("search")(search_command)
app.command("diagnostics")(diagnostics_command)
app.add_typer(bench_app, name="bench")

compile_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
compile_app.command()(compile_command)


def run(typer_app: typer.Typer, name: str) -> NoReturn:
    """Run a command line and exit. With ``--json`` wrong usage, too, is told as JSON on standard output."""
    if "--json" not in sys.argv[1:]:
        typer_app(prog_name=name)
        raise SystemExit(0)
    try:
        status = typer_app(prog_name=name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    except Exception as error:
        message: Callable[[], str] | None = getattr(error, "format_message", None)
        if message is None:
            raise
        usage = {"code": "", "name": "usage", "cause": message(), "place": "", "remedy": "", "page": ""}
        _print_json(_failure(2, [usage]))
        raise SystemExit(2) from None
    raise SystemExit(status if isinstance(status, int) else 0)


def report(
    model: str,
    work: Callable[[Callable[[str], None]], tuple[dict[str, Any], Callable[[], None]]],
    as_json: bool,
    quiet: bool,
    bar: bool = False,
) -> None:
    """Do the work under a progress line, print its result or its errors, and exit with the right status. ``bar``: the
    work shows its progress itself."""
    from reclra_graph.cli import render

    try:
        # What the user's own files print must not end up inside the result.
        with render.progress(hidden=as_json or quiet or bar) as phase, contextlib.redirect_stdout(sys.stderr):
            value, show = work(phase)
    except ReclraError as error:
        found = [problem if problem.place else replace(problem, place=model) for problem in error.problems]
        status = error.exit_status
    except Exception as error:
        traceback.print_exc()
        found = [Problem("RG501", f"{type(error).__name__}: {error}", "reclra-graph itself; see the traceback")]
        status = 1
    else:
        if as_json:
            _print_json({"ok": True, **value})
        elif not quiet:
            show()
        return
    if as_json:
        _print_json(_failure(status, [_problem(problem) for problem in found]))
    else:
        render.problems(found)
    raise typer.Exit(status)


def load(model: str, inputs: Sequence[str], usage: list[Problem], other: list[Problem]) -> LoadedModel:
    """The model; wrong options, a wrong output folder and what is wrong with the file are raised together."""
    from reclra_graph.errors import ModelError
    from reclra_graph.model_file import load_model

    loaded: LoadedModel | None = None
    try:
        loaded = load_model(model, inputs)
    except UsageError as error:
        usage += error.problems
    except ModelError as error:
        other += error.problems
    if usage:
        raise UsageError(usage + other)
    if other or loaded is None:
        raise ModelError(other)
    return loaded


def _problem(problem: Problem) -> dict[str, str]:
    return {
        "code": problem.code,
        "name": problem.name,
        "cause": problem.cause,
        "place": problem.place,
        "remedy": problem.advice,
        "page": problem.page,
    }


def _failure(status: int, problems: list[dict[str, str]]) -> dict[str, Any]:
    return {"ok": False, "exit_status": status, "errors": problems}


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
