"""``reclra diagnostics``: what a training run wrote down about its updates and synapses, as a table and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from reclra_graph.cli import option_types


def diagnostics_command(
    log: Annotated[Path, typer.Argument(help="Looks at a step as JSON lines.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The picture to write.", show_default="LOG as .svg")] = None,
    as_json: option_types.Json = False,
) -> None:
    """Show the last look of a training run as a table, and draw all of them over time."""
    from reclra_graph.cli import app

    def work(phase: Callable[[str], None]) -> tuple[dict[str, Any], Callable[[], None]]:
        from reclra_graph.cli import render

        phase("importing torch")
        from reclra_graph.bench.record import write_text
        from reclra_graph.diagnostics.picture import diagnostics_svg
        from reclra_graph.diagnostics.table import lines
        from reclra_graph.diagnostics.writers import read_looks

        phase(f"reading {log}")
        looks = read_looks(log)
        path = out if out is not None else log.with_suffix(".svg")
        write_text(path, diagnostics_svg(looks))
        last = looks[-1].as_dict() if looks else None
        told = lines(looks[-1]) if looks else ["nothing was looked at yet"]
        return {"looks": len(looks), "last": last, "files": [str(path)]}, lambda: render.stepped(told, [path])

    app.report(str(log), work, as_json, False)
