"""A compiled step as one graph of PyTorch operators, with everything that it reads and changes as its inputs.

The emitted step is run once on tensors without numbers, and what it does is recorded. Two things become tensors on the
way: the learning rate, so that it may change from step to step, and the check of the loss. Where the emitted step stops
when a number is not finite, the graph goes on and leaves everything as it was: each value that it would store stands
behind ``where(finite, new, old)``.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.recompute import recompute
from reclra_graph.runtime.synapse_store import besides
from reclra_graph.runtime.tensor_rates import TensorFactors

Key = tuple[object, ...]


@dataclass(frozen=True)
class Traced:
    """``module(*tensors)`` gives (loss, finite) and changes its inputs in place. ``used``: which of ``flat_tensors`` it
    takes, by number. ``size``: of the batch, as the step checks it."""

    module: GraphModule
    used: tuple[int, ...]
    size: int


def flat_tensors(step: CompiledStep, given: Sequence[Tensor], goals: Sequence[Tensor], lr: Tensor) -> list[Tensor]:
    """All that a step reads: what it holds, inputs, targets, the learning rate."""
    return [*held_tensors(step), *given, *goals, lr]


def held_tensors(step: CompiledStep) -> list[Tensor]:
    """What lasts from step to step: parameters, buffers and constants, synapses, what the optimiser remembers."""
    return [*step.storage().values(), *step.store.buffers().values(), *optimiser_memory(step).values()]


def optimiser_memory(step: CompiledStep) -> dict[str, Tensor]:
    """What the optimiser remembers of everything that learns, made now where it is not there yet."""
    optimiser = step.optimiser
    if hasattr(optimiser, "state") and not optimiser.state:
        held = {"P": step.storage(), "E": step.store.all()}
        for store in step.schedule.tasks.learned:
            value = held[store[0]][store[2:-1]]
            for slot in optimiser.slots:
                optimiser.kept(value, store[2:-1], slot)
    return step.optimiser_state


def traced(
    step: CompiledStep,
    given: Sequence[Tensor],
    goal: Tensor | dict[str, Tensor],
    lr: Tensor,
    lean: bool = False,
    more: Mapping[str, Tensor] = MappingProxyType({}),
) -> Traced:
    """The step on a batch like this one, whose sizes become constants. Nothing is computed or changed. ``lean``: with
    what is cheap computed again, instead of held until it is read. ``more``: what else is an input of the graph, behind
    the rate: "beta", "gamma" (0-dim), and "going" (0-dim, bool), without which nothing is stored.

    Raises ValueError, as the emitted step does, where it does not take such a batch.
    """
    size = batch_size(step, given, goal)
    goals = [goal] if isinstance(goal, Tensor) else list(goal.values())
    flat = [*flat_tensors(step, given, goals, lr), *more.values()]
    keys, names, slots = list(step.storage()), list(step.store.buffers()), list(optimiser_memory(step))
    ends = list(accumulate((len(keys), len(names), len(slots), len(given), len(goals))))
    seen: dict[str, Tensor] = {}
    wholes: dict[int, Tensor] = {}

    def check(loss: Tensor, *inputs: Tensor) -> None:
        finite = torch.isfinite(loss)
        for value in inputs:
            finite = finite & torch.isfinite(value).all()
        seen["finite"] = finite & seen["going"] if "going" in seen else finite

    def run(*tensors: Tensor) -> list[Tensor]:
        rates = dict(zip(("lr", *more), tensors[ends[4] :], strict=True))
        if "going" in rates:
            seen["going"] = rates.pop("going")
        targets = list(tensors[ends[3] : ends[4]])
        target: Any = targets[0] if isinstance(goal, Tensor) else dict(zip(goal, targets, strict=True))
        buffers = dict(zip(names, tensors[ends[0] : ends[1]], strict=True))
        held = (
            dict(zip(keys, tensors[: ends[0]], strict=True)),
            step.store.unpacked(buffers),
        )
        wholes.update({id(held[1][name]): value for name, value in buffers.items()})
        optimise = optimiser_for(step, dict(zip(slots, tensors[ends[1] : ends[2]], strict=True)))
        settings = {**step.settings(), **rates}
        with TensorFactors():
            loss = step.module.step(*held, *tensors[ends[2] : ends[3]], target, optimise=optimise, **settings)
        return [loss, seen["finite"]]

    with instead(
        step.module.__dict__, check=check, check_inputs=lambda *_: None, Lanes=one_lane(step), beside=besides(wholes)
    ):
        module = make_fx(torch.func.functionalize(run), tracing_mode="fake")(*flat)
    share_repeated(module)
    _add_apart(module)
    guard_stores(module)
    if lean:
        recompute(module)
    return finished(module, size)


def finished(module: GraphModule, size: int) -> Traced:
    """A traced step, without those of its inputs that nothing reads."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    used = tuple(index for index, node in enumerate(inputs) if node.users)
    for node in inputs:
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()
    return Traced(module, used, size)


