"""Jobs in processes of their own, with limits on time and memory; what is finished is kept, and not done again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import reclra_graph
from reclra_graph.bench.record import write_json
from reclra_graph.errors import Problem

Row: TypeAlias = dict[str, Any]

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "numpy")


@dataclass(frozen=True)
class Job:
    """What one process does.

    ``name``: what is shown of it. ``row``: what its row holds before the process has written any; ``"source"`` and
    ``"name"`` at least. ``path``: where the finished row is kept. ``command``: arguments for Python; the process writes
    its row to ``partial(path)``, with ``"stage": "done"`` at the end.
    """

    name: str
    row: Row
    path: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """``at_once``: processes at a time; ``seconds`` and ``bytes``: what each may take; ``threads`` of each; ``codes``:
    of a process that took too long, took too much memory, and ended before it was done."""

    at_once: int = 1
    seconds: float = float("inf")
    bytes: float = float("inf")
    threads: int = 1
    codes: tuple[str, str, str] = ("RG804", "RG805", "RG806")


Progress: TypeAlias = Callable[[int, int, "Row | None", Sequence[str]], None]
"""Told (jobs done, jobs in all, the row just finished, the names now running, with their stages)."""


def run(
    jobs: Sequence[Job],
    limits: Limits,
    anew: Callable[[Row], bool],
    progress: Progress = lambda *_: None,
    watch: float = 0.1,
) -> list[Row]:
    """The rows of all jobs, in their order. A finished row is not made again unless ``anew`` says so of it; running
    processes are looked at every ``watch`` seconds.

    An interruption stops the processes that run and is passed on; what was finished is kept.
    """
    rows: dict[Path, Row] = {}
    for job in jobs:
        kept = read_row(job.path)
        if kept is not None and not anew(kept):
            rows[job.path] = kept
    waiting = [job for job in jobs if job.path not in rows]
    running: list[_Child] = []
    shown: list[str] | None = None
    progress(len(rows), len(jobs), None, ())
    try:
        while waiting or running:
            while waiting and len(running) < limits.at_once:
                running.append(_Child(waiting.pop(0), limits))
            names = [child.shown() for child in running]
            if names != shown:
                progress(len(rows), len(jobs), None, names)
                shown = names
            time.sleep(watch)
            for child in list(running):
                row = child.look()
                if row is not None:
                    running.remove(child)
                    rows[child.job.path] = row
                    write_json(child.job.path, row)
                    shown = [other.shown() for other in running]
                    progress(len(rows), len(jobs), row, shown)
    finally:
        for child in running:
            child.stop()
    return [rows[job.path] for job in jobs]


def stamp(*others: object) -> str:
    """What a row depends on, as a short digest: the package's own files, the libraries' versions, and what is given."""
    whole = hashlib.sha256()
    root = Path(reclra_graph.__file__).resolve().parent
    for path in sorted(_sources(root)):
        whole.update(str(path.relative_to(root.parent)).encode() + b"\0" + path.read_bytes() + b"\0")
    whole.update(json.dumps([versions(), *others, sys.version]).encode())
    return whole.hexdigest()[:16]


def _sources(root: Path) -> Iterable[Path]:
    """Files that a result can depend on: all but the command line."""
    for folder in (root, root.parent / "passes"):
        if folder.is_dir():
            for path in folder.rglob("*.py"):
                if "cli" not in path.parts and not path.parent.is_symlink():
                    yield path


def versions() -> dict[str, str | None]:
    """Versions of the libraries; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def row_path(folder: Path, kind: str, name: str) -> Path:
    """Where a finished row is kept; names that are no file names are told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9_.@-]+", "_", name)
    mark = "" if plain == name else "." + hashlib.sha256(name.encode()).hexdigest()[:8]
    return folder / f"{kind}.{plain[-80:]}{mark}.json"


def partial(path: Path) -> Path:
    """Where the process of the row at ``path`` writes it while it works."""
    return path.with_suffix(".partial")


def leave_with(parent: Any) -> None:
    """Wait until a stream ends, the standard input that the process which started this one holds open, and end this
    process: nobody is left to read what it finds."""
    parent.read()
    os._exit(3)


def read_row(path: Path) -> Row | None:
    """The row in a file, or None where there is none that can be read."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and "passed" in row else None


class _Child:
    """The process of one job."""

    def __init__(self, job: Job, limits: Limits) -> None:
        self.job, self.limits = job, limits
        self.partial, self.log = partial(job.path), job.path.with_suffix(".log")
        job.path.parent.mkdir(parents=True, exist_ok=True)
        self.partial.unlink(missing_ok=True)
        self.started = time.monotonic()
        root = Path(reclra_graph.__file__).resolve().parents[1]
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = str(limits.threads)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": threads}
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches this process alone, which then stops the others.
            self.process = subprocess.Popen(
                [sys.executable, *job.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def shown(self) -> str:
        """The job's name, with the stage that its process is in."""
        stage = (read_row(self.partial) or {}).get("stage")
        return f"{self.job.name}: {stage}" if stage else self.job.name

    def look(self) -> Row | None:
        """The row where the process has ended, or had to be ended; None where it goes on."""
        status = self.process.poll()
        seconds = time.monotonic() - self.started
        slow, hungry, ended = self.limits.codes
        problem: Problem | None = None
        if status is None and seconds > self.limits.seconds:
            problem = Problem(slow, f"not done after {self.limits.seconds:g} s")
        elif status is None:
            used = resident(self.process.pid) if self.limits.bytes != float("inf") else None
            if used is None or used <= self.limits.bytes:
                return None
            problem = Problem(hungry, f"{used / 2**30:.1f} GiB in use, {self.limits.bytes / 2**30:g} allowed")
        self.stop()
        row = self._row()
        if problem is None and row["stage"] != "done":
            problem = Problem(ended, self._last_words(status))
        if problem is not None:
            stage = row["stage"] or "start"
            found = {"code": problem.code, "name": problem.name, "cause": problem.cause, "place": stage}
            row["failures"] = [*row["failures"], {"stage": stage, **found}]
            row["passed"] = False
        row["seconds"]["all"] = round(seconds, 1)
        self.partial.unlink(missing_ok=True)
        if row["passed"]:
            self.log.unlink(missing_ok=True)
        return row

    def _row(self) -> Row:
        """What the process had written of its row."""
        begun = {**self.job.row, "stage": "", "passed": False, "seconds": {}, "checks": {}, "failures": []}
        return read_row(self.partial) or begun

    def _last_words(self, status: int | None) -> str:
        """Why the process ended before its work was done."""
        how = f"exit status {status}"
        if status is not None and status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"the process ended with {how}" + (f": {lines[-1][:300]}" if lines else "")

    def stop(self) -> None:
        """End the process and all that it started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(self.process.pid, signal.SIGKILL)
                else:
                    self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def resident(pid: int) -> int | None:
    """Bytes of memory that a process holds; None where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return int(shown.stdout) * 1024
    except (OSError, ValueError):
        return None
