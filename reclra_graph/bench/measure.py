"""Everything that is asked of one model of the zoo, in one process; what is found becomes a row of the report."""

from __future__ import annotations

import copy
import gc
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reclra_graph.bench import checks
from reclra_graph.bench.loader import load
from reclra_graph.bench.model import ZooModel, dry_run, labelled
from reclra_graph.errors import Problem, ReclraError
from reclra_graph.passes.quiet import hushed
from reclra_graph.runtime.compiled import CompiledStep

Row: TypeAlias = dict[str, Any]


@dataclass
class Measurement:
    """The row of one model as it grows; ``report`` is given the row whenever a stage begins or ends. ``memory``: GiB
    that its process may take."""

    source: str
    name: str
    seed: int = 0
    memory: float = float("inf")
    report: Callable[[Row], None] = lambda row: None
    row: Row = field(init=False)

    def __post_init__(self) -> None:
        self.row = {
            "source": self.source, "name": self.name, "stage": "", "passed": False, "seconds": {}, "checks": {},
            "failures": [],
        }  # fmt: skip

    def run(self) -> Row:
        """Load the model, compile it and make every check; what fails is in the row, never raised."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._run()
        self.row["passed"] = not self.row["failures"]
        self.row["stage"] = "done"
        self.report(self.row)
        return self.row

    def _run(self) -> None:
        zoo: ZooModel | None = None
        with self.stage("load"):
            zoo = load(self.source, self.name, self.seed)
            self.row.update(described(zoo))
        if zoo is None:
            return
        with self.stage("warm-up"):
            warm_up()
        self.row["export"] = None
        with self.stage("export", required=False):
            self.row["export"] = checks.export_alone(zoo)
        original = copy.deepcopy(zoo.model)
        step: CompiledStep | None = None
        with self.stage("compile"):
            step = checks.compiled(zoo)
        if step is not None:
            self.row["ratio"] = self._ratio()
            self.row.update(planned(step))
            with self.stage("parameters"):
                self.check("parameters", checks.accounted(zoo.model, step))
            with self.stage("steps"):
                self.check("falls", checks.falls(zoo, step, self.seed), counts=zoo.head)
            with self.stage("eval"):
                self.check("eval", checks.evaluated(zoo, original, self.seed))
        zoo = replace(zoo, model=original)
        del step, original
        gc.collect()
        if not any(item["stage"] == "compile" for item in self.row["failures"]):
            self._reference(zoo)

    def _reference(self, zoo: ZooModel) -> None:
        """One step against the reference interpreter and the model's own forward, in float64 where the model and the
        memory can: numbers take twice as much there, and the interpreter forgets none before the step's end."""
        large = 4 * (self.row.get("peak_memory_mib") or 0) > self.memory * 1024
        exact = zoo if large else zoo.to(torch.float64)
        try:
            with hushed():
                results = [value for _, value in labelled(dry_run(exact.model, exact.inputs))]
            able = all(bool(value.isfinite().all()) for value in results if value.is_floating_point())
        except Exception:  # the model itself mixes in float32
            able = False
        if not able:  # or masks with numbers that are finite in float32 only
            exact = zoo
        self.row["reference_dtype"] = str(next(exact.model.parameters()).dtype).removeprefix("torch.")
        with self.stage("reference"):
            found = checks.stepped(exact, self.seed)
            for name, result in found.items():
                # One recorded path is right for the draws of its own run alone; the plan says so.
                self.check(name, result, counts=name != "forward" or not self.row["frontend"].startswith("record"))

    def _ratio(self) -> float | None:
        seconds = self.row["seconds"]
        return round(seconds["compile"] / seconds["export"], 3) if self.row["export"] else None

    @contextmanager
    def stage(self, name: str, required: bool = True) -> Iterator[None]:
        """Time a stage; what it raises becomes a failure of that stage, unless it is not required."""
        self.row["stage"] = name
        self.report(self.row)
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            if required:
                self.row["failures"] += [{"stage": name, **item} for item in told(error)]
        self.row["seconds"][name] = round(time.perf_counter() - started, 3)
        self.report(self.row)

    def check(self, name: str, found: Row, counts: bool = True) -> None:
        """Note what a check found; ``found["ok"]`` decides, where the check ``counts`` for this model."""
        self.row["checks"][name] = {**found, "counts": counts}
        if counts and not found["ok"]:
            cause = str(found.get("cause") or f"the check {name!r} failed")
            problem = Problem("RG807", cause, str(found.get("where", "")))
            self.row["failures"].append({"stage": name, **coded(problem)})


def coded(problem: Problem) -> dict[str, str]:
    """A problem as a row holds it."""
    return {"code": problem.code, "name": problem.name, "cause": problem.cause, "place": problem.place}


def told(error: Exception) -> list[dict[str, str]]:
    """The coded problems of an error; one without a code for any other exception, with the lines it came through."""
    if isinstance(error, ReclraError):
        return [coded(problem) for problem in error.problems]
    first = (str(error).strip().splitlines() or [""])[0][:500]
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    place = " < ".join(f"{_short(frame.filename)}:{frame.lineno}" for frame in reversed(frames))
    return [
        {"code": "uncoded", "name": type(error).__name__, "cause": f"{type(error).__name__}: {first}", "place": place}
    ]


def _short(path: str) -> str:
    for mark in ("/site-packages/", "/reclra_graph/", "/passes/"):
        _, found, rest = path.rpartition(mark)
        if found:
            return rest if mark == "/site-packages/" else mark.strip("/") + "/" + rest
    return path.rpartition("/")[2]


def described(zoo: ZooModel) -> Row:
    """What a reader wants to know of a model."""
    shapes = ["x".join(map(str, item.shape)) for item in pytree.tree_leaves(zoo.inputs) if isinstance(item, Tensor)]
    return {
        "class": type(zoo.model).__name__,
        "parameters": sum(item.numel() for item in zoo.model.parameters()),
        "inputs": ", ".join(shapes),
        "loss": zoo.loss,
        "head": zoo.head,
    }


def planned(step: CompiledStep) -> Row:
    """What a reader wants to know of a plan."""
    plan = step.plan
    return {
        "frontend": plan.regions.graph.frontend,
        "operators": len(plan.regions.graph.operators),
        "regions": len(plan.regions.sites),
        "wiring": plan.wiring,
        "depth": plan.depth,
        "passes": {name: round(seconds, 3) for name, seconds in step.seconds},
    }


def warm_up() -> None:
    """Export and compile something small: what PyTorch imports on the way is no model's own time."""
    target = torch.zeros(2, dtype=torch.int64)
    tiny = ZooModel("warm-up", nn.Linear(2, 2), (torch.zeros(2, 2),), "cross-entropy", target)
    checks.export_alone(tiny)
    checks.compiled(tiny)
