"""Everything there is to do on a GPU machine, unattended, in parts.

    python tests/gpu/run_all.py                        all parts that fit into 9 minutes
    python tests/gpu/run_all.py --parts tests,bench-mlp
    python tests/gpu/run_all.py --list
    python tests/gpu/run_all.py --dry-run-cpu          the same machinery with small sizes, on a CPU

Results go to run_all.json, output to log.txt, both in the folder that the environment variable OUT names (default:
./gpu-results). Parts that run_all.json holds as done are skipped, so that the same command goes on where the last one
stopped; --earlier FILE takes over the parts of a run_all.json that lies elsewhere. A part runs in a process of its own
and is ended when its time is up; none is started that could not use its full time in the minutes that are left.

Needs Python 3.11 or later, torch and this checkout; a part that needs more says so and is skipped. Exit status: 0 all
parts that can run here are done, 1 one failed or ran out of time, 3 some are left for the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.record import ROOT, progress, write_json
from tests.gpu.parts import PARTS, missing

FORMAT = 1
LEFT = 20
"""Seconds kept for writing down and ending."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="Run everything there is to do on a GPU machine, in parts.")
    parser.add_argument("--parts", metavar="A,B", help="only these, in their usual order")
    parser.add_argument("--list", action="store_true", help="say what there is, what it needs and what is done")
    parser.add_argument("--minutes", type=float, default=9, help="how long this call may take (default: 9)")
    parser.add_argument("--again", action="store_true", help="run parts that are done once more")
    parser.add_argument("--earlier", type=Path, metavar="FILE", help="take over done parts of another run_all.json")
    parser.add_argument("--dry-run-cpu", action="store_true", help="small sizes on the CPU")
    args = parser.parse_args(argv)
    chosen = args.parts.split(",") if args.parts else list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    args.parts = [name for name in PARTS if name in chosen]
    args.kind = "cpu, small" if args.dry_run_cpu else "cuda"
    return args


def results(path: Path, kind: str) -> dict[str, Any]:
    """What an earlier call wrote, or the empty beginning. Exits where the file holds something else."""
    if not path.exists():
        return {"format": FORMAT, "kind": kind, "parts": {}}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = found["format"] == FORMAT and isinstance(found["parts"], dict)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        sys.exit(f"{path} is no results file of this script; move it away")
    if found["kind"] != kind:
        sys.exit(
            f"{path} holds results of another kind of run ({found['kind']}, not {kind}); name another folder in OUT"
        )
    return found


def run_part(name: str, limit: int, log: Path, small: bool) -> dict[str, Any]:
    """Run a part as a process with a time limit; what it, and whatever it started, prints is appended to the log."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, log.open("a", encoding="utf-8") as output:
        output.write(f"\n== {name} ({time.strftime('%Y-%m-%d %H:%M:%S')})\n")
        output.flush()
        begun = output.tell()
        file = Path(folder) / "part.json"
        command = [sys.executable, "-m", "tests.gpu.parts", name, str(file), *(["--cpu"] if small else [])]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        status, reason = "done", ""
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            status, reason = "timed out", f"it ran longer than {limit} s"
        finally:
            _end(process)
        record: dict[str, Any] = {}
        if file.exists():
            record = json.loads(file.read_text(encoding="utf-8"))
        if status == "done" and process.returncode:
            status, reason = "failed", f"its process ended with status {process.returncode}"
        elif status == "done" and record["result"].get("failed"):
            status, reason = "failed", str(record["result"]["failed"])
    if reason:
        record["reason"] = reason
        record["last_words"] = log.read_bytes()[begun:].decode(errors="replace")[-3000:].splitlines()
    return {"status": status, "seconds": round(time.monotonic() - started, 1), "limit": limit, **record}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part's process group: the part itself if it still runs, and what it may have left behind."""
    for number, wait in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        except PermissionError:  # macOS, for a group of nothing but zombies
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
    process.wait(10)


def listing(args: argparse.Namespace, found: dict[str, Any]) -> str:
    """One line per part."""
    lines = []
    for name in args.parts:
        part = PARTS[name]
        state = found["parts"].get(name, {}).get("status", "not run yet")
        reason = missing(part)
        lines.append(f"{name:<15}{part.limit:4} s  {part.about}; {reason or state}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are left and fit; returns the exit status."""
    started = time.monotonic()
    args = arguments(argv)
    folder = Path(os.environ.get("OUT") or "gpu-results").resolve()
    file = folder / "run_all.json"
    found = results(file, args.kind)
    if args.earlier:
        done = results(args.earlier, args.kind)["parts"]
        found["parts"] = {**{k: v for k, v in done.items() if v["status"] == "done"}, **found["parts"]}
    if args.list:
        sys.stdout.write(listing(args, found) + "\n")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        failed, left = work(args, found, folder, started)
    except KeyboardInterrupt:
        progress("interrupted; what was done is kept, the same command goes on from there")
        return 130
    finally:
        write_json(file, found)
    sys.stdout.write(listing(args, found) + f"\nresults: {file}\n")
    return 1 if failed else 3 if left else 0


def work(args: argparse.Namespace, found: dict[str, Any], folder: Path, started: float) -> tuple[list[str], list[str]]:
    """Run what is left and fits; results go to ``found`` and into the file after every part. Returns the parts that
    failed and those that are left for lack of time."""
    failed: list[str] = []
    left: list[str] = []
    for name in args.parts:
        part = PARTS[name]
        if found["parts"].get(name, {}).get("status") == "done" and not args.again:
            progress(f"{name}: done before")
            continue
        reason = missing(part)
        if reason:
            found["parts"][name] = {"status": "skipped", "reason": reason}
            progress(f"{name}: skipped, {reason}")
        elif 60 * args.minutes - (time.monotonic() - started) < part.limit + LEFT:
            left.append(name)
            progress(f"{name}: left for the next call, it may need {part.limit} s")
        else:
            progress(f"{name}: {part.about}, at most {part.limit} s")
            found["parts"][name] = run_part(name, part.limit, folder / "log.txt", args.dry_run_cpu)
            outcome = found["parts"][name]
            if outcome["status"] != "done":
                failed.append(name)
            progress(f"{name}: {outcome['status']} after {outcome['seconds']:.0f} s {outcome.get('reason', '')}")
        write_json(folder / "run_all.json", found)
    return failed, left


if __name__ == "__main__":
    sys.exit(main())
