"""Inputs for a transformers model, from the names of its forward()'s arguments and the sizes in its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 16
SAMPLES = 8000
"""Samples of audio: 24 frames behind the usual seven convolutions."""


def candidates(model: nn.Module, config: Any, batch: int) -> Iterator[dict[str, Any]]:
    """Keyword arguments to try, the likeliest first."""
    names = tuple(inspect.signature(model.forward).parameters)
    main = str(getattr(model, "main_input_name", "input_ids"))
    made = _Inputs(config, batch)
    if "past_values" in names:
        yield {name: value for name, value in made.series(names).items() if name in names}
        return
    firsts = [main] if main in names else []
    firsts += [name for name in ("input_ids", "pixel_values", "input_values", "input_features") if name in names]
    tried: set[str] = set()
    for first in firsts:
        if first in tried:
            continue
        tried.add(first)
        for value in made.main(first):
            rest = made.beside(names, first)
            yield {first: value, **rest}
            if "pixel_values" in names and first == "input_ids":
                for picture in made.main("pixel_values"):
                    yield {first: value, "pixel_values": picture, **rest}


class _Inputs:
    def __init__(self, config: Any, batch: int) -> None:
        self.config, self.batch = config, batch
        parts = [config, *(item for item in vars(config).values() if hasattr(item, "model_type"))]
        self.parts = parts
        self.draw = torch.Generator().manual_seed(2)

    def size(self, *names: str, default: int = 0) -> int:
        """The first whole number above 0 among the named sizes, of the configuration or of one inside it."""
        for part in self.parts:
            for name in names:
                value = getattr(part, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return default

    def tokens(self, length: int = TOKENS) -> Tensor:
        """Words that are not special tokens: [B, T]."""
        vocabulary = self.size("vocab_size", default=99)
        low, high = (4, vocabulary - 10) if vocabulary > 40 else (0, vocabulary)
        return torch.randint(low, high, (self.batch, length), generator=self.draw)

    def random(self, *shape: int) -> Tensor:
        """Normal random numbers."""
        return torch.randn(self.batch, *shape, generator=self.draw)

    def main(self, name: str) -> Iterator[Tensor]:
        """Values to try for the main input."""
        match name:
            case "input_ids":
                yield self.tokens()
            case "pixel_values":
                yield from self.pictures()
            case "input_values":
                yield self.random(SAMPLES)
                yield self.random(1, SAMPLES)
                yield self.random(self.size("max_length", default=64), self.size("num_mel_bins", default=80))
            case _:
                mel = self.size("num_mel_bins", "input_feat_per_channel", "feature_size", default=80)
                yield self.random(mel, 2 * self.size("max_source_positions", default=32))
                for width in dict.fromkeys((mel, self.size("feature_projection_input_dim", "input_dim", default=160))):
                    yield self.random(64, width)

    def pictures(self) -> Iterator[Tensor]:
        """Images [B, C, H, W], or clips [B, T, C, H, W] and [B, C, T, H, W] where the model counts frames."""
        channels = self.size("num_channels", "in_channels", "in_chans", default=3)
        size: Any = next((part.image_size for part in self.parts if getattr(part, "image_size", None)), 64)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        frames = self.size("num_frames", "frames_per_clip")
        if frames:
            yield self.random(frames, channels, height, width)
            yield self.random(channels, frames, height, width)
        yield self.random(channels, height, width)
        if height < 224:
            yield self.random(channels, 224, 224)

    def beside(self, names: tuple[str, ...], first: str) -> dict[str, Any]:
        """What stands beside the main input."""
        found: dict[str, Any] = {}
        if first == "input_ids" and "attention_mask" in names:
            found["attention_mask"] = torch.ones(self.batch, TOKENS, dtype=torch.int64)
        if "bbox" in names:
            corners = torch.randint(0, 30, (self.batch, TOKENS, 2), generator=self.draw)
            found["bbox"] = torch.cat([corners, corners + 1 + corners // 2], dim=2)
        if "decoder_input_ids" in names and getattr(self.config, "is_encoder_decoder", False):
            found["decoder_input_ids"] = self.tokens(TOKENS // 2)
        return found

    def series(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Observed and future values of a time series, with their features."""
        context = self.size("context_length", default=32)
        channels = self.size("num_input_channels", "input_size", default=1)
        if "past_time_features" not in names:
            return {"past_values": self.random(context, channels)}
        lags = max(getattr(self.config, "lags_sequence", None) or [0])
        future, features = self.size("prediction_length", default=8), self.size("num_time_features")
        wide = () if channels == 1 else (channels,)
        past = context + lags
        return {
            "past_values": self.random(past, *wide),
            "past_time_features": self.random(past, features),
            "past_observed_mask": torch.ones(self.batch, past, *wide),
            "future_values": self.random(future, *wide),
            "future_time_features": self.random(future, features),
        }
