"""``reclra bench epochs``: trials of every candidate, then whole runs with the best, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from reclra_graph.bench import epochs_data as data
from reclra_graph.bench import jobs
from reclra_graph.bench.epochs_arms import ARMS, FAST, RULES
from reclra_graph.bench.epochs_cases import CASES, QUICK_BATCH, Candidate, Case
from reclra_graph.bench.epochs_figures import best
from reclra_graph.bench.epochs_measure import QUICK_EPOCHS, Request
from reclra_graph.bench.jobs import Job, Limits, Progress, Row, partial, row_path
from reclra_graph.errors import ModelError, Problem, ReclraError, UsageError

WORKER = ("-m", "reclra_graph.bench.epochs_worker")
QUICK_CANDIDATES = 2
_WATCH = 0.5  # seconds between two looks at the process that runs
_LIMITS = ("RG809", "RG809", "RG809")


@dataclass(frozen=True)
class Settings:
    """What is trained, and how; None: the usual. ``data``: the folder with the data sets. ``models``, ``arms``: names.
    ``epochs``: of a run, ``trial_epochs``: of a trial. ``seeds``: how many, from ``seed`` on. ``width``: of nets that
    have several. ``batch``: of all cases instead of their own. ``targets``: errors, as shares. ``minutes``: how long
    all of this may take; what is left is done by the next run. ``work``: folder of what is finished, made anew where
    ``fresh``. ``quick``: tiny nets, some images."""

    data: Path | None
    models: tuple[str, ...] | None = None
    arms: tuple[str, ...] | None = None
    epochs: float | None = None
    trial_epochs: float | None = None
    seeds: int | None = None
    width: int | None = None
    batch: int | None = None
    targets: tuple[float, ...] | None = None
    rule: str = "fixed"
    seed: int = 0
    device: str | None = None
    threads: int | None = None
    minutes: float | None = None
    work: Path = Path("build/epochs")
    fresh: bool = False
    quick: bool = False

    @cached_property
    def on(self) -> str:
        """The device: that which is asked for, else a GPU where there is one."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases."""
        return tuple(CASES[name] for name in (CASES if self.models is None else dict.fromkeys(self.models)))

    @property
    def each(self) -> int:
        """Threads of each process."""
        return self.threads or os.cpu_count() or 1

    @property
    def whole(self) -> bool:
        """Whether everything is measured as it is reported."""
        others = (self.models, self.arms, self.epochs, self.trial_epochs, self.seeds, self.width, self.batch)
        return not self.quick and self.rule == "fixed" and all(item is None for item in others)

    def arms_of(self, case: Case) -> tuple[str, ...]:
        """The arms of a case: of those asked for, such as it offers, and any that is eager."""
        if self.arms is None:
            return case.arms
        return tuple(name for name in ARMS if name in self.arms and (name in case.arms or not ARMS[name].compiled))

    def candidates_of(self, case: Case) -> tuple[Candidate, ...]:
        """What every arm of a case is tried with."""
        return case.candidates[:QUICK_CANDIDATES] if self.quick else case.candidates

    def targets_of(self, case: Case) -> tuple[float, ...]:
        """Errors whose times are told, falling."""
        return tuple(sorted(set(case.targets if self.targets is None else self.targets), reverse=True))

    def seeds_of(self, case: Case) -> range:
        """The seeds of a case's runs; its trials have the first."""
        return range(self.seed, self.seed + (self.seeds or (1 if self.quick else case.seeds)))

    def epochs_of(self, case: Case, trial: bool) -> float:
        """Epochs of a case's trials or runs."""
        if self.quick:
            return QUICK_EPOCHS
        return (self.trial_epochs or case.trial_epochs) if trial else (self.epochs or case.epochs)

    def batch_of(self, case: Case) -> int:
        """Images in a batch of a case."""
        return QUICK_BATCH if self.quick else self.batch or case.batch

    def width_of(self, case: Case) -> int | None:
        """The width of a case's net; None where it has only one."""
        return None if case.width is None else self.width or case.width

    def request(self, case: Case, arm: str, candidate: Candidate, seed: int, trial: bool, digest: str) -> Request:
        """What one process does."""
        rule = "" if ARMS[arm].peer else self.rule
        return Request(
            case.name, arm, candidate.optimizer, candidate.lr, seed, trial, str((self.data or Path()).resolve()),
            digest, self.epochs_of(case, trial), self.batch_of(case), self.width_of(case), rule, self.on, self.quick,
        )  # fmt: skip

    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong with them."""
        found = []
        if self.data is None:
            advice = "Give a folder with the official files of Fashion-MNIST and CIFAR-10."
            found.append(Problem("RG405", "no folder with the data is given", "--data", advice))
        for option, names, known in (("models", self.models, CASES), ("arms", self.arms, ARMS)):
            wrong = [name for name in names or () if name not in known]
            advice = f"Choose from {', '.join(known)}."
            found += [Problem("RG405", f"there is no {name!r}", f"--{option}", advice) for name in wrong]
            if names is not None and not names:
                found.append(Problem("RG405", "it names nothing", f"--{option}", advice))
        found += self._lonely() if not found else []
        numbers = (
            ("seeds", self.seeds), ("width", self.width), ("batch", self.batch), ("threads", self.threads),
        )  # fmt: skip
        for option, number in numbers:
            if number is not None and number < 1:
                found.append(Problem("RG405", f"{option} is {number}, not at least 1", f"--{option}"))
        lengths = (("epochs", self.epochs), ("trial-epochs", self.trial_epochs), ("minutes", self.minutes))
        for option, length in lengths:
            if length is not None and not 0 < length < float("inf"):
                found.append(Problem("RG405", f"{option} is {length}", f"--{option}", "Give a number above 0."))
        for target in self.targets or ():
            if not 0 < target < 1:
                cause = f"an error of {100 * target:g} %"
                found.append(Problem("RG405", cause, "--targets", "Give per cents between 0 and 100."))
        if self.targets == ():
            found.append(Problem("RG405", "it names nothing", "--targets", "Give per cents, such as 15,13,12."))
        if self.rule not in RULES:
            found.append(Problem("RG405", f"rule is {self.rule!r}", "--rule", f"Choose {' or '.join(RULES)}."))
        if not 0 <= self.seed < 1 << 31:
            found.append(Problem("RG405", f"seed is {self.seed}", "--seed", "Give a whole number from 0 to 2**31 - 1."))
        if self.on not in ("cpu", "cuda"):
            found.append(Problem("RG405", f"device is {self.on!r}", "--device", "Choose cpu or cuda."))
        elif self.on == "cuda" and not torch.cuda.is_available():
            found.append(Problem("RG405", "PyTorch sees no CUDA device here", "--device", "Choose cpu."))
        return tuple(found)

    def _lonely(self) -> list[Problem]:
        """Cases without an arm, and fast forms that are asked for without what shows their cost."""
        found = [
            Problem("RG405", f"{case.name} has none of these", "--arms", f"It has {', '.join(case.arms)}.")
            for case in self.cases
            if not self.arms_of(case)
        ]
        for name in FAST:
            if name in (self.arms or ()) and "dense" not in (self.arms or ()):
                cause = f"{name!r} without 'dense': what a fast form costs in accuracy is measured beside it"
                found.append(Problem("RG405", cause, "--arms", "Name dense, too."))
        return found


@dataclass
class Found:
    """What is measured of a case: the rows of its trials and of its runs, by arm; the data's digest."""

    case: Case
    digest: str
    trials: dict[str, list[Row]] = field(default_factory=dict)
    runs: dict[str, list[Row]] = field(default_factory=dict)
    left: int = 0
    """Rows that the minutes did not suffice for."""


