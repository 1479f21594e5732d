"""TaskGraph → TaskGraph: the same step in micro-batches, or with its regions on several GPUs.

Before:  forward:3    h3 = F.linear(z2, P["3.weight"])
         update:3     dW3 = e3.T @ z2 / B
After:   forward:3@1  h3_m1 = F.linear(z2_m1, P["3.weight"])            once for each micro-batch, on its part
         update:3@2   dW3_m2 = e3_m2.T @ z2_m2 / B                      of the inputs; B is a micro-batch's size
                      dW3 = (dW3_m1 + dW3_m2) / 2                       the last one has the mean

Parameters and synapses learn once, from the mean over the micro-batches; so the step is that of the whole batch, but
for layers that mix samples (batch norm): these see one micro-batch after the other, and so do running statistics. The
loss is the mean, and its check comes once, before anything is changed. With a placement, one micro-batch will do: then
buffers are written region by region, and the loss's check looks at inputs from afar.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import BATCH, Argument, Ref, TensorType, references
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import SEEN, Call, Task, TaskGraph
from reclra_graph.ir.wiring import Loss
from reclra_graph.passes.names import Namer, value_names
from reclra_graph.passes.storage import storage_order

_NUMBERS = ("_", "B", "beta", "gamma", "lr")
_ONCE = ("optimise", "buffer")


def micro(tasks: TaskGraph, count: int) -> TaskGraph:
    """The tasks of a step in ``count`` micro-batches; unchanged for one, unless the plan places regions.

    Raises ModelError RG450 where the batch cannot be cut: its size is fixed, or an input has it inside a dimension.
    """
    if count == 1 and not tasks.plan.placement:
        return tasks
    return _Cutting(tasks, count).result()


@dataclass
class _Cutting:
    tasks: TaskGraph
    count: int
    made: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = self.tasks.plan
        self.graph = self.plan.regions.graph
        self.again = [task for task in self.tasks.tasks if task.kind not in _ONCE]
        self.late = [call for task in self.tasks.tasks if task.kind == "buffer" for call in task.calls]
        self.replaced = {
            call.args[0].name: call.args[1].name
            for call in self.late
            if call.function == "aten.copy_.default" and isinstance(call.args[0], Ref) and isinstance(call.args[1], Ref)
        }
        calls = [*(call for task in self.again for call in task.calls), *self.late]
        self.values = {result for call in calls for result in call.results if result}
        learned = {name for task in self.tasks.tasks if task.kind == "optimise" for name in task.reads}
        self.deltas = {name for task in self.again if task.kind in ("update", "synapse") for name in task.writes}
        self.deltas &= learned
        self.namer = Namer()
        self.namer.taken |= {name for task in self.tasks.tasks for name in (*task.reads, *task.writes)} | self.values
        self.known: dict[tuple[str, int], str] = {}
        self.pieces: dict[str, list[str]] = {}
        self.sizes: dict[str, list[str]] = {}
        self.shares: dict[str, list[str]] = {}
        self.moved: set[str] = set()

    def result(self) -> TaskGraph:
        if self.count > 1:
            self._cuttable()
        self._inputs()
        if self.count > 1:
            self._targets()
        for number in range(1, self.count + 1):
            for task in self.again:
                self._repeat(task, number)
        if self.count > 1:
            self._loss()
        for task in self.tasks.tasks:
            if task.kind == "optimise":
                waits = any(call.function == "after" for call in task.calls)
                after = (Call("after", (Ref("loss"),)),) if self.count > 1 and not waits else ()
                # What alone waits for the loss holds up nothing else.
                group = task.name if self.count > 1 or waits else task.group
                self._add(task, task.name, group, (*task.calls, *after))
        self._buffers()
        edges = dict.fromkeys((*storage_order(self.made), *self._opaque()))
        return replace(self.tasks, tasks=tuple(self.made), edges=tuple(edges), micro_batches=self.count)

    def _add(self, like: Task, name: str, group: str, calls: tuple[Call, ...], cost: int = -1) -> None:
        """A task that has ``like``'s kind, region and cost, with what these calls read and write."""
        written = [result for call in calls for result in call.results if result]
        stored = [call.args[0] for call in calls if call.function in ("optimise", "aten.copy_.default")]
        named = dict.fromkeys(name for call in calls for name in (*references(call.args), *references(call.kwargs)))
        reads = tuple(item for item in named if item not in written and item not in _NUMBERS)
        written += [item.name for item in stored if isinstance(item, Ref)]
        if cost >= 0:
            like = replace(like, cost=cost, flops=0, bytes=0)
        writes = tuple(dict.fromkeys(written))
        self.made.append(replace(like, name=name, group=group, calls=calls, reads=reads, writes=writes))

    # -- names ------------------------------------------------------------------------------------------------------

    def _name(self, name: str, number: int) -> str:
        """A storage as micro-batch ``number`` calls it. A buffer that moves is what the one before made of it."""
        if self.count == 1:
            return name
        if name in self.pieces:
            return self.pieces[name][number - 1]
        if name in self.replaced and number > 1:
            return self._name(self.replaced[name], number - 1)
        if name not in self.values:
            return name
        if (name, number) not in self.known:
            self.known[name, number] = self.namer.new(f"{name}_m{number}")
        return self.known[name, number]

    def _renamed(self, argument: Any, number: int) -> Any:
        if isinstance(argument, Ref):
            return Ref(self._name(argument.name, number))
        if isinstance(argument, tuple):
            return tuple(self._renamed(item, number) for item in argument)
        return argument

    def _call(self, call: Call, number: int) -> Call:
        results = tuple(self._name(result, number) if result else "" for result in call.results)
        args, kwargs = self._renamed(call.args, number), self._renamed(call.kwargs, number)
        return replace(call, args=args, kwargs=kwargs, results=results)

    # -- what is cut ------------------------------------------------------------------------------------------------

    def _cuttable(self) -> None:
        """Refuse a batch that cannot be cut into equal parts of whole samples."""
        problems = []
        if self.graph.batch != BATCH:
            cause = f"the model was captured for batches of {self.graph.batch} only, so its batch cannot be cut"
            problems.append(Problem("RG450", cause, "micro_batches"))
        for item in self.graph.inputs if not problems else ():
            sizes = [size for size in item.type.shape if isinstance(size, str)]
            if sizes and item.type.shape[0] != BATCH:
                cause = f"input {item.name} of shape {item.type} has the batch inside"
                problems.append(Problem("RG450", cause, f"input {item.name}"))
        for number in self.plan.regions.outputs if not problems else ():
            region = self.plan.regions.regions[number]
            if region.layout.before > 1:
                problems.append(Problem("RG450", "the output has the batch behind its positions", region.line))
        if problems:
            raise ModelError(problems)

    def _inputs(self) -> None:
        """Cut the inputs that have a batch, and look at all of them."""
        names = self.tasks.inputs
        calls = []
        for name, item in zip(names, self.graph.inputs, strict=True):
            if self.count > 1 and item.type.shape[:1] == (BATCH,):
                self.pieces[name] = [self.namer.new(f"{name}_m{number + 1}") for number in range(self.count)]
                calls.append(self._chunk(name, name, 0, item.type))
        for name in names:
            calls.append(Call(SEEN, (Ref(name),), (), (self.namer.new(f"seen_{name}"),), (None,)))
        self.seen = tuple(Ref(call.results[0]) for call in calls if call.function == SEEN)
        like = next(task for task in self.again if task.kind == "forward")
        self._add(replace(like, region=0), "inputs", "inputs", tuple(calls), 0)

    def _chunk(self, pieces: str, name: str, dim: int, kind: TensorType) -> Call:
        made = tuple(self.pieces[pieces])
        kinds = (kind, *(None for _ in made[1:]))
        return Call("aten.chunk.default", (Ref(name), self.count, dim), (), made, kinds, True)

    def _targets(self) -> None:
        """Cut the targets; where they count unequally, find the share that each part has."""
        several = len(self.plan.losses) > 1
        loss = next(task for task in self.again if task.kind == "loss")
        calls: list[Call] = []
        for item, number in zip(self.plan.losses, self.plan.regions.outputs, strict=True):
            region = self.plan.regions.regions[number]
            name = f"T[{item.label}]" if several else "target"
            head = f"target{number}" if several else "target"
            self.pieces[name] = [self.namer.new(f"{head}_m{part + 1}") for part in range(self.count)]
            kind = self.graph.types[region.post]
            calls.append(self._chunk(name, name, _target_dimension(region, item, len(kind.shape)), kind))
            calls[-1] = replace(calls[-1], types=(None,) * self.count)
        made = {call.results[0]: call for call in loss.calls if call.results}
        for call in loss.calls:
            if _uneven(call) and not call.function.endswith("_error"):
                self._uneven_loss(call, made, calls)
        self._add(loss, "targets", "targets", tuple(calls), 0)

    def _uneven_loss(self, call: Call, made: dict[str, Call], calls: list[Call]) -> None:
        """The shares of a loss over targets that count unequally, and the batch sizes that give errors their scale."""
        target, kind = call.args[1], call.types[0]
        assert isinstance(target, Ref)
        assert kind is not None
        if target.name in made:  # brought into another order first: then here, and not once more
            self.moved.add(target.name)
            calls.extend(self._call(made[target.name], number) for number in range(1, self.count + 1))
        label = call.results[0]
        shares = [self.namer.new(f"share_{label}_m{number + 1}") for number in range(self.count)]
        for number, name in enumerate(shares, start=1):
            args = (Ref(self._name(target.name, number)), kind.dtype, *call.args[4:7])
            calls.append(Call("rules.micro.share", args, (), (name,), (kind,)))
        whole = self.namer.new(f"share_{label}")
        calls.append(Call("rules.target.total", tuple(Ref(name) for name in shares), (), (whole,), (kind,)))
        sizes = [self.namer.new(f"size_{label}_m{number + 1}") for number in range(self.count)]
        for share, name in zip(shares, sizes, strict=True):
            args = (Ref(share), Ref(whole), Ref("B"), self.count)
            calls.append(Call("rules.micro.size", args, (), (name,), (kind,)))
        self.shares[label] = shares
        self.sizes[self._whole(target.name)] = sizes

    def _whole(self, target: str) -> str:
        """The target that a name means, in whatever order its samples were brought."""
        made = (call for task in self.again for call in task.calls if call.function == "rules.layout.to_samples")
        found = next((call.args[0] for call in made if call.results == (target,)), None)
        return found.name if isinstance(found, Ref) else target

    # -- tasks ------------------------------------------------------------------------------------------------------

    def _repeat(self, task: Task, number: int) -> None:
        """A task of one micro-batch."""
        tag = f"@{number}" if self.count > 1 else ""
        calls: list[Call] = []
        for call in task.calls:
            if call.function == "check":
                if self.count == 1:
                    calls.append(replace(call, args=(call.args[0], *self.seen)))
                continue
            if self.count > 1 and task.kind == "loss":
                if "loss" in call.results and call.function == "rules.target.total":
                    continue
                if call.results[0] in self.moved:
                    continue
            made = self._call(call, number)
            if self.count > 1 and _uneven(call) and call.function.endswith("_error"):
                target = call.args[1]
                assert isinstance(target, Ref)
                made = replace(made, args=(*made.args[:-1], Ref(self.sizes[self._whole(target.name)][number - 1])))
            calls.append(made)
            if self.count > 1 and task.kind in ("update", "synapse"):
                for result in call.results:
                    if result in self.deltas:
                        calls.extend(self._added(result, call, number))
        name = task.name + tag
        self._add(task, name, name if task.kind == "forward" else task.group + tag, tuple(calls))

    def _added(self, delta: str, call: Call, number: int) -> list[Call]:
        """Add a micro-batch's contribution to those before it; the last makes the mean."""
        mine, kinds = Ref(self._name(delta, number)), (call.types[call.results.index(delta)],)
        if number == 1:
            self.known[delta, 0] = mine.name
            return []
        so_far = self.namer.new(f"{delta}_to{number}")
        added = Call("rules.target.total", (Ref(self.known[delta, 0]), mine), (), (so_far,), kinds)
        self.known[delta, 0] = so_far
        if number < self.count:
            return [added]
        return [added, Call("rules.carry.divided", (Ref(so_far), self.count), (), (delta,), kinds)]

    def _loss(self) -> None:
        """The loss of the whole batch, and its check: before it nothing is changed."""
        task = next(task for task in self.again if task.kind == "loss")
        parts = [call for call in task.calls if call.function.startswith("rules.loss.") and call.types[0] is not None]
        parts = [call for call in parts if not call.function.endswith("_error")]
        several = len(parts) > 1
        numbers = range(1, self.count + 1)
        calls = []
        for call in parts:
            label = call.results[0]
            losses = tuple(Ref(self._name(label, number)) for number in numbers)
            result = self.namer.new(f"{label}_all") if several else "loss"
            if label in self.shares:
                given: tuple[Argument, ...] = (self.count, *losses, *(Ref(name) for name in self.shares[label]))
                calls.append(Call("rules.micro.weighted", given, (), (result,), call.types))
            else:
                calls.append(Call("rules.micro.mean", losses, (), (result,), call.types))
        if several:
            summed = tuple(Ref(call.results[0]) for call in calls)
            calls.append(Call("rules.target.total", summed, (), ("loss",), parts[0].types))
        self._add(task, "loss", "loss", (*calls, Call("check", (Ref("loss"), *self.seen))), 0)

    def _buffers(self) -> None:
        """Buffers take their new values, those of each region where the region is."""
        task = next((task for task in self.tasks.tasks if task.kind == "buffer"), None)
        if task is None:
            return
        names, _ = value_names(self.plan.regions)
        owner = {names[name]: region for name, region in self.plan.regions.region_of.items() if name in names}
        regions: dict[int, list[Call]] = {}
        for call in self.late:
            if call.function == "after":
                continue
            source = call.args[1] if call.function == "aten.copy_.default" else Ref(call.results[0])
            mine = regions.setdefault(owner.get(getattr(source, "name", ""), 0), [])
            if call.function != "aten.copy_.default":
                mine.extend(self._call(call, number) for number in range(1, self.count + 1))
                continue
            assert isinstance(call.args[1], Ref)
            mine.append(replace(call, args=(call.args[0], Ref(self._name(call.args[1].name, self.count)))))
        for number, calls in regions.items():
            name = f"buffers:{number}"
            self._add(replace(task, region=number), name, name, (*calls, Call("after", (Ref("loss"),))))

    def _opaque(self) -> list[tuple[str, str]]:
        """Sub-modules that run as they are keep state of their own: they see the micro-batches in order."""
        runs = [task.name for task in self.again if any(call.function == "opaque" for call in task.calls)]
        return [(f"{name}@{number}", f"{name}@{number + 1}") for name in runs for number in range(1, self.count)]


def _uneven(call: Call) -> bool:
    """Whether a loss or its error is a mean over targets that may count unequally."""
    if not call.function.startswith("rules.loss.cross_entropy"):
        return False
    ignore, weights, shift = call.args[6:9] if call.function.endswith("_error") else call.args[4:7]
    return ignore is not None or weights is not None or shift is True


def _target_dimension(region: Region, loss: Loss, rank: int) -> int:
    """Which dimension of a target is the batch."""
    if not loss.classes:
        return region.layout.dim
    classes = rank - 1 if loss.axis == -1 else int(region.layout.dim == 0)
    return region.layout.dim - (classes < region.layout.dim)