def batch_size(step: CompiledStep, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor]) -> int:
    """The size of a batch, as the emitted step reads it before anything else.

    Raises ValueError, as the emitted step does, where it does not take such a batch.
    """
    check: Any = step.module.check_inputs
    seen: list[int] = []

    def checked(inputs: dict[str, Tensor], target: Any, size: int = 0) -> None:
        seen.append(int(size))
        check(inputs, target, size)
        raise _EnoughError

    with instead(step.module.__dict__, check_inputs=checked), contextlib.suppress(_EnoughError):
        step.module.step(step.storage(), step.store.all(), *given, goal, **step.settings())
    return seen[0]


class _EnoughError(Exception):
    """The batch was checked; nothing more of the step is wanted."""


def one_lane(step: CompiledStep) -> Any:
    """What a step takes for its lanes where lanes are nothing, on the CPU; whatever the device, it is one lane then."""
    lanes: Any = step.module.__dict__.get("Lanes")
    return lambda device: lanes(torch.device("cpu"))


@contextlib.contextmanager
def instead(names: dict[str, Any], **others: Any) -> Iterator[None]:
    """Other objects under names of the emitted file, for as long as the context lasts."""
    usual = {name: names[name] for name in others if name in names}
    names.update({name: others[name] for name in usual})
    try:
        yield
    finally:
        names.update(usual)


def optimiser_for(step: CompiledStep, remembered: dict[str, Tensor]) -> Any:
    """The step's own optimiser with another memory, for a rate that is a tensor."""
    rates = step.plan.rates

    def sgd(store: dict[str, Tensor], name: str, delta: Tensor, lr: Tensor) -> None:
        apart = rates.synapse_decay is not None and name in step.module.SYNAPSES
        decay = rates.synapse_decay if apart else rates.weight_decay
        kept = store[name] - lr * decay * store[name] if decay else store[name]
        store[name].copy_(kept - lr * delta)

    if not remembered:
        return sgd  # the file's own takes its rate as a number
    optimiser = copy.copy(step.optimiser)
    optimiser.state = remembered
    return optimiser


def share_repeated(module: GraphModule) -> None:
    """Compute everything once: lanes each make what they need, such as the same product of an error with itself for
    every synapse that learns from it, and in one piece of machine code there are no lanes."""
    seen: dict[Key, Node] = {}
    for node in list(module.graph.nodes):
        operator = node.target
        if not isinstance(operator, torch._ops.OpOverload) or operator._schema.is_mutable:
            continue
        if torch.Tag.nondeterministic_seeded in operator.tags or not node.all_input_nodes:
            continue  # random numbers; new tensors, which are filled later or cost nothing
        first = seen.setdefault((operator, repr(node.args), repr(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            module.graph.erase_node(node)


def _add_apart(module: GraphModule) -> None:
    """Let what a product is added to stay out of it: ``addmm`` reads that from memory, where it first has to be written
    and is then copied, while Inductor adds inside the kernel that reads the sum."""
    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.target is not aten.addmm.default or node.args[0].meta["val"].shape != node.meta["val"].shape:
            continue
        whole, first, second = node.args
        if node.kwargs.get("beta", 1) != 1:
            continue
        with module.graph.inserting_before(node):
            product = module.graph.call_function(aten.mm.default, (first, second))
            product.meta["val"] = node.meta["val"]
            factor = {"alpha": node.kwargs.get("alpha", 1)}
            found = module.graph.call_function(aten.add.Tensor, (whole, product), factor)
            found.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(found)
        module.graph.erase_node(node)


def guard_stores(module: GraphModule) -> None:
    """Let every value that the graph stores in one of its inputs be the old one, unless the loss was finite."""
    graph = module.graph
    (results,) = next(node for node in graph.nodes if node.op == "output").args
    finite = results[1]
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder":
            store, value = node.args[0], node.args[1]
            assert isinstance(value, Node)
            with graph.inserting_before(node):
                guarded = graph.call_function(torch.ops.aten.where.self, (finite, value, store))
            node.args = (store, guarded)
