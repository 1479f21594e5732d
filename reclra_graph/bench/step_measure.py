"""One case of ``reclra bench step``, in one process: every arm timed in turns, or the memory of one of them."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reclra_graph.bench.jobs import Row
from reclra_graph.bench.measure import coded, told
from reclra_graph.bench.step_arms import (
    ARMS,
    FORMATS,
    USUAL,
    WHOLE,
    Run,
    Settings,
    backprop_eager,
    lacks,
    reclra_eager,
    step_of,
)
from reclra_graph.bench.step_cases import BATCHES, CASES, QUICK, Case
from reclra_graph.bench.step_figures import verdict
from reclra_graph.bench.step_memory import peak_bytes
from reclra_graph.bench.step_probes import probes, settle
from reclra_graph.errors import Problem, ReclraError
from reclra_graph.passes.kernels import CountKernels
from reclra_graph.runtime.compiled import CompiledStep


@dataclass(frozen=True)
class Request:
    """What one process measures: every arm of a case, or the memory of the cell (arm, memory format). ``batch`` and
    ``lr`` instead of the case's own; ``tiny``: the small net of the same kind; ``formats``: of images."""

    case: str
    arms: tuple[str, ...] = USUAL
    cell: tuple[str, str] | None = None
    device: str = "cpu"
    rounds: int = 15
    warm_up: int = 3
    seed: int = 0
    batch: int | None = None
    lr: float | None = None
    tiny: bool = False
    formats: tuple[str, ...] = tuple(FORMATS)

    @property
    def chosen(self) -> Case:
        """The case as it is to be measured."""
        case = CASES[self.case]
        batch = self.batch or (QUICK if self.tiny else case.batch)
        return replace(case, batch=batch, lr=case.lr if self.lr is None else self.lr)

    def settings(self, memory_format: str) -> Settings:
        """How its arms are built."""
        return Settings(self.device, memory_format, self.seed, self.tiny)


def label(arm: str, memory_format: str, images: bool) -> str:
    """The name of a cell."""
    return f"{arm}, {memory_format}" if images else arm


def measured(request: Request, report: Callable[[Row], None] = lambda row: None) -> Row:
    """The row of a request; what goes wrong is in it, never raised. ``report`` is given the row as it grows."""
    if request.device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say of each other
        row = _Memory(request, report).run() if request.cell is not None else _Timing(request, report).run()
    row["stage"] = "done"
    report(row)
    return row


class _Measurement:
    """A row, and what fails on the way to it."""

    source = ""

    def __init__(self, request: Request, report: Callable[[Row], None]) -> None:
        self.request, self.case, self.tell = request, request.chosen, report
        self.row: Row = {
            "source": self.source, "name": request.case, "stage": "", "passed": False, "seconds": {}, "checks": {},
            "failures": [],
        }  # fmt: skip

    def stage(self, text: str) -> None:
        self.row["stage"] = text
        self.tell(self.row)

    def fail(self, cell: str, *problems: dict[str, str]) -> None:
        self.row["failures"] += [{"stage": cell, **item} for item in problems]

    @contextmanager
    def caught(self, cell: str) -> Iterator[None]:
        """What is raised becomes a failure of the cell; RG809 where it has no code of its own."""
        try:
            yield
        except Exception as error:
            found = told(error)
            name = Problem("RG809", "").name
            self.fail(
                cell,
                *({**item, "code": "RG809", "name": name} if item["code"] == "uncoded" else item for item in found),
            )


