"""Folders of the user's own: for what is worth keeping between runs, and for data sets."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """``reclra-graph/PART`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return _folder("XDG_CACHE_HOME", ".cache") / part


def data_folder() -> Path:
    """``reclra-graph`` in the user's folder of data (``XDG_DATA_HOME``, else ``~/.local/share``)."""
    return _folder("XDG_DATA_HOME", ".local/share")


def _folder(variable: str, usual: str) -> Path:
    named = os.environ.get(variable, "")
    return (Path(named) if os.path.isabs(named) else Path.home() / usual) / "reclra-graph"
