"""The pseudo-convolution ("pconv"): fixed noise in place of a window, and a product at every position.

    z^c = Σ_m w^{c,m} ReLU(z_in^m + n^m)         n^m fixed Gaussian maps; only w, and a bias where there is one, learn

Juefei-Xu, Boddeti, Savvides, "Perturbative Neural Networks", CVPR 2018, with the numbers of their code: 1×1 weights
over all maps, one map for each input channel, noise of the level 0.1. Theirs is uniform; Gaussian maps are those of the
rec-LRA paper. Their stride is a max pool behind the layer; here it is a mean over the stride's window before the
product, since means and products at positions can change places: the same numbers as behind it, for less work.

Eq. 5 needs no rule of its own for it: Δw^{c,m} = Σ_positions e^c ⊙ ReLU(z_in^m + n^m) is that of the 1×1 convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reclra_graph.errors import Problem, StepError, UsageError
from reclra_graph.rules import noise

MAPS = ("buffers", "regenerated")
SIGMA = 0.1
"""Deviation of the maps: the level of noise in the authors' code."""


class PerturbativeConv2d(nn.Module):
    """A pseudo-convolution: [B, in_channels, H, W] to [B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉].

    size: (H, W) of its input, or one number for both, whose every position has noise of its own. stride: in both
    dimensions, or in each: the mean over windows of that size, at the border over what is left of one. masks: maps for
    each input channel, each with a weight of its own to every output channel: the m-th map belongs to channel m mod
    in_channels. sigma: σ of the maps. seed: of the maps, which depend on it, on their number and on their size alone:
    they are the same on every device, and torch's own random numbers are not drawn for them. Layers of one net want
    seeds of their own. crop: positions that are left out at each border, in both dimensions or in each, as a
    convolution without padding leaves them out. maps: "buffers" holds the maps, masks·in_channels·H·W numbers;
    "regenerated" makes the same numbers anew in every forward pass, from masks·in_channels + 3·H·W words. Either is
    saved with the parameters.

    Weights [out_channels, masks·in_channels, 1, 1] begin as those of nn.Conv2d do, from torch's random numbers.

    Raises UsageError RG405 for arguments that cannot be, all at once; forward() raises StepError RG601 where its input
    has other channels or another size.
    """

    maps: Tensor | None
    rows: Tensor | None
    columns: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        masks: int = 1,
        sigma: float = SIGMA,
        seed: int = 0,
        bias: bool = True,
        crop: int | tuple[int, int] = 0,
        maps: str = "buffers",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        pairs = {name: _pair(value) for name, value in (("size", size), ("stride", stride), ("crop", crop))}
        counts = {"in_channels": in_channels, "out_channels": out_channels}
        problems = [*_problems(counts, pairs), *mask_problems(masks, sigma)]
        if maps not in MAPS:
            problems.append(Problem("RG405", f"maps is {maps!r}, not one of {', '.join(MAPS)}", "maps"))
        if problems:
            raise UsageError(problems)
        self.in_channels, self.out_channels, self.masks = in_channels, out_channels, masks
        self.size, self.stride, self.crop = pairs["size"], pairs["stride"], pairs["crop"]
        self.sigma, self.seed = float(sigma), seed
        rows, self.inner = masks * in_channels, (self.size[0] - 2 * self.crop[0], self.size[1] - 2 * self.crop[1])
        factory: Any = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_channels, rows, 1, 1, **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        words = noise.words(seed, rows, self.inner[0] * self.inner[1])
        made = noise.gaussian(*words, self.sigma).reshape(rows, *self.inner) if maps == "buffers" else None
        home, held = self.weight, made is not None
        self.register_buffer("maps", None if made is None else made.to(home))
        self.register_buffer("rows", None if held else words[0].to(home.device))
        self.register_buffer("columns", None if held else words[1].to(home.device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as nn.Conv2d draws them: uniform up to 1/√maps."""
        bound = self.weight.shape[1] ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def noise(self) -> Tensor:
        """The maps [masks·in_channels, H, W] less what is cropped, in the dtype of the weights."""
        if self.maps is not None:
            return self.maps
        assert self.rows is not None
        assert self.columns is not None
        return noise.gaussian(self.rows, self.columns, self.sigma).reshape(-1, *self.inner).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉]."""
        if tuple(x.shape[-3:]) != (self.in_channels, *self.size):
            seen, held = (f"[{', '.join(map(str, shape))}]" for shape in (x.shape[-3:], (self.in_channels, *self.size)))
            cause = f"a pseudo-convolution has maps for inputs {held}, its input is {seen}"
            raise StepError(Problem("RG601", cause, "PerturbativeConv2d", "Build it with the size of its input."))
        if self.crop != (0, 0):
            above, left = self.crop
            x = x[..., above : self.size[0] - above, left : self.size[1] - left]
        maps = self.noise()
        if self.masks == 1:
            z = F.relu(x + maps)
        else:
            several = maps.reshape(self.masks, self.in_channels, *self.inner)
            z = F.relu(x.unsqueeze(-4) + several).flatten(-4, -3)
        if self.stride != (1, 1):
            z = F.avg_pool2d(z, self.stride, ceil_mode=True, count_include_pad=False)
        return F.conv2d(z, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The arguments, as they are written."""
        kind = MAPS[self.maps is None]
        found = f"{self.in_channels}, {self.out_channels}, size={self.size}, stride={self.stride}, masks={self.masks}"
        crop = f", crop={self.crop}" if self.crop != (0, 0) else ""
        return f"{found}, sigma={self.sigma}, seed={self.seed}, bias={self.bias is not None}{crop}, maps={kind!r}"


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _problems(counts: dict[str, int], pairs: dict[str, tuple[int, int]]) -> list[Problem]:
    """What is wrong with numbers of channels, size, stride and crop."""
    found = []
    for name, value in counts.items():
        if value < 1:
            found.append(Problem("RG405", f"{name} is {value}; at least 1 is needed", name))
    for name, pair in pairs.items():
        least = 0 if name == "crop" else 1
        if min(pair) < least:
            found.append(Problem("RG405", f"{name} is {pair}; at least {least} is needed", name))
    (height, width), (above, left) = pairs["size"], pairs["crop"]
    if not found and (height <= 2 * above or width <= 2 * left):
        found.append(Problem("RG405", f"a crop of {pairs['crop']} leaves nothing of {pairs['size']}", "crop"))
    return found


def mask_problems(masks: int, sigma: float) -> list[Problem]:
    """What is wrong with a number of maps for each channel, and with their deviation."""
    found = []
    if masks < 1:
        found.append(Problem("RG405", f"masks is {masks}; at least 1 is needed", "masks"))
    if not 0 <= sigma < float("inf"):
        found.append(Problem("RG405", f"sigma is {sigma}; it is a number of at least 0", "sigma"))
    return found
