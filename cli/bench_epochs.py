"""``reclra bench epochs``: seconds of training to an error, against backpropagation."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from reclra_graph.cli.compile_options import parts
from reclra_graph.errors import ModelError, Problem, UsageError

RESULTS = Path("docs/results")


def epochs_command(
    data: Annotated[
        Path | None, typer.Option(help="Folder with the official files of Fashion-MNIST and CIFAR-10.")
    ] = None,
    models: Annotated[str | None, typer.Option(help="Only these cases, joined by commas.")] = None,
    arms: Annotated[str | None, typer.Option(help="Only these arms, joined by commas.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Of every run.", show_default="each case's own")] = None,
    trial_epochs: Annotated[
        float | None, typer.Option(help="Of every trial of a rate.", show_default="each case's own")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of every arm.", show_default="mlp 3, others 1")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of ResNet-18's first stage.", show_default="64")] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step.", show_default="each case's own")] = None,
    targets: Annotated[
        str | None, typer.Option(help="Errors in per cent, such as 15,13,12.", show_default="each case's own")
    ] = None,
    rule: Annotated[str, typer.Option(help="How error synapses learn: fixed or eq6.")] = "fixed",
    seed: Annotated[int, typer.Option(help="The first seed: of weights, synapses and batches.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is one")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch.", show_default="one for each core")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so long; the same command goes on.", show_default="no limit")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"The JSON file, a page and a picture beside it; {RESULTS}/epochs-DEVICE.json where all is measured."
        ),
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder of finished runs, where a run is resumed.")] = Path("build/epochs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is finished.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny nets and few images: does everything run?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Train nets on real data, this compiler's step against the best backpropagation, until an error is reached.

    Cases: mlp and mlp-relu (Fashion-MNIST), resnet18 and vit-tiny (CIFAR-10). Arms: backprop-compiled, backprop-eager,
    dense, channel (resnet18), token (vit-tiny), dense-eager. Every arm of a case is tuned by the same trials. Exit
    status 0 where everything ran; 1 where something failed, or is left because the minutes were over.
    """
    from reclra_graph.cli import app, render

    done: dict[str, Any] = {}

    def measure(phase: Callable[[str], None]) -> tuple[dict[str, Any], Callable[[], None]]:
        from reclra_graph.bench import epochs_bench, epochs_report
        from reclra_graph.export.artifacts import unwritable

        names = None if models is None else tuple(parts(models))
        wanted = None if arms is None else tuple(parts(arms))
        errors, wrong = _targets(targets)
        settings = epochs_bench.Settings(
            data, names, wanted, epochs, trial_epochs, seeds, width, batch, errors, rule, seed, device, threads,
            minutes, work, fresh, quick,
        )  # fmt: skip
        target = out if out is not None else RESULTS / f"epochs-{settings.on}.json" if settings.whole else None
        folders = [work] if target is None else [work, target.parent]
        other = [problem for folder in folders for problem in unwritable(folder)]
        if usage := [*settings.problems(), *wrong]:
            raise UsageError([*usage, *other])
        if other:
            raise ModelError(other)
        digests = epochs_bench.check_data(settings)
        with render.counted(epochs_bench.count(settings), as_json) as progress:
            found = epochs_bench.run(settings, digests, progress)
        content = epochs_report.report(found, settings, " ".join(["reclra", *map(shlex.quote, sys.argv[1:])]))
        unfinished = out is None and content["left"]  # no half of a result where whole ones stand
        files = epochs_report.write(target, content) if target is not None and not unfinished else []
        done.update(content, files=[str(path) for path in files])
        return done, lambda: render.stepped(epochs_report.lines(content), files)

    try:
        app.report("reclra bench epochs", measure, as_json, quiet=False, bar=True)
    except KeyboardInterrupt:
        render.note("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if done["ok"] else 1)


def _targets(text: str | None) -> tuple[tuple[float, ...] | None, list[Problem]]:
    """Errors as shares, and what is no number among them."""

    if text is None:
        return None, []
    found, wrong = [], []
    for part in parts(text):
        try:
            found.append(round(float(part) / 100, 9))
        except ValueError:
            wrong.append(Problem("RG405", f"{part!r} is no number", "--targets", "Give per cents, such as 15,13,12."))
    return tuple(found) if not wrong else None, wrong
