"""What must hold of the emitted step on a GPU. Plain functions of a device, so that they run without pytest too, and on
the CPU, where lanes run one after another: that tests the checks.

    python -m tests.gpu.checks             on the GPU
    python -m tests.gpu.checks --cpu       on the CPU
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import reclra_graph as rg
from tests.gpu.cases import (
    CASES,
    LANES,
    STEPS,
    NotHere,
    Unmet,
    batch,
    compiled,
    compiled_source,
    exact,
    fresh,
    model,
    need,
    need_close,
    need_same,
    state,
    trained,
)


def as_on_the_cpu(name: str, lanes: int, device: torch.device) -> None:
    """Several steps on the device, with any number of lanes, give the CPU's losses and parameters."""
    with exact():
        need_close(name, *trained(fresh(name, lanes, device), name))


def same_for_all_lanes(name: str, device: torch.device) -> None:
    """Lanes change when things run, not what comes out: bitwise the same for 1, 2, 5 and 8, and when repeated."""
    with exact():
        _, expected = trained(fresh(name, 1, device), name)
        for lanes in LANES:
            for time_ in (1, 2):
                _, found = trained(fresh(name, lanes, device), name)
                need_same(found, expected, f"{lanes} lanes, run {time_}")


def on_another_stream(device: torch.device) -> None:
    """Called while another stream is current, the step's lane 0 is that stream."""
    if device.type != "cuda":
        raise NotHere("no CUDA device")
    with exact():
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            losses, after = trained(fresh("figure1", 5, device), "figure1")
        torch.cuda.current_stream(device).wait_stream(stream)
        need_close("figure1", losses, after)


def with_an_optimizer(name: str, lanes: int, device: torch.device) -> None:
    """``rg.assign_grads`` with torch.optim.SGD on parameters and synapses does what the step itself does, and AdamW
    brings the loss down."""
    with exact():
        step = fresh(name, lanes, device)
        learning = [*step.model.parameters(), *step.synapses.values()]
        optimizer: torch.optim.Optimizer = torch.optim.SGD(learning, lr=step.lr)
        losses = []
        for number in range(STEPS):
            x, target = batch(name, number)
            losses.append(rg.assign_grads(step, x.to(device), target.to(device)).item())
            need(
                all(item.grad is not None and item.grad.device == item.device for item in learning),
                "a .grad is missing",
            )
            optimizer.step()
        need_close(name, losses, state(step))
        optimizer = torch.optim.AdamW(step.model.parameters(), lr=1e-3)
        x, target = (item.to(device) for item in batch(name, 0))
        course = []
        for _ in range(20):
            course.append(rg.assign_grads(step, x, target).item())
            optimizer.step()
        need(course[-1] < course[0], f"AdamW: the loss went from {course[0]:.4f} to {course[-1]:.4f}")


def follows_the_model(device: torch.device) -> None:
    """Trained on the CPU, moved with ``model.to(device)``, trained on, moved back: as if it had stayed."""
    with exact():
        step = fresh("lenet", 2, torch.device("cpu"))
        losses = []
        for number in range(STEPS):
            if number == 1:
                step.model.to(device)
            if number == STEPS - 1:
                step.model.to("cpu")
            x, target = batch("lenet", number)
            losses.append(step(x.to(step.device), target.to(step.device)).item())
            if device.type != "cuda" or torch.cuda.device_count() == 1:
                places = {value.device for value in step.synapses.values()}
                need(places == {step.device}, f"the model is on {step.device}, synapses on {places}")
        need_close("lenet", losses, state(step))


def compiled_there(device: torch.device) -> None:
    """Compiling a model that is on the device gives the same file as on the CPU, and it trains the same."""
    with exact():
        step = compiled("figure1", 2, copy.deepcopy(model("figure1")).to(device))
        need(step.source == compiled_source("figure1", 2).source, "another step.py")
        need_close("figure1", *trained(step, "figure1"))


def saved_and_loaded(folder: str, device: torch.device) -> None:
    """A step saved after training on the device and loaded onto it goes on as if nothing had happened."""
    with exact():
        step = fresh("figure1", 5, device)
        trained(step, "figure1", 2)
        step.save(folder)
        other = rg.load(folder, copy.deepcopy(step.model))
        need_same(state(other), state(step), "loaded")
        need_same(trained(other, "figure1", 2)[1], trained(step, "figure1", 2)[1], "trained on")


def refuses_nan(name: str, lanes: int, device: torch.device) -> None:
    """NaN or infinity in the input, or a loss that is not finite: refused with RG604, everything as it was."""
    step = fresh(name, lanes, device)
    x, target = (item.to(device) for item in batch(name, 0))
    step(x, target)
    for value in (float("nan"), float("inf")):
        bad = x.clone()
        bad.view(-1)[7] = value
        _need_refused(step, bad, target, f"{value} in the input")
    with torch.no_grad():
        last = list(step.model.parameters())[-1]
        kept = last.clone()
        last[0] = float("nan")
        _need_refused(step, x, target, "NaN in the loss")
        last.copy_(kept)
    step(x, target)


def _need_refused(step: rg.CompiledStep, x: Tensor, target: Tensor, what: str) -> None:
    before = {name: value.nan_to_num(nan=12345.0) for name, value in state(step).items()}
    try:
        step(x, target)
    except rg.StepError as error:
        need("RG604" in str(error), f"{what}: {error}")
    else:
        raise Unmet(f"{what} was not refused")
    after = {name: value.nan_to_num(nan=12345.0) for name, value in state(step).items()}
    need_same(after, before, what)


