"""A step over several lanes by Inductor: each piece of work between two hand-overs is machine code, kept on disk.

The emitted file's own ``Lanes`` order the pieces, as they order its statements; none of that is compiled. On the CPU,
where lanes are nothing, the pieces run one after another.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.ir.schedule import Copy, Free, Record
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.fused import FusedStep, Key, refusal
from reclra_graph.runtime.kept_code import Fused, inductor_at, inductor_options
from reclra_graph.runtime.pieces import (
    FINITE,
    Piece,
    TracedPiece,
    named_tensors,
    pieces,
    tensor_names,
    trace_pieces,
)
from reclra_graph.runtime.segments import Segment, segments
from reclra_graph.runtime.spread import Capture, Spread, lane_places
from reclra_graph.runtime.traced import batch_size


@dataclass(frozen=True)
class Made:
    """A compiled piece: ``run(*tensors)`` takes what is named ``inputs`` and gives what is named ``outputs``."""

    run: Callable[..., Sequence[Tensor]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Pieced:
    """A step for one set of shapes, in pieces. ``names``: of the tensors that a call takes."""

    cut: tuple[Segment, ...]
    made: Mapping[Piece, Made]
    names: tuple[str, ...]
    places: Mapping[int, int]
    lanes: Callable[[], Any]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, whether it is finite); where it is not, nothing has been changed."""
        values = dict(zip(self.names, tensors, strict=True))
        brought: dict[tuple[int, str], Tensor] = {}
        lanes = self.lanes()
        last: dict[int, int] = {}
        for number, segment in enumerate(self.cut):
            before = [*segment.after, *([last[segment.device]] if segment.device in last else [])]
            mine = self._on(segment.device)
            for lane in mine:
                self._follow(lanes, lane, before)
            for copy in segment.copies:
                with lanes.lane(copy.lane):
                    brought[copy.lane, copy.value] = lanes.here(values[copy.value])
            self._segment(segment, lanes, values, brought)
            last[segment.device] = number
            for lane in mine:
                with lanes.lane(lane):
                    lanes.record(f"{number} {lane}")
            if segment.check and not values[FINITE]:
                break
        self._follow(lanes, 0, list(last.values()))
        lanes.end()
        return values["loss"], values[FINITE]

    def _on(self, device: int) -> list[int]:
        return [lane for lane, place in self.places.items() if place == device]

    def _follow(self, lanes: Any, lane: int, numbers: Sequence[int]) -> None:
        """Let a lane go on only after segments."""
        with lanes.lane(lane):
            for number in numbers:
                for other in self._on(self.cut[number].device):
                    if other != lane:
                        lanes.wait(f"{number} {other}")

    def _segment(
        self, segment: Segment, lanes: Any, values: dict[str, Tensor], brought: Mapping[tuple[int, str], Tensor]
    ) -> None:
        for item in pieces(segment.items):
            if isinstance(item, Free):
                for name in item.values:
                    values.pop(name, None)
                continue
            with lanes.lane(item.lane):
                if isinstance(item, Piece):
                    run_piece(self.made[item], item.lane, values, brought)
                elif isinstance(item, Record):
                    lanes.record(item.event)
                else:
                    lanes.wait(item.event)


def run_piece(made: Made, lane: int, values: dict[str, Tensor], brought: Mapping[tuple[int, str], Tensor]) -> None:
    """Run a piece on the tensors that it takes, as far as there are any on its lane's own device, and note what it
    gives."""
    given = [brought.get((lane, name), values.get(name)) for name in made.inputs]
    values.update(zip(made.outputs, made.run(*given), strict=True))


def spread_pieces(
    step: CompiledStep, pieced: Pieced, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], lr: Tensor
) -> Spread:
    """Capture a step in compiled pieces, each segment as a graph. Nothing is computed.

    Raises RuntimeError where CUDA cannot capture something.
    """
    return _Capture(step, pieced, given, goal, lr).result()


class _Capture(Capture):
    """Compiled pieces."""

    def __init__(
        self, step: CompiledStep, pieced: Pieced, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], lr: Tensor
    ) -> None:
        super().__init__(step, given, goal, pieced.places)
        self.made = pieced.made
        self.values = named_tensors(step, self.given, self.goal, lr)
        self.brought: dict[tuple[int, str], Tensor] = {}

    def entries(self, segment: Segment) -> Sequence[Any]:
        return pieces(segment.items)

    def work(self, item: Piece) -> None:
        with torch.no_grad():
            run_piece(self.made[item], item.lane, self.values, self.brought)

    def value(self, name: str) -> Tensor:
        return self.values[name]

    def bring(self, copy: Copy, source: Tensor, target: Tensor) -> None:
        self.brought[copy.lane, copy.value] = target

    def forget(self, names: Sequence[str]) -> None:
        for name in names:
            self.values.pop(name, None)


