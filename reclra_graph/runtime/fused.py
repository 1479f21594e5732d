"""A compiled step by Inductor: the whole step as one piece of machine code, kept on disk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.errors import Problem, StepError
from reclra_graph.ir.operators import OPAQUE
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.kept_code import Fused, compiled, home_of, kept
from reclra_graph.runtime.traced import flat_tensors, held_tensors, traced
from reclra_graph.user_cache import cache_folder

Key = tuple[Any, ...]


class _Held:
    """The tensors that last from step to step, and the steps that were compiled for them by the kinds of the others. To
    collect them takes longer than a small step, to see that they are still the same does not."""

    def __init__(self, step: CompiledStep) -> None:
        self.tensors = held_tensors(step)
        self.kinds = kinds(self.tensors)
        self.steps: dict[Key, Fused] = {}
        tables: list[Mapping[str, Tensor | None]] = [step.store.named, step.store.matrices, step.optimiser_state]
        for module in step.model.modules():
            tables += [module._parameters, module._buffers]
        self._seen = [(table, len(table), _addresses(table)) for table in tables if table]

    def lasts(self) -> bool:
        """Whether model, synapses and optimiser hold these tensors still, where they were."""
        return all(len(table) == count and _addresses(table) == seen for table, count, seen in self._seen)


def _addresses(table: Mapping[str, Tensor | None]) -> list[tuple[int, int]]:
    return [(id(item), item.data_ptr()) for item in table.values() if item is not None]


def kinds(tensors: Sequence[Tensor]) -> Key:
    """What machine code depends on: shapes, memory formats, dtypes and devices."""
    return tuple((item.shape, item.stride(), item.dtype, item.device) for item in tensors)


class FusedStep:
    """``step(x, target)`` compiled as a whole, for each of the first ``most`` shapes that it is called with; others run
    as the step itself does. Compiling takes from seconds to minutes, and is done once: what was compiled is kept in
    ``folder`` (by default in the user's cache folder), and read from there ever after.

    All lanes become one; ``PiecedStep`` keeps them apart. A change of ``beta`` or ``gamma`` compiles anew, one of
    ``lr`` does not. ``why`` is the reason why the last call ran the step itself, or "".
    """

    extra: tuple[Any, ...] = ()
    """What else the machine code depends on."""

    def __init__(self, step: CompiledStep, most: int = 4, folder: Path | None = None, recompute: bool = True) -> None:
        self.step, self.most, self.lean = step, most, recompute
        self.folder = cache_folder("fused") if folder is None else folder
        self.held: dict[Key, Fused] = {}
        self.storage: _Held | None = None
        self.broken: dict[Key, str] = {}
        self.why = ""
        self.rate: tuple[float, Tensor] = (step.lr, torch.tensor(step.lr, dtype=torch.float64))

    def __call__(
        self, inputs: Any, target: Tensor | Mapping[str, Tensor], kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """One training step on a batch; raises as the step itself does."""
        step = self.step
        given, goal = step.arguments(inputs, target, kwargs)
        step.place(given[0].device)
        fused = self.found(given, goal)
        if fused is None:
            return step(inputs, target, kwargs)
        try:
            step.module.check_inputs(dict(zip(step.module.INPUTS, given, strict=True)), goal, fused.size)
        except ValueError as error:
            raise refusal(error) from None
        assert self.storage is not None
        goals = [goal] if isinstance(goal, Tensor) else goal.values()
        flat = [*self.storage.tensors, *given, *goals, self.rate[1]]
        with torch.no_grad():
            loss, finite = fused.run(*[flat[index] for index in fused.used])
        if not finite:
            cause = "the loss or an input is not finite; the parameters are as they were"
            raise StepError(Problem("RG604", cause, "step()"))
        return loss  # type: ignore[no-any-return]

    def found(self, given: list[Tensor], goal: Tensor | dict[str, Tensor]) -> Fused | None:
        """What was compiled for batches like this one, compiled now where that has not been done; None where it cannot
        be, and ``why`` says so. Raises StepError as the step itself does."""
        step = self.step
        if self.rate[0] != step.lr:
            self.rate = (step.lr, torch.tensor(step.lr, dtype=torch.float64))
        if self.storage is None or not self.storage.lasts():
            self.storage = _Held(step)
        goals = [goal] if isinstance(goal, Tensor) else goal.values()
        wanted = (kinds([*given, *goals, self.rate[1]]), step.beta, step.gamma)
        fused = self.storage.steps.get(wanted)
        self.why = ""
        if fused is None:
            key = (self.storage.kinds, *wanted)
            if key not in self.held:
                self.why = self.broken.get(key) or self._prepare(key, given, goal)
                if self.why:
                    return None
            fused = self.storage.steps[wanted] = self.held[key]
        return fused

    def _obstacle(self) -> str:
        """Why this step cannot be one piece, whatever its shapes."""
        return in_parts(self.step) or self._unfit()

    def _unfit(self) -> str:
        """Why this form of it is not for this step."""
        return on_several(self.step)

    def _prepare(self, key: Key, given: list[Tensor], goal: Tensor | dict[str, Tensor]) -> str:
        """Read or compile the step for a key that has none; else why not."""
        obstacle = self._obstacle()
        if obstacle:
            return obstacle
        if len(self.held) >= self.most:
            return f"more than {self.most} shapes: sizes that change all the time are not compiled"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's own about its insides, which no user of a step can act on
                self.held[key] = self._kept(key) or self._compiled(key, given, goal)
        except StepError:
            raise
        except Exception as error:  # a compiler can fail in any way inside; the step itself still runs
            said = str(error).strip().splitlines() or [type(error).__name__]
            self.broken[key] = f"the step cannot be compiled: {said[0]}"
            return self.broken[key]
        return ""

    def _compiled(self, key: Key, given: list[Tensor], goal: Tensor | dict[str, Tensor]) -> Fused:
        """Compile the step, and keep it. Raises StepError as the step itself does."""
        try:
            found = traced(self.step, given, goal, self.rate[1], self.lean)
        except ValueError as error:
            raise refusal(error) from None
        flat = flat_tensors(self.step, given, [goal] if isinstance(goal, Tensor) else list(goal.values()), self.rate[1])
        return compiled(self._home(key), self.step.device, found, [flat[index] for index in found.used])

    def _kept(self, key: Key) -> Fused | None:
        """The step as it was compiled before, by this user on this machine; None where there is none, or none that can
        be read."""
        return kept(self._home(key))

    def _home(self, key: Key) -> Path:
        """The folder of a key: named by the digest of all that machine code depends on."""
        step = self.step
        return home_of(self.folder, step.device, self.lean, step.source, repr(key), *self.extra)


def in_parts(step: CompiledStep) -> str:
    """Why a step cannot be one piece, whatever its shapes; else ""."""
    if any(item.target == OPAQUE for item in step.plan.regions.graph.operators):
        return "sub-modules that run as they are may do anything"
    return "steps overlap: their lanes reach from one to the next" if step.schedule.overlap else ""


def on_several(step: CompiledStep) -> str:
    """Why a step's lanes cannot be one, or ""."""
    homes = {step.module.lane_device(lane.id, step.device) for lane in step.schedule.lanes}
    return "one piece of machine code is for one device, and the lanes are on several" if len(homes) > 1 else ""


def refusal(error: ValueError) -> StepError:
    """What an emitted step said with a code of its own, as the error that users see."""
    code, _, cause = str(error).partition(" ")
    return StepError(Problem(code, cause, "step()"))
