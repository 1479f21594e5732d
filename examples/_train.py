"""What the examples vit, gpt, lstm and unet share: they train a model with rec-LRA and watch a held-out loss fall.

    python examples/gpt.py                                          one training run
    python examples/gpt.py --compare                                beside backprop, and the last layer trained alone
    python examples/gpt.py --compare --out docs/results/examples-gpt.json

Every method starts from the same weights and sees the same batches; its optimiser is SGD with momentum, over rates that
rise in the first 20 steps and then fall as a cosine. Learning rates are the example's own, one set for each method.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _record import circumstances, make_folder, write_json
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import reclra_graph as rg

DATA = Path(__file__).resolve().parent / "data"
METHODS = ("rec-LRA", "last layer only", "backprop")
MOMENTUM = 0.9
WARM_UP = 20


@dataclass(frozen=True)
class Samples:
    """Inputs and targets of training and of the held-out part; the first dimension of each counts samples."""

    inputs: Tensor
    targets: Tensor
    held_inputs: Tensor
    held_targets: Tensor


@dataclass(frozen=True)
class Task:
    """What an example trains.

    name: of its file. title: what it learns, for the reader. model, samples: build them; the model's weights follow
    torch's seed. loss: mean loss of outputs and targets. error: share of wrong predictions. options: of rg.compile.
    rates: for each of METHODS, pairs of a text and a learning rate; a parameter takes the first whose text is in its
    name, and stays as it is where there is none.
    """

    name: str
    title: str
    model: Callable[[], nn.Module]
    samples: Callable[[], Samples]
    loss: Callable[[Tensor, Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]
    options: Mapping[str, Any]
    rates: Mapping[str, tuple[tuple[str, float], ...]]
    batch: int
    epochs: int


def main(task: Task, argv: Sequence[str] | None = None) -> int:
    """Run an example's command line; returns the exit status (130 after Ctrl-C)."""
    args = _arguments(task, argv)
    try:
        run(task, args)
    except rg.ReclraError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


def _arguments(task: Task, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog=f"{task.name}.py", description=f"{task.title}, without backpropagation.")
    parser.add_argument("--epochs", type=_positive, default=task.epochs, help=f"default: {task.epochs}")
    parser.add_argument("--steps", type=_positive, help="steps of an epoch (default: all samples once)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, synapses and the order of samples")
    parser.add_argument("--compare", action="store_true", help="also train with backprop, and the last layer alone")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write configuration and losses as JSON")
    return parser.parse_args(argv)


def run(task: Task, args: argparse.Namespace) -> None:
    """Train by each method asked for, print the losses, and write them to --out. Raises ReclraError."""
    torch.set_num_threads(1)
    if args.out:
        make_folder(args.out)
    samples = task.samples()
    whole = len(samples.inputs) // task.batch
    steps = min(args.steps or whole, whole)
    print(f"{task.title}: {len(samples.inputs):,} training and {len(samples.held_inputs):,} held-out samples")
    record: dict[str, Any] = {
        "command": _command(task, args),
        "title": task.title,
        "config": {
            "epochs": args.epochs, "steps": steps, "batch": task.batch, "seed": args.seed, "momentum": MOMENTUM,
            "warm_up": WARM_UP, "options": dict(task.options),
            "rates": {method: dict(rates) for method, rates in task.rates.items()}, "threads": 1,
        },
        "samples": {"train": len(samples.inputs), "held_out": len(samples.held_inputs)},
    }  # fmt: skip
    curves: dict[str, list[dict[str, float | int | None]]] = {}
    for method in METHODS if args.compare else METHODS[:1]:
        torch.manual_seed(args.seed)
        model = task.model()
        update, described = _method(task, method, model, samples, args.seed)
        record.update(described)
        curves[method] = []
        for row in _epochs(task, model, method, update, samples, args.epochs, steps, args.seed):
            curves[method].append(row)
            _show(method, row, args.epochs)
    if args.out:
        write_json(args.out, {**record, "curves": curves, **circumstances("cpu")})
        print(f"results: {args.out}")


