"""CompiledStep: an emitted step bound to a model's own parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reclra_graph.errors import CODES, ModelError, Problem, StepError
from reclra_graph.ir.operators import OPAQUE, Buffer, OperatorGraph
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.schedule import Schedule
from reclra_graph.ir.wiring import WiringPlan
from reclra_graph.runtime.loader import load_source
from reclra_graph.runtime.mirror_mode import mirror
from reclra_graph.runtime.opaque_runs import in_training
from reclra_graph.runtime.synapse_store import SynapseStore
from reclra_graph.structure import arguments, at, called_as

if TYPE_CHECKING:
    from reclra_graph.runtime.fused import FusedStep
    from reclra_graph.runtime.graphed import GraphedStep


OPTIMIZER = "optimizer."
"""In front of what the optimiser remembers, in a ``state_dict()``."""


class CompiledStep:
    """One training step of a model without backpropagation.

    ``step(x, target)``, ``step((x1, x2), target)`` or ``step({"name": x}, target)``, as the model was compiled, moves
    the model's own parameters and the synapses, and returns the loss (a 0-dim tensor). ``lr``, ``beta`` and ``gamma``
    may be changed between steps.
    """

    def __init__(
        self,
        model: nn.Module,
        program: StepProgram,
        constants: Mapping[str, Tensor],
        seconds: tuple[tuple[str, float], ...] = (),
        seed: int | None = None,
    ) -> None:
        """``seed``: of the synapses; by default the plan's own."""
        check_model(model, program.schedule.tasks.plan.regions.graph)
        self.model = model
        self.program = program
        self.constants = dict(constants)
        self.seconds = seconds
        self.module: ModuleType = load_source(program.source, f"<step {program.digest}>")
        rates = self.plan.rates
        self.lr, self.beta, self.gamma = rates.lr, rates.beta, rates.gamma
        self.store = SynapseStore(self.module, self.plan.seed if seed is None else seed, self.device)

    @property
    def synapses(self) -> dict[str, Tensor]:
        """The error synapses by name, ``"9->5"``, as they act. What several have learned together is multiplied into
        them when this is read: a tensor that was taken from here before a step is up to date from the next reading on.
        """
        if self.store.matrices:
            self.join()
        return self.store.settled()

    @property
    def optimiser(self) -> Any:
        """What the step's own calls move parameters and synapses with: a function of step.py, or an object with
        ``state``, a dict of what it remembers."""
        found = getattr(self.module, self.plan.rates.optimizer, None)
        if found is None:
            cause = f"step.py defines no {self.plan.rates.optimizer}, which the plan names as its optimiser"
            raise ModelError(Problem("RG702", cause, "step.py"))
        return found

    @property
    def optimiser_state(self) -> dict[str, Tensor]:
        """What the optimiser remembers, by parameter or synapse and slot: ``"0.weight|v"``, ``"E.9->5|m"``. The dict is
        the optimiser's own; it is empty before the first step, and for plain SGD."""
        found: dict[str, Tensor] = getattr(self.optimiser, "state", {})
        return found

    @property
    def plan(self) -> WiringPlan:
        """The wiring plan, with the regions and the operator graph it stands on."""
        return self.program.schedule.tasks.plan

    @property
    def schedule(self) -> Schedule:
        """Lanes, actions in host order, and the predicted times."""
        return self.program.schedule

    @property
    def source(self) -> str:
        """The text of step.py."""
        return self.program.source

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters; of those on lane 0 where regions live on GPUs of their own."""
        places = self.module.__dict__.get("PLACES", {})
        first = next(self.model.parameters())
        return next((item for name, item in self.model.named_parameters() if not places.get(name)), first).device

    def join(self) -> None:
        """Let the current stream go on only after all lanes. Steps that overlap leave their lanes at work: call this
        before you read parameters or synapses elsewhere, or change them. Others have joined them already."""
        if self.schedule.overlap and hasattr(self.module, "join"):
            for device in self.module.Lanes.left:  # where lane 0 was, which need not hold a parameter
                self.module.join(device)

    def storage(self) -> dict[str, Tensor]:
        """The model's parameters and buffers by key, sharing storage with the model, and the step's constants."""
        held: dict[str, Tensor] = {name: item.detach() for name, item in self.model.named_parameters()}
        held.update(self.model.named_buffers())
        device, places = self.device, self.module.__dict__.get("PLACES", {})
        for key, value in self.constants.items():
            home = self.module.lane_device(places.get(key, 0), device)
            if value.device != home:
                self.constants[key] = value = value.to(home)
            # A table that the model has not made yet, or has made for other inputs, is the step's own.
            if key not in held or held[key].shape != value.shape:
                held[key] = value
        return held

    def __call__(
        self, inputs: Any, target: Tensor | Mapping[str, Tensor], kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """One training step on a batch.

        inputs: as ``example_inputs`` was given: a tensor, a tuple of positional arguments, or a mapping of keyword
        arguments. target: as the loss expects it; by the outputs' labels where several have a loss. kwargs: keyword
        arguments beside positional ones, as ``example_kwargs`` was given.

        Raises StepError, with parameters, buffers and synapses as they were: RG601 and RG602 for wrong shapes or
        dtypes, RG603 for classes out of range, RG604 where the loss or an input is not finite.
        """
        return self._run(inputs, kwargs, target, self.optimiser)

    def mirror(self, inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Tensor:
        """Let the synapses whose rule is "mirror" learn from noise, as they do in every step, and nothing else: the
        mirror mode of Akrout et al. (2019), to be taken in turn with training steps, or before them. Parameters and
        buffers stay as they are. Returns the mean square of what noise of deviation 1 would change (a 0-dim tensor).

        Raises UsageError RG405 where no synapse has that rule, and StepError as a training step does.
        """
        given = [item.detach() for item in self._given(inputs, kwargs)]
        self._same_device(given, [])
        return mirror(self, given)

    def _given(self, inputs: Any, keywords: Mapping[str, Any] | None) -> list[Tensor]:
        """The tensors that the graph takes, from the arguments of a call."""
        wanted = self.plan.regions.graph.inputs
        args, kwargs = called_as(inputs, keywords, [item.path for item in wanted])
        found, problems = [], []
        for item in wanted:
            try:
                value = at(args, kwargs, item.path)
            except (LookupError, AttributeError, TypeError):
                value = None
            if isinstance(value, Tensor):
                found.append(value)
            else:
                kind = "is missing" if value is None else f"is a {type(value).__name__}, not a tensor"
                problems.append(Problem("RG601", f"input {item.name} {kind}", "step()"))
        count = len(arguments(args, kwargs))
        if not problems and count != len(wanted):
            problems.append(Problem("RG601", f"the step takes {len(wanted)} input tensors, not {count}", "step()"))
        if problems:
            raise StepError(problems)
        return found

    def arguments(
        self, inputs: Any, target: Tensor | Mapping[str, Tensor], kwargs: Mapping[str, Any] | None = None
    ) -> tuple[list[Tensor], Tensor | dict[str, Tensor]]:
        """The tensors that a call gives to the emitted step: its inputs, and the target or targets.

        Raises StepError RG601 or RG602 where one is missing, no tensor, or on another device."""
        given = self._given(inputs, kwargs)
        labels = [item.label for item in self.plan.losses]
        if len(labels) == 1:
            goal: Any = target[labels[0]] if isinstance(target, Mapping) and labels[0] in target else target
            wrong = not isinstance(goal, Tensor)
        else:
            goal = dict(target) if isinstance(target, Mapping) else {}
            wrong = set(goal) != set(labels) or not all(isinstance(item, Tensor) for item in goal.values())
        if wrong:
            wanted = "a tensor" if len(labels) == 1 else f"a dict of tensors for {', '.join(labels)}"
            raise StepError(Problem("RG602", f"the target is a {type(target).__name__}, not {wanted}", "step()"))
        goal = goal.detach() if isinstance(goal, Tensor) else {label: goal[label].detach() for label in labels}
        self._same_device(given, [goal] if isinstance(goal, Tensor) else list(goal.values()))
        return [item.detach() for item in given], goal

    def _same_device(self, given: Sequence[Tensor], goals: Sequence[Tensor]) -> None:
        # Where regions live on GPUs of their own, the parameters follow the input.
        home = given[0].device if self.module.__dict__.get("PLACES") else self.device
        problems = [
            Problem(code, f"the {kind} is on {value.device}, the model on {home}", "step()", f"Move it to {home}.")
            for code, kind, values in (("RG601", "input", given), ("RG602", "target", goals))
            for value in values
            if value.device != home
        ]
        if problems:
            raise StepError(problems)

    def settings(self) -> dict[str, Any]:
        """What the emitted step takes beside tensors: the rates, and the sub-modules that run as they are."""
        found: dict[str, Any] = {"lr": self.lr, "beta": self.beta, "gamma": self.gamma}
        opaque = [item.args[0] for item in self.plan.regions.graph.operators if item.target == OPAQUE]
        if opaque:
            found["M"] = {str(path): self.model.get_submodule(str(path)) for path in opaque}
        return found

    def _run(
        self, inputs: Any, kwargs: Mapping[str, Any] | None, target: Tensor | Mapping[str, Tensor], optimise: Any
    ) -> Tensor:
        given, goal = self.arguments(inputs, target, kwargs)
        self.place(given[0].device)
        settings = self.settings()
        try:
            with in_training(list(settings.get("M", {}).values())):
                loss: Tensor = self.module.step(
                    self.storage(), self.store.all(), *given, goal, optimise=optimise, **settings
                )
        except (ValueError, FloatingPointError) as error:
            code, _, cause = str(error).partition(" ")
            if code in CODES:
                raise StepError(Problem(code, cause, "step()")) from None
            raise
        return loss

    def place(self, device: torch.device | str) -> None:
        """Bring everything to where it lives, with lane 0 on ``device``: synapses follow the model to another device,
        and where regions live on GPUs of their own, so do their parameters and buffers. Every call of the step does
        this."""
        device = torch.device(device)
        if self.module.__dict__.get("PLACES") and device.type == "cuda":
            self.module.place(self.model, device)
        self.store.place(device)

    def graphed(self, fused: bool = False) -> GraphedStep:
        """This step by CUDA graphs, as far as it can be captured: call the result as you would call the step.
        ``fused``: whether Inductor compiles what is captured, piece by piece.

        Raises UsageError RG606 where the model is not on a CUDA device."""
        from reclra_graph.runtime.graphed import GraphedStep  # which needs this file
        from reclra_graph.runtime.pieced import PiecedStep

        return GraphedStep(self, fused=PiecedStep(self) if fused else None)

    def fused(self, recompute: bool = True) -> FusedStep:
        """This step compiled by Inductor, where it can be: call the result as you would call the step. The first call
        with a shape compiles; what was compiled is kept on disk. On CUDA with several lanes there is a piece for all
        that a lane does between two points where lanes are ordered; else the step is one, and ``recompute`` lets it
        compute activations again behind the loss, instead of holding them until then (``runtime/recompute.py``)."""
        from reclra_graph.runtime.fused import FusedStep  # which needs this file
        from reclra_graph.runtime.pieced import PiecedStep

        lanes_are_real = self.device.type == "cuda" and len(self.schedule.lanes) > 1
        return PiecedStep(self) if lanes_are_real else FusedStep(self, recompute=recompute)

    def deltas(
        self, inputs: Any, target: Tensor | Mapping[str, Tensor], kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """(loss, directions of descent for the parameters, the same for the synapses), means over the batch.

        Parameters and synapses stay as they are; buffers such as running statistics move on, as in any forward pass in
        train mode."""
        self.join()
        self.store.settled()
        found: dict[int, dict[str, Tensor]] = {id(self.store.all()): {}}
        parameters: dict[str, Tensor] = {}

        held: dict[int, Tensor] = {}

        def collect(store: dict[str, Tensor], name: str, delta: Tensor, lr: float) -> None:
            given = delta.clone() if id(delta) in held else delta  # what is clipped in place must not be another's too
            held[id(delta)] = delta
            found.get(id(store), parameters)[name] = given.to(store[name].device)

        loss = self._run(inputs, kwargs, target, collect)
        self.join()
        return loss, parameters, self.store.deltas(found[id(self.store.all())])

    def state_dict(self) -> dict[str, Tensor]:
        """The synapses as ``"E.9->5"`` → tensor, and what the optimiser remembers as ``"optimizer.0.weight|v"``; save
        it beside the model's own ``state_dict()``."""
        self.join()
        remembered = {f"{OPTIMIZER}{key}": value for key, value in self.optimiser_state.items()}
        return {f"E.{name}": value for name, value in self.synapses.items()} | remembered

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the synapses, and what the optimiser remembers, from ``state_dict()``. Raises ModelError RG605 for
        missing, unknown or misshapen ones; nothing is changed then."""
        problems = []
        remembered, wrong = self._remembered(state)
        problems += wrong
        for name, value in self.synapses.items():
            given = state.get(f"E.{name}")
            if given is None:
                problems.append(Problem("RG605", f"the state has no synapse {name}", f"E.{name}"))
            elif given.shape != value.shape:
                cause = f"synapse {name} is {tuple(given.shape)} in the state, {tuple(value.shape)} in the plan"
                problems.append(Problem("RG605", cause, f"E.{name}"))
        for key in state:
            if not key.startswith(OPTIMIZER) and key.removeprefix("E.") not in self.synapses:
                problems.append(Problem("RG605", f"the plan has no {key}", key))
        if problems:
            raise ModelError(problems)
        self.join()
        for name, value in self.synapses.items():
            value.copy_(state[f"E.{name}"])
        self.optimiser_state.clear()
        self.optimiser_state.update(remembered)

    def _remembered(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Problem]]:
        """The optimiser's part of a ``state_dict()``, and what is wrong with it."""
        slots: Sequence[str] = getattr(self.optimiser, "slots", ())
        learned = {**self.storage(), **{f"E.{name}": value for name, value in self.synapses.items()}}
        found, problems = {}, []
        for key, value in state.items():
            name, _, slot = key.removeprefix(OPTIMIZER).rpartition("|")
            if not key.startswith(OPTIMIZER):
                continue
            if slot not in slots or name not in learned:
                cause = f"the plan's optimiser, {self.plan.rates.optimizer}, has no {key}"
                problems.append(Problem("RG605", cause, key))
            elif value.shape != (() if slot[0] == "b" else learned[name].shape):
                cause = f"{key} is {tuple(value.shape)} in the state, and {name} {tuple(learned[name].shape)}"
                problems.append(Problem("RG605", cause, key))
            else:
                found[key.removeprefix(OPTIMIZER)] = value.clone()
        return found, problems

    def save(self, directory: str | Path) -> Path:
        """Write step.py, plan.json, the pictures, schedule.json, report.txt, the synapses and what ``rg.load`` needs.

        Returns the folder. Raises ModelError RG701 where it cannot be written; nothing half-written is left behind.
        """
        from reclra_graph.export.artifacts import write_all  # only those who save pay for the pictures

        return write_all(self, Path(directory))

    def __repr__(self) -> str:
        plan = self.plan
        lanes = len(self.schedule.lanes)
        return f"CompiledStep({plan.regions.graph.model}, {plan.wiring} wiring, depth {plan.depth}, {lanes} lanes)"


def check_model(model: nn.Module, graph: OperatorGraph) -> None:
    """Raise ModelError RG605 unless the model has the parameters and buffers that the graph was captured from."""
    held = {name: tuple(item.shape) for name, item in (*model.named_parameters(), *model.named_buffers())}
    problems = []
    for item in graph.held:
        if isinstance(item, Buffer) and item.constant:
            continue
        if item.key not in held:
            problems.append(Problem("RG605", f"the model has no {item.key}", item.key))
        elif held[item.key] != item.type.shape:
            problems.append(Problem("RG605", f"{item.key} is {held[item.key]}, not {item.type.shape}", item.key))
    if problems:
        raise ModelError(problems)