class PiecedStep(FusedStep):
    """``step(x, target)`` in compiled pieces, one for what each lane does between two points where lanes are ordered.

    As ``FusedStep`` otherwise. Steps that were loaded from files run as they are, since the lines of their tasks are
    not known.
    """

    def __init__(
        self,
        step: CompiledStep,
        most: int = 4,
        folder: Path | None = None,
        places: Mapping[int, int] | None = None,
    ) -> None:
        """``places``: a number for the device of every lane, where they are to count as several."""
        super().__init__(step, most, folder, recompute=False)
        self.places = places
        self.extra = ("pieces", tuple(sorted((places or {}).items())))

    def captured(self, given: list[Tensor], goal: Tensor | dict[str, Tensor]) -> Spread:
        """The step on a batch like one that was run before as CUDA graphs, one for each segment.

        Raises ValueError where no such batch was compiled, and RuntimeError where CUDA cannot capture something."""
        found = self.found(given, goal)
        if found is None:
            raise ValueError(self.why or "no step with this shape was compiled")
        assert isinstance(found.run, Pieced)
        return spread_pieces(self.step, found.run, given, goal, self.rate[1])

    def _unfit(self) -> str:
        known = self.step.program.lines
        return "" if known else "the lines of its tasks are not known: a step from files is compiled as a whole alone"

    def _compiled(self, key: Key, given: list[Tensor], goal: Tensor | dict[str, Tensor]) -> Fused:
        """Compile the pieces, and keep them. Raises StepError as the step itself does."""
        from torch._inductor import config

        try:
            size = batch_size(self.step, given, goal)
        except ValueError as error:
            raise refusal(error) from None
        cut = self._cut()
        found = trace_pieces(self.step, given, goal, self.rate[1], cut)
        made, saved = {}, []
        with inductor_at(self._home(key)) as home, config.patch(inductor_options(self.step.device)), torch.no_grad():
            for number, (piece, traced) in enumerate(found.items()):
                run = self._machine_code(traced)
                made[piece] = Made(run, traced.inputs, traced.outputs)
                with contextlib.suppress(Exception):  # what cannot be kept is compiled again next time
                    run.save(path=str(home / f"piece-{number}.bin"), format="binary")
                    saved.append([traced.inputs, traced.outputs])
            if len(saved) == len(found):
                with contextlib.suppress(OSError):
                    partial = home / "step.json.partial"
                    partial.write_text(json.dumps({"pieces": saved, "size": size}), encoding="utf-8")
                    partial.replace(home / "step.json")
        return self._fused(cut, made, size)

    def _machine_code(self, traced: TracedPiece) -> Any:
        from torch._inductor import standalone_compile

        nodes = [node for node in traced.module.graph.nodes if node.op == "placeholder"]
        kinds = [node.meta["val"] for node in nodes]
        examples: list[Any] = [
            torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device=item.device) for item in kinds
        ]
        return standalone_compile(traced.module, examples, dynamic_shapes="from_example_inputs")

    def _kept(self, key: Key) -> Fused | None:
        from torch._inductor.standalone_compile import CompiledArtifact

        if not (self._home(key) / "step.json").exists():
            return None
        with inductor_at(self._home(key)) as home, contextlib.suppress(Exception):
            said = json.loads((home / "step.json").read_text(encoding="utf-8"))
            cut = self._cut()
            names = [item for segment in cut for item in pieces(segment.items) if isinstance(item, Piece)]
            made = {}
            for number, (piece, (inputs, outputs)) in enumerate(zip(names, said["pieces"], strict=True)):
                run = CompiledArtifact.load(path=str(home / f"piece-{number}.bin"), format="binary")
                made[piece] = Made(run, tuple(inputs), tuple(outputs))
            return self._fused(cut, made, int(said["size"]))
        return None

    def _cut(self) -> tuple[Segment, ...]:
        return segments(self.step.schedule, self.places or lane_places(self.step))

    def _fused(self, cut: tuple[Segment, ...], made: Mapping[Piece, Made], size: int) -> Fused:
        step, names = self.step, tensor_names(self.step)
        run = Pieced(cut, made, names, self.places or lane_places(step), lambda: step.module.Lanes(step.device))
        return Fused(run, tuple(range(len(names))), size)
