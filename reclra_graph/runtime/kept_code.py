"""Machine code by Inductor, kept on disk: what was compiled once on a machine is read from there ever after."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.ir.text import digest
from reclra_graph.runtime.plain_sums import plain_sums
from reclra_graph.runtime.traced import Traced

_MAKERS = ("fused", "kept_code", "pieced", "pieces", "plain_sums", "recompute", "stacked", "traced", "vmapped")
"""Modules of this folder that make what Inductor compiles, and keep it."""
_INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Fused:
    """A step for one set of shapes. ``run`` takes the ``used`` ones of ``flat_tensors`` and gives (loss, finite);
    ``size``: of the batch."""

    run: Any
    used: tuple[int, ...]
    size: int


@cache
def recipe() -> str:
    """Digest of the code that makes graphs of a step: machine code that another one led to is compiled anew."""
    files = [Path(__file__).with_name(f"{name}.py") for name in _MAKERS]
    return digest(tuple(file.read_text(encoding="utf-8") if file.exists() else "" for file in files))


def inductor_options(device: torch.device) -> dict[str, Any]:
    """Inductor's: random numbers are those that the step itself would draw; on the CPU what calls the kernels is
    machine code, too, since Python takes longer than the kernels of a small step."""
    return {"fallback_random": True, "cpp_wrapper": device.type == "cpu"}


def home_of(folder: Path, device: torch.device, *said: object) -> Path:
    """The folder of one compilation: named by the digest of what was said of it, and of the machine."""
    machine = (torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    if device.type == "cuda":
        machine = (torch.__version__, torch.cuda.get_device_name(device), 0)
    return folder / digest((recipe(), machine, tuple(inductor_options(device).items()), *said))


@contextlib.contextmanager
def inductor_at(home: Path) -> Iterator[Path]:
    """Let Inductor keep its own files there, too: machine code of single kernels, which it would else look for in
    the system's temporary folder. Where the folder cannot be made, it does just that."""
    usual = os.environ.get(_INDUCTOR)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:
        yield home
        return
    os.environ[_INDUCTOR] = str(home)
    try:
        yield home
    finally:
        os.environ.pop(_INDUCTOR) if usual is None else os.environ.update({_INDUCTOR: usual})


def compiled(home: Path, device: torch.device, found: Traced, tensors: Sequence[Tensor]) -> Fused:
    """A traced step as machine code, kept for ``kept``. ``tensors``: those of the step's that it uses."""
    from torch._inductor import config, standalone_compile  # seconds of imports, for those who compile only

    plain_sums(found.module)
    examples: list[Any] = list(tensors)
    with inductor_at(home), config.patch(inductor_options(device)), torch.no_grad():
        run = standalone_compile(found.module, examples, dynamic_shapes="from_example_inputs")
        with contextlib.suppress(Exception):  # what cannot be kept is compiled again next time
            run.save(path=str(home / "step.bin"), format="binary")
            partial = home / "step.json.partial"
            partial.write_text(json.dumps({"used": found.used, "size": found.size}), encoding="utf-8")
            partial.replace(home / "step.json")
    return Fused(run, found.used, found.size)


def kept(home: Path) -> Fused | None:
    """A step as it was compiled before, by this user on this machine; None where there is none, or none that can be
    read."""
    from torch._inductor.standalone_compile import CompiledArtifact

    if not (home / "step.json").exists():
        return None
    with inductor_at(home), contextlib.suppress(Exception):
        said = json.loads((home / "step.json").read_text(encoding="utf-8"))
        run = CompiledArtifact.load(path=str(home / "step.bin"), format="binary")
        return Fused(run, tuple(said["used"]), int(said["size"]))
    return None
