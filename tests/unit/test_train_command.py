"""``reclra train``: what it writes and prints, its exit status, and that its options are the compiler's and its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reclra_graph.cli import render
from reclra_graph.cli.app import compile_command
from reclra_graph.cli.compile_options import NOT_OPTIONS, read_options
from reclra_graph.cli.train import train
from reclra_graph.methods.registry import METHODS
from reclra_graph.train import fit as fit_module
from reclra_graph.train.log import read_log
from reclra_graph.train.trainer import Progress
from tests.unit.command import HEAD, Call, write
from tests.unit.image_files import write_own

NET = HEAD + (
    "def build_model():\n"
    "    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))\n"
    "example_inputs = (torch.zeros(8, 4),)\n"
)
QUICK = ("--data", "own.pt", "--batch", "8", "--device", "cpu")


@pytest.fixture
def net(reclra: Call) -> Call:
    """The command line in a folder with a model and data for it."""
    write(NET)
    write_own(Path("own.pt"))
    return reclra


def test_three_lines_of_result(net: Call) -> None:
    result = net("train", "net.py", *QUICK, "--epochs", "3", "--gain")
    assert result.status == 0, result.err
    assert result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == "reclra on own: 54 images to train with, 6 for validation, 30 to test with"
    assert lines[1].startswith("18 steps; validation error ")
    assert "; test error " in lines[1]
    assert lines[-1] == "written: build/train-net/summary.json"
    summary = json.loads(Path("build/train-net/summary.json").read_text())
    assert summary["command"].startswith("reclra train net.py --data own.pt")
    assert len(read_log(Path("build/train-net/log.jsonl"))) == 3


def test_options_of_the_compiler_and_of_the_run_arrive(net: Call) -> None:
    arguments = (
        "--epochs 2 --rule fixed --beta 0.3 --kappa 1=0.5 --betas 0.8,0.9 --class-weights 1,2,1 --wiring 2->1 "
        "--optimizer torch:RMSprop --optimizer-args alpha=0.9 --optimizer-args centered=True --lr 0.003 "
        "--schedule step --lr-steps 1,1.5 --lr-factor 0.5 --warmup 2 --seed 4 --validation 10 --evaluations 2 "
        "--run eager --threads 1 --plan-for cpu --out here --json"
    )
    result = net("train", "net.py", *QUICK, *arguments.split())
    assert result.status == 0, result.out
    settings = result.json()["settings"]
    option = settings["option"]
    assert option["rule"] == "fixed"
    assert option["beta"] == 0.3
    assert option["kappa"] == [[1, 0.5]]
    assert option["betas"] == [0.8, 0.9]
    assert option["class_weights"] == [1.0, 2.0, 1.0]
    assert option["wiring"] == ["2->1"]
    assert option["device"] == "cpu"
    assert set(option) == {"rule", "beta", "kappa", "betas", "class_weights", "wiring", "device"}
    wanted = {
        "optimizer": "torch:RMSprop", "optimizer_args": {"alpha": 0.9, "centered": True}, "lr": 0.003, "seed": 4,
        "schedule": "step", "lr_steps": [1.0, 1.5], "lr_factor": 0.5, "warmup": 2, "validation": 10,
    }  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted
    assert len(result.json()["curve"]) == 4
    assert Path("here/last.pt").is_file()


def test_every_option_of_the_compiler_is_one_of_training() -> None:
    import inspect

    theirs = set(inspect.signature(compile_command).parameters) - set(NOT_OPTIONS)
    mine = set(inspect.signature(train).parameters)
    assert theirs - mine == {"profile"}  # what is measured differs from run to run
    usual = {item.name: item.default for item in inspect.signature(compile_command).parameters.values()}
    read = read_options(usual)
    assert set(read) == theirs
    assert (read["depth"], read["without"], read["class_weights"]) == ("auto", (), ())
    assert "compilation" not in mine


def test_help_is_in_groups_and_lists_the_methods(reclra: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = reclra("train", "--help").out
    titles = ("Data", "Method and optimiser", "The run", "Compilation")
    places = [found.start() for title in titles for found in re.finditer(rf"[-─] {title}\b", shown)]
    assert len(places) == 4
    assert places == sorted(places)
    assert all(name in shown for name in METHODS)
    assert shown.index("--synapse-memory") > places[3] > shown.index("--patience") > places[2]


def test_the_same_command_goes_on_and_another_is_refused(net: Call) -> None:
    paused = net("train", "net.py", *QUICK, "--epochs", "2", "--minutes", "0")
    assert paused.status == 1
    assert "not at its end yet" in paused.out
    assert "run the same command again" in paused.err
    assert net("train", "net.py", *QUICK, "--epochs", "2").status == 0
    again = net("train", "net.py", *QUICK, "--epochs", "3", "--json")
    assert (again.status, again.codes()) == (2, ["RG710"])
    assert net("train", "net.py", *QUICK, "--epochs", "3", "--fresh", "--quiet").out == ""


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_diverges_fails(net: Call) -> None:
    result = net("train", "net.py", *QUICK, "--method", "bp", "--lr", "1e38", "--schedule", "constant")
    assert result.status == 1
    assert "RG604 not-finite: the loss stopped being finite" in result.err
    assert json.loads(Path("build/train-net/summary.json").read_text())["ended"] == "diverged"


def test_several_seeds_are_told_together(net: Call) -> None:
    result = net("train", "net.py", *QUICK, "--epochs", "2", "--seeds", "2", "--seed", "7", "--method", "bp")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert [line[:6] for line in lines[:2]] == ["seed 7", "seed 8"]
    assert any(line.startswith("test error ") and " ± " in line and "2 runs" in line for line in lines)
    summary = json.loads(Path("build/train-net/summary.json").read_text())
    weights = [item["weights"] for item in summary["runs"]]
    assert len(set(weights)) == 2  # the file is run anew for each
    torch.manual_seed(8)
    assert sorted(path.name for path in Path("build/train-net").iterdir()) == ["seed-7", "seed-8", "summary.json"]


WRONG = {
    "everything about the settings at once": (
        ("--epochs", "0", "--lr-steps", "x", "--optimizer", "adam", "--seeds", "0", "--threads", "0", "--gpus", "0",
         "--plan-for", "abacus", "--device", "abacus", "--optimizer-args", "alpha"),
        2,
        ["RG401", "RG405", "RG405", "RG405", "RG405", "RG405", "RG405", "RG405", "RG430"],
    ),
    "no data": (("--data", "nowhere"), 1, ["RG703"]),
    "data that are not there": (("--data", "cifar10", "--data-dir", "."), 1, ["RG703"]),
    "damaged data": (("--data", "bad.pt"), 1, ["RG704"]),
    "a method that there is not": (("--method", "magic"), 2, ["RG405"]),
    "a folder that is a file": (("--out", "net.py"), 1, ["RG701"]),
    "an optimiser's argument": (("--optimizer", "torch:SGD", "--optimizer-args", "speed=1"), 2, ["RG405"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(net: Call, case: str) -> None:
    arguments, status, codes = WRONG[case]
    Path("bad.pt").write_bytes(b"PK")
    result = net("train", "net.py", *QUICK, *arguments, "--json")
    assert (result.status, sorted(result.codes())) == (status, codes)
    assert result.err == ""
    assert not Path("build").exists()


def test_without_data_it_is_wrong_usage(reclra: Call) -> None:
    assert reclra("train", "net.py").status == 2


def test_ctrl_c_ends_the_step_and_the_same_command_goes_on(net: Call, root: Path) -> None:
    # A model that waits, so that the process is in the middle of its training when it is interrupted.
    slow = NET.replace("def build_model", "import time\nclass Slow(nn.Module):\n    def forward(self, x):\n"
                       "        time.sleep(0.02)\n        return x\ndef build_model").replace(
                       "nn.Sequential(", "nn.Sequential(Slow(), ")  # fmt: skip
    write(slow)
    code = "from reclra_graph.cli import main; main()"
    arguments = ["train", "net.py", *QUICK, "--method", "bp", "--epochs", "400", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = Path("build/train-net/log.jsonl")
    while process.poll() is None and not (log.is_file() and log.read_text()):
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "run the same command again to go on" in err
    steps = torch.load("build/train-net/last.pt", weights_only=True)["course"]["steps"]
    assert 6 <= steps < 2400


def test_progress_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    monkeypatch.setattr(render, "Console", lambda **given: Console(**given, force_terminal=True, width=160))
    with render.training() as (phase, progress):
        phase("compiling")
        progress(Progress(50, 200, 2.5, 0.31234, 0.125, 0.12, 12345.6, 3725.0))
    shown = capsys.readouterr().err
    assert "epoch 2.5/10" in shown
    assert "error 12.50 %, best 12.00 %, loss 0.3123, 12,346 samples/s, 1:02:05 left" in shown
    with render.training(hidden=True) as (phase, progress):
        phase("compiling")
    assert capsys.readouterr().err == ""


def test_the_real_images_that_travel_with_the_examples(reclra: Call, root: Path) -> None:
    """The whole way on a part of Fashion-MNIST, by both methods."""
    part, errors = str(root / "examples" / "data" / "fashion-mnist"), []
    for method in ("reclra", "bp"):
        result = reclra(
            "train", write(MLP), "--data", part, "--method", method,
            "--epochs", "1", "--optimizer", "momentum", "--lr", "0.05", "--gain", "--rule", "fixed", "--device", "cpu",
            "--out", method, "--json",
        )  # fmt: skip
        assert result.status == 0, result.out
        errors.append(result.json()["test_error"])
    assert max(errors) < 0.4  # of ten classes


MLP = HEAD + (
    "def build_model():\n"
    "    return nn.Sequential(nn.Linear(784, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))\n"
    "example_inputs = (torch.zeros(50, 784),)\n"
)


def test_settings_are_read_alike_by_both_ways_in() -> None:
    given: dict[str, Any] = {
        "lr": None, "whiten_epsilon": None, "schedule": "cosine", "optimizer": "adamw", "lr_end": 0.0, "lr_power": 1.0,
        "warmup": 0, "lr_steps": (), "lr_factor": 0.1, "lr_by": "step", "epochs": 3.0,
    }  # fmt: skip
    found = fit_module.settings_of(given)
    assert (found.schedule.lr, found.epochs, found.batch) == (0.001, 3.0, 50)