def over_several_gpus(name: str, device: torch.device) -> None:
    """With several GPUs, lanes spread over them and the results stay."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        raise NotHere("fewer than two GPUs")
    with exact():
        step = fresh(name, 5, device)
        need_close(name, *trained(step, name))
        need(len({value.device for value in step.synapses.values()}) > 1, "all synapses are on one GPU")


def sanitized(source: str, name: str, device: torch.device) -> tuple[int, str]:
    """(exit status, output) of tests/gpu/sanitize.py over some step.py: 0 nothing found, 3 a race found."""
    x, target = batch(name, 0)
    held = {key: value.detach() for key, value in model(name).state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "step.py").write_text(source, encoding="utf-8")
        torch.save({"P": held, "x": x, "target": target}, Path(folder) / "data.pt")
        # The sanitizer asks for the current CUDA stream at every operation, so it cannot run without a GPU.
        switch = {"TORCH_CUDA_SANITIZER": "1"} if device.type == "cuda" else {}
        command = [sys.executable, str(Path(__file__).with_name("sanitize.py")), folder]
        done = subprocess.run(
            command, env={**os.environ, **switch}, capture_output=True, text=True, timeout=300, check=False
        )
    return done.returncode, done.stdout + done.stderr[-2000:]


def waits(source: str) -> list[int]:
    """Numbers of the lines of a step.py that wait for another lane."""
    return [index for index, line in enumerate(source.splitlines()) if line.strip().startswith("wait(")]


def sanitizer_finds_nothing(name: str, lanes: int, device: torch.device) -> None:
    """TORCH_CUDA_SANITIZER=1 on two steps: no two streams touch a tensor without synchronisation."""
    status, output = sanitized(compiled_source(name, lanes).source, name, device)
    need(status == 0, f"status {status}: {output}")


def sanitizer_finds_a_missing_wait(name: str, lanes: int, place: float, device: torch.device) -> None:
    """With one ``wait(...)`` taken out of the file, the sanitizer does find a race. ``place``: which, from 0 to 1."""
    if device.type != "cuda":
        raise NotHere("no CUDA device")
    source = compiled_source(name, lanes).source
    found = waits(source)
    need(bool(found), "no lane waits for another")
    number = found[round(place * (len(found) - 1))]
    lines = source.splitlines()
    taken = lines[number].strip()
    lines[number] = lines[number].replace(taken, "pass")
    status, output = sanitized("\n".join(lines) + "\n", name, device)
    need(status == 3, f"without `{taken}` (line {number + 1}): status {status}: {output}")


def all_checks(folder: str) -> dict[str, Callable[[torch.device], None]]:
    """Every check by name; ``folder`` is for the one that saves."""
    found: dict[str, Callable[[torch.device], None]] = {}
    for name in CASES:
        for lanes in LANES:
            found[f"{name} with {lanes} lanes as on the CPU"] = partial(as_on_the_cpu, name, lanes)
        found[f"{name}: bitwise the same for all lanes"] = partial(same_for_all_lanes, name)
        found[f"{name}: refuses NaN"] = partial(refuses_nan, name, 2)
        found[f"{name}: over several GPUs"] = partial(over_several_gpus, name)
    found["figure1 with an optimizer"] = partial(with_an_optimizer, "figure1", 5)
    found["lenet with an optimizer"] = partial(with_an_optimizer, "lenet", 2)
    found["on another stream"] = on_another_stream
    found["follows the model"] = follows_the_model
    found["compiled on the device"] = compiled_there
    found["saved and loaded"] = partial(saved_and_loaded, folder)
    for name, lanes in (("figure1", 5), ("figure1", 8), ("lenet", 2), ("resnet18", 2)):
        found[f"{name} with {lanes} lanes: the sanitizer finds nothing"] = partial(sanitizer_finds_nothing, name, lanes)
    for place in (0.0, 0.5, 1.0):
        label = {0.0: "first", 0.5: "middle", 1.0: "last"}[place]
        missing = partial(sanitizer_finds_a_missing_wait, "figure1", 5, place)
        found[f"figure1: the sanitizer finds the {label} wait missing"] = missing
    return found


def run_one(check: Callable[[torch.device], None], device: torch.device) -> dict[str, Any]:
    """Outcome ("passed", "failed", "skipped"), message and seconds of a check."""
    started = time.perf_counter()
    outcome, message = "passed", ""
    try:
        check(device)
    except NotHere as reason:
        outcome, message = "skipped", str(reason)
    except Exception as error:  # a check may fail in any way that the code under test does
        outcome = "failed"
        message = str(error) if isinstance(error, Unmet) else "".join(traceback.format_exception(error))[-2000:]
    return {"outcome": outcome, "message": message, "seconds": round(time.perf_counter() - started, 2)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks without pytest; exit status 1 where one failed."""
    parser = argparse.ArgumentParser(description="Check the emitted step on a GPU, without pytest.")
    parser.add_argument("--cpu", action="store_true", help="on the CPU instead")
    args = parser.parse_args(argv)
    if not args.cpu and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --cpu runs the checks on the CPU")
    device = torch.device("cpu" if args.cpu else "cuda:0")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, check in all_checks(folder).items():
            found = run_one(check, device)
            failed += found["outcome"] == "failed"
            sys.stdout.write(f"{found['outcome']:<8}{found['seconds']:7.1f} s  {name}  {found['message']}\n")
            sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
