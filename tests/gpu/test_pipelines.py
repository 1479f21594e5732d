"""The GPU checks of pipelines and CUDA graphs, on the CPU: the checks themselves are sound. On a GPU they are a part of
``python tests/gpu/run_all.py``."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import cases, pipelines

CPU = torch.device("cpu")
NAMES = tuple(pipelines.all_checks())


def run(name: str) -> None:
    """One check on the CPU; skipped where only a GPU can run it."""
    try:
        pipelines.all_checks()[name](CPU)
    except cases.NotHere as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", ["figure1 placed: as without", "figure1 in micro-batches: as on the CPU"])
def test_the_checks_run_on_the_cpu(name: str) -> None:
    run(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_checks_run_on_the_cpu(name: str) -> None:
    run(name)


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = pipelines.variant

    def broken(name: str, lanes: int, more: pipelines.Options, device: torch.device) -> pipelines.rg.CompiledStep:
        step = sound(name, lanes, more, device)
        step.lr *= 1.0001
        return step

    monkeypatch.setattr(pipelines, "variant", broken)
    with pytest.raises(cases.Unmet, match="differs by up to"):
        pipelines.as_without("figure1", 5, pipelines.PLACED, CPU)
