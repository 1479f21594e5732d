"""Train an example on real Fashion-MNIST images, without backpropagation.

    python examples/fashion_mnist.py                                       the images that travel with the examples
    python examples/fashion_mnist.py --data DIR                            the full data set, from its official files
    python examples/fashion_mnist.py --data DIR --results results.json     and write what was measured

The model file (--model) is compiled as `rg.compile(model, example_inputs, ...)`; the plan, its pictures and the emitted
step go to the folder --out, and so does a checkpoint after every epoch, from which --resume continues as if nothing had
happened. Pixels are divided by 255; nothing else is done to the images.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _record import circumstances, make_folder, write_json
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.data import ImageSet, fashion_mnist

HERE = Path(__file__).resolve().parent
PART = HERE / "data" / "fashion-mnist"
MODELS = ("mlp", "figure1", "residual_mlp", "lenet", "resnet18")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="Train an example on Fashion-MNIST, without backpropagation.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the official files; default: a part")
    parser.add_argument("--model", choices=MODELS, default="mlp", help="which example to train (default: mlp)")
    parser.add_argument("--epochs", type=_positive(int), default=10, help="passes over the images (default: 10)")
    parser.add_argument("--batch", type=_positive(int), default=50, help="images per step (default: 50)")
    parser.add_argument("--lr", type=_positive(float), default=0.1, help="first learning rate; falls as a cosine to 0")
    parser.add_argument("--beta", type=_positive(float), default=0.1, help="scale of the displacement (default: 0.1)")
    parser.add_argument("--no-gain", dest="gain", action="store_false", help="do not divide errors by beta")
    parser.add_argument("--wiring", default="auto", choices=("auto", "flat", "chain", "blocks"), help="error wiring")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to plan for (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, synapses and the order of images")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    parser.add_argument("--threads", type=_positive(int), default=1, help="CPU threads (default: 1, for small nets)")
    parser.add_argument(
        "--out", type=Path, help="folder for plan, pictures, step, checkpoint (build/fashion_mnist-MODEL)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--results", type=Path, metavar="FILE.json", help="write configuration and errors as JSON")
    args = parser.parse_args(argv)
    args.out = args.out or Path("build") / f"fashion_mnist-{args.model}"
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (130 after Ctrl-C)."""
    args = arguments(argv)
    try:
        run(args)
    except rg.ReclraError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        if checkpoint_path(args).exists():
            print(f"\nInterrupted. Continue after the last whole epoch with --resume --out {args.out}", file=sys.stderr)
        else:
            print("\nInterrupted, before the first epoch was over; nothing to resume from.", file=sys.stderr)
        return 130
    return 0


def run(args: argparse.Namespace) -> None:
    """Compile, train, and write what was asked for. Raises ReclraError for anything a user can mend."""
    torch.set_num_threads(args.threads)
    full = args.data is not None
    images = fashion_mnist(args.data if full else PART)
    if args.batch > len(images.train_labels):
        cause = f"the batch is {args.batch:,}, of {len(images.train_labels):,} images"
        raise rg.UsageError(rg.Problem("RG405", cause, "--batch", "Choose a smaller batch."))
    if args.results:
        make_folder(args.results)
    print(
        f"Fashion-MNIST: {len(images.train_labels):,} training and {len(images.test_labels):,} test images"
        + ("" if full else " (a part, which travels with the examples; --data DIR takes them all)")
    )
    model, example_inputs = build(args)
    step = rg.compile(
        model,
        example_inputs,
        gpus=args.gpus,
        wiring=args.wiring,
        beta=args.beta,
        gain=args.gain,
        lr=args.lr,
        seed=args.seed,
    )
    step.save(args.out)
    print(summary(step, model))
    print(f"pictures: {args.out / 'plan.html'}, {args.out / 'plan.svg'}")
    print(f"the training step, to read and keep: {args.out / 'step.py'}")
    history = resume(args, step) if args.resume else []
    train(args, step, model, images, history)
    if args.results:
        write_json(args.results, report(args, step, images, history))
        print(f"results: {args.results}")


