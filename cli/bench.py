"""``reclra bench``: the measurements that the project reports."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reclra_graph.cli.bench_epochs import epochs_command
from reclra_graph.cli.bench_step import step_command
from reclra_graph.cli.compile_options import losses, parts
from reclra_graph.errors import Problem, ReclraError, UsageError

if TYPE_CHECKING:
    from reclra_graph.bench.lists import Entry

RESULTS = Path("docs/results/zoo.json")

bench_app = typer.Typer(help="Measure, and write down what was measured.", no_args_is_help=True)
bench_app.command("step")(step_command)
bench_app.command("epochs")(epochs_command)


@bench_app.callback()
def _bench() -> None:
    """Measure, and write down what was measured."""


@bench_app.command("zoo")
def zoo_command(
    models: Annotated[str | None, typer.Option(help="Only these of the list, joined by commas.")] = None,
    which: Annotated[
        str, typer.Option("--list", help="own, open, all (both), or a file of `source name` lines.")
    ] = "all",
    jobs: Annotated[int, typer.Option(help="Models at a time.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds for each model.")] = 900.0,
    memory: Annotated[float, typer.Option(help="GiB for each model.")] = 12.0,
    seed: Annotated[int, typer.Option(help="Seed of weights, inputs, targets and steps.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help=f"The file to write; {RESULTS} for the whole of own, open or all.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder of finished models, where a run is resumed.")] = Path("build/zoo"),
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep what is finished, or begin again.")] = True,
) -> None:
    """Compile, verify and train every model of a list, each in its own process, and say what fails and why.

    Exit status 0 where all own models and 97 % of the others pass, every failure has its code, and the median
    compile time is at most three times the export's own; 1 where not.
    """
    from reclra_graph.cli import render

    try:
        entries = _entries(which, models)
        from reclra_graph.bench.zoo import Settings, run

        settings = Settings(jobs, timeout, memory, seed, work, not resume)
        if settings.problems():
            raise UsageError(settings.problems())
        with render.counted(len(entries)) as progress:
            rows = run(entries, settings, progress)
        from reclra_graph.bench.zoo_report import bar_met, headline, report, write

        content = report(rows, settings, " ".join(["reclra", *map(shlex.quote, sys.argv[1:])]))
        whole = models is None and which in ("own", "open", "all")
        target = out if out is not None else RESULTS if whole else None
        files = write(target, content) if target is not None else []
    except KeyboardInterrupt:
        render.note("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    except ReclraError as error:
        render.problems(error.problems)
        raise typer.Exit(error.exit_status) from None
    render.zoo(content, headline(content), files)
    raise typer.Exit(0 if bar_met(rows) else 1)


@bench_app.command("schedule")
def schedule_command(
    model: Annotated[str, typer.Argument(help="A model, as `reclra compile` takes it.", show_default=False)],
    gpus: Annotated[int, typer.Option(help="GPUs to schedule for; on the CPU their tasks run one by one.")] = 1,
    wiring: Annotated[str, typer.Option(help='auto, flat, chain, blocks, or error edges: "9->5,9->2".')] = "auto",
    loss: Annotated[str, typer.Option(help="The loss, as `reclra compile` takes it.")] = "cross-entropy",
    device: Annotated[
        str | None,
        typer.Option(help="Whose costs to predict with: cpu, v100, a100, h200, or a JSON file; this machine's."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Predict from costs measured on this machine.")] = False,
    rounds: Annotated[int, typer.Option(help="Steps that are timed.")] = 5,
    warm_up: Annotated[int, typer.Option(help="Steps before that.")] = 2,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="Shape of an example input.", metavar="SHAPE")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for both traces.", show_default="build/NAME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Say how long each kind of task takes, predicted and measured, and write both as traces.

    The step runs on the GPU where there is one, else on the CPU. schedule.json and schedule.measured.json open in
    Perfetto and chrome://tracing.
    """
    from reclra_graph.cli import app

    def work(phase: Callable[[str], None]) -> tuple[dict[str, Any], Callable[[], None]]:
        from reclra_graph.cli import render

        phase("importing torch")
        from reclra_graph import api
        from reclra_graph.bench import schedule as bench
        from reclra_graph.export.artifacts import unwritable
        from reclra_graph.model_file import neighbours

        named = device if device is not None else bench.usual_device()
        options: dict[str, Any] = {
            "gpus": gpus,
            "wiring": tuple(parts(wiring)) if "->" in wiring else wiring,
            "loss": losses(loss),
            "device": named,
            "profile": profile,
        }
        usage = [*bench.usage_problems(named, rounds, warm_up), *api.make_options(**options).problems()]
        phase(f"reading {model}")
        with neighbours(model):
            loaded = app.load(model, inputs or [], usage, list(unwritable(out)) if out is not None else [])
            example = bench.placed(loaded)
            step = api.compile(
                example.model,
                example.example_inputs,
                example_kwargs=example.example_kwargs,
                progress=lambda name: phase(f"compiling {loaded.name}: {name}"),
                **options,
            )
            phase(f"timing {loaded.name}")
            target = bench.random_target(step, step.plan.batch)
            found = bench.measured(step, example.example_inputs, target, example.example_kwargs, rounds, warm_up)
        folder = out if out is not None else Path("build") / loaded.name
        files = bench.write_traces(step, found, folder)
        value = {
            "name": loaded.name,
            "device": named,
            "ran_on": str(step.device),
            "gpus": gpus,
            "rounds": rounds,
            **bench.compared(step, found),
            "files": [str(path) for path in files],
        }
        return value, lambda: render.timed(value)

    app.report(model, work, as_json, False)


def _entries(which: str, models: str | None) -> tuple[Entry, ...]:
    from reclra_graph.bench.lists import named, selected

    entries = named(which)
    if models is None:
        return entries
    names = [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise UsageError(Problem("RG801", "it names no model", "--models"))
    return selected(entries, names)
