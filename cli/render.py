"""Everything that is drawn on a terminal; the only file that imports rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from reclra_graph.errors import Problem
from reclra_graph.export.report import count, node_text, prediction_lines, size, wave_lines, wiring_tree
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.wiring import WiringPlan

ROWS = 24
"""A section longer than this is cut; report.txt has all of it."""


@contextmanager
def progress(hidden: bool = False) -> Iterator[Callable[[str], None]]:
    """A function that names the phase now running, on standard error; silent where ``hidden``, or no terminal."""
    console = Console(file=sys.stderr)
    if hidden or not console.is_terminal:
        yield lambda text: None
        return
    with console.status("starting") as status:
        yield lambda text: status.update(Text(text))


def _bar(console: Console, count: str) -> Progress:
    """A bar with its count before it, and the time and what is done ``now`` behind."""
    return Progress(
        TextColumn(count), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}"), console=console
    )


@contextmanager
def counted(
    total: int, hidden: bool = False
) -> Iterator[Callable[[int, int, dict[str, Any] | None, Sequence[str]], None]]:
    """A bar of models done, with a line for each that fails, on standard error; silent where ``hidden``, or no
    terminal."""
    console = Console(file=sys.stderr)
    if hidden or not console.is_terminal:
        yield lambda done, total, row, names: None
        return
    with _bar(console, "{task.completed}/{task.total}") as bar:
        task = bar.add_task("", total=total, now="")

        def show(done: int, total: int, row: dict[str, Any] | None, names: Sequence[str]) -> None:
            bar.update(task, completed=done, total=total, now=Text(", ".join(names)))
            if row is not None and not row["passed"]:
                first = row["failures"][0]
                what = f"{row['source']} {row['name']}: {first['code']} {first['name']}: {first['cause']}"
                bar.console.print(Text(what, style="red"))

        yield show


@contextmanager
def trials(total: int) -> Iterator[Callable[[int, int, Any, int, float | None], None]]:
    """A bar of the search's trials, with a line for each that ended, on standard error; silent without a terminal."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda ended, total, row, step, best: None
        return
    with _bar(console, "trial {task.completed}/{task.total}") as bar:
        task = bar.add_task("", total=total, now="")

        def show(ended: int, total: int, row: Any, step: int, best: float | None) -> None:
            found = "" if best is None else f", best {best:.4f}"
            bar.update(task, completed=ended, now=Text(f"step {step}{found}"))
            if row is not None:
                error = "" if row.error is None else f" at {row.error:.4f}"
                bar.console.print(Text(f"trial {row.number} {row.state}{error} {row.note}".rstrip()))

        yield show


@contextmanager
def training(hidden: bool = False) -> Iterator[tuple[Callable[[str], None], Callable[[Any], None]]]:
    """Two functions, on standard error: one names the phase before the training, one is told the progress of it
    (``reclra_graph.train.trainer.Progress``). Silent where ``hidden``, or no terminal."""
    console = Console(file=sys.stderr)
    if hidden or not console.is_terminal:
        yield lambda text: None, lambda progress: None
        return
    with _bar(console, "{task.fields[epoch]}") as bar:
        task = bar.add_task("", total=None, now=Text(""), epoch="")

        def phase(text: str) -> None:
            bar.update(task, total=None, completed=0, now=Text(text), epoch="")

        def show(progress: Any) -> None:
            told = [] if progress.error is None else [f"error {_figure(progress.error)}"]
            told += [] if progress.best is None else [f"best {_figure(progress.best)}"]
            told += [] if progress.loss is None else [f"loss {progress.loss:.4g}"]
            told += [f"{progress.rate:,.0f} samples/s"]
            told += [] if progress.left is None else [f"{_clock(progress.left)} left"]
            epochs = progress.epoch * progress.steps / max(1, progress.step)
            epoch = f"epoch {progress.epoch:.1f}/{epochs:g}"
            bar.update(task, total=progress.steps, completed=progress.step, now=Text(", ".join(told)), epoch=epoch)

        yield phase, show


