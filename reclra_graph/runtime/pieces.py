"""A step's segments as functions to compile: what a lane does between two points at which lanes are ordered.

Each such *piece* is recorded as a graph of ATen operators, on tensors without numbers: it takes the values, parameters
and synapses that it reads, gives the values that others read, and changes in place what learns. Streams, events and
copies stay between the pieces. The host looks at the loss's check before the first piece that changes anything, so no
piece needs to look itself.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from reclra_graph.ir.schedule import Free, Record, Wait
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.plain_sums import plain_sums
from reclra_graph.runtime.segments import Item, Part, Segment
from reclra_graph.runtime.statements import name_space, part_code, part_statements, read_and_made
from reclra_graph.runtime.synapse_store import besides
from reclra_graph.runtime.traced import flat_tensors, optimiser_for, optimiser_memory, share_repeated

FINITE = "finite"
"""The name of what the loss's check finds."""
RATE = "lr"


@dataclass(frozen=True)
class Piece:
    """Parts that a lane runs one behind the other."""

    lane: int
    parts: tuple[Part, ...]


Entry: TypeAlias = Piece | Record | Wait | Free


@dataclass(frozen=True)
class TracedPiece:
    """``module(*tensors)`` takes what is named ``inputs`` and gives what is named ``outputs``."""

    module: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def pieces(items: Sequence[Item]) -> tuple[Entry, ...]:
    """A segment's items with the parts of each lane between two of its records and waits taken together, where the
    first of them stands: no other lane gives or takes anything in between."""
    found: list[Piece | Record | Wait | Free] = []
    at: dict[int, int] = {}
    for item in items:
        if isinstance(item, Part):
            place = at.setdefault(item.lane, len(found))
            if place == len(found):
                found.append(Piece(item.lane, ()))
            before = found[place]
            assert isinstance(before, Piece)
            found[place] = Piece(item.lane, (*before.parts, item))
        else:
            found.append(item)
            if not isinstance(item, Free):
                at.pop(item.lane, None)
    return tuple(found)


def named_tensors(
    step: CompiledStep, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], lr: Tensor
) -> dict[str, Tensor]:
    """All that a step reads, in the order of ``flat_tensors``, by the names that pieces know: ``P[key]``, ``E[name]``,
    ``S[what the optimiser remembers]``, inputs, targets, the rate."""
    goals = [goal] if isinstance(goal, Tensor) else list(goal.values())
    return dict(zip(tensor_names(step), flat_tensors(step, given, goals, lr), strict=True))


def tensor_names(step: CompiledStep) -> tuple[str, ...]:
    """The names of ``named_tensors``."""
    labels = [item.label for item in step.plan.losses]
    return (
        *(f"P[{key}]" for key in step.storage()),
        *(f"E[{key}]" for key in step.store.buffers()),
        *(f"S[{key}]" for key in optimiser_memory(step)),
        *step.schedule.tasks.inputs,
        *(["target"] if len(labels) == 1 else [f"T[{label}]" for label in labels]),
        RATE,
    )


def trace_pieces(
    step: CompiledStep,
    given: Sequence[Tensor],
    goal: Tensor | dict[str, Tensor],
    lr: Tensor,
    cut: Sequence[Segment],
) -> dict[Piece, TracedPiece]:
    """Every piece of a step on a batch like this one, whose sizes become constants. Nothing is computed or changed.

    Raises TypeError where a piece gives another something that is no tensor.
    """
    return _Tracing(step, given, goal, lr, cut).result()


