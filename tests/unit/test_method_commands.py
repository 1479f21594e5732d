"""``--method``: what it fills in on the command line, and runs of methods with loops of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reclra_graph.errors import UsageError
from reclra_graph.methods.build import build
from reclra_graph.methods.equilibrium import EquilibriumPropagation
from tests.models import mlp
from tests.unit.command import GOOD, Call, write
from tests.unit.image_files import write_own
from tests.unit.training import Net, check_same_end, run


def updates(folder: Path) -> set[str]:
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return {region["update"] for region in plan["regions"] if region.get("update")}


def test_a_method_fills_in_the_options_that_are_not_given(reclra: Call) -> None:
    assert reclra("compile", write(GOOD), "--method", "reclra-hybrid", "--out", "hybrid").status == 0
    assert updates(Path("hybrid")) == {"local_vjp"}


def test_what_is_given_wins_even_where_it_is_the_default(reclra: Call) -> None:
    given = ("--update", "analytic", "--method", "reclra-hybrid", "--out", "plain")
    assert reclra("compile", write(GOOD), *given).status == 0
    assert updates(Path("plain")) == {"analytic"}


@pytest.mark.parametrize("name", ["bp", "dtp", "eprop"])
def test_a_loop_of_its_own_is_no_step(reclra: Call, name: str) -> None:
    result = reclra("compile", write(GOOD), "--method", name, "--json")
    assert result.status == 2
    assert result.codes() == ["RG405"]
    assert f"{name} is no compiled step" in result.out
    assert f"--method {name}" in result.out


@pytest.mark.parametrize("command", ["compile", "train"])
def test_an_unknown_method_is_wrong_usage(reclra: Call, command: str) -> None:
    data = ("--data", "digits") if command == "train" else ()
    result = reclra(command, write(GOOD), *data, "--method", "sgd", "--json")
    assert result.status == 2
    assert result.codes() == ["RG405"]
    assert "no method 'sgd'" in result.out


def test_train_takes_the_numbers_of_a_loop(reclra: Call) -> None:
    data = write_own(Path("own.pt"), train=100, test=40)
    net = write(GOOD.replace("nn.Linear(3, 2)", "nn.Linear(3, 3)"))
    common = ("train", net, "--data", str(data), "--batch", "8", "--validation", "20", "--epochs", "1", "--json")
    result = reclra(*common, "--method", "dtp", "--method-args", "noise=0.5", "--method-args", "first_target=output")
    assert result.status == 0, result.out
    for wrong, code in ((("noise=-1",), 2), (("beta=1",), 2), (("noise",), 2)):
        refused = reclra(*common, "--method", "dtp", "--method-args", *wrong, "--out", "other")
        assert (refused.status, refused.codes()) == (code, ["RG405"])
    refused = reclra(*common, "--method", "dtp", "--wiring", "flat", "--out", "other")
    assert refused.codes() == ["RG405"]
    assert "dtp has no option wiring" in refused.out


class Stop:
    """Ends a run behind a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, step: int, learner: Any, batch: tuple[Any, Tensor]) -> None:
        if step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["tp", "dtp"])
def test_a_run_goes_on_exactly(tmp_path: Path, method: str) -> None:
    given: dict[str, Any] = {"method": method, "options": {}, "optimizer": "adamw", "lr": 0.01, "epochs": 3}
    whole = run(tmp_path, "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "parts", callbacks=[Stop(14)], checkpoint_seconds=0.0, **given)
    parts = run(tmp_path, "parts", **given)
    assert parts.test_error == whole.test_error
    check_same_end(tmp_path / "whole", tmp_path / "parts")


def test_an_equilibrium_is_judged_by_its_free_phase(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mlp(4, 8, 8, 3)
    options = {"free_steps": 20, "clamped_steps": 5, "nudge_sign": "both"}
    result = run(
        tmp_path, model=model, method="eprop", options=options, optimizer="adamw", lr=0.01, epochs=4, patience=None
    )
    learner = build("eprop", model, (torch.zeros(8, 4),), options)
    assert isinstance(learner, EquilibriumPropagation)
    held = torch.load(tmp_path / "own.pt", weights_only=True)["test"]
    images, labels = held["images"].float(), held["labels"]
    wrong = learner.predict(images).argmax(1) != labels
    assert result.test_error == pytest.approx(float(wrong.float().mean()), abs=1e-6)


def test_a_loop_of_its_own_runs_as_it_is() -> None:
    with pytest.raises(UsageError, match=r"(?s)RG405.*run is 'fused', with the method dtp"):
        build("dtp", Net(), (torch.zeros(8, 4),), run="fused")
