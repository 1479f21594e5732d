"""What a method is to those who train with it: a model that learns from one batch at a time."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class Learner(Protocol):
    """A model and all that its learning needs."""

    model: nn.Module
    """Moved in place."""

    def learn(self, x: Any, y: Tensor, lr: float) -> Tensor:
        """Learn from one batch. x: as forward() takes it; returns the loss, a 0-dim tensor.

        Raises StepError RG604 where the loss is not finite; nothing has changed then."""

    def state(self) -> dict[str, Any]:
        """A copy of all that a run needs to go on exactly; ``torch.load(..., weights_only=True)`` reads it back."""

    def load(self, state: dict[str, Any]) -> None:
        """Learn on from a ``state()``."""


@runtime_checkable
class Predicts(Protocol):
    """A learner whose model, under its method, predicts by something else than one call of forward()."""

    def predict(self, x: Any) -> Tensor:
        """The output that has the loss. x: as forward() takes it."""
