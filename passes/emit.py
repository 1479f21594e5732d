"""Schedule → StepProgram: the training step as a Python file that a person can read, edit and keep.

Before:  actions in host order.
After:   a file that imports torch alone. The forward pass region by region, then one block per lane and stretch of
         host order; a comment above each region names its modules and the model's own line, shapes stand at the ends
         of lines. The same plan gives the same bytes in every process.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from reclra_graph.ir.operators import OPAQUE, Argument, DeviceArgument, Operator, Ref, TensorType
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.regions import Region
from reclra_graph.ir.schedule import Action, Copy, Free, Record, Run, Schedule, Wait
from reclra_graph.ir.tasks import Call, Task
from reclra_graph.passes.emit_head import head_text, plain
from reclra_graph.passes.mirror_mode import mirrors_alone
from reclra_graph.passes.placed_template import apart
from reclra_graph.passes.printing import argument, call, operator_call, rule_lines, unparsed
from reclra_graph.verify import verify

_COLUMN = 68
_WIDTH = 110


def emit(schedule: Schedule) -> StepProgram:
    """The program of a schedule, with the line on which each task starts."""
    stamp = schedule.digest
    head = head_text(schedule, stamp)
    body, lines = _body(schedule, len(head.splitlines()))
    return StepProgram(schedule, head + body, lines, stamp)


def _body(schedule: Schedule, start: int) -> tuple[str, tuple[tuple[str, int], ...]]:
    """The step, with the line on which each of its tasks starts; behind it, where synapses mirror, what does only
    that."""
    rates = schedule.tasks.plan.rates
    step = _Function(
        "step",
        f"target, lr={rates.lr}, beta={rates.beta}, gamma={rates.gamma}, optimise={rates.optimizer}",
        "One training step on a batch; changes P and E in place and returns the loss (a 0-dim tensor).",
        "target",
    )
    writer = _written(schedule, start, step)
    alone = mirrors_alone(schedule)
    if alone is None:
        return writer.text(), tuple(writer.first.items())
    verify(alone)
    mirror = _Function(
        "mirror",
        f"lr={rates.lr}, gamma={rates.gamma}, optimise={rates.optimizer}",
        "Let the synapses that mirror learn from noise, and leave all else as it is; returns the mean square of what\n"
        "    the noise changes, in units of the noise (a 0-dim tensor).",
        "None",
    )
    return f"{writer.text()}\n{_written(alone, start, mirror).text()}", tuple(writer.first.items())


@dataclass(frozen=True)
class _Function:
    """A function of the emitted file: its name, what it takes behind the inputs, its docstring, and what stands for the
    target where inputs are checked."""

    name: str
    takes: str
    says: str
    target: str


def _written(schedule: Schedule, start: int, function: _Function) -> _Writer:
    plan = schedule.tasks.plan
    names = list(schedule.tasks.inputs)
    arguments = ", ".join(names)
    writer = _Writer(schedule, start)
    writer.line("")
    modules = ", M=None" if any(item.target == OPAQUE for item in plan.regions.graph.operators) else ""
    writer.line(f"def {function.name}(P, E, {arguments}, {function.takes}{modules}):")
    writer.depth = 1
    writer.line(f'"""{function.says}"""')
    given = ", ".join(f"{name!r}: {name}" for name in names)
    led = [item.type.shape[:1] == (plan.regions.graph.batch,) for item in plan.regions.graph.inputs]
    first = names[led.index(True)]
    writer.line(f"check_inputs({{{given}}}, {function.target}, *{first}.shape[:1])")
    part = f" // {schedule.tasks.micro_batches}" if schedule.tasks.micro_batches > 1 else ""
    writer.line(f"B, device = {first}.shape[0]{part}, {first}.device")
    if schedule.tasks.shared and function.name == "step":
        writer.line("complete(E, device)")
    if len(schedule.lanes) > 1:
        writer.line("lanes = Lanes(device)")
        writer.line("lane, record, wait, here = lanes.lane, lanes.record, lanes.wait, lanes.here")
    for lane, actions in groupby(schedule.actions, key=lambda action: action.lane):
        writer.stretch(lane, list(actions))
    writer.line("")
    overlap = apart(schedule) and schedule.overlap
    if len(schedule.lanes) > 1 and not overlap:
        writer.line("lanes.end()")
    writer.line("return lanes.leave(loss, locals())" if overlap else "return loss")
    return writer


class _Writer:
    """Lines of the step function, with the number of the first line of every task."""

    def __init__(self, schedule: Schedule, start: int) -> None:
        self.schedule = schedule
        self.plan = schedule.tasks.plan
        self.operators = self.plan.regions.graph.by_name
        self.lines: list[str] = []
        self.start = start
        self.depth = 0
        self.first: dict[str, int] = {}
        self.copied: set[tuple[str, int]] = {(a.value, a.lane) for a in schedule.actions if isinstance(a, Copy)}
        self.headed: set[str] = set()

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def line(self, text: str, comment: str = "") -> None:
        indented = "    " * self.depth + text if text else ""
        self.lines.append(f"{indented:<{_COLUMN}}  # {comment}" if comment else indented)

    def statement(self, target: str, expression: ast.expr, comment: str = "") -> None:
        """``target = expression``, over several lines where one would be too long."""
        head = f"{target} = " if target else ""
        text = unparsed(expression)
        if len(head) + len(text) + 4 * self.depth <= _WIDTH or not (
            isinstance(expression, ast.Call) and expression.args
        ):
            self.line(head + text, comment)
            return
        inner = [unparsed(item) for item in expression.args]
        inner += [f"{item.arg}={unparsed(item.value)}" for item in expression.keywords]
        self.line(f"{head}{unparsed(expression.func)}(")
        pad = "    " * (self.depth + 1)
        row = pad
        for index, piece in enumerate(inner):
            if row != pad and len(row) + len(piece) > _WIDTH:
                self.lines.append(row.rstrip())
                row = pad
            row += piece + (", " if index < len(inner) - 1 else "")
        self.lines.append(row)
        self.line(")", comment)

    def stretch(self, lane: int, actions: list[Action]) -> None:
        """Actions of one lane that follow each other in host order."""
        runs = [item for item in actions if isinstance(item, Run)]
        early = {item.task: item for item in takewhile(self._early, runs)}
        if self.plan.placement:
            early = {}  # forward and backward take turns here: one heading for all
        self.title(lane, list(early.values()) or actions)
        titled = not early
        many = len(self.schedule.lanes) > 1
        if many and lane != 0:
            self.line(f"with lane({lane}):")
            self.depth += 1
        if apart(self.schedule) and any(self._makes(item) for item in actions):
            self.line("device = lanes.device")
        for action in actions:
            if isinstance(action, Run):
                task = self.schedule.tasks.by_name[action.task]
                if not titled and action.task not in early:
                    self.title(lane, [item for item in actions if not (isinstance(item, Run) and item.task in early)])
                    titled = True
                self.task(task, lane)
            elif isinstance(action, Free):
                names = sorted(action.values, key=lambda item: (item.lstrip("abcdefghijklmnopqrstuvwxyzEWP_"), item))
                for index in range(0, len(names), 12):
                    self.line("del " + ", ".join(names[index : index + 12]))
            elif isinstance(action, Record):
                self.line(f"record({action.event!r})")
            elif isinstance(action, Wait):
                self.line(f"lanes.wait_previous({action.event!r})" if action.earlier else f"wait({action.event!r})")
        if many and lane != 0:
            self.depth -= 1

    def _makes(self, action: Action) -> bool:
        """Whether a task makes tensors out of nothing, which needs its lane's device."""
        return isinstance(action, Run) and any(
            DeviceArgument() in (*item.args, *(value for _, value in item.kwargs))
            for item in self.schedule.tasks.by_name[action.task].calls
        )

    def title(self, lane: int, actions: Sequence[Action]) -> None:
        """A blank line and a heading over what follows."""
        self.line("")
        text = f"-- lane {lane}: {_summary(self.schedule, actions)} "
        self.line("# " + text + "-" * max(3, 100 - len(text)))

    def _early(self, action: Run) -> bool:
        return self.schedule.tasks.by_name[action.task].kind in ("forward", "loss")

    def task(self, task: Task, lane: int) -> None:
        region = self.plan.regions.regions[task.region]
        heading = self.heading(region, task)
        own = task.kind == "forward" or task.name.startswith("back:")
        key = f"{task.kind == 'forward'}:{task.name if own else task.group}".partition("@")[0]
        key = "noise" if task.name.startswith("noise:") else key
        if heading and key not in self.headed:
            self.headed.add(key)
            self.line("# " + heading[0], heading[1]) if heading[1] else self.line("# " + heading[0])
        self.first[task.name] = self.start + len(self.lines) + 1
        for item in task.calls:
            self.call(item, lane)

    def heading(self, region: Region, task: Task) -> tuple[str, str] | None:
        """The comment above a task: what it is, and the model's own line."""
        if task.group == "inputs":
            return ("the inputs" + (", in micro-batches" if self.schedule.tasks.micro_batches > 1 else ""), "")
        if task.name.startswith("noise:"):
            return "noise at the regions whose synapses are mirrors", ""
        if task.kind == "forward":
            shown = list(dict.fromkeys(_module(self.operators[name]) for name in region.operators))
            shown = [text for text in shown if text]
            more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
            return f"r{region.id}: {', '.join(shown[:6]) or region.kind}{more}", plain(region.line)
        if task.kind in ("displace", "target"):
            if task.name.startswith("back:"):
                targets = dict.fromkeys(edge.target for edge in self.plan.outgoing[region.id] if edge.form == "adjoint")
                return f"r{region.id}: error, back to {', '.join(f'r{target}' for target in targets)}", ""
            sources = ", ".join(dict.fromkeys(f"r{edge.source}" for edge in self.plan.incoming.get(region.id, ())))
            return f"r{region.id}: target, from {sources}", ""
        if task.name.startswith("mirror:"):
            edges = [edge for edge in self.plan.incoming[region.id] if edge.rule == "mirror"]
            return f"r{region.id}: how {', '.join(f'r{edge.source}' for edge in edges)} responds to noise here", ""
        if task.kind == "update":
            together = [call.args for call in task.calls if call.function == "rules.updates.stacked"]
            errors = ", ".join(item.name for args in together for item in args if isinstance(item, Ref))
            return f"r{region.id}: update" + (f" of a group, from {errors}" if errors else ""), ""
        if task.kind == "optimise" and task.group.startswith("optimise:"):
            return f"a parameter that several layers share: {plain(task.group.partition(':')[2])}", ""
        if task.kind == "optimise" and task.group.endswith(":shared"):
            return f"a synapse that several runs of a layer share: {task.name.rpartition(':')[2]}", ""
        return None

    def call(self, item: Call, lane: int) -> None:
        def read(value: str) -> ast.expr:
            if value[1:2] == "[" and value[:1] == "T":
                part = ast.Subscript(ast.Name("target", ast.Load()), ast.Constant(value[2:-1]), ast.Load())
                return call("here", [part]) if (value, lane) in self.copied else part
            if value[1:2] == "[" and value[:1] in "PE":
                stored = ast.Subscript(ast.Name(value[0], ast.Load()), ast.Constant(value[2:-1]), ast.Load())
                return call("here", [stored]) if (value, lane) in self.copied else stored
            plain_name = ast.Name(value, ast.Load())
            return call("here", [plain_name]) if (value, lane) in self.copied else plain_name

        if item.function == "after":
            return
        if item.function == "beside":
            made = call("beside", [argument(value, read) for value in item.args])
            self.statement(item.results[0], made, _comment([kind for kind in item.types if kind]))
        elif item.function == "check":
            self.line(unparsed(call("check", [argument(value, read) for value in item.args])))
        elif item.function == "optimise":
            store, delta = item.args[0], item.args[1]
            assert isinstance(store, Ref)
            assert isinstance(delta, Ref)
            written = [ast.Name(store.name[0], ast.Load()), ast.Constant(store.name[2:-1]), read(delta.name)]
            self.line(unparsed(call("optimise", [*written, ast.Name("lr", ast.Load())])))
        elif item.function == "opaque":
            path, given, pairs, through = item.args
            assert isinstance(pairs, tuple)
            named = {str(pair[0]): pair[1] for pair in pairs if isinstance(pair, tuple)}
            keywords = ast.Dict([ast.Constant(key) for key in named], [argument(named[key], read) for key in named])
            *parts, run = item.results
            made = call("opaque", [_live(path), argument(given, read), keywords, argument(through, read)])
            shown = ", ".join(part or "_" for part in parts)
            self.line(f"[{shown}], {run} = {unparsed(made)}", _comment([kind for kind in item.types if kind]))
        elif item.function == "opaque_vjp":
            made = call("opaque_vjp", [_live(item.args[0]), *(argument(value, read) for value in item.args[1:])])
            self.line(f"[{', '.join(result or '_' for result in item.results)}] = {unparsed(made)}")
        elif item.function == "rules.implicit.displace":
            self.statement(item.results[0], call("implicit", [argument(value, read) for value in item.args]),
                           _comment([kind for kind in item.types if kind]))  # fmt: skip
        elif item.function.startswith("rules."):
            for target, expression in rule_lines(item, read, item.results[0]):
                kind = item.types[0] if target == item.results[0] and item.types else None
                self.statement(target, expression, str(kind) if kind else "")
        else:
            args = [argument(value, read) for value in item.args]
            written_call = operator_call(
                item.function, args, {key: argument(value, read) for key, value in item.kwargs}
            )
            kinds = [
                kind for kind, result in zip(item.types, item.results, strict=False) if kind is not None and result
            ]
            results = ", ".join(result or "_" for result in item.results)
            if item.unpack and len(item.results) == 1:
                results = f"({results},)"
            self.statement(results, written_call, _comment(kinds))


