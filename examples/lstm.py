"""An LSTM that reads a picture from top to bottom, two rows at a time, and then says what it shows.

    python examples/lstm.py --compare

It trains on the 5,000 Fashion-MNIST images that travel with the examples; 1,000 others are held out. The compiler
unrolls the recurrent layer: each of its 14 steps is a region, and the output's error comes to all of them over one
error synapse that they share, not backwards through time.

Measured (docs/results/examples-lstm.json): the held-out loss falls, far below that of the last layer trained alone,
and stays above that of backprop.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from _train import DATA, Samples, Task, main
from torch import Tensor, nn

from reclra_graph.data import fashion_mnist

STEPS, PIXELS = 14, 56  # two rows of 28 pixels a step


class Reader(nn.Module):
    """Sequences [B, 14, 56] to scores [B, classes]."""

    def __init__(self, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.lstm = nn.LSTM(PIXELS, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 14, 56] to [B, classes]."""
        states, _ = self.lstm(x)
        scores: Tensor = self.head(states[:, -1])
        return scores


def build_model() -> Reader:
    """A reader with 64 units for ten classes; its last layer starts at zero."""
    model = Reader()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


example_inputs = (torch.zeros(50, STEPS, PIXELS),)


def samples() -> Samples:
    """Images as sequences [N, 14, 56] of pixels in 0…1, and their classes [N]."""
    data = fashion_mnist(DATA / "fashion-mnist")
    train, test = (images.reshape(-1, STEPS, PIXELS) for images in (data.train_images, data.test_images))
    return Samples(train, data.train_labels, test, data.test_labels)


def error(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of images classified wrongly."""
    return (scores.argmax(1) != labels).float().mean()


task = Task(
    name="lstm",
    title="An LSTM reads Fashion-MNIST row by row",
    model=build_model,
    samples=samples,
    loss=F.cross_entropy,
    error=error,
    options={"wiring": "flat", "beta": 0.1},
    rates={"rec-LRA": (("head", 0.1), ("", 0.02)), "last layer only": (("head", 0.3),), "backprop": (("", 0.1),)},
    batch=50,
    epochs=8,
)

if __name__ == "__main__":
    sys.exit(main(task))
