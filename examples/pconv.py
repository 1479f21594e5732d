"""A small convolutional network with pseudo-convolutions: behind the first layer, windows give way to fixed noise.

    python examples/pconv.py

Each of its 3×3 convolutions but the first becomes a `rg.PerturbativeConv2d`, with one map of noise for every input
channel and a ninth of the weights. It learns 2,000 of the Fashion-MNIST images that travel with the examples, once, and
what it has learned is tried on 1,000 others.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import reclra_graph as rg
from reclra_graph.data import fashion_mnist

BATCH = 50

example_inputs = (torch.zeros(BATCH, 1, 28, 28),)


def layer(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    """A 3×3 convolution with batch norm and ReLU."""
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


def convolutional() -> nn.Sequential:
    """Images [B, 1, 28, 28] to scores [B, 10], by convolutions."""
    return nn.Sequential(
        *layer(1, 16, 1), nn.MaxPool2d(2), *layer(16, 16, 2), *layer(16, 16, 1), nn.Flatten(), nn.Linear(16 * 7 * 7, 10)
    )


def build_model() -> nn.Module:
    """The same with pseudo-convolutions."""
    return rg.replace_conv(convolutional(), example_inputs, report=print)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = build_model()
    print(model)
    data = fashion_mnist(Path(__file__).resolve().parent / "data" / "fashion-mnist")
    step = rg.compile(model, example_inputs, wiring="flat", lr=0.05)
    for number, start in enumerate(range(0, 2000, BATCH), start=1):
        here = slice(start, start + BATCH)
        loss = step(data.train_images[here], data.train_labels[here])
        if number % 10 == 0:
            print(f"step {number}: loss {float(loss):.4f}")
    images, labels = data.test_images[:1000], data.test_labels[:1000]
    with torch.no_grad():
        scores = model.eval()(images)
    wrong = (scores.argmax(1) != labels).float().mean()
    print(f"held out: loss {float(F.cross_entropy(scores, labels)):.4f}, {100 * float(wrong):.1f} % wrong")