def _live(path: Argument) -> ast.expr:
    """The sub-module at a path."""
    return ast.Subscript(ast.Name("M", ast.Load()), ast.Constant(str(path)), ast.Load())


def _comment(kinds: list[TensorType]) -> str:
    return str(kinds[0]) if kinds else ""


def _summary(schedule: Schedule, actions: Sequence[Action]) -> str:
    """What a stretch of a lane does, in a few words."""
    kinds: dict[str, dict[int, None]] = {}
    for action in actions:
        if isinstance(action, Run):
            task = schedule.tasks.by_name[action.task]
            kind = "mirror" if task.name.startswith("mirror:") else task.kind
            kinds.setdefault(kind, {})[task.region] = None
    parts = []
    if "forward" in kinds:
        parts.append("forward, loss" if "loss" in kinds else "forward")
    elif "loss" in kinds:
        parts.append("loss")
    for kind, word in (("target", "targets"), ("mirror", "mirrors"), ("update", "updates")):
        regions = [f"r{number}" for number in kinds.get(kind, ())]
        if regions:
            shown = ", ".join(regions[:8]) + (f" and {len(regions) - 8} more" if len(regions) > 8 else "")
            parts.append(f"{word} of {shown}")
    if "buffer" in kinds:
        parts.append("buffers")
    numbers = {action.task.rpartition("@")[2] for action in actions if isinstance(action, Run) and "@" in action.task}
    if numbers:
        shown = ", ".join(sorted(numbers, key=int))
        parts.insert(0, f"micro-batch{'es' if len(numbers) > 1 else ''} {shown}")
    return "; ".join(parts) or ("the loss" if schedule.overlap else "wait for all lanes")


def _module(operator: Operator) -> str:
    return f"{plain(operator.module)} {plain(operator.module_class)}" if operator.module else ""
