"""``reclra bench``: the measurements that the project reports."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reclra_graph.errors import Problem, ReclraError, UsageError

if TYPE_CHECKING:
    from reclra_graph.bench.lists import Entry

RESULTS = Path("docs/results/zoo.json")

bench_app = typer.Typer(help="Measure, and write down what was measured.", no_args_is_help=True)


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


def _entries(which: str, models: str | None) -> tuple[Entry, ...]:
    from reclra_graph.bench.lists import named, selected

    entries = named(which)
    if models is None:
        return entries
    names = [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise UsageError(Problem("RG801", "it names no model", "--models"))
    return selected(entries, names)
