"""Where what is worth keeping between runs is kept: a folder of the user's own."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """``reclra-graph/PART`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "reclra-graph" / part