def _method(
    task: Task, method: str, model: nn.Module, samples: Samples, seed: int
) -> tuple[Callable[[Tensor, Tensor], Tensor], dict[str, Any]]:
    """A function that fills ``.grad`` for a batch and returns its loss; and what there is to say about the plan."""
    if method != METHODS[0]:

        def backward(inputs: Tensor, targets: Tensor) -> Tensor:
            model.zero_grad()
            loss = task.loss(model(inputs), targets)
            torch.autograd.backward(loss)
            return loss.detach()

        return backward, {}
    step = rg.compile(model, (samples.inputs[: task.batch],), seed=seed, **task.options)
    plan = step.plan
    described = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "wiring": plan.wiring,
        "depth": plan.depth,
        "regions": len(plan.regions.sites),
        "synapse_forms": sorted({edge.form for edge in plan.edges}),
        "updates": sorted({update for _, update in plan.update}),
        "digest": step.program.digest,
    }
    print(
        f"plan: {described['regions']} regions, {described['parameters']:,} parameters, {plan.wiring} wiring, "
        f"{len(plan.edges)} error synapses, {sum(edge.bytes for edge in plan.edges) / 2**20:.2f} MiB"
    )
    return (lambda inputs, targets: rg.assign_grads(step, inputs, targets)), described


def _optimizer(model: nn.Module, rates: tuple[tuple[str, float], ...]) -> torch.optim.Optimizer:
    """SGD over the parameters that have a rate; the others no longer ask for a gradient."""
    groups = []
    for name, parameter in model.named_parameters():
        rate = next((rate for text, rate in rates if text in name), None)
        parameter.requires_grad_(rate is not None)
        if rate is not None:
            groups.append({"params": [parameter], "lr": rate})
    return torch.optim.SGD(groups, momentum=MOMENTUM)


def _epochs(
    task: Task,
    model: nn.Module,
    method: str,
    update: Callable[[Tensor, Tensor], Tensor],
    samples: Samples,
    epochs: int,
    steps: int,
    seed: int,
) -> Iterator[dict[str, float | int | None]]:
    """Train; yields the losses before the first epoch, as epoch 0, and after each."""
    optimizer = _optimizer(model, task.rates[method])
    total = epochs * steps

    def rate(number: int) -> float:
        return min(1.0, (number + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, number / total)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    generator = torch.Generator().manual_seed(seed)
    yield _row(task, model, samples, 0, None, 0.0)
    for epoch in range(1, epochs + 1):
        started, losses = time.process_time(), torch.zeros(())
        order = torch.randperm(len(samples.inputs), generator=generator)
        for number in _progress(range(steps), f"{method}, epoch {epoch}"):
            chosen = order[number * task.batch : (number + 1) * task.batch]
            losses += update(samples.inputs[chosen], samples.targets[chosen])
            optimizer.step()
            schedule.step()
        yield _row(task, model, samples, epoch, float(losses) / steps, time.process_time() - started)


@torch.no_grad()
def _row(
    task: Task, model: nn.Module, samples: Samples, epoch: int, train_loss: float | None, seconds: float
) -> dict[str, float | int | None]:
    """One point of a curve: the mean loss while training, and loss and error on what was held out."""
    model.eval()
    loss, error = 0.0, 0.0
    for at in range(0, len(samples.held_inputs), 100):
        inputs, targets = samples.held_inputs[at : at + 100], samples.held_targets[at : at + 100]
        outputs, share = model(inputs), len(inputs) / len(samples.held_inputs)
        loss += float(task.loss(outputs, targets)) * share
        error += float(task.error(outputs, targets)) * share
    model.train()
    return {
        "epoch": epoch, "train_loss": train_loss, "held_out_loss": loss, "held_out_error": error,
        "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def _show(method: str, row: Mapping[str, float | int | None], epochs: int) -> None:
    before = row["train_loss"] is None
    train = "             " if before else f"loss {row['train_loss']:.3f}   "
    after = "" if before else f"  {row['cpu_seconds']:.0f} s"
    held = f"held out: loss {row['held_out_loss']:.3f}, error {row['held_out_error']:.1%}"
    print(f"{method:<16} epoch {row['epoch']}/{epochs}  {train}{held}{after}", flush=True)


def _progress(numbers: range, text: str) -> Iterator[int]:
    """The same numbers, with a bar where standard error is a terminal."""
    console = Console(stderr=True)
    yield from track(numbers, text, console=console, transient=True, disable=not console.is_terminal)


def _command(task: Task, args: argparse.Namespace) -> str:
    words = ["python", f"examples/{task.name}.py", f"--epochs {args.epochs}", f"--seed {args.seed}"]
    words += [f"--steps {args.steps}"] if args.steps else []
    words += ["--compare"] if args.compare else []
    return " ".join(words)


def _positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    number = int(text)
    if number <= 0:
        raise ValueError
    return number
