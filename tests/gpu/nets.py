"""Models for GPU tests and benchmarks: the examples', and those that only make sense on a GPU."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from tests.bench.record import example


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a skip connection, projected where the shape changes; 4·planes come out."""

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inplanes != 4 * planes:
            projection = nn.Conv2d(inplanes, 4 * planes, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * planes))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inplanes, H, W] to [B, 4 planes, H/stride, W/stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class ResNet50(nn.Module):
    """Images [B, 3, H, W] to scores [B, classes], as in He et al. 2016; modules carry torchvision's names."""

    def __init__(self, classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inplanes = width
        for number, (count, stride) in enumerate(((3, 1), (4, 2), (6, 2), (3, 2)), start=1):
            planes = width * 2 ** (number - 1)
            blocks = []
            for index in range(count):
                blocks.append(Bottleneck(inplanes, planes, stride if index == 0 else 1))
                inplanes = 4 * planes
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inplanes, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in (1, 2, 3, 4):
            x = getattr(self, f"layer{number}")(x)
        scores: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores


def mlp(width: int, layers: int, inputs: int = 784, classes: int = 10) -> nn.Sequential:
    """``layers`` linear layers of equal width with tanh between them."""
    widths = (inputs, *(width,) * (layers - 1), classes)
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        parts += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def resnet18(width: int = 64) -> nn.Module:
    """examples/resnet18.py."""
    made: nn.Module = example("resnet18").ResNet18(10, width)
    return made


def figure1() -> nn.Module:
    """examples/figure1.py."""
    made: nn.Module = example("figure1").build_model()
    return made


def lenet() -> nn.Module:
    """examples/lenet.py."""
    made: nn.Module = example("lenet").build_model()
    return made
