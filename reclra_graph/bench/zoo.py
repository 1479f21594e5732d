"""Run a list of models, each in a process of its own with a limit on time and memory, and pick up where a run ended."""

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
from reclra_graph.bench.lists import Entry
from reclra_graph.bench.record import write_json
from reclra_graph.errors import Problem

Row: TypeAlias = dict[str, Any]

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "numpy")
WORKER = ("-m", "reclra_graph.bench.worker")
_WATCH = 0.1  # seconds between two looks at the running processes


@dataclass(frozen=True)
class Settings:
    """``jobs``: models at a time; ``timeout``: seconds for each; ``memory``: GiB for each; ``seed`` of the weights, the
    inputs and the steps; ``work``: folder of the finished rows."""

    jobs: int = 1
    timeout: float = 900.0
    memory: float = 12.0
    seed: int = 0
    work: Path = Path("build/zoo")
    fresh: bool = False

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the numbers."""
        return tuple(
            Problem("RG405", f"{name} is {value}", f"--{name}", "Give a number above 0.")
            for name, value in (("jobs", self.jobs), ("timeout", self.timeout), ("memory", self.memory))
            if value <= 0
        )

    @property
    def threads(self) -> int:
        """Threads of each process."""
        return max(1, (os.cpu_count() or 1) // self.jobs)


Progress: TypeAlias = Callable[[int, int, "Row | None", Sequence[str]], None]
"""Told (models done, models in all, the row just finished, the names now running)."""


def run(entries: Sequence[Entry], settings: Settings, progress: Progress = lambda *_: None) -> list[Row]:
    """The rows of all entries, in their order. Finished rows are kept in ``settings.work`` and not made again, unless
    the package, a library, or the seed has changed since, or a limit ended them; ``settings.fresh`` makes all again.

    An interruption stops the processes that run and is passed on; what was finished is kept.
    """
    folder = settings.work / version(settings)
    rows: dict[Entry, Row] = {}
    for entry in entries:
        kept = None if settings.fresh else _read(_path(folder, entry))
        if kept is not None and not _by_the_machine(kept):
            rows[entry] = kept
    waiting = [entry for entry in entries if entry not in rows]
    running: dict[Entry, _Worker] = {}
    progress(len(rows), len(entries), None, ())
    try:
        while waiting or running:
            while waiting and len(running) < settings.jobs:
                entry = waiting.pop(0)
                running[entry] = _Worker(entry, folder, settings)
                progress(len(rows), len(entries), None, [item.name for item in running])
            time.sleep(_WATCH)
            for entry, worker in list(running.items()):
                row = worker.look()
                if row is not None:
                    del running[entry]
                    rows[entry] = row
                    write_json(_path(folder, entry), row)
                    progress(len(rows), len(entries), row, [item.name for item in running])
    finally:
        for worker in running.values():
            worker.stop()
    return [rows[entry] for entry in entries]


def _by_the_machine(row: Row) -> bool:
    """Whether time, memory or a lost process ended a row: with other limits it may come out otherwise."""
    return any(item.get("code") in ("RG804", "RG805", "RG806") for item in row.get("failures", ()))


def version(settings: Settings) -> str:
    """What a row depends on, as a short digest: the package's own files, the libraries' versions, the seed."""
    whole = hashlib.sha256()
    root = Path(reclra_graph.__file__).resolve().parent
    for path in sorted(_sources(root)):
        whole.update(str(path.relative_to(root.parent)).encode() + b"\0" + path.read_bytes() + b"\0")
    whole.update(json.dumps([versions(), settings.seed, sys.version]).encode())
    return whole.hexdigest()[:16]


def _sources(root: Path) -> Iterable[Path]:
    """Files that the result of a model can depend on: all but the command line."""
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


def _path(folder: Path, entry: Entry) -> Path:
    """Where a finished row is kept; names that are no file names are told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9_.@-]+", "_", entry.name)
    mark = "" if plain == entry.name else "." + hashlib.sha256(entry.name.encode()).hexdigest()[:8]
    return folder / f"{entry.source}.{plain[-80:]}{mark}.json"


def _read(path: Path) -> Row | None:
    """A finished row, or None."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and "passed" in row else None


class _Worker:
    """One process that measures one model."""

    def __init__(self, entry: Entry, folder: Path, settings: Settings) -> None:
        self.entry, self.settings = entry, settings
        self.partial = _path(folder, entry).with_suffix(".partial")
        self.log = _path(folder, entry).with_suffix(".log")
        folder.mkdir(parents=True, exist_ok=True)
        self.partial.unlink(missing_ok=True)
        self.started = time.monotonic()
        command = [
            sys.executable, *WORKER, entry.source, entry.name, str(self.partial), str(settings.seed),
            str(settings.threads),
        ]  # fmt: skip
        root = Path(reclra_graph.__file__).resolve().parents[1]
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = str(settings.threads)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": threads}
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches this process alone, which then stops the others.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def look(self) -> Row | None:
        """The row where the process has ended, or had to be ended; None where it goes on."""
        status = self.process.poll()
        seconds = time.monotonic() - self.started
        problem: Problem | None = None
        if status is None and seconds > self.settings.timeout:
            problem = Problem("RG804", f"not done after {self.settings.timeout:g} s")
        elif status is None:
            used = resident(self.process.pid)
            if used is None or used <= self.settings.memory * 2**30:
                return None
            problem = Problem("RG805", f"{used / 2**30:.1f} GiB in use, {self.settings.memory:g} allowed")
        self.stop()
        row = self._row()
        if problem is None and row["stage"] != "done":
            problem = Problem("RG806", self._last_words(status))
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
        begun = {"source": self.entry.source, "name": self.entry.name, "stage": "", "passed": False}
        return _read(self.partial) or {**begun, "seconds": {}, "checks": {}, "failures": []}

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
