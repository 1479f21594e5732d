"""Backpropagation by autograd: the yardstick."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.errors import Problem, StepError
from reclra_graph.methods.optimizers import Make
from reclra_graph.structure import called

_NUMBERS = itertools.count()


class BackpropLearner:
    """forward, loss, backward, and one of PyTorch's optimisers."""

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[Any, Tensor], Tensor],
        optimizer: Make,
        lr: float = 0.1,
        *,
        compiled: bool = False,
        checked: bool = True,
        autocast: str | None = None,
    ) -> None:
        """objective: (what forward() returns, target) to a 0-dim loss. compiled: forward pass and loss of
        a model of one tensor, and so their derivatives, by ``torch.compile(mode="max-autotune")``. checked: look at the
        loss before anything learns, for which a GPU has to be waited for. autocast: "bfloat16", products as
        torch.autocast has them."""
        self.model, self.checked = model, checked
        self.optimizer = optimizer([item for item in model.parameters() if item.requires_grad], lr)
        self.device = next(model.parameters()).device.type
        self.low = None if autocast is None else getattr(torch, autocast)

        def forward(x: Any, y: Tensor) -> Tensor:
            return objective(model(x), y)

        def called_with(x: Any, y: Tensor) -> Tensor:
            args, kwargs = called(x)
            return objective(model(*args, **kwargs), y)

        # What Dynamo compiled hangs on the code: with one of its own, no learner looks through what is another's.
        forward.__code__ = forward.__code__.replace(co_name=f"forward_{next(_NUMBERS)}")
        self.objective: Callable[[Any, Tensor], Tensor] = (
            torch.compile(forward, mode="max-autotune") if compiled else forward
        )
        self.several = called_with

    def learn(self, x: Any, y: Tensor, lr: float) -> Tensor:
        """One training step; the loss. Raises StepError RG604 where that is looked at and not finite: parameters and
        buffers are then as they were."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        buffers = [(item, item.clone()) for item in self.model.buffers()] if self.checked else []
        objective = self.objective if isinstance(x, Tensor) else self.several
        with contextlib.nullcontext() if self.low is None else torch.autocast(self.device, dtype=self.low):
            loss = objective(x, y)
        if self.checked and not bool(torch.isfinite(loss.detach())):
            with torch.no_grad():
                for item, before in buffers:
                    item.copy_(before)
            raise StepError(Problem("RG604", "the loss is not finite; the parameters are as they were", "learn()"))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """A copy of parameters, buffers, and what the optimiser remembers."""
        return copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})

    def load(self, state: dict[str, Any]) -> None:
        """Learn on from a ``state()``."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
