"""The emitted step on CUDA, against the CPU: `python tests/gpu/run_all.py`, or `python -m pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import reclra_graph as rg
from tests.gpu import cases, checks

NAMES = tuple(checks.all_checks(""))


def run(name: str, device: torch.device, folder: Path) -> None:
    """One check; skipped where the machine cannot run it."""
    try:
        checks.all_checks(str(folder))[name](device)
    except cases.NotHere as reason:
        pytest.skip(str(reason))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_cuda(name: str, tmp_path: Path) -> None:
    run(name, torch.device("cuda:0"), tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("figure1") and "missing" not in name])
def test_the_checks_run_on_the_cpu(name: str, tmp_path: Path) -> None:
    run(name, torch.device("cpu"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("figure1")])
def test_all_checks_run_on_the_cpu(name: str, tmp_path: Path) -> None:
    run(name, torch.device("cpu"), tmp_path)


# -- the checks do find what they look for ----------------------------------------------------------------------------


def test_another_learning_rate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    sound = cases.fresh

    def broken(name: str, lanes: int, where: torch.device) -> rg.CompiledStep:
        step = sound(name, lanes, where)
        step.lr *= 1.01
        return step

    monkeypatch.setattr(checks, "fresh", broken)
    with pytest.raises(cases.Unmet, match="off after moving"):
        checks.as_on_the_cpu("figure1", 2, device)


def test_a_difference_in_the_last_digit_between_lanes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = cases.fresh

    def broken(name: str, lanes: int, where: torch.device) -> rg.CompiledStep:
        step = sound(name, lanes, where)
        if lanes == 5:
            with torch.no_grad():
                weight = next(step.model.parameters())
                weight[0, 0] = torch.nextafter(weight[0, 0], weight[0, 0] + 1)
        return step

    monkeypatch.setattr(checks, "fresh", broken)
    with pytest.raises(cases.Unmet, match="5 lanes, run 1"):
        checks.same_for_all_lanes("figure1", torch.device("cpu"))


def test_a_step_that_takes_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = cases.fresh

    def broken(name: str, lanes: int, where: torch.device) -> rg.CompiledStep:
        step = sound(name, lanes, where)
        step.module.__dict__["check"] = lambda *values: None
        return step

    monkeypatch.setattr(checks, "fresh", broken)
    with pytest.raises(cases.Unmet, match="nan in the input was not refused"):
        checks.refuses_nan("figure1", 2, torch.device("cpu"))


def test_a_sanitizer_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "sanitized", lambda source, name, device: (3, "a race"))
    with pytest.raises(cases.Unmet, match="a race"):
        checks.sanitizer_finds_nothing("figure1", 5, torch.device("cpu"))


def test_waits_are_found_in_the_file() -> None:
    source = cases.compiled_source("figure1", 5).source
    lines = source.splitlines()
    assert len(checks.waits(source)) >= 5
    assert all(lines[number].strip().startswith("wait('") for number in checks.waits(source))
    assert checks.waits(cases.compiled_source("figure1", 1).source) == []
