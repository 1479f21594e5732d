"""What torch says of its own failed attempts while it traces, kept from the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep what torch logs and prints of its own failed attempts from the terminal: what matters comes back as a coded
    error. forward() runs on symbols meanwhile, several times; what it prints goes the same way."""
    handlers = [
        handler
        for name, logger in list(logging.root.manager.loggerDict.items())
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger)
        for handler in logger.handlers
    ]
    levels = [handler.level for handler in handlers]
    # Who sets TORCH_LOGS wants to read them.
    if "TORCH_LOGS" in os.environ:
        yield
        return
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