def trained(value: dict[str, Any], folder: Path) -> None:
    """The result of ``train`` on standard output: of one run, or of several seeds."""
    console = _console()
    if "runs" in value:
        for run in value["runs"]:
            console.print(Text(f"seed {run['seed']}  {_ended(run)}"))
        for name in ("error", "test_error", "train_error"):
            found = value[name]
            if found["mean"] is not None:
                spread = "" if found["sd"] is None else f" ± {_figure(found['sd'])}"
                what = {"error": "validation error", "test_error": "test error", "train_error": "training error"}[name]
                console.print(Text(f"{what} {_figure(found['mean'])}{spread}, {count(found['count'], 'run')}"))
    else:
        settings = value["settings"]
        data = settings["data"]
        console.print(
            Text(
                f"{settings['method']} on {data['name']}: {data['train']:,} images to train with, "
                f"{data['validation']:,} for validation, {data['test']:,} to test with"
            )
        )
        console.print(Text(_ended(value)))
        console.print(Text(f"{value['train_seconds']:,.1f} s of training, {len(value['curve'])} evaluations"))
    console.print(Text(f"written: {folder / 'summary.json'}"))


def _ended(run: dict[str, Any]) -> str:
    """How a run went, in a line."""
    why = {"done": "", "patience": ", stopped early", "diverged": ", diverged", "minutes": ", not at its end yet"}
    told = [f"{run['steps']:,} steps{why[run['ended']]}"]
    if run["error"] is not None:
        told.append(f"validation error {_figure(run['error'])} behind step {run['best_step']:,}")
    for name, what in (("test_error", "test error"), ("train_error", "training error")):
        told += [] if run[name] is None else [f"{what} {_figure(run[name])}"]
    return "; ".join(told)


def _figure(share: float) -> str:
    """An error: a share as per cents; what is more than 1 is none, but a loss."""
    return f"{100 * share:.2f} %" if share <= 1 else f"{share:.4g}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def searched(text: str, files: Sequence[Path]) -> None:
    """The table of a search, and the files that were written, on standard output."""
    sys.stdout.write(text)
    for path in files:
        sys.stdout.write(f"written: {path}\n")


def note(text: str) -> None:
    """A remark on standard error."""
    _console(stderr=True).print(Text(text))


def zoo(content: dict[str, Any], lines: Sequence[str], files: Sequence[Path]) -> None:
    """The result of ``bench zoo`` on standard output: what fails, then the figures."""
    console = _console()
    for row in content["models"]:
        for item in row["failures"][:1]:
            text = f"{row['source']} {row['name']}: {item['code']} {item['name']} ({item['stage']}): {item['cause']}"
            console.print(Text(text))
    for line in lines:
        console.print(Text(line))
    for path in files:
        console.print(Text(f"written: {path}"))


def stepped(lines: Sequence[str], files: Sequence[Path]) -> None:
    """The result of ``bench step`` on standard output."""
    console = _console()
    for line in [*lines, *(f"written: {path}" for path in files)]:
        console.print(Text(line))


def problems(found: Sequence[Problem]) -> None:
    """Each problem on standard error: code, cause, place, remedy, page."""
    console = _console(stderr=True)
    for problem in found:
        console.print(Text.assemble((f"{problem.code} {problem.name}", "bold red"), ": ", problem.cause))
        if problem.place:
            console.print(Text.assemble(("    at: ", "dim"), problem.place))
        console.print(Text.assemble(("    do: ", "dim"), problem.advice))
        console.print(Text.assemble(("    see: ", "dim"), problem.page))
    if len(found) > 1:
        console.print(f"{len(found)} problems", style="bold")


def compiled(value: dict[str, Any], program: StepProgram) -> None:
    """The result of ``compile`` (``summary.compiled``) on standard output."""
    console = _console()
    plan = program.schedule.tasks.plan
    learning = sum(region["learns"] for region in value["regions"])
    console.print(
        Text.assemble(
            (value["name"], "bold"),
            f"  {count(value['gpus'], 'GPU')}, {learning} of {len(plan.regions.sites)} regions learn, "
            f"digest {value['digest']}, frontend {value['frontend']}",
        )
    )
    rows = [
        (
            str(region["id"]),
            region["name"],
            "x".join(map(str, region["shape"])),
            region["update"] or "-",
            ", ".join(edge.name for edge in plan.incoming.get(region["id"], ())) or "-",
        )
        for region in value["regions"]
    ]
    _section(console, "Regions", _table(("id", "name", "shape", "update", "error from"), rows))
    _section(console, f"Wiring: {plan.wiring}, depth {plan.depth}, relays {_listed(plan.relays)}", _tree(plan))
    if plan.why:
        console.print(Text(f"  {plan.why}", style="dim"))
    _section(console, "Waves: targets computed at the same time", _lines(_cut(list(wave_lines(program.schedule)))))
    memory = f"{size(value['synapse_bytes'])} in {count(len(value['edges']), 'synapse')}"
    _section(console, "Error synapses", _lines([memory]))
    _section(console, "Prediction", _lines(prediction_lines(program.schedule)))
    total = sum(item["seconds"] for item in value["seconds"])
    parts = ", ".join(f"{item['pass']} {item['seconds']:.2f}" for item in value["seconds"])
    _section(console, f"Seconds: {total:.2f}", _lines([parts]))
    _section(console, "Written", _lines(value["files"]))


