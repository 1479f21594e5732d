"""What the learners with a loop of their own share: the traced model, its optimiser, and their state."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.errors import ModelError, Problem
from reclra_graph.methods.optimizers import Make
from reclra_graph.methods.traced import OPTIONS, TracedModel, misfit, refuse

FACTOR = "factor"
"""Key of a parameter group: its learning rate is the run's, times this."""


class LoopedLearner(ABC):
    """A learner with a loop of its own. ``name``: of the method."""

    name = ""
    optimiser: torch.optim.Optimizer

    def __init__(self, model: nn.Module, example_inputs: Any, make: Make, **given: Any) -> None:
        """make: the optimiser. given: options of the loop's own, and ``reclra_graph.methods.traced.OPTIONS``."""
        self.traced = TracedModel(model, example_inputs, {key: given[key] for key in given if key in OPTIONS})
        self.model = self.traced.model
        self.options = self.traced.options
        self.make = make
        self.draws = torch.Generator().manual_seed(self.options.seed)

    def optimise(self, groups: Sequence[tuple[Sequence[nn.Parameter], float]]) -> None:
        """Have groups of parameters learn, each with a factor of the learning rate."""
        self.optimiser = self.make(grouped(groups), self.options.lr)

    def step(self, deltas: Mapping[nn.Parameter, Tensor | None], lr: float) -> None:
        """Move parameters against ``deltas``, means over the batch; those without one stay as they are."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group[FACTOR]
        stepped(self.optimiser, deltas)

    def state(self) -> dict[str, Any]:
        """A copy of all that the run needs to go on: the model's parameters and buffers, the optimiser's memory, the
        generator, and what ``parts()`` adds. ``torch.load(weights_only=True)`` reads it back."""
        held = {name: item.detach() for name, item in self.model.named_parameters()}
        held |= dict(self.model.named_buffers())
        own = {key: part.state_dict() for key, part in self.parts().items()}
        return copy.deepcopy(
            {"method": self.name, "model": held, "optimizer": self.optimiser.state_dict(),
             "draws": self.draws.get_state(), **own}
        )  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``. Raises ModelError RG605, with nothing changed, where it is that of another method
        or model."""
        mine = self.state()
        refuse(misfit(state, mine))
        for key in ("model", *(key for key, part in self.parts().items() if isinstance(part, nn.Module))):
            refuse(misfit(state[key], mine[key], f"{key}."))
        try:
            self._take(state)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            self._take(mine)
            cause = f"the optimiser's state is another's: {error}"
            raise ModelError(Problem("RG605", cause, "optimizer")) from error

    @torch.no_grad()
    def _take(self, state: Mapping[str, Any]) -> None:
        for name, item in (*self.model.named_parameters(), *self.model.named_buffers()):
            item.copy_(state["model"][name])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.draws.set_state(state["draws"].cpu())
        for key, part in self.parts().items():
            part.load_state_dict(copy.deepcopy(state[key]))

    @abstractmethod
    def learn(self, x: Any, y: Tensor, lr: float) -> Tensor:
        """Learn from one batch, as ``Learner`` says."""

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What else learns, by its key in ``state()``."""
        return {}


def grouped(groups: Sequence[tuple[Sequence[nn.Parameter], float]]) -> Any:
    """Parameter groups as torch.optim takes them, in the place of parameters."""
    return [{"params": list(parameters), FACTOR: factor} for parameters, factor in groups]


def stepped(optimiser: torch.optim.Optimizer, deltas: Mapping[nn.Parameter, Tensor | None]) -> None:
    """One step of the optimiser on the derivatives given; ``.grad`` of the parameters is as it was, afterwards."""
    before = {parameter: parameter.grad for parameter in deltas}
    try:
        for parameter, delta in deltas.items():
            parameter.grad = None if delta is None else delta.detach()
        optimiser.step()
    finally:
        for parameter, grad in before.items():
            parameter.grad = grad
