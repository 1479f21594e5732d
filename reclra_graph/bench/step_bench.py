"""``reclra bench step``: each case in a process of its own, then the memory of each of its arms in another, in the
memory format in which that arm is fastest."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from reclra_graph.bench import jobs
from reclra_graph.bench.jobs import Job, Limits, Progress, Row, partial, row_path
from reclra_graph.bench.step_arms import ABLATION, ARMS, FORMATS, USUAL
from reclra_graph.bench.step_cases import BATCHES, CASES, usual
from reclra_graph.bench.step_measure import Request
from reclra_graph.errors import Problem

WORKER = ("-m", "reclra_graph.bench.step_worker")
ROUNDS, WARM_UP = 15, 3
QUICK_ROUNDS, QUICK_WARM_UP = 4, 2
_WATCH = 0.5  # seconds between two looks at the process that runs
_LIMITS = ("RG809", "RG809", "RG809")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how; None: the usual. ``models``, ``arms``: names. ``rounds``: turns of every arm that are
    timed, behind ``warm_up`` steps. ``batch``, ``lr``: of all cases instead of their own. ``work``: folder of what is
    finished, made anew where ``fresh``. ``quick``: tiny nets, few rounds. ``formats``: memory formats of images.
    ``ablate``: instead of backpropagation, one optimisation left out at a time."""

    models: tuple[str, ...] | None = None
    arms: tuple[str, ...] | None = None
    rounds: int | None = None
    warm_up: int | None = None
    batch: int | None = None
    lr: float | None = None
    seed: int = 0
    device: str | None = None
    threads: int | None = None
    work: Path = Path("build/step")
    fresh: bool = False
    quick: bool = False
    formats: tuple[str, ...] | None = None
    ablate: bool = False

    @cached_property
    def on(self) -> str:
        """The device: that which is asked for, else a GPU where there is one."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases."""
        return usual(self.on) if self.models is None else tuple(dict.fromkeys(self.models))

    @property
    def timed(self) -> tuple[int, int]:
        """(rounds, steps that warm up)."""
        usually = (QUICK_ROUNDS, QUICK_WARM_UP) if self.quick else (ROUNDS, WARM_UP)
        return (
            usually[0] if self.rounds is None else self.rounds,
            usually[1] if self.warm_up is None else self.warm_up,
        )

    @property
    def each(self) -> int:
        """Threads of each process."""
        return self.threads or os.cpu_count() or 1

    @property
    def whole(self) -> bool:
        """Whether everything is measured as it is reported."""
        return not self.quick and all(
            item is None for item in (self.models, self.arms, self.batch, self.lr, self.formats)
        )

    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong with them."""
        found: list[Problem] = []
        chosen = (("models", self.models, CASES), ("arms", self.arms, ARMS), ("formats", self.formats, FORMATS))
        if self.ablate and self.arms is not None:
            found.append(Problem("RG405", "--ablate names the arms itself", "--arms", "Leave out one of the two."))
        for option, names, known in chosen:
            wrong = [name for name in names or () if name not in known]
            advice = f"Choose from {', '.join(known)}."
            found += [Problem("RG405", f"there is no {name!r}", f"--{option}", advice) for name in wrong]
            if names is not None and not names:
                found.append(Problem("RG405", "it names nothing", f"--{option}", advice))
        rounds, warm_up = self.timed
        numbers = (
            ("rounds", rounds, 1),
            ("warm-up", warm_up, 1),
            ("batch", self.batch, 1),
            ("threads", self.threads, 1),
        )
        for option, number, least in numbers:
            if number is not None and number < least:
                found.append(Problem("RG405", f"{option} is {number}, not at least {least}", f"--{option}"))
        if min(rounds, warm_up) >= 1 and rounds + warm_up < 2 * BATCHES:
            cause = f"{warm_up} steps and {rounds} rounds do not meet each of {BATCHES} batches twice"
            found.append(Problem("RG405", cause, "--rounds", "Ask for more rounds: losses must be seen to fall."))
        if self.lr is not None and not 0 < self.lr < float("inf"):
            found.append(Problem("RG405", f"lr is {self.lr}", "--lr", "Give a number above 0."))
        if not 0 <= self.seed < 1 << 63:
            found.append(Problem("RG405", f"seed is {self.seed}", "--seed", "Give a whole number from 0 to 2**63 - 1."))
        if self.on not in ("cpu", "cuda"):
            found.append(Problem("RG405", f"device is {self.on!r}", "--device", "Choose cpu or cuda."))
        elif self.on == "cuda" and not torch.cuda.is_available():
            found.append(Problem("RG405", "PyTorch sees no CUDA device here", "--device", "Choose cpu."))
        return tuple(found)

    def request(self, case: str, cell: Mapping[str, Any] | None = None) -> Request:
        """What the process of a case measures, or that of the memory of one of its cells."""
        rounds, warm_up = self.timed
        where = None if cell is None else (str(cell["arm"]), str(cell["format"]))
        return Request(
            case, self.measured, where, self.on, rounds, warm_up, self.seed, self.batch, self.lr, self.quick,
            tuple(FORMATS) if self.formats is None else tuple(name for name in FORMATS if name in self.formats),
        )  # fmt: skip

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the arms."""
        usually = ABLATION if self.ablate else USUAL
        return usually if self.arms is None else tuple(name for name in ARMS if name in self.arms)


def run(settings: Settings, progress: Progress = lambda *_: None) -> tuple[list[Row], dict[str, dict[str, Row]]]:
    """The rows of all cases, and those of their cells' memory, by case and cell.

    What is finished is kept in ``settings.work`` and not measured again, unless something failed in it, or the package,
    a library, the machine's threads or what is asked for has changed since. An interruption stops the process that runs
    and is passed on."""
    rounds, warm_up = settings.timed
    asked = [settings.on, rounds, warm_up, settings.batch, settings.lr, settings.seed, settings.quick, settings.each]
    folder = settings.work / jobs.stamp(asked, settings.measured, settings.formats)
    limits = Limits(threads=settings.each, codes=_LIMITS)

    def anew(row: Row) -> bool:
        return settings.fresh or not row["passed"]

    def job(kind: str, name: str, shown: str, request: Request) -> Job:
        path = row_path(folder, kind, shown)
        command = (*WORKER, json.dumps(asdict(request)), str(partial(path)), str(settings.each))
        row = {"source": kind, "name": name, "case": request.chosen.about}
        return Job(shown, row, path, command)

    timing = [job("time", name, name, settings.request(name)) for name in settings.cases]
    rows = jobs.run(timing, limits, anew, progress, _WATCH)
    cells = [(row["name"], name, row["cells"][name]) for row in rows for name in fastest(row.get("cells", {}))]
    held = [job("memory", case, f"{case}, {name}", settings.request(case, cell)) for case, name, cell in cells]
    behind = len(rows)

    def later(done: int, total: int, row: Row | None, names: Sequence[str]) -> None:
        progress(behind + done, behind + total, row, [f"memory of {name}" for name in names])

    memory: dict[str, dict[str, Row]] = {}
    for (case, name, _), row in zip(cells, jobs.run(held, limits, anew, later, _WATCH), strict=True):
        memory.setdefault(case, {})[name] = row
    return rows, memory


def fastest(cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of each arm the cell with the least median, in the order of the cells."""
    best: dict[str, str] = {}
    for name, cell in cells.items():
        if cell.get("sound"):
            arm = str(cell["arm"])
            if arm not in best or statistics.median(cell["seconds"]) < statistics.median(cells[best[arm]]["seconds"]):
                best[arm] = name
    return [name for name in cells if name in best.values()]
