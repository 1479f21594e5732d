"""What every test shares: one thread, a fixed seed, golden files, and a torchvision that imports on any machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from reclra_graph.bench.loader import imported

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--update-golden`` rewrites tests/golden/ with what the tests saw; read the diff before you commit it."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tests run in parallel processes; and sums in one thread are the same on every machine.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)`` compares a text with tests/golden/<name>, or rewrites that file with --update-golden."""
    update = bool(request.config.getoption("--update-golden"))

    def compare(name: str, text: str) -> None:
        path = ROOT / "tests" / "golden" / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{name} is not there yet: run pytest with --update-golden, and read the file"
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, also beside a CPU-only torch; the test is skipped where it is not installed (extra ``zoo``)."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed (extra `zoo`)")
    return imported("torchvision")
