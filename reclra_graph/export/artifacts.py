"""Write the files of a compilation, all or none."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from reclra_graph.errors import ModelError, Problem
from reclra_graph.export.plan_json import plan_json
from reclra_graph.export.report import report_text
from reclra_graph.export.trace import trace_json
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.text import to_text

FILES = ("step.py", "plan.json", "plan.svg", "plan.html", "plan.dot", "schedule.json", "report.txt")
"""What people and other programs read."""
STATE = ("schedule.txt", "synapses.pt", "constants.pt")
"""What ``rg.load`` reads beside step.py."""


class Saveable(Protocol):
    """The parts of a CompiledStep that are saved."""

    seconds: tuple[tuple[str, float], ...]
    program: StepProgram
    constants: dict[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        """The synapses."""


def render_all(program: StepProgram, seconds: Sequence[tuple[str, float]] = ()) -> dict[str, bytes]:
    """File name to content, for every name in ``FILES``; ``seconds`` per pass go into report.txt alone."""
    from reclra_graph.export.dot import plan_dot
    from reclra_graph.export.html import plan_html
    from reclra_graph.export.svg import plan_svg

    schedule = program.schedule
    texts = {
        "step.py": program.source,
        "plan.json": plan_json(program),
        "plan.svg": plan_svg(schedule),
        "plan.html": plan_html(schedule),
        "plan.dot": plan_dot(schedule),
        "schedule.json": trace_json(program),
        "report.txt": report_text(program, seconds),
    }
    return {name: text.encode() for name, text in texts.items()}


def write_all(step: Saveable, directory: str | Path) -> Path:
    """Write the files of ``FILES`` and of ``STATE`` into ``directory``, which is returned.

    See ``write_files`` for what happens to a folder that exists, and for errors.
    """
    files = render_all(step.program, step.seconds)
    files["schedule.txt"] = to_text(step.program.schedule, "schedule").encode()
    # An empty constants.pt is written too: one left by an earlier compilation must not be loaded with this step.
    for name, tensors in (("synapses.pt", step.state_dict()), ("constants.pt", step.constants)):
        buffer = io.BytesIO()
        torch.save({key: value.detach().cpu() for key, value in tensors.items()}, buffer)
        files[name] = buffer.getvalue()
    target = Path(directory)
    write_files(files, target)
    return target


def write_files(files: Mapping[str, bytes], directory: str | Path) -> tuple[Path, ...]:
    """Write ``files`` (plain name to content) into ``directory``, all of them or, after an error, none.

    A new folder appears under its name only when it is complete. In a folder that exists, files of these names are
    replaced one by one, and all others are left alone. Raises ModelError (RG701) where the folder cannot be written;
    files and folders are then as they were before the call. Raises ValueError for a name that is not a plain file name.
    """
    for name in files:
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
            raise ValueError(f"{name!r} is not a plain file name")
    target = Path(directory).expanduser()
    try:
        if target.is_dir():
            _replace(files, target)
        else:
            _create(files, target)
    except (OSError, ValueError) as error:
        raise ModelError(_problem(target, _reason(error))) from None
    return tuple(target / name for name in files)


def unwritable(directory: str | Path) -> tuple[Problem, ...]:
    """What already stands in the way of writing ``directory`` (RG701), without touching anything."""
    target = Path(directory).expanduser()
    if "\0" in str(target):
        return (_problem(target, "its name holds a null character"),)
    try:
        existing = next((path for path in (target, *target.parents) if os.path.lexists(path)), Path())
        if not existing.is_dir():
            return (_problem(target, f"{str(existing)!r} is a file"),)
        if not os.access(existing, os.W_OK | os.X_OK):
            return (_problem(target, f"no permission to write in {str(existing)!r}"),)
    except (OSError, ValueError) as error:
        return (_problem(target, _reason(error)),)
    return ()


def _problem(target: Path, reason: str) -> Problem:
    return Problem("RG701", f"the folder {str(target)!r} cannot be written: {reason}", str(target))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _create(files: Mapping[str, bytes], target: Path) -> None:
    if os.path.lexists(target):
        raise NotADirectoryError(20, "it is a file")
    missing = [parent for parent in target.parents if not parent.exists()]
    made: list[Path] = []
    partial = _beside(target)
    done = False
    try:
        for parent in reversed(missing):
            parent.mkdir()
            made.append(parent)
        partial.mkdir()
        _fill(files, partial)
        partial.rename(target)
        done = True
    finally:
        if not done:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in reversed(made):
                with suppress(OSError):
                    parent.rmdir()


def _replace(files: Mapping[str, bytes], target: Path) -> None:
    partial = _beside(target / "new")
    partial.mkdir()
    moved: list[str] = []
    done = False
    try:
        _fill(files, partial)
        kept = partial / "before"
        kept.mkdir()
        for name in files:
            if (target / name).is_dir():
                raise IsADirectoryError(21, f"{name} is a folder there")
            if os.path.lexists(target / name):
                # A copy, not a move: a reader finds the old file or the new one, never none.
                shutil.copy2(target / name, kept / name, follow_symlinks=False)
        for name in files:
            moved.append(name)
            os.replace(partial / name, target / name)
        done = True
    finally:
        if not done:
            for name in moved:
                if os.path.lexists(partial / "before" / name):
                    os.replace(partial / "before" / name, target / name)
                elif not os.path.lexists(partial / name):
                    (target / name).unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden, unused name next to ``path``."""
    return path.parent / f".reclra-{os.getpid()}-{os.urandom(4).hex()}.partial"


def _fill(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
