"""The methods by name; apart from what they do, so that a command line can list them without importing torch."""

from __future__ import annotations

METHODS = ("reclra", "bp")
