"""A small U-Net (Ronneberger et al., 2015) that finds what a noisy picture shows, and where, pixel by pixel.

    python examples/unet.py --compare

The pictures are the Fashion-MNIST images that travel with the examples, 5,000 for training and 1,000 held out, dimmed
and covered with noise. Each pixel is nothing, or part of a top, of trousers or a dress, of a shoe, or of a bag: the
place can be seen near by, the kind only from the whole. The output's error goes to every layer at its own place in
the picture ("channel" synapses).

Measured (docs/results/examples-unet.json): the held-out loss falls, below that of the last layer trained alone, and
stays above that of backprop.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from _train import DATA, Samples, Task, main
from torch import Tensor, nn

from reclra_graph.data import fashion_mnist

KINDS = 5
KIND_OF_CLASS = (1, 2, 1, 2, 1, 3, 1, 3, 4, 3)  # shirts and coats; trousers and dresses; shoes; bags


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.Tanh(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.Tanh(),
    )  # fmt: skip


class UNet(nn.Module):
    """Images [B, 1, H, W] to scores [B, kinds, H, W]; H and W are divisible by 4."""

    def __init__(self, width: int = 8, kinds: int = KINDS) -> None:
        super().__init__()
        self.down1 = convolutions(1, width)
        self.down2 = convolutions(width, 2 * width)
        self.bottom = convolutions(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.grow2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = convolutions(4 * width, 2 * width)
        self.grow1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = convolutions(2 * width, width)
        self.head = nn.Conv2d(width, kinds, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 1, H, W] to [B, kinds, H, W]."""
        fine = self.down1(x)
        half = self.down2(self.pool(fine))
        x = self.bottom(self.pool(half))
        x = self.up2(torch.cat([self.grow2(x), half], 1))
        x = self.up1(torch.cat([self.grow1(x), fine], 1))
        scores: Tensor = self.head(x)
        return scores


def build_model() -> UNet:
    """A U-Net of width 8 for five kinds of pixels; its last layer starts at zero."""
    model = UNet()
    nn.init.zeros_(model.head.weight)
    assert model.head.bias is not None
    nn.init.zeros_(model.head.bias)
    return model


example_inputs = (torch.zeros(50, 1, 28, 28),)


def samples() -> Samples:
    """Noisy pictures [N, 1, 28, 28], and the kind of each pixel [N, 28, 28]."""
    data = fashion_mnist(DATA / "fashion-mnist")
    generator = torch.Generator().manual_seed(0)
    kind = torch.tensor(KIND_OF_CLASS)

    def pair(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        kinds = torch.where(images[:, 0] > 0.1, kind[labels][:, None, None], 0)
        light = 0.3 + 0.7 * torch.rand(len(images), 1, 1, 1, generator=generator)
        return light * images + 0.3 * torch.randn(images.shape, generator=generator), kinds

    return Samples(*pair(data.train_images, data.train_labels), *pair(data.test_images, data.test_labels))


def error(scores: Tensor, kinds: Tensor) -> Tensor:
    """The share of pixels given the wrong kind."""
    return (scores.argmax(1) != kinds).float().mean()


task = Task(
    name="unet",
    title="A U-Net segments noisy Fashion-MNIST",
    model=build_model,
    samples=samples,
    loss=F.cross_entropy,
    error=error,
    options={"wiring": "flat", "synapse_entries": 1},  # one synapse for all places
    rates={"rec-LRA": (("head", 0.1), ("", 0.03)), "last layer only": (("head", 0.1),), "backprop": (("", 0.1),)},
    batch=50,
    epochs=3,
)

if __name__ == "__main__":
    sys.exit(main(task))
