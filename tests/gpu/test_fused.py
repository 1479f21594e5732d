"""The GPU checks of compiled steps without a GPU. On one they are a part of ``python tests/gpu/run_all.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reclra_graph.runtime.compiled import CompiledStep
from tests.gpu import cases, fused, parts, pipelines

CPU = torch.device("cpu")


def test_the_checks_are_offered_and_say_what_they_need() -> None:
    found = parts.fused(True, lambda result: None)
    assert set(found["checks"]) == set(fused.all_checks())
    assert "failed" not in found
    with pytest.raises(cases.NotHere, match="no CUDA"):
        fused.all_checks()["figure1 compiled whole"](CPU)


def test_every_form_takes_every_plan(tmp_path: Path) -> None:
    for lanes, more in ((1, ()), (2, ()), (2, pipelines.MICRO), (3, pipelines.PLACED)):
        step = pipelines.variant("figure1", lanes, more, CPU)
        assert isinstance(step, CompiledStep)
        for form in (fused.whole, fused.pieced):
            run = form(step, tmp_path)
            assert run._obstacle() == ""
            fused._no_compiler(run)
            run(*cases.batch("figure1", 0))
            assert run.why == "the step cannot be compiled: the second start compiles"