class _Timing(_Measurement):
    source = "time"

    def run(self) -> Row:
        """All arms, in every memory format that the inputs can lie in, in turns."""
        case = self.case
        self.row["case"] = case.about
        self.stage("net")
        try:
            net = self.request.settings("contiguous").net(case)
        except ReclraError as error:
            self.row["skipped"] = "; ".join(f"{item.cause}. {item.advice}" for item in error.problems)
            self.row["passed"] = error.codes == ("RG802",)
            if not self.row["passed"]:
                self.fail("net", *told(error))
            return self.row
        self.row["case"]["parameters"] = sum(item.numel() for item in net.model.parameters())
        formats = self.request.formats if net.images else ("contiguous",)
        self.batches = {kind: self.request.settings(kind).batches(case, net, BATCHES) for kind in formats}
        self.row["absent"] = {
            name: why
            for name in self.request.arms
            if (why := lacks(ARMS[name], case, self.request.settings(formats[0])))
        }
        self.row["cells"] = {
            label(name, kind, net.images): {
                "arm": name, "format": kind if net.images else "", "peer": ARMS[name].peer,
                "without": ARMS[name].without,
                "beside": label(WHOLE, kind, net.images) if ARMS[name].without else "",
            }
            for name in self.request.arms
            if name not in self.row["absent"]
            for kind in formats
        }  # fmt: skip
        del net
        self.stage("probes")
        first = probes(self.request.device, case.dtype, self.request.tiny)
        self.runs: dict[str, Run] = {}
        for name in self.row["cells"]:
            self.stage(f"{name}: warm-up")
            with self.caught(name):
                self.prepare(name)
        self.rounds()
        for name in list(self.runs):
            self.stage(f"{name}: counting")
            with self.caught(name):
                self.count(name)
        last = probes(self.request.device, case.dtype, self.request.tiny)
        self.row["probes"] = {key: max(first[key], last[key]) for key in first}
        self.judge()
        self.row["passed"] = not self.row["failures"]
        return self.row

    def batch(self, name: str, number: int) -> tuple[Tensor, Tensor]:
        """The batch of a cell's step of that number."""
        return self.batches[self.row["cells"][name]["format"] or "contiguous"][number % BATCHES]

    def note(self, name: str, number: int, loss: Tensor) -> None:
        """Keep the loss of a cell's step of that number; None where it is not finite, which JSON has no word for."""
        value = float(loss)
        kept = value if value - value == 0 else None
        self.row["cells"][name]["losses"].append((number % BATCHES, kept))

    def prepare(self, name: str) -> None:
        """Build an arm, and make the steps that are not timed."""
        cell = self.row["cells"][name]
        cell.update(seconds=[], losses=[])
        started = time.perf_counter()
        run = ARMS[cell["arm"]].make(self.case, self.request.settings(cell["format"] or "contiguous"))
        for number in range(self.request.warm_up):
            self.note(name, number, run(*self.batch(name, number)))
            settle(self.request.device)
            if number == 0:
                cell["ready_seconds"] = round(time.perf_counter() - started, 3)
        self.runs[name] = run

    def rounds(self) -> None:
        """Time all cells, one behind the other, in an order that rotates; one that fails is left out from then on."""
        for index in range(self.request.rounds):
            self.stage(f"round {index + 1} of {self.request.rounds}")
            names = [name for name in self.row["cells"] if name in self.runs]
            shift = index % len(names) if names else 0
            for name in names[shift:] + names[:shift]:
                if not self.turn(name, self.request.warm_up + index * self.case.turn):
                    del self.runs[name]

    def turn(self, name: str, begin: int) -> bool:
        """Time a cell's next steps, from that number on; whether they could be made."""
        cell, run, last = self.row["cells"][name], self.runs[name], begin + self.case.turn
        given = [self.batch(name, number) for number in range(begin, last)]
        with self.caught(name):
            settle(self.request.device)
            start = time.perf_counter()
            for inputs, target in given:
                loss = run(inputs, target)
            settle(self.request.device)
            seconds = time.perf_counter() - start
            self.note(name, last - 1, loss)
            cell["seconds"].append(seconds / self.case.turn)
            return True
        return False

    def count(self, name: str) -> None:
        """The arithmetic and the memory traffic of a step, as the cost model counts them: operator by operator, so that
        what is compiled counts as what it was compiled from."""
        cell = self.row["cells"][name]
        settings = self.request.settings(cell["format"] or "contiguous")
        if cell["peer"]:
            run = backprop_eager(self.case, settings)
        else:
            run = step_of(self.runs[name]) or reclra_eager(self.case, settings)
            assert isinstance(run, CompiledStep)
            forms = Counter(edge.form for edge in run.plan.edges)
            cell["plan"] = {
                "digest": run.program.digest, "regions": len(run.plan.regions.sites), "depth": run.plan.depth,
                "lanes": len(run.schedule.lanes), "synapses": dict(sorted(forms.items())),
            }  # fmt: skip
        with CountKernels() as counter:
            run(*self.batch(name, 0))
        cell["flops"] = sum(flops for flops, _ in counter.found)
        cell["bytes"] = sum(moved for _, moved in counter.found)

    def judge(self) -> None:
        """Look at the losses of every cell that was timed to its end."""
        begins = None
        for name in self.row["cells"]:
            cell = self.row["cells"][name]
            if name not in self.runs or "flops" not in cell:
                continue
            why = getattr(self.runs[name], "why", "")
            if why:
                cause = f"the step itself was timed, not this form of it: {why}"
                self.fail(name, coded(Problem("RG809", cause, f"{self.request.case}, {name}")))
            cell["loss"], wrong = verdict(cell["losses"], begins)
            cell["sound"] = not wrong
            if wrong:
                self.fail(name, coded(Problem("RG808", wrong, f"{self.request.case}, {name}")))
            elif begins is None:
                begins = cell["losses"][0][1]


class _Memory(_Measurement):
    source = "memory"

    def run(self) -> Row:
        """The memory of one step, behind those that warm up."""
        assert self.request.cell is not None
        arm, kind = self.request.cell
        name = label(arm, kind, bool(kind))
        settings = self.request.settings(kind or "contiguous")
        self.row["cell"] = name
        self.stage(name)
        with self.caught(name):
            batches = settings.batches(self.case, settings.net(self.case), 1)
            run = ARMS[arm].make(self.case, settings)
            for _ in range(max(self.request.warm_up, 4)):  # CUDA graphs are captured behind three steps
                run(*batches[0])
            before, peak = peak_bytes(lambda: run(*batches[0]), self.request.device)
            self.row["before_bytes"], self.row["peak_bytes"] = before, peak
        self.row["passed"] = not self.row["failures"]
        return self.row