def check_data(settings: Settings) -> dict[str, str]:
    """The digest of every data set that the cases need.

    Raises ModelError RG703 or RG704 with everything that is wrong with the files, UsageError RG405 where a batch is
    larger than all there is to learn from."""
    problems: list[Problem] = []
    digests: dict[str, str] = {}
    assert settings.data is not None
    for name in dict.fromkeys(case.data for case in settings.cases):
        try:
            images = data.read(name, settings.data)
        except ReclraError as error:
            problems += error.problems
            continue
        digests[name] = images.digest
        have = len(images.train_labels)
        for case in settings.cases:
            batch = settings.batch_of(case)
            if case.data == name and (rest := have - data.held_out(case, have)) < batch:
                cause = f"{case.name} learns in batches of {batch:,}, and {rest:,} images are left to learn from"
                problems.append(Problem("RG405", cause, "--batch", "Choose a smaller batch, or bring more images."))
            elif case.data == name and not data.held_out(case, have):
                cause = f"{have:,} images: none can be held out"
                problems.append(Problem("RG704", cause, str(settings.data), "Bring more images."))
    if problems:
        raise UsageError(problems) if all(item.code == "RG405" for item in problems) else ModelError(problems)
    return digests


def count(settings: Settings) -> int:
    """How many trials and runs there are."""
    return sum(
        len(settings.arms_of(case)) * (len(settings.candidates_of(case)) + len(settings.seeds_of(case)))
        for case in settings.cases
    )


