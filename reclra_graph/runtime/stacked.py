"""Many runs of a small net in one step: their tensors are stacked, and the step goes over all of them at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.errors import CODES, ModelError, Problem, StepError, UsageError
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.fused import Key, in_parts, kinds, on_several, refusal
from reclra_graph.runtime.kept_code import Fused, compiled, home_of, kept
from reclra_graph.runtime.stack_tensors import check_state, stacked
from reclra_graph.runtime.traced import Traced, batch_size, optimiser_memory, traced
from reclra_graph.runtime.vmapped import vmapped
from reclra_graph.user_cache import cache_folder

_GOING = "going"
_RATES = ("lr", "beta", "gamma")

Rate = float | Sequence[float] | Tensor


class StackedStep:
    """``step(x, target)`` for S runs of one plan, each with a model, synapses and rates of its own.

    x and target are a batch for each run, [S, B, ...], or one for all of them, [B, ...]; what returns are the losses,
    [S]. Every run learns as ``CompiledStep`` would let it learn alone, up to the order of sums. A run whose loss or
    input is not finite stays from then on as it was before that step (``failed``), and the others go on. Random
    numbers, as of dropout, are drawn for each run, from PyTorch's one generator.

    What learns are tensors of this object, one for all runs; ``unstack`` writes them into the models. ``why`` is the
    reason why the last call did not run as machine code, or "".
    """

    kind = "stacked"
    """What else the machine code depends on."""

    def __init__(
        self,
        runs: Sequence[CompiledStep],
        fused: bool = True,
        most: int = 4,
        folder: Path | None = None,
        recompute: bool = True,
    ) -> None:
        """runs: compiled steps of one plan, one for each run, as they are to start. fused: whether Inductor compiles
        the step, for the first ``most`` shapes, into ``folder`` (by default in the user's cache folder); without it, or
        where it cannot, PyTorch runs operator by operator. recompute: as in ``CompiledStep.fused``.

        Raises ModelError RG620 where such a step cannot be stacked, RG621 where the runs are not of one plan.
        """
        self.runs = tuple(runs)
        if not self.runs:
            raise UsageError(Problem("RG405", "there are no runs to stack", "models", "Give at least one model."))
        cause = in_parts(self.runs[0]) or on_several(self.runs[0])
        if cause:
            raise ModelError(Problem("RG620", cause, "stack()"))
        self.fused, self.most, self.lean = fused, most, recompute
        self.folder = cache_folder("fused") if folder is None else folder
        self.held = stacked([self.held_by(run) for run in self.runs], self.runs)
        self.device = next(iter(self.held.values())).device
        self._kinds = kinds(list(self.held.values()))
        self._going = torch.ones(len(self), dtype=torch.bool, device=self.device)
        self._rates: dict[str, float | Tensor] = {}
        self._codes: dict[Key, tuple[Fused, str]] = {}
        self.lr, self.beta, self.gamma = ([getattr(run, name) for run in self.runs] for name in _RATES)
        self.why = ""

    def held_by(self, run: CompiledStep) -> dict[str, Tensor]:
        """What lasts from step to step of one run, by name: ``P[...]`` its parameters, buffers and constants,
        ``E[...]`` its synapses, ``S[...]`` what its optimiser remembers. The tensors are the run's own."""
        found = {f"P[{key}]": value for key, value in run.storage().items()}
        found.update({f"E[{name}]": value for name, value in run.store.buffers().items()})
        found.update({f"S[{slot}]": value for slot, value in optimiser_memory(run).items()})
        return found

    def traced(
        self, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], lr: Tensor, more: Mapping[str, Tensor]
    ) -> Traced:
        """The step of one run as a graph over the tensors of ``held_by``, inputs, targets, the rate and ``more``."""
        return traced(self.runs[0], given, goal, lr, self.lean, more)

    def __len__(self) -> int:
        return len(self.runs)

    # -- rates: a number, or one for each run -------------------------------------------------------------------------

    @property
    def lr(self) -> Tensor:
        """The learning rate of each run, [S], float64. Set it to a number or to one for each run, as the two below."""
        return self._each("lr")

    @lr.setter
    def lr(self, value: Rate) -> None:
        self._rates["lr"] = self._numbers("lr", value)

    @property
    def beta(self) -> Tensor:
        """β of each run, [S]. Where all have the same it is a constant of the machine code; else an input."""
        return self._each("beta")

    @beta.setter
    def beta(self, value: Rate) -> None:
        self._rates["beta"] = self._plain(self._numbers("beta", value))

    @property
    def gamma(self) -> Tensor:
        """γ of each run, [S], as ``beta``."""
        return self._each("gamma")

    @gamma.setter
    def gamma(self, value: Rate) -> None:
        self._rates["gamma"] = self._plain(self._numbers("gamma", value))

    def _each(self, name: str) -> Tensor:
        value = self._rates[name]
        return value if isinstance(value, Tensor) else self._numbers(name, value)

    def _numbers(self, name: str, value: Rate) -> Tensor:
        try:
            found = torch.as_tensor(value, dtype=torch.float64, device="cpu")  # where a look at it keeps no GPU waiting
        except (TypeError, ValueError, RuntimeError):
            found = torch.empty((0, 0))
        if found.shape not in ((), (len(self),)) or not bool((found.isfinite() & (found >= 0)).all()):
            cause = f"{name} is not a number of at least 0, or one for each of the {len(self)} runs"
            raise UsageError(Problem("RG405", cause, name, "Give a number, or as many as there are runs."))
        return found.expand(len(self)).to(self.device, copy=True)

    def _plain(self, value: Tensor) -> float | Tensor:
        """The one number where all are the same."""
        numbers = set(value.tolist())
        return numbers.pop() if len(numbers) == 1 else value

    # -- a step -------------------------------------------------------------------------------------------------------

    def __call__(
        self, inputs: Any, target: Tensor | Mapping[str, Tensor], kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """One training step of every run that has not failed; returns their losses, [S], nan for the others.

        inputs, target, kwargs: as ``CompiledStep`` takes them; each tensor [S, B, ...] or [B, ...].

        Raises StepError, with everything as it was: RG601 and RG602 for wrong shapes, dtypes or numbers of runs, RG603
        for classes out of range, RG604 where no run is left with a finite loss (none is given up for that), and
        ModelError RG620 where the step cannot be stacked.
        """
        given, goal = self.runs[0].arguments(inputs, target, kwargs)
        goals = [goal] if isinstance(goal, Tensor) else list(goal.values())
        apart = self._apart(given, goal)
        more = {name: value for name in _RATES[1:] if isinstance(value := self._rates[name], Tensor)}
        more[_GOING] = self._going
        flat = [*self.held.values(), *given, *goals, self.lr, *more.values()]
        numbers = tuple((name, self._rates[name]) for name in _RATES[1:] if name not in more)
        key = (kinds([*given, *goals]), apart, numbers)
        if key not in self._codes:
            self._codes[key] = self._prepared(key, given, goal, flat, apart, more)
        code, self.why = self._codes[key]
        for number in range(len(self) if any(apart) else 1):
            self._check(number, code.size, given, goal, apart)
        with torch.no_grad():
            losses, finite = code.run(*[flat[index] for index in code.used])
        if not finite.any():
            cause = "the loss or an input is not finite in every run that was left; everything is as it was"
            raise StepError(Problem("RG604", cause, "step()"))
        self._going = finite
        return losses  # type: ignore[no-any-return]

    def learn(self, x: Any, y: Tensor | Mapping[str, Tensor], lr: Rate) -> Tensor:
        """One step on a batch with this learning rate, or these; returns the losses, [S]. Raises as a call does."""
        self.lr = lr
        return self(x, y)

    @property
    def failed(self) -> tuple[int, ...]:
        """The runs that met a loss or an input that was not finite, by number. Each is as it was before that step."""
        return tuple(torch.nonzero(~self._going).flatten().tolist())

    def _apart(self, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor]) -> tuple[bool, ...]:
        """Which inputs, and then targets, hold a batch for each run. Raises StepError where it is another number."""
        step = self.runs[0]
        shapes = {f"input {name}": shape for name, (shape, _) in step.module.INPUTS.items()}
        named = {"": goal} if isinstance(goal, Tensor) else goal
        shapes |= {f"the target {label}".strip(): step.module.TARGETS[label][0] for label in named}
        found, problems = [], []
        for (name, shape), value in zip(shapes.items(), (*given, *named.values()), strict=True):
            found.append(value.dim() == len(shape) + 1)
            if found[-1] and len(value) != len(self):
                code = "RG601" if name.startswith("input") else "RG602"
                cause = f"{name} is {list(value.shape)}, batches of {len(value)} runs; there are {len(self)}"
                problems.append(Problem(code, cause, "step()"))
        if problems:
            raise StepError(problems)
        return tuple(found)

    def _one(
        self, number: int, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], apart: Sequence[bool]
    ) -> tuple[list[Tensor], Tensor | dict[str, Tensor]]:
        """The batch of one run."""
        goals = [goal] if isinstance(goal, Tensor) else list(goal.values())
        mine = [value[number] if item else value for value, item in zip((*given, *goals), apart, strict=True)]
        inputs, targets = mine[: len(given)], mine[len(given) :]
        return inputs, targets[0] if isinstance(goal, Tensor) else dict(zip(goal, targets, strict=True))

    def _check(
        self, number: int, size: int, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], apart: Sequence[bool]
    ) -> None:
        module: Any = self.runs[0].module
        inputs, target = self._one(number, given, goal, apart)
        try:
            module.check_inputs(dict(zip(module.INPUTS, inputs, strict=True)), target, size)
        except ValueError as error:
            code, _, cause = str(error).partition(" ")
            raise refusal(ValueError(f"{code} run {number}: {cause}" if any(apart) else str(error))) from None

    def _prepared(
        self,
        key: Key,
        given: Sequence[Tensor],
        goal: Tensor | dict[str, Tensor],
        flat: Sequence[Tensor],
        apart: Sequence[bool],
        more: Mapping[str, Tensor],
    ) -> tuple[Fused, str]:
        """The step for batches like this one, and why it is no machine code, or ""."""
        step = self.runs[0]
        if not self.fused:
            why = "it was not to be compiled"
        elif sum(not said for _, said in self._codes.values()) >= self.most:
            why = f"more than {self.most} shapes: sizes that change all the time are not compiled"
        else:
            why = ""
        said = (self.kind, self.lean, step.source, repr((self._kinds, *key)))
        home = home_of(self.folder, self.device, *said)
        found = kept(home) if not why else None
        if found is not None:
            return found, ""
        inputs, target = self._one(0, given, goal, apart)
        graph = self._graph(inputs, target, flat, (*[True] * len(self.held), *apart, *[True] * (1 + len(more))), more)
        if not why:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # PyTorch's own about its insides
                    twin = Traced(copy.deepcopy(graph.module), graph.used, graph.size)
                    return compiled(home, self.device, twin, [flat[index] for index in graph.used]), ""
            except Exception as error:  # a compiler can fail in any way inside; PyTorch still runs the graph
                why = f"the step cannot be compiled: {_said(error)}"
        return Fused(graph.module, graph.used, graph.size), why

    def _graph(
        self,
        given: Sequence[Tensor],
        goal: Tensor | dict[str, Tensor],
        flat: Sequence[Tensor],
        apart: Sequence[bool],
        more: Mapping[str, Tensor],
    ) -> Traced:
        """The stacked step. Raises StepError as a call does, ModelError RG620 where there is none."""
        try:
            batch_size(self.runs[0], given, goal)
        except ValueError as error:
            if str(error).partition(" ")[0] in CODES:
                raise refusal(error) from None
            raise
        try:
            single = self.traced(given, goal, self.lr[0], {name: value[0] for name, value in more.items()})
            taken = [flat[index] for index in single.used]
            found = vmapped(single, taken, [apart[index] for index in single.used])
        except Exception as error:  # operators refuse to be recorded or stacked in their own ways
            raise ModelError(Problem("RG620", _said(error), "stack()")) from error
        return Traced(found.module, tuple(single.used[index] for index in found.used), found.size)

    # -- what was learned ---------------------------------------------------------------------------------------------

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The models, as ``unstack`` left them."""
        return tuple(run.model for run in self.runs)

    def unstack(self) -> tuple[CompiledStep, ...]:
        """Write what was learned into the models, and return the runs: each a step that goes on alone, with its model,
        synapses, rates and all that its optimiser remembers."""
        for number, run in enumerate(self.runs):
            for name, value in self.held_by(run).items():
                value.copy_(self.held[name][number])
            run.lr, run.beta, run.gamma = (float(self._each(name)[number]) for name in _RATES)
        return self.runs

    def state(self) -> dict[str, Tensor]:
        """Copies of everything that the runs need to go on exactly, all of it tensors with a first dimension S."""
        return {name: value.clone() for name, value in self._all().items()}

    def _all(self) -> dict[str, Tensor]:
        return {**self.held, **{name: self._each(name) for name in _RATES}, _GOING: self._going}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state()``. Raises ModelError RG605 for missing, unknown or misshapen parts; nothing is changed
        then."""
        check_state(state, self._all())
        for name, value in self.held.items():
            value.copy_(state[name])
        self._going = state[_GOING].to(self.device, torch.bool).clone()
        self.lr, self.beta, self.gamma = (state[name] for name in _RATES)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} runs of {self.runs[0]!r})"


def _said(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
