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
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from reclra_graph.cli.bench import bench_app
from reclra_graph.cli.search import search_command
from reclra_graph.errors import Problem, ReclraError, UsageError
from reclra_graph.options import (
    FORMS,
    FRONTENDS,
    LOSSES,
    OPTIMISATIONS,
    OPTIMIZERS,
    PLACEMENTS,
    SIGNS,
    SYNAPSE_RULES,
    UPDATES,
    WIRINGS,
    Options,
)

if TYPE_CHECKING:
    from reclra_graph.model_file import LoadedModel

MODEL_HELP = (
    "A Python file that offers `model` or `build_model()`, and `example_inputs`; package.module:factory; "
    "a program that torch.export.save wrote (.pt2); or an ONNX file (.onnx)."
)
INPUT_HELP = (
    "Shape of an example input, such as 64x1x28x28 or 64x128:int64, by keyword as ids=64x128:int64; "
    "once for each input of the model."
)
DEFAULT = Options()


def _one_of(names: Sequence[object]) -> str:
    return ", ".join(map(str, names))


Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Inputs = Annotated[list[str] | None, typer.Option("--input", help=INPUT_HELP, metavar="SHAPE")]
Output = Annotated[str | None, typer.Option(help="The result that has the loss, such as logits or 0.")]
Frontend = Annotated[str, typer.Option(help=f"How the model is captured: {_one_of(FRONTENDS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, errors too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def compile_command(
    model: Model,
    gpus: Annotated[int, typer.Option(help="GPUs to schedule for.")] = DEFAULT.gpus,
    depth: Annotated[str, typer.Option(help="Longest error path in edges, or auto.")] = "auto",
    relays: Annotated[
        str | None, typer.Option(help="Regions that pass errors on: ids or module paths, such as 2,5,8.")
    ] = None,
    wiring: Annotated[
        str, typer.Option(help=f'{_one_of(WIRINGS)}, error edges: "9->5,9->2", or a .json file: edges, or a plan.json.')
    ] = "auto",
    synapse_memory: Annotated[
        str | None, typer.Option(help="What all error synapses may take, such as 2GiB.", show_default=False)
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="What each GPU can hold, such as 80GB.", show_default=False)
    ] = None,
    rule: Annotated[str, typer.Option(help=f"How error synapses learn: {_one_of(SYNAPSE_RULES)}.")] = DEFAULT.rule,
    beta: Annotated[float, typer.Option(help="Scale of the displacement of a pre-activation.")] = DEFAULT.beta,
    gamma: Annotated[float, typer.Option(help="Rate of the error synapses.")] = DEFAULT.gamma,
    kappa: Annotated[str | None, typer.Option(help="Coefficients of regions by id, such as 3=0.5,7=2.")] = None,
    norm: Annotated[int, typer.Option(help="p = q of the discrepancy: 1 or 2.")] = DEFAULT.norm,
    sign: Annotated[str, typer.Option(help=f"Sign of the synapses' update: {_one_of(SIGNS)}.")] = DEFAULT.sign,
    gain: Annotated[bool, typer.Option("--gain", help="Divide errors by beta before they are passed on.")] = False,
    loss: Annotated[
        str, typer.Option(help=f"{_one_of(LOSSES)}; or one for each result: class=cross-entropy,box=mse.")
    ] = "cross-entropy",
    output: Output = None,
    label_smoothing: Annotated[float, typer.Option(help="Of losses over classes.")] = DEFAULT.label_smoothing,
    ignore_index: Annotated[
        int | None, typer.Option(help="Class index of targets that do not count.", show_default=False)
    ] = None,
    class_weights: Annotated[str | None, typer.Option(help="Of losses over classes, such as 1,1,5.")] = None,
    frontend: Frontend = DEFAULT.frontend,
    micro_batches: Annotated[
        int, typer.Option(help="Equal parts that every batch is cut into; parameters learn once.")
    ] = DEFAULT.micro_batches,
    placement: Annotated[
        str, typer.Option(help=f"{_one_of(PLACEMENTS)}: pipeline gives each GPU regions of its own.")
    ] = DEFAULT.placement,
    overlap_steps: Annotated[
        bool, typer.Option("--overlap-steps", help="Let a step begin in regions that the one before has updated.")
    ] = DEFAULT.overlap_steps,
    without: Annotated[
        list[str] | None, typer.Option("--without", help=f"An optimisation to leave out: {_one_of(OPTIMISATIONS)}.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Whose costs to plan with: unit, cpu, v100, a100, h200, or a JSON file.")
    ] = DEFAULT.device,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure costs on this machine; what was measured is kept.")
    ] = False,
    optimizer: Annotated[str, typer.Option(help=f"{_one_of(OPTIMIZERS)}.")] = DEFAULT.optimizer,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = DEFAULT.lr,
    update: Annotated[str, typer.Option(help=f"How regions learn: {_one_of(UPDATES)}.")] = DEFAULT.update,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse derivatives inside regions (local_vjp).")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the error synapses.")] = DEFAULT.seed,
    synapse: Annotated[
        str, typer.Option(help=f"Form of the error synapses where it fits: auto, {_one_of(FORMS)}.")
    ] = DEFAULT.synapse,
    inputs: Inputs = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files.", show_default="build/NAME")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a model into a training step without backpropagation, and write it with its plan and pictures."""
    options: dict[str, Any] = {
        "gpus": gpus,
        "depth": _number(depth),
        "relays": None if relays is None else tuple(_number(item) for item in parts(relays)),
        "wiring": tuple(parts(wiring)) if "->" in wiring else wiring,
        "synapse_memory": synapse_memory,
        "gpu_memory": gpu_memory,
        "rule": rule,
        "beta": beta,
        "gamma": gamma,
        "kappa": _kappa(kappa or ""),
        "norm": norm,
        "sign": sign,
        "gain": gain,
        "loss": losses(loss),
        "output": output,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "class_weights": tuple(_decimal(item) for item in parts(class_weights or "")),
        "frontend": frontend,
        "micro_batches": micro_batches,
        "placement": placement,
        "overlap_steps": overlap_steps,
        "without": without or (),
        "device": device,
        "profile": profile,
        "optimizer": optimizer,
        "lr": lr,
        "update": update,
        "strict": strict,
        "seed": seed,
        "synapse": synapse,
    }

    def work(phase: Callable[[str], None]) -> tuple[dict[str, Any], Callable[[], None]]:
        from reclra_graph.cli import render, summary

        phase("importing torch")
        from reclra_graph import api
        from reclra_graph.export.artifacts import FILES, STATE, unwritable
        from reclra_graph.ir.device import find_device
        from reclra_graph.model_file import neighbours

        usage = [*api.make_options(**options).problems(), *find_device(device)[1]]
        other = list(unwritable(out)) if out is not None else []
        phase(f"reading {model}")
        with neighbours(model):
            started = time.perf_counter()
            loaded = load(model, inputs or [], usage, other)
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
        value = summary.compiled(loaded.name, step.program, folder, seconds, files)
        return value, lambda: render.compiled(value, step.program)

    report(model, work, as_json, quiet)


def explain_command(
    model: Model,
    inputs: Inputs = None,
    output: Output = None,
    frontend: Frontend = DEFAULT.frontend,
    as_json: Json = False,
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
app.command("search")(search_command)
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


def losses(text: str) -> str | dict[str, str]:
    """``mse``, or ``class=cross-entropy,box=mse``."""
    return dict((*item.split("=", 1), "")[:2] for item in parts(text)) if "=" in text else text  # type: ignore[misc]


def parts(text: str) -> list[str]:
    """Items between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _kappa(text: str) -> dict[Any, Any]:
    """``3=0.5,7=2``; what is no number stays a text, which the options refuse."""
    found: dict[Any, Any] = {}
    for region, _, value in (item.partition("=") for item in parts(text)):
        try:
            found[_number(region.strip())] = float(value)
        except ValueError:
            found[_number(region.strip())] = value
    return found


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0  # which the options refuse


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


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
