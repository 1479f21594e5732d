"""The search: trials in a storage that survives an interruption, successive halving between them, and what came out.

Optuna (an extra) draws the settings and prunes: at every rung a trial goes on only if it is among the best third that
came so far. Trials are told by the held-out error; the predicted time of a step stands beside it, for the Pareto front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from reclra_graph.bench.record import circumstances, write_json, write_text
from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.ir.text import digest
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.search.picture import pareto_svg
from reclra_graph.search.samples import Samples
from reclra_graph.search.space import Space
from reclra_graph.search.trial import Budget, Diverged, run

REDUCTION = 3
FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"


@dataclass(frozen=True)
class Row:
    """One trial: its options, how it ended, the held-out error at each rung reached, and its step's predicted time."""

    number: int
    state: str
    options: dict[str, Any]
    errors: tuple[float, ...] = ()
    time: int = 0
    """In the clock of the cost model: nanoseconds, or units."""
    memory: int = 0
    """Bytes of the synapses."""
    note: str = ""

    @property
    def error(self) -> float | None:
        """Held-out error at the last rung that was reached."""
        return self.errors[-1] if self.errors else None


Progress: TypeAlias = Callable[[int, int, Row | None, int, float | None], None]
"""Told (trials ended, trials wanted, the trial that just ended, its step, the smallest error so far)."""


@dataclass(frozen=True)
class Search:
    """What is searched and how: also what a storage must have been made with to be gone on with."""

    model: str
    data: str
    fixed: tuple[tuple[str, Any], ...]
    """Options that all trials share (gpus, loss, ...)."""
    space: Space
    limits: Budget
    held_out: float
    seed: int


def search(
    plan: Search,
    model: nn.Module,
    example_inputs: Any,
    samples: Samples,
    trials: int,
    folder: Path,
    progress: Progress = lambda *_: None,
) -> tuple[Row, ...]:
    """Run trials until ``trials`` have ended, those of earlier runs included, and write the results into ``folder``.

    ``progress`` is told every step and every end of a trial. A KeyboardInterrupt leaves the trials so far in the
    storage; the one under way is begun again next time.
    Raises UsageError: RG901 where Optuna is missing, RG902 where the folder holds another search. ModelError where the
    first setting already cannot be compiled.
    """
    study = _study(plan, folder)
    import optuna

    _restart_stale(study)
    while (ended := len(_rows(study))) < trials:
        trial = study.ask()
        options = {**dict(plan.fixed), **plan.space.draw(trial)}
        best = _best(_rows(study))
        trial.set_user_attr("options", options)

        def reached(rung: int, error: float, trial: Any = trial, best: float | None = best) -> bool:
            trial.set_user_attr("errors", [*trial.user_attrs.get("errors", ()), error])
            trial.report(error, plan.limits.rungs[rung])
            last = rung + 1 == len(plan.limits.rungs)
            return last or not trial.should_prune()

        state, value, note = optuna.trial.TrialState.COMPLETE, None, ""
        try:
            step = run(
                model, example_inputs, options, samples, plan.limits, plan.seed, reached,
                partial(_tick, progress, ended, trials, best),
            )  # fmt: skip
            trial.set_user_attr("time", step.schedule.makespan)
            trial.set_user_attr("memory", stored(step))
            errors = trial.user_attrs["errors"]
            if len(errors) < len(plan.limits.rungs):
                state = optuna.trial.TrialState.PRUNED
            else:
                value = errors[-1]
        except Diverged:
            state, note = optuna.trial.TrialState.FAIL, "diverged"
        except ModelError as error:
            if not _rows(study):
                raise
            state, note = optuna.trial.TrialState.FAIL, error.problems[0].code
        trial.set_user_attr("note", note)
        study.tell(trial, value, state)
        rows = _rows(study)
        progress(len(rows), trials, rows[-1], plan.limits.steps, _best(rows))
    rows = _rows(study)
    return rows


def results(plan: Search, rows: tuple[Row, ...], clock: str, command: str) -> dict[str, Any]:
    """What is written: circumstances, what was searched, every trial, and the Pareto front by number."""
    return {
        **circumstances(command),
        "search": {**asdict(plan), "fixed": dict(plan.fixed)},
        "clock": clock,
        "trials": [{**asdict(row), "error": row.error} for row in rows],
        "pareto": [row.number for row in front(rows)],
        "best": _best_number(rows),
    }


def write(folder: Path, content: dict[str, Any], rows: tuple[Row, ...], best: CompiledStep | None) -> list[Path]:
    """Write search.json, pareto.md and pareto.svg, and the best plan with its step into best/; returns the paths."""
    paths = [folder / name for name in ("search.json", "pareto.md", "pareto.svg")]
    write_json(paths[0], content)
    write_text(paths[1], table(rows, content["clock"]))
    write_text(paths[2], pareto_svg(rows, front(rows), content["clock"]))
    if best is not None:
        paths.append(best.save(folder / "best"))
    return paths