def run(
    settings: Settings,
    digests: dict[str, str],
    progress: Progress = lambda *_: None,
    clock: Callable[[], float] = time.time,
) -> list[Found]:
    """What is measured of every case: trials of all candidates with every arm, the same for each; then runs with the
    best, the arms by turns, seed by seed.

    What is finished is kept in ``settings.work`` and not done again, unless something failed in it, or the package, a
    library, the data, or what is asked for has changed since. An interruption stops the process that runs and is passed
    on; the next run goes on from its last checkpoint."""
    deadline = None if settings.minutes is None else clock() + 60 * settings.minutes
    folder = settings.work / jobs.stamp(settings.on, settings.each)
    total = count(settings)
    shown = 0

    def row_of(request: Request) -> Row | None:
        """The row of a cell, made now where it is not there; None where the time is up."""
        nonlocal shown
        asked = {key: value for key, value in asdict(request).items() if key != "data"}
        mark = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        path = row_path(folder, "trial" if request.trial else "run", f"{request.case}.{request.arm}.{mark}")
        checkpoint = path.with_suffix(".pt")
        kept = jobs.read_row(path)
        if kept is not None and kept["passed"] and not settings.fresh:
            shown += 1
            progress(shown, total, None, ())
            return kept
        if deadline is not None and clock() >= deadline:
            return None
        if settings.fresh:
            checkpoint.unlink(missing_ok=True)
        until = "none" if deadline is None else str(deadline)
        command = (
            *WORKER, json.dumps(asdict(request)), str(partial(path)), str(settings.each), str(checkpoint), until
        )  # fmt: skip
        job = Job(request.shown, request.begun(), path, command)

        def tell(done: int, jobs_in_all: int, row: Row | None, names: Sequence[str]) -> None:
            progress(shown + done, total, None if row is not None and row.get("paused") else row, names)

        limits = Limits(threads=settings.each, codes=_LIMITS)
        (row,) = jobs.run([job], limits, lambda row: True, tell, _WATCH)
        shown += 1
        return None if row.get("paused") else row

    return [_case(settings, case, digests[case.data], row_of) for case in settings.cases]


def _case(settings: Settings, case: Case, digest: str, row_of: Callable[[Request], Row | None]) -> Found:
    found = Found(case, digest)
    arms, seeds = settings.arms_of(case), settings.seeds_of(case)
    open_arms = set()

    def keep(rows: list[Row], arm: str, candidate: Candidate, seed: int, trial: bool) -> bool:
        row = row_of(settings.request(case, arm, candidate, seed, trial, digest))
        if row is None:
            found.left += 1
        else:
            rows.append(row)
        return row is not None

    for arm in arms:
        rows = found.trials[arm] = []
        for candidate in settings.candidates_of(case):
            if not keep(rows, arm, candidate, settings.seed, True):
                open_arms.add(arm)
    for seed in seeds:
        for arm in arms:
            runs = found.runs.setdefault(arm, [])
            chosen = best(found.trials[arm])
            if arm in open_arms:
                found.left += 1
            elif chosen is not None:
                keep(runs, arm, Candidate(chosen["optimizer"], chosen["lr"]), seed, False)
    return found
