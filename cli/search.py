"""``reclra search``: the outer search over wirings, synapses and rates."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from reclra_graph.errors import Problem, ReclraError, UsageError
from reclra_graph.options import FORMS, LOSSES, SYNAPSE_RULES, WIRINGS, Options

DEFAULT = Options()


def search_command(
    model: Annotated[str, typer.Argument(help="The model, as `reclra compile` takes it.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with the files of MNIST or Fashion-MNIST, or a file with inputs and targets (torch.save)."
        ),
    ],
    trials: Annotated[int, typer.Option(help="Trials to end with, those of earlier runs included.")] = 30,
    steps: Annotated[int, typer.Option(help="Training steps of a trial that is not stopped early.")] = 900,
    wirings: Annotated[str, typer.Option(help=f"Choices: {', '.join(WIRINGS)}.")] = "auto,flat,blocks,chain",
    synapses: Annotated[str, typer.Option(help=f"Choices: auto, {', '.join(FORMS)}.")] = "auto,dense,lowrank(16)",
    rules: Annotated[str, typer.Option(help=f"Choices: {', '.join(SYNAPSE_RULES)}.")] = "eq6,fixed",
    beta: Annotated[str, typer.Option(help="Range LOW:HIGH, or one number.")] = "0.01:1",
    gamma: Annotated[str, typer.Option(help="Range LOW:HIGH, or one number.")] = "0.001:1",
    lr: Annotated[str, typer.Option(help="Range LOW:HIGH, or one number.")] = "0.003:1",
    gpus: Annotated[int, typer.Option(help="GPUs to schedule for.")] = DEFAULT.gpus,
    device: Annotated[str, typer.Option(help="Device whose step time is predicted.")] = "cpu",
    loss: Annotated[str, typer.Option(help=f"{', '.join(LOSSES)}.")] = DEFAULT.loss,  # type: ignore[assignment]
    held_out: Annotated[float, typer.Option(help="Share of the samples that trials are judged by.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the draws, the synapses and the order of samples.")] = 0,
    inputs: Annotated[list[str] | None, typer.Option("--input", help="Shape of an example input.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for all results.", show_default="build/search-NAME")] = None,
) -> None:
    """Search for the wiring, the rule and the rates of a model by short real runs, with successive halving.

    Run it again to go on where it stopped. Writes search.json, pareto.md, pareto.svg and the best plan into the folder.
    """
    from reclra_graph.cli import render

    try:
        with render.progress() as phase:
            phase("importing torch")
            space = {"wirings": wirings, "synapses": synapses, "rules": rules, "beta": beta, "gamma": gamma, "lr": lr}
            fixed = {"gpus": gpus, "device": device, "loss": loss}
            work = _prepared(model, data, trials, steps, space, fixed, held_out, seed, inputs, out)
        with render.trials(trials) as progress:
            text, files = work(progress)
    except KeyboardInterrupt:
        render.note("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    except ReclraError as error:
        render.problems(error.problems)
        raise typer.Exit(error.exit_status) from None
    render.searched(text, files)


def _prepared(
    model: str,
    data: Path,
    trials: int,
    steps: int,
    space: dict[str, str],
    fixed: dict[str, Any],
    held_out: float,
    seed: int,
    inputs: list[str] | None,
    out: Path | None,
) -> Callable[[Any], tuple[str, list[Path]]]:
    """Everything checked and read; what is left is to run the trials."""
    from reclra_graph import api
    from reclra_graph.ir.device import find_device
    from reclra_graph.ir.text import digest
    from reclra_graph.model_file import load_model, neighbours
    from reclra_graph.search import study
    from reclra_graph.search.samples import read_samples
    from reclra_graph.search.space import Space, span
    from reclra_graph.search.trial import budget

    def parts(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    wirings, synapses, rules = (parts(space[name]) for name in ("wirings", "synapses", "rules"))
    beta, gamma, lr = (span(name, space[name]) for name in ("beta", "gamma", "lr"))
    chosen = Space(wirings, synapses, rules, beta=beta, gamma=gamma, lr=lr)
    problems = [*chosen.problems(), *api.make_options(seed=seed, **fixed).problems(), *find_device(fixed["device"])[1]]
    if steps < 1:
        problems.append(Problem("RG405", f"steps is {steps}", "--steps", "Give a whole number of at least 1."))
    if trials < 1:
        problems.append(Problem("RG405", f"trials is {trials}", "--trials", "Give a whole number of at least 1."))
    if problems:
        raise UsageError(problems)
    with neighbours(model):
        loaded = load_model(model, inputs or [])
        given = loaded.example_inputs
        first = given[0] if isinstance(given, (tuple, list)) and len(given) == 1 else given
        if loaded.example_kwargs or not hasattr(first, "shape"):
            cause = "the search feeds models that take one tensor; this one takes more"
            raise UsageError(Problem("RG405", cause, model, "Wrap it in a module whose forward() takes one tensor."))
    samples = read_samples(data, first.shape[1:], held_out, seed)
    # What cannot be compiled at all is told before the folder is made.
    first_step = api.compile(loaded.model, given, seed=seed, **fixed)
    clock, named = study.clock(first_step), f"{loaded.name} {digest(first_step.plan.regions)}"
    folder = out if out is not None else Path("build") / f"search-{loaded.name}"
    limits = budget(steps, len(first))
    plan = study.Search(named, f"{data} {samples.digest}", tuple(sorted(fixed.items())), chosen, limits, held_out, seed)

    def work(progress: Any) -> tuple[str, list[Path]]:
        rows = study.search(plan, loaded.model, given, samples, trials, folder, progress)
        options = study.best_options(rows)
        best = None if options is None else api.compile(loaded.model, given, seed=seed, **options)
        content = study.results(plan, rows, clock, " ".join(["reclra", *map(shlex.quote, sys.argv[1:])]))
        return study.table(rows, clock), study.write(folder, content, rows, best)

    return work
