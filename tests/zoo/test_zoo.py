"""All our own models, and one small model of each kind from the libraries, through every check of the zoo."""

from __future__ import annotations

import importlib.util

import pytest

from reclra_graph.bench import own
from reclra_graph.bench.measure import Measurement, Row

pytestmark = pytest.mark.zoo

LIBRARIES = [
    ("torchvision", "shufflenet_v2_x0_5"),
    ("timm", "test_mambaout"),
    ("timm", "test_vit_relpos"),
    ("transformers", "gpt2"),
    ("transformers", "bert"),
    ("transformers", "t5"),
    ("transformers", "mamba"),
    ("transformers", "wav2vec2"),
]


@pytest.mark.parametrize("name", own.names())
def test_our_own_models(name: str) -> None:
    row = Measurement("own", name).run()
    assert row["passed"], row["failures"]


@pytest.mark.parametrize(("source", "name"), LIBRARIES, ids=[f"{source}-{name}" for source, name in LIBRARIES])
def test_models_of_the_libraries(source: str, name: str) -> None:
    if importlib.util.find_spec(source) is None:
        pytest.skip(f"{source} is not installed (extra `zoo`)")
    row = Measurement(source, name).run()
    assert row["passed"], row["failures"]


def test_what_memory_cannot_hold_in_float64_is_compared_in_float32() -> None:
    def report(row: Row) -> None:
        row["peak_memory_mib"] = 600

    row = Measurement("own", "siamese", memory=2.0, report=report).run()
    assert (row["reference_dtype"], row["passed"]) == ("float32", True)
    row = Measurement("own", "siamese", memory=2.5, report=report).run()
    assert (row["reference_dtype"], row["passed"]) == ("float64", True)
