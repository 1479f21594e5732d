"""Images, volumes and signals: U-Net, 3-D, 1-D and transposed convolutions, filters in the frequency domain."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.own.draw import Builder, normal, words


def double(inner: int, outer: int) -> nn.Sequential:
    """Two convolutions with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
        nn.Conv2d(outer, outer, 3, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Down twice, up twice, with the long skips (Ronneberger et al. 2015); a class for every pixel."""

    def __init__(self, channels: int = 1, classes: int = 3) -> None:
        super().__init__()
        self.first, self.second, self.bottom = double(channels, 8), double(8, 16), double(16, 32)
        self.rise = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.fourth = double(32, 16)
        self.last = double(24, 8)
        self.classify = nn.Conv2d(8, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.first(image)
        coarse = self.second(F.max_pool2d(fine, 2))
        x = self.bottom(F.max_pool2d(coarse, 2))
        x = self.fourth(torch.cat([self.rise(x), coarse], dim=1))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.classify(self.last(torch.cat([x, fine], dim=1)))


class Volume(nn.Module):
    """3-D convolutions over small volumes."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Conv3d(8, 16, 3, padding=1, groups=2),
            nn.InstanceNorm3d(16, affine=True),
            nn.ELU(),
            nn.AdaptiveAvgPool3d(1),
        )
        self.classify = nn.Linear(16, classes)

    def forward(self, volume: Tensor) -> Tensor:
        return self.classify(self.features(volume).flatten(1))


class ConvAutoencoder(nn.Module):
    """Strided convolutions down, transposed ones up."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 4, 2, 1), nn.SiLU())
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 4, 2, 1),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 3, 2, 1, output_padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.decode(self.encode(image)))


class WaveNet(nn.Module):
    """Dilated causal 1-D convolutions with gates and skips (van den Oord et al. 2016)."""

    def __init__(self, channels: int = 8, classes: int = 6) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, channels, 1)
        self.gated = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(3))
        self.classify = nn.Conv1d(channels, classes, 1)

    def forward(self, wave: Tensor) -> Tensor:
        x = self.enter(wave)
        skips = torch.zeros_like(x)
        for index, (gated, residual) in enumerate(zip(self.gated, self.residual, strict=True)):
            filtered, gate = gated(F.pad(x, (2**index, 0))).chunk(2, dim=1)
            y = residual(torch.tanh(filtered) * torch.sigmoid(gate))
            x, skips = x + y, skips + y
        return self.classify(F.relu(skips)).mean(dim=2)


class GlobalFilter(nn.Module):
    """Patches mixed by a learned filter in the frequency domain (Rao et al. 2021): complex values inside."""

    def __init__(self, width: int = 12, size: int = 4, classes: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)
        self.filter = nn.Parameter(0.02 * torch.randn(size, size // 2 + 1, width, 2))
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
        self.classify = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).permute(0, 2, 3, 1)
        spectrum = torch.fft.rfft2(self.norm(x), dim=(1, 2), norm="ortho") * torch.view_as_complex(self.filter)
        x = x + torch.fft.irfft2(spectrum, s=x.shape[1:3], dim=(1, 2), norm="ortho")
        return self.classify((x + self.mlp(x)).mean(dim=(1, 2)))


class DeepSupervision(nn.Module):
    """Side heads that are trained too (Lee et al. 2015): returns (scores, [side scores, ...])."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        widths = (3, 8, 12, 16)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.BatchNorm2d(outer), nn.ReLU())
            for inner, outer in pairwise(widths)
        )
        self.sides = nn.ModuleList(nn.Linear(width, classes) for width in widths[1:-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        means = []
        x = image
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean(dim=(2, 3)))
        return self.head(means[-1]), [side(mean) for side, mean in zip(self.sides, means[:-1], strict=True)]


class StochasticDepth(nn.Module):
    """Residual blocks that are dropped sample by sample while training (Huang et al. 2016), and dropout."""

    def __init__(self, width: int = 16, blocks: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.enter = nn.Linear(12, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1))
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for index, block in enumerate(self.blocks):
            y = block(x)
            if self.training:
                kept = 1 - 0.1 * (index + 1)
                y = y * torch.bernoulli(torch.full((x.shape[0], 1), kept, dtype=x.dtype, device=x.device)) / kept
            x = x + y
        return self.head(x)


def _deep_supervision() -> ZooModel:
    target = words(5, 4)
    labels = ("0", "1.0", "1.1")
    return ZooModel(
        "deep_supervision",
        DeepSupervision(),
        (normal(4, 3, 16, 16),),
        dict.fromkeys(labels, "cross-entropy"),
        dict.fromkeys(labels, target),
    )


MODELS: dict[str, Builder] = {
    "unet": lambda: ZooModel("unet", UNet(), (normal(2, 1, 16, 16),), "cross-entropy", words(3, 2, 16, 16)),
    "conv3d": lambda: ZooModel("conv3d", Volume(), (normal(2, 1, 8, 8, 8),), "cross-entropy", words(4, 2)),
    "transposed_conv": lambda: ZooModel(
        "transposed_conv", ConvAutoencoder(), (normal(2, 1, 16, 16),), "mse", torch.rand(2, 1, 16, 16)
    ),
    "wavenet_conv1d": lambda: ZooModel("wavenet_conv1d", WaveNet(), (normal(4, 1, 32),), "cross-entropy", words(6, 4)),
    "fourier_filter": lambda: ZooModel(
        "fourier_filter", GlobalFilter(), (normal(4, 3, 16, 16),), "cross-entropy", words(4, 4)
    ),
    "deep_supervision": _deep_supervision,
    "stochastic_depth": lambda: ZooModel(
        "stochastic_depth", StochasticDepth(), (normal(6, 12),), "cross-entropy", words(5, 6)
    ),
}
