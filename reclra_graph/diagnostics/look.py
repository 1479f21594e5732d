"""``Diagnostics``: looks at a step while it trains, without changing anything."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reclra_graph.diagnostics.backprop import gradients
from reclra_graph.diagnostics.inside import Inside
from reclra_graph.diagnostics.measures import Figure, Signs, Sums, finite, norm, rate
from reclra_graph.diagnostics.record import EdgeLook, Look, ParameterLook, RegionLook, figures
from reclra_graph.diagnostics.weights import angle
from reclra_graph.errors import Problem, StepError, UsageError
from reclra_graph.ir.operators import OPAQUE
from reclra_graph.ir.regions import Region
from reclra_graph.ir.wiring import Edge
from reclra_graph.options import rank_of
from reclra_graph.passes.twin import twin, undisturbed
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.fused import refusal
from reclra_graph.runtime.traced import batch_size
from reclra_graph.structure import called_as

WHAT = ("cosine", "angle", "sent", "discrepancy", "flips", "norms")
"""What can be looked at: cosine of updates with backprop's; angle of synapses with weights; angle of what they send
with the derivative; D(Θ); share of signs that flipped; norms."""


class Writer(Protocol):
    """Where looks are written."""

    def write(self, look: Look) -> None:
        """Write one look, whole."""


class Diagnostics:
    """``diagnostics(x, target)`` says how a step stands, and changes nothing: parameters, buffers, synapses, the
    optimiser's memory and all random numbers are bitwise as before. The one thing that it keeps from look to look are
    the signs that it has seen, for the share that flips.

    ``step``: a CompiledStep, or what ``step.fused()`` or ``step.graphed()`` gave. ``every``: ``after_step`` looks at
    each step whose number it divides. ``what``: of ``WHAT``. ``writers``: are given every look of ``after_step``.

    A look takes a step without its optimiser ("cosine", "flips", "norms"), a forward and a backward pass of the model
    ("cosine"), and a forward pass with the errors ("discrepancy", "sent", "norms"; "sent" needs the memory of
    backprop). Raises UsageError RG405 for what cannot be.
    """

    def __init__(self, step: Any, every: int = 100, what: Sequence[str] = WHAT, writers: Sequence[Writer] = ()) -> None:
        self.step: CompiledStep = step if isinstance(step, CompiledStep) else getattr(step, "step", step)
        wanted = (what,) if isinstance(what, str) else tuple(what)
        problems = [
            Problem("RG405", f"what has {item!r}", "what", f"Choose of {', '.join(map(repr, WHAT))}.")
            for item in wanted
            if item not in WHAT
        ]
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            problems.append(Problem("RG405", f"every is {every!r}", "every", "Give a whole number of at least 1."))
        if not isinstance(self.step, CompiledStep):
            cause = f"step is a {type(step).__name__}, which has no regions to look at"
            problems.append(Problem("RG405", cause, "step", "Give what rg.compile returned."))
        if problems:
            raise UsageError(problems)
        self.every, self.what, self.writers = every, frozenset(wanted), tuple(writers)
        self.signs = Signs()
        self.last: Look | None = None

    def after_step(self, step: int, learner: Any, batch: tuple[Any, Any]) -> None:
        """For a training loop, behind every step, of that number: looks where ``every`` divides it. ``last`` is the
        look then, and ``writers`` have it.

        ``learner`` is what learns, and is not read; ``batch``: (inputs, target). A batch at which the loss is not
        finite is no reason to end a run here: the look then says so, and has nothing else."""
        if step % self.every:
            return
        try:
            look = self(batch[0], batch[1], number=step)
        except StepError as error:
            if error.codes != ("RG604",):
                raise
            look = self.last = Look(step=step, why=(("loss", error.problems[0].cause),))
        for writer in self.writers:
            writer.write(look)

    def __call__(
        self,
        inputs: Any,
        target: Tensor | Mapping[str, Tensor],
        kwargs: Mapping[str, Any] | None = None,
        number: int | None = None,
    ) -> Look:
        """One look, at a batch as the step takes it. ``number``: of the training step, to be written down.

        Raises StepError as the step does, RG604 where the loss is not finite."""
        began = time.perf_counter()
        step = self.step
        given, goal = step.arguments(inputs, target, kwargs)
        paths = [item.path for item in step.plan.regions.graph.inputs]
        args, keywords = called_as(inputs, kwargs, paths)
        with _aside(step) as model, undisturbed():
            seen = _Seen(self.what, self.signs, step, model, given)
            seen.look(given, goal, (inputs, target, kwargs), args, keywords)
            self.last = look = seen.record(number, began)
        return look


class _Seen:
    """What one look has found; lives inside ``_aside``."""

    def __init__(
        self, what: frozenset[str], signs: Signs, step: CompiledStep, model: nn.Module, given: Sequence[Tensor]
    ) -> None:
        self.what, self.signs, self.step, self.model = what, signs, step, model
        self.plan, self.regions = step.plan, step.plan.regions.regions
        graph, self.home = step.plan.regions.graph, given[0].device  # where what lives on several devices is compared
        self.samples = next(
            value.shape[0]
            for item, value in zip(graph.inputs, given, strict=True)
            if item.type.shape[:1] == (graph.batch,)
        )
        self.weights = self.here({key: item.detach() for key, item in model.named_parameters()})
        self.synapses = self.here(step.store.all())
        self.loss: Tensor | None = None
        self.updates: dict[str, Tensor] = {}
        self.changes: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor | None] = {}
        self.inside: Inside | None = None
        self.sent: dict[str, Figure] = {}
        self.flips: dict[str, dict[str, tuple[int, int] | None]] = {}

    def here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors on the device of the batch."""
        return {name: item.to(self.home) for name, item in tensors.items()}

    def look(self, given: list[Tensor], goal: Any, call: tuple[Any, Any, Any], args: Any, keywords: Any) -> None:
        """Run what was asked for, each part from the same random numbers."""
        step = self.step
        try:
            batch_size(step, given, goal)
        except ValueError as error:
            raise refusal(error) from None
        if self.what & {"cosine", "flips", "norms"}:
            with undisturbed():
                self.loss, updates, changes = step.deltas(*call)
            self.updates, self.changes = self.here(updates), self.here(changes)
        if self.what & {"cosine", "discrepancy", "sent", "norms"}:
            self.compare(given, goal, args, keywords)
        if "flips" in self.what:
            learning = {key: self.weights[key] for key in self.updates}
            for kind, parts in (("weight", learning), ("update", self.updates), ("synapse", self.synapses),
                                ("change", self.changes)):  # fmt: skip
                self.flips[kind] = self.signs.flips(kind, parts)

    def compare(self, given: list[Tensor], goal: Any, args: Any, keywords: Any) -> None:
        """The forward pass with its errors, and backprop's."""
        step, graph = self.step, self.plan.regions.graph
        opaque = [str(item.args[0]) for item in graph.operators if item.target == OPAQUE]
        copied = twin(self.model, _shared(self.model)) if opaque else self.model
        inside = Inside(step, given, goal, {path: copied.get_submodule(path) for path in opaque}, "sent" in self.what)
        if self.what & {"discrepancy", "sent", "norms"}:
            with undisturbed():
                loss = inside.look()
            self.loss, self.inside = loss if self.loss is None else self.loss, inside
            if not bool(torch.isfinite(loss)):
                raise StepError(Problem("RG604", "the loss is not finite", "diagnostics()"))
            self.sent = inside.sent_angles() if "sent" in self.what else {}
        if "cosine" in self.what:
            with undisturbed():
                moved = twin(self.model, _shared(self.model, self.home))
                _, self.gradients = gradients(moved, dict(moved.named_parameters()), args, keywords, inside)

    def record(self, number: int | None, began: float) -> Look:
        """All of it."""
        regions = tuple(self.region(self.regions[site]) for site in self.plan.regions.sites)
        edges = tuple(self.edge(edge) for edge in self.plan.edges)
        parameters = tuple(self.parameter(key) for key in self.updates) if self.what & {"cosine", "norms"} else ()
        given: dict[str, Figure] = {} if self.loss is None else {"loss": finite(float(self.loss))}
        if "cosine" in self.what:
            given["cosine"] = self.cosine(tuple(self.updates))
        if "discrepancy" in self.what:
            known = [item.discrepancy for item in regions if item.discrepancy is not None]
            given["discrepancy"] = finite(sum(known)) if known else (None, "no region has a target")
        numbers, why = figures(**given)
        seconds = round(time.perf_counter() - began, 6)
        return Look(
            step=number, samples=self.samples, seconds=seconds, regions=regions, edges=edges, parameters=parameters,
            why=why, **numbers,
        )  # fmt: skip

    def cosine(self, keys: Sequence[str]) -> Figure:
        """Of the updates of some parameters with backprop's."""
        sums, reached = Sums(), False
        for key in keys:
            gradient = self.gradients.get(key)
            if gradient is not None:
                reached = True
                sums.add(self.updates[key], gradient)
        if not reached:
            return None, "backprop reaches none of it" if keys else "it has no parameters that learn"
        return sums.cosine("the update", "backprop's gradient")

    def region(self, region: Region) -> RegionLook:
        """One region."""
        keys = tuple(key for key in region.parameters if key in self.updates)
        given: dict[str, Figure] = {}
        if "cosine" in self.what:
            given["cosine"] = self.cosine(keys)
        if "discrepancy" in self.what and self.inside is not None:
            given["discrepancy"] = self.inside.discrepancy(region)
        if "norms" in self.what and self.inside is not None:
            given |= {"error": self.inside.error(region), "displacement": self.inside.displacement(region)}
            if keys:
                given["update"] = norm(*(self.updates[key] for key in keys))
                given["weight"] = norm(*(self.weights[key] for key in keys))
        if "flips" in self.what and keys:
            given["flips"] = rate([self.flips["weight"][key] for key in keys])
            given["update_flips"] = rate([self.flips["update"][key] for key in keys])
        numbers, why = figures(**given)
        rule = self.plan.update_of.get(region.id, "")
        return RegionLook(region.id, region.name, rule, region.parameters, why=why, **numbers)

    def parameter(self, key: str) -> ParameterLook:
        """One parameter that learns."""
        given: dict[str, Figure] = {"cosine": self.cosine((key,))} if "cosine" in self.what else {}
        if "norms" in self.what:
            given["update"] = norm(self.updates[key])
            gradient = self.gradients.get(key)
            if "cosine" in self.what:
                given["gradient"] = (None, "backprop does not reach it") if gradient is None else norm(gradient)
        numbers, why = figures(**given)
        return ParameterLook(key, why=why, **numbers)

    def edge(self, edge: Edge) -> EdgeLook:
        """One error edge."""
        given: dict[str, Figure] = {}
        weights: tuple[str, ...] = ()
        if "angle" in self.what:
            given["angle"], weights = angle(self.step, edge, self.synapses, self.weights)
        if "sent" in self.what:
            given["sent"] = self.sent.get(edge.name, (None, "nothing was sent"))
        matrix = self.plan.matrix_of.get(edge.name)
        stored = [edge.synapse] if not rank_of(edge.form) else [f"{edge.synapse}.A", f"{edge.synapse}.B"]
        stored = [matrix.name] if matrix is not None else [name for name in stored if name in self.synapses]
        changes = [name for name in stored if name in self.changes]
        if "norms" in self.what:
            given["synapse"] = self.synapse_norm(edge)
            still: Figure = (None, "it does not learn")
            given["change"] = norm(*(self.changes[name] for name in changes)) if changes else still
        if "flips" in self.what and stored and edge.form != "implicit":
            given["flips"] = rate([self.flips["synapse"][name] for name in stored])
            if changes:
                given["change_flips"] = rate([self.flips["change"][name] for name in changes])
        numbers, why = figures(**given)
        return EdgeLook(edge.name, edge.form, edge.rule, weights, why=why, **numbers)

    def synapse_norm(self, edge: Edge) -> Figure:
        """‖E‖; of E = A B by the small products AᵀA and B Bᵀ."""
        if edge.form == "implicit":
            return None, "an implicit synapse is never whole"
        if rank_of(edge.form):
            left, right = (self.synapses[f"{edge.synapse}.{part}"].double() for part in "AB")
            return finite(float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt()))
        held = self.synapses.get(edge.synapse)
        return (None, "nothing is stored for it") if held is None else norm(held)


def _shared(model: nn.Module, home: torch.device | None = None) -> dict[int, nn.Parameter]:
    """Parameters in the place of a model's own, by the ids of those: the same memory, without hooks and gradients of
    their own; on the device ``home`` where one is given."""
    return {
        id(item): nn.Parameter(item.detach() if home is None else item.detach().to(home), item.requires_grad)
        for item in model.parameters()
    }


@contextlib.contextmanager
def _aside(step: CompiledStep) -> Iterator[nn.Module]:
    """Let a step work on a copy of its model that shares the parameters and has buffers of its own, and bring back what
    else a forward pass, or reading the synapses, changes."""
    step.join()
    model, store = step.model, step.store
    touched = [*step.constants.values(), *store.matrices.values()]
    touched += [store.named[name] for names in store.groups.values() for name in names]
    before = [(item, item.clone()) for item in touched]
    step.model = twin(model, _shared(model))
    try:
        store.settled()
        yield step.model
    finally:
        step.join()
        step.model = model
        for item, value in before:
            item.copy_(value)