def front(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Finished trials that no other beats in both held-out error and predicted time; fastest first."""
    done = sorted((row for row in rows if row.state == FINISHED), key=lambda row: (row.time, row.error, row.number))
    kept: list[Row] = []
    for row in done:
        assert row.error is not None
        if not kept or row.error < (kept[-1].error or 0):
            kept.append(row)
    return tuple(kept)


def table(rows: tuple[Row, ...], clock: str) -> str:
    """The finished trials as Markdown, best first, those of the Pareto front marked."""
    done = sorted((row for row in rows if row.state == FINISHED), key=lambda row: (row.error, row.time, row.number))
    marked = {row.number for row in front(rows)}
    lines = [
        f"| trial | held-out error | predicted step ({clock}) | synapses (bytes) | Pareto | options |",
        "|---|---|---|---|---|---|",
    ]
    for row in done:
        shown = ", ".join(f"{key} {_text(value)}" for key, value in row.options.items())
        mark = "yes" if row.number in marked else ""
        lines.append(f"| {row.number} | {row.error:.4f} | {row.time:,} | {row.memory:,} | {mark} | {shown} |")
    ends = {state: sum(row.state == state for row in rows) for state in (FINISHED, PRUNED, FAILED)}
    lines += ["", ", ".join(f"{count} {state}" for state, count in ends.items()) + "."]
    return "\n".join(lines) + "\n"


def clock(step: CompiledStep) -> str:
    """The unit of a step's predicted time."""
    return "ns" if step.plan.device.clock == "ns" else "units"


def stored(step: CompiledStep) -> int:
    """Bytes of a step's synapses."""
    return sum(value.numel() * value.element_size() for value in step.synapses.values())


def best_options(rows: tuple[Row, ...]) -> Mapping[str, Any] | None:
    """Options of the trial with the smallest held-out error; None where none finished."""
    number = _best_number(rows)
    return next((row.options for row in rows if row.number == number), None)


def _best_number(rows: tuple[Row, ...]) -> int | None:
    done = [(row.error, row.time, row.number) for row in rows if row.state == FINISHED and row.error is not None]
    return min(done)[2] if done else None


def _best(rows: tuple[Row, ...]) -> float | None:
    return min((row.error for row in rows if row.state == FINISHED and row.error is not None), default=None)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tick(progress: Progress, ended: int, trials: int, best: float | None, step: int) -> None:
    progress(ended, trials, None, step, best)


def the_optuna() -> Any:
    """The module. Raises UsageError RG901 where it is not installed."""
    try:
        import optuna
    except ImportError:
        cause = "the search needs Optuna, which is not installed"
        raise UsageError(Problem("RG901", cause, "reclra search")) from None
    return optuna


def _study(plan: Search, folder: Path) -> Any:
    """The study in ``folder``, a new one or that of an earlier run of the same search."""
    optuna = the_optuna()
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stamp = digest(repr(plan))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "trials.log")))
    except OSError as error:
        raise ModelError(Problem("RG701", f"cannot be written: {error.strerror}", str(folder))) from None
    except Exception as error:  # a line that is no JSON, a record of another version
        cause = f"its storage cannot be read: {type(error).__name__}"
        raise UsageError(Problem("RG902", cause, str(folder / "trials.log"))) from None
    study = optuna.create_study(
        storage=storage,
        study_name="search",
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=plan.limits.rungs[0], reduction_factor=REDUCTION),
    )
    # Begun again with the same seed, a sampler would draw what it drew at first.
    study.sampler = optuna.samplers.TPESampler(seed=plan.seed + len(study.get_trials(deepcopy=False)))
    known = study.user_attrs.get("plan")
    if known is None:
        study.set_user_attr("plan", stamp)
    elif known != stamp:
        cause = "it holds a search of another model, data, space or budget"
        raise UsageError(Problem("RG902", cause, str(folder)))
    return study


def _restart_stale(study: Any) -> None:
    """Trials that were under way when an earlier run ended are given up, and their settings asked for again."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if trial.params:
            study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _rows(study: Any) -> tuple[Row, ...]:
    """The trials that ended, those given up apart."""
    names = {"COMPLETE": FINISHED, "PRUNED": PRUNED, "FAIL": FAILED}
    found = []
    for trial in study.get_trials(deepcopy=False):
        held = trial.user_attrs
        if trial.state.name in names and "note" in held:
            options, errors = dict(held["options"]), tuple(held.get("errors", ()))
            state = names[trial.state.name]
            found.append(
                Row(trial.number, state, options, errors, held.get("time", 0), held.get("memory", 0), held["note"])
            )
    return tuple(found)