def timed(value: dict[str, Any]) -> None:
    """The result of ``bench schedule`` on standard output: predicted against measured time, by kind of task."""
    console = _console()
    head = f"  costs of {value['device']}, run on {value['ran_on']}, median of {count(value['rounds'], 'step')}"
    console.print(Text.assemble((value["name"], "bold"), head))
    rows = []
    for row in (*value["kinds"], value["total"]):
        ratio = row["measured_over_predicted"]
        times = (_microseconds(row["predicted"]), _microseconds(row["measured"]))
        rows.append((row["kind"], str(row["tasks"]), *times, "-" if ratio is None else f"{ratio:.2f}"))
    head_row = ("kind", "tasks", "predicted µs", "measured µs", "measured / predicted")
    _section(console, "Time by kind of task", _table(head_row, rows, right=True))
    ranks, whole = value["rank_correlation"], value["makespan"]
    lines = [
        f"makespan: predicted {_microseconds(whole['predicted'])} µs; of tasks as long as measured "
        f"{_microseconds(whole['of_measured_tasks'])} µs",
        f"the step itself: {_microseconds(whole['measured'])} µs"
        + ("" if value["gpus"] == 1 or value["ran_on"] != "cpu" else ", all lanes one by one"),
        f"rank correlation of the tasks' times: {'-' if ranks is None else f'{ranks:.2f}'}",
    ]
    _section(console, "Whole step", _lines(lines))
    _section(console, "Written", _lines(value["files"]))


def _microseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1000:,.1f}"


def explained(value: dict[str, Any]) -> None:
    """The result of ``explain`` (``summary.explained``) on standard output."""
    console = _console()
    console.print(Text.assemble((value["name"], "bold"), f"  frontend {value['frontend']}"))
    for note in value["notes"]:
        console.print(Text(f"  {note}"))
    without = f"; without a loss: {', '.join(value['without_loss'])}" if value["without_loss"] else ""
    console.print(Text(f"  inputs {', '.join(value['inputs'])}; loss of {', '.join(value['outputs'])}{without}"))
    _section(console, "Coverage", _lines(value["coverage"]))
    rows = [
        (
            str(region["id"]),
            region["name"],
            "x".join(map(str, region["shape"])),
            ", ".join(region["parameters"]) or "-",
            region["line"],
        )
        for region in value["regions"]
    ]
    _section(console, "Regions", _table(("id", "name", "shape", "learns", "line"), rows))


def _console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # Lines in a file or a pipe are for grep: they must not break at 80 columns.
    width = None if stream.isatty() else 200
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _section(console: Console, title: str, body: Table | Tree | Text) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(body if isinstance(body, Text) else Padding(body, (0, 0, 0, 2), expand=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: bool = False) -> Table:
    """``right``: all columns but the first hold numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for at, name in enumerate(head):
        table.add_column(name, overflow="fold", justify="right" if right and at else "left")
    for row in rows[:ROWS]:
        table.add_row(*(Text(cell) for cell in row))
    if len(rows) > ROWS:
        table.add_row("...", Text(f"{len(rows) - ROWS} more"))
    return table


def _tree(plan: WiringPlan) -> Tree:
    """The wiring as rich draws trees; an only child is a further line of its parent's label, after an arrow."""
    nodes = wiring_tree(plan)
    label = Text(node_text(plan, nodes[0]))
    root = Tree(label, guide_style="dim")
    branches, labels = [root], [label]
    for node in nodes[1 : ROWS + 1]:
        level = len(node.parents)
        if node.alone:
            labels[level].append(f"\n-> {node_text(plan, node)}")
            continue
        label = Text(node_text(plan, node))
        branches[level:] = [branches[level - 1].add(label)]
        labels[level:] = [label]
    if len(nodes) > ROWS + 1:
        root.add(Text(f"... {len(nodes) - ROWS - 1} more, in report.txt"))
    return root


def _cut(texts: Sequence[str]) -> Sequence[str]:
    return texts if len(texts) <= ROWS else [*texts[:ROWS], f"... {len(texts) - ROWS} more, in report.txt"]


def _lines(texts: Iterator[str] | Sequence[str]) -> Text:
    return Text("\n".join(f"  {text}" for text in texts))


def _listed(items: Sequence[int]) -> str:
    return ", ".join(map(str, items)) or "none"
