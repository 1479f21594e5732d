"""Run an emitted step under PyTorch's CUDA sanitizer, in a process of its own.

    TORCH_CUDA_SANITIZER=1 python tests/gpu/sanitize.py FOLDER

FOLDER holds step.py and data.pt: {"P": parameters and buffers, "x": input, "target": classes}. Exit status 0 where two
steps ran, 3 where the sanitizer saw two streams touch a tensor without synchronisation. Needs torch alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import torch


def main(folder: Path) -> int:
    """Two steps, so that work which the first one left unfinished meets the second."""
    step = ModuleType("step")
    path = folder / "step.py"
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), step.__dict__)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    data = torch.load(folder / "data.pt", weights_only=True)
    held = {name: value.to(device) for name, value in data["P"].items()}
    synapses = step.synapses(device=device)
    x, target = data["x"].to(device), data["target"].to(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    try:
        with torch.no_grad():
            for _ in range(2):
                step.step(held, synapses, x, target)
        if device.type == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        if type(error).__name__ != "CUDASanitizerErrors":
            raise
        sys.stdout.write(str(error)[:4000] + "\n")
        return 3
    sys.stdout.write(f"two steps ran on {device}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