def build(args: argparse.Namespace) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The example's model, its weights drawn from the seed, and its example inputs with the batch size asked for."""
    sys.path.insert(0, str(HERE))
    module = importlib.import_module(args.model)
    torch.manual_seed(args.seed)
    model: nn.Module = module.build_model().to(args.device)
    (example,) = module.example_inputs
    return model, (example.new_zeros((args.batch, *example.shape[1:]), device=args.device),)


def train(
    args: argparse.Namespace, step: rg.CompiledStep, model: nn.Module, images: ImageSet, history: list[dict[str, Any]]
) -> None:
    """Train for the epochs that are left; appends to ``history`` and writes a checkpoint after each."""
    shape = step_shape(step)
    train_images, train_labels = images.train_images.to(args.device), images.train_labels.to(args.device)
    test_images, test_labels = images.test_images.to(args.device), images.test_labels.to(args.device)
    batches = len(train_labels) // args.batch
    for epoch in range(len(history), args.epochs):
        started = time.perf_counter()
        order = torch.randperm(len(train_labels), generator=torch.Generator().manual_seed(args.seed * 100_003 + epoch))
        total = torch.zeros((), device=args.device)
        for number in progress(range(batches), f"epoch {epoch + 1}"):
            chosen = order[number * args.batch : (number + 1) * args.batch].to(args.device)
            done = (epoch * batches + number) / (args.epochs * batches)
            step.lr = args.lr * 0.5 * (1 + math.cos(math.pi * done))
            total += step(fit(train_images[chosen], shape), train_labels[chosen])
        history.append(
            {
                "epoch": epoch + 1,
                "loss": float(total) / batches,
                "train_error": error_rate(model, train_images, train_labels, shape),
                "test_error": error_rate(model, test_images, test_labels, shape),
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
        save_checkpoint(args, step, history)
        last = history[-1]
        print(
            f"epoch {last['epoch']:>3}/{args.epochs}  loss {last['loss']:.4f}  train error {last['train_error']:6.2%}"
            f"  test error {last['test_error']:6.2%}  {last['seconds']:.1f} s",
            flush=True,
        )


def fit(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images [B, 1, 28, 28] as the model takes them: flat, as they are, or with a border and repeated channels."""
    if math.prod(shape) == images[0].numel():
        return images.reshape(-1, *shape)
    channels, height, width = shape
    rows, columns = height - images.shape[2], width - images.shape[3]
    padded = F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return padded.expand(-1, channels, -1, -1).contiguous()


@torch.no_grad()
def error_rate(model: nn.Module, images: Tensor, labels: Tensor, shape: tuple[int, ...]) -> float:
    """The share of images classified wrongly, in evaluation mode."""
    model.eval()
    wrong = 0
    for at in range(0, len(labels), 500):
        wrong += int((model(fit(images[at : at + 500], shape)).argmax(1) != labels[at : at + 500]).sum())
    model.train()
    return wrong / len(labels)


def step_shape(step: rg.CompiledStep) -> tuple[int, ...]:
    """Sizes of the model's one input, without the batch."""
    (item,) = step.plan.regions.graph.inputs
    return tuple(int(size) for size in item.type.shape[1:])


def progress(numbers: Sequence[int], text: str) -> Iterable[int]:
    """The same numbers, with a bar where standard error is a terminal."""
    console = Console(stderr=True)
    return track(numbers, text, console=console, transient=True, disable=not console.is_terminal)


def summary(step: rg.CompiledStep, model: nn.Module) -> str:
    """A few lines on the plan: its regions, and the error wiring as a tree."""
    plan = step.plan
    parameters = sum(parameter.numel() for parameter in model.parameters())
    synapses = plan.synapse_bytes
    relays = ", ".join(map(str, plan.relays)) or "none"
    classes = dict(plan.regions.graph.modules)

    def text(number: int) -> str:
        region = plan.regions.regions[number]
        return f"r{number}: {region.name} {classes.get(region.name, '')}, {'×'.join(map(str, region.shape))} units"

    def branches(source: int, indent: str) -> list[str]:
        rows = []
        for edge in plan.outgoing.get(source, ()):
            last = edge is plan.outgoing[source][-1]
            rows.append(f"{indent}{'└─' if last else '├─'} {text(edge.target)}")
            rows += branches(edge.target, indent + ("   " if last else "│  "))
        return rows

    lines = [
        f"plan: {len(plan.regions.sites)} regions, {parameters:,} parameters; "
        f"wiring {plan.wiring}, depth {plan.depth}, relays {relays}; "
        f"{len(plan.edges)} error synapses, {synapses / 2**20:.2f} MiB",
        "where each region gets its error from:",
        f"  {text(plan.regions.output)}",
        *branches(plan.regions.output, "  "),
    ]
    return "\n".join(lines)


def config(args: argparse.Namespace) -> dict[str, Any]:
    """What the course of the training depends on."""
    keys = ("model", "epochs", "batch", "lr", "beta", "gain", "wiring", "gpus", "seed", "device", "threads")
    return {**{key: getattr(args, key) for key in keys}, "data": "part" if args.data is None else "full"}


def checkpoint_path(args: argparse.Namespace) -> Path:
    """Where the checkpoint of a run stands."""
    path: Path = args.out / "checkpoint.pt"
    return path


def save_checkpoint(args: argparse.Namespace, step: rg.CompiledStep, history: list[dict[str, Any]]) -> None:
    """Write the state after a whole epoch; a crash leaves the one before."""
    state = {
        "config": config(args),
        "history": history,
        "model": step.model.state_dict(),
        "synapses": step.state_dict(),
        "random": torch.get_rng_state(),
    }
    path = checkpoint_path(args)
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def resume(args: argparse.Namespace, step: rg.CompiledStep) -> list[dict[str, Any]]:
    """Restore the checkpoint into the step; returns the epochs done. Raises ReclraError RG702 where it does not fit."""
    path = checkpoint_path(args)
    try:
        state = torch.load(path, weights_only=True, map_location=args.device)
        different = [f"{key} {state['config'].get(key)!r} then, {value!r} now" for key, value in config(args).items()
                     if state["config"].get(key) != value]  # fmt: skip
        if not different:
            step.model.load_state_dict(state["model"])
            step.load_state_dict(state["synapses"])
            torch.set_rng_state(state["random"].cpu())
    except FileNotFoundError:
        advice = "Run without --resume first, or give the --out of the run to continue."
        raise rg.ModelError(rg.Problem("RG702", "there is no checkpoint", str(path), advice)) from None
    except rg.ReclraError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        advice = "Delete it and start again without --resume."
        raise rg.ModelError(rg.Problem("RG702", f"cannot be read: {error}", str(path), advice)) from None
    if different:
        advice = "Resume with the options that the run was started with."
        raise rg.UsageError(rg.Problem("RG405", f"another run: {'; '.join(different)}", str(path), advice))
    history: list[dict[str, Any]] = state["history"]
    print(f"resuming after epoch {len(history)}")
    return history


def report(
    args: argparse.Namespace, step: rg.CompiledStep, images: ImageSet, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """What --results writes: the command, its configuration, what it ran on, and the errors of every epoch."""
    plan = step.plan
    return {
        "command": command(args),
        "config": config(args),
        "images": {"train": len(images.train_labels), "test": len(images.test_labels)},
        "plan": {
            "digest": step.program.digest,
            "wiring": plan.wiring,
            "depth": plan.depth,
            "relays": list(plan.relays),
            "edges": [edge.name for edge in plan.edges],
            "update": sorted({update for _, update in plan.update}),
            "rule": sorted({edge.rule for edge in plan.edges}),
        },
        "test_error": history[-1]["test_error"],
        "epochs": history,
        **circumstances(args.device),
    }


def command(args: argparse.Namespace) -> str:
    """The command that repeats the run, with DIR for the reader's own folder."""
    options = {key: value for key, value in config(args).items() if key not in ("data", "gain")}
    words = [f"--{key} {value}" for key, value in options.items()]
    words += [] if args.gain else ["--no-gain"]
    words += [] if args.data is None else ["--data DIR"]
    return " ".join(["python examples/fashion_mnist.py", *words])


def _positive(kind: type[int] | type[float]) -> Any:
    """An argparse type: a finite number above 0."""

    def read(text: str) -> float:
        number = kind(text)
        if not (number > 0 and math.isfinite(number)):
            raise ValueError
        return number

    read.__name__ = f"number above 0 ({kind.__name__})"
    return read


if __name__ == "__main__":
    sys.exit(main())
