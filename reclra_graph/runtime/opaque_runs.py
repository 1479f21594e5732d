"""Sub-modules that run as they are inside a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn


@contextlib.contextmanager
def in_training(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Sub-modules that run as they are, in train mode; their modes come back, and after an error their buffers too."""
    inner = [item for module in modules for item in module.modules()]
    modes = [item.training for item in inner]
    buffers = [(item, item.clone()) for module in modules for item in module.buffers()]
    for module in modules:
        module.train()
    try:
        yield
    except BaseException:
        for buffer, before in buffers:
            buffer.copy_(before)
        raise
    finally:
        for item, mode in zip(inner, modes, strict=True):
            item.training = mode
