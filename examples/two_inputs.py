"""A model with two inputs: an image and a short vector that comes with it.

Both are mapped into one hidden layer, whose pre-activation is the sum of two weight matrices' outputs: one region,
which updates both from the same error. Call the step as `step((image, context), target)`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoInputs(nn.Module):
    """An image [B, 784] and a context vector [B, 8] to scores [B, classes]."""

    def __init__(self, hidden: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.image = nn.Linear(784, hidden)
        self.context = nn.Linear(8, hidden, bias=False)
        self.middle = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, classes)

    def forward(self, image: Tensor, context: Tensor) -> Tensor:
        """Map [B, 784] and [B, 8] to [B, classes]."""
        joined = torch.tanh(self.image(image) + self.context(context))
        scores: Tensor = self.output(torch.tanh(self.middle(joined)))
        return scores


def build_model() -> TwoInputs:
    """The model for ten classes, with 128 hidden units."""
    return TwoInputs()


example_inputs = (torch.zeros(50, 784), torch.zeros(50, 8))


if __name__ == "__main__":
    import reclra_graph as rg

    step = rg.compile(build_model(), example_inputs, gpus=2, lr=0.05)
    generator = torch.Generator().manual_seed(0)
    image, context = torch.rand(50, 784, generator=generator), torch.rand(50, 8, generator=generator)
    target = torch.randint(10, (50,), generator=generator)
    for number in range(5):
        print(f"step {number + 1}: loss {float(step((image, context), target)):.4f}")
