"""``reclra bench step``: one training step against backpropagation, timed in turns."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from reclra_graph.cli.compile_options import parts
from reclra_graph.errors import ModelError, UsageError

RESULTS = Path("docs/results")


def step_command(
    models: Annotated[str | None, typer.Option(help="Only these cases, joined by commas.")] = None,
    arms: Annotated[str | None, typer.Option(help="Only these arms, joined by commas.")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Turns of every arm that are timed.", show_default="15; with --quick 4")
    ] = None,
    warm_up: Annotated[
        int | None, typer.Option(help="Steps of every arm before that.", show_default="3; with --quick 2")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per step.", show_default="each case's own")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="each case's own")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, synapses and data.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is one")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch.", show_default="one for each core")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"The JSON file, a page and a picture beside it; {RESULTS}/step-DEVICE.json where all is measured,"
            " step-DEVICE-optimisations.json with --ablate."
        ),
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder of finished cases, where a run is resumed.")] = Path("build/step"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is finished.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny nets and few rounds: does everything run?")] = False,
    formats: Annotated[str | None, typer.Option(help="Only these memory formats of images, joined by commas.")] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="The fused step with one optimisation left out at a time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Time one training step of several nets: this compiler's and the best backpropagation, in turns in one process.

    Cases of the CPU: resnet18, resnet18-blocks, resnet50, vit-tiny, vit-tiny-token, gpt, vgg11, mlp. Arms:
    backprop-eager, backprop-compiled, reclra-eager and reclra-fused; on a GPU also backprop-graphed, reclra-graphed and
    reclra-fused-graphed; without-NAME is reclra-fused without one optimisation.
    Exit status 0 where every cell was measured and its loss is finite and falls; 1 where not.
    """
    from reclra_graph.cli import app, render

    done: dict[str, Any] = {}

    def measure(phase: Callable[[str], None]) -> tuple[dict[str, Any], Callable[[], None]]:
        from reclra_graph.bench import step_bench, step_report
        from reclra_graph.export.artifacts import unwritable

        names = None if models is None else tuple(parts(models))
        wanted = None if arms is None else tuple(parts(arms))
        settings = step_bench.Settings(
            names, wanted, rounds, warm_up, batch, lr, seed, device, threads, work, fresh, quick,
            None if formats is None else tuple(parts(formats)), ablate,
        )  # fmt: skip
        kept = RESULTS / f"step-{settings.on}{'-optimisations' if ablate else ''}.json"
        target = out if out is not None else kept if settings.whole else None
        folders = [work] if target is None else [work, target.parent]
        other = [problem for folder in folders for problem in unwritable(folder)]
        if usage := settings.problems():
            raise UsageError([*usage, *other])
        if other:
            raise ModelError(other)
        with render.counted(len(settings.cases), as_json) as progress:
            rows, memory = step_bench.run(settings, progress)
        content = step_report.report(rows, memory, settings, " ".join(["reclra", *map(shlex.quote, sys.argv[1:])]))
        files = step_report.write(target, content) if target is not None else []
        done.update(content, files=[str(path) for path in files])
        return done, lambda: render.stepped(step_report.lines(content), files)

    try:
        app.report("reclra bench step", measure, as_json, quiet=False, bar=True)
    except KeyboardInterrupt:
        render.note("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if done["ok"] else 1)
