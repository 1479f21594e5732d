"""Where looks are written while a net trains: JSON lines, and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reclra_graph.diagnostics.record import Look
from reclra_graph.errors import ModelError, Problem, UsageError


class JsonLines:
    """One JSON object for each look, on a line of its own that is in the file once ``write`` returns. A file that is
    there is gone on with; what a run that was killed left unfinished at its end is cut off."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._begun = False

    def write(self, look: Look) -> None:
        """Append one look. Raises ModelError RG701 where the file cannot be written."""
        line = json.dumps(look.as_dict(), allow_nan=False) + "\n"
        try:
            if not self._begun:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.exists():
                    _finish(self.path)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise ModelError(Problem("RG701", f"cannot be written: {error.strerror}", str(self.path))) from None
        self._begun = True


def _finish(path: Path) -> None:
    """Cut off a last line that has no end."""
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def read_looks(path: str | Path) -> list[Look]:
    """The looks of a file that ``JsonLines`` wrote, in order; a last line without an end is left out.

    Raises ModelError: RG101 where there is no such file, RG704 for lines that hold no look."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise ModelError(Problem("RG101", "there is no such file", str(path), "Check the path.")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(Problem("RG704", f"cannot be read: {error}", str(path))) from None
    looks, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            looks.append(Look.from_dict(json.loads(line, parse_constant=_no_number)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            cause = f"line {number} is no look at a step: {type(error).__name__}: {error}"
            problems.append(Problem("RG704", cause, str(path), "Give a file that diagnostics wrote as JSON lines."))
    if problems:
        raise ModelError(problems)
    return looks


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


class TensorBoard:
    """Event files for TensorBoard in a folder: ``cosine/3 blocks.0.conv1``, ``angle/9->5`` and so on, by training step.

    Raises UsageError RG910 where the extra ``tensorboard`` is not installed, ModelError RG701 where the folder cannot
    be written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        self._looks = 0
        try:
            from torch.utils.tensorboard import SummaryWriter  # imports tensorboard, which not everybody has
        except ImportError as error:
            cause = f"writing for TensorBoard needs a package that is not installed: {error}"
            raise UsageError(Problem("RG910", cause, "diagnostics")) from None
        try:
            self._writer: Any = SummaryWriter(self.folder)
        except OSError as error:
            raise ModelError(Problem("RG701", f"cannot be written: {error.strerror}", self.folder)) from None

    def write(self, look: Look) -> None:
        """Write one look; one without a number goes by its place in the row."""
        number = self._looks if look.step is None else look.step
        self._looks += 1
        for tag, value in scalars(look):
            self._writer.add_scalar(tag, value, number)
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()


_REGION = ("cosine", "discrepancy", "error", "displacement", "update", "weight", "flips", "update_flips")
_EDGE = ("angle", "sent", "synapse", "change", "flips", "change_flips")


def scalars(look: Look) -> list[tuple[str, float]]:
    """(tag, number) of all that a look has numbers for, parameters apart."""
    found = [(f"total/{name}", getattr(look, name)) for name in ("loss", "cosine", "discrepancy")]
    for region in look.regions:
        found += [(f"{name}/{region.id} {region.name}", getattr(region, name)) for name in _REGION]
    for edge in look.edges:
        tags = {name: f"synapse_{name}" if name in ("flips", "change_flips") else name for name in _EDGE}
        found += [(f"{tags[name]}/{edge.name}", getattr(edge, name)) for name in _EDGE]
    return [(tag, value) for tag, value in found if value is not None]