class _Tracing:
    def __init__(
        self,
        step: CompiledStep,
        given: Sequence[Tensor],
        goal: Tensor | dict[str, Tensor],
        lr: Tensor,
        cut: Sequence[Segment],
    ) -> None:
        self.step, self.cut = step, cut
        self.code, body = part_code(step.program), part_statements(step.program)
        self.space = name_space(step, given, goal)
        self.slots = list(optimiser_memory(step))
        self.mode = FakeTensorMode()
        self.values: dict[str, Tensor] = {
            name: self.mode.from_tensor(value, static_shapes=True)
            for name, value in named_tensors(step, given, goal, lr).items()
        }
        found = [item for segment in cut for item in pieces(segment.items) if isinstance(item, Piece)]
        self.touched = {piece: self._touched(piece, body) for piece in found}
        self.homes = {lane.id: step.module.lane_device(lane.id, step.device) for lane in step.schedule.lanes}

    def _touched(
        self, piece: Piece, body: Mapping[tuple[str, str], list[ast.stmt]]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        statements = [item for part in piece.parts for item in body[part.task, part.half]]
        read, made = read_and_made(statements)
        learned = {name[2:-1] if name[0] == "P" else f"E.{name[2:-1]}" for name in read if name[1:2] == "["}
        state = [f"S[{slot}]" for slot in self.slots if slot.rpartition("|")[0] in learned]
        held = dict.fromkeys(map(self._buffer, read))
        return (*held, *state), (*made, FINITE) if "check" in read else made

    def _buffer(self, name: str) -> str:
        """The name of a value, or of the buffer that a synapse is a part of."""
        return f"E[{self.step.store.buffer_of(name[2:-1])}]" if name.startswith("E[") else name

    def result(self) -> dict[Piece, TracedPiece]:
        wanted = {FINITE, "loss"} | {copy.value for segment in self.cut for copy in segment.copies}
        readers: dict[str, set[Piece]] = {}
        for piece, (read, _) in self.touched.items():
            for name in read:
                readers.setdefault(name, set()).add(piece)
        found = {}
        brought: dict[tuple[int, str], Tensor] = {}
        for segment in self.cut:
            for copy in segment.copies:
                value, home = self.values[copy.value], self.homes[copy.lane]
                with self.mode:
                    brought[copy.lane, copy.value] = value if value.device == home else value.to(home)
            for item in pieces(segment.items):
                if isinstance(item, Piece):
                    read, made = self.touched[item]
                    outputs = [name for name in made if name in wanted or readers.get(name, set()) - {item}]
                    known = {name: self.values[name] for name in read if name in self.values}
                    inputs = {name: brought.get((item.lane, name), value) for name, value in known.items()}
                    found[item] = self._trace(item, inputs, outputs)
        return found

    def _trace(self, piece: Piece, inputs: dict[str, Tensor], outputs: Sequence[str]) -> TracedPiece:
        given: list[Any] = []

        def run(*tensors: Tensor) -> list[Tensor]:
            values = dict(zip(inputs, tensors, strict=True))
            space = self.space | self._names(values, piece.lane)

            def check(loss: Tensor, *seen: Tensor) -> None:
                space[FINITE] = torch.isfinite(loss)
                for value in seen:
                    space[FINITE] = space[FINITE] & torch.isfinite(value).all()

            space["check"] = check
            for part in piece.parts:
                exec(self.code[part.task, part.half], space)
            given[:] = [space[name] for name in outputs]
            wrong = next((name for name, item in zip(outputs, given, strict=True) if not isinstance(item, Tensor)), "")
            if wrong:
                raise TypeError(f"{wrong} is no tensor, and another piece of the step reads it")
            return list(given)

        with self.mode:
            module = make_fx(torch.func.functionalize(run))(*inputs.values())
        share_repeated(module)
        plain_sums(module)
        nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
        used = [name for name, node in zip(inputs, nodes, strict=True) if node.users]
        (results,) = next(node for node in module.graph.nodes if node.op == "output").args
        for node in nodes:
            if not node.users:
                module.graph.erase_node(node)
        module.recompile()
        self.values |= {name: node.meta["val"] for name, node in zip(outputs, results, strict=True)}
        return TracedPiece(module, tuple(used), tuple(outputs))

    def _names(self, values: dict[str, Tensor], lane: int) -> dict[str, Any]:
        """What the statements of a piece see beside constants, from its tensors."""

        def table(letter: str) -> dict[str, Tensor]:
            return {name[2:-1]: value for name, value in values.items() if name.startswith(f"{letter}[")}

        found: dict[str, Any] = {name: value for name, value in values.items() if "[" not in name}
        rated, buffers = optimiser_for(self.step, table("S")), table("E")
        synapses = self.step.store.unpacked(buffers)
        wholes = {id(synapses[name]): value for name, value in buffers.items()}
        found |= {"P": table("P"), "E": synapses, "optimise": rated, "beside": besides(wholes)}
        if isinstance(self.space["target"], dict):
            found["target"] = table("T")
        if self.step.plan.placement:
            found["device"] = self.homes[lane]
        return found
