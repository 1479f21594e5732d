"""The examples that train a transformer, a language model, a recurrent net and a U-Net; their text and results."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import reclra_graph as rg
from reclra_graph.model_file import load_model

SHAPES = {"vit": (50, 10), "gpt": (16, 64, 65), "lstm": (50, 10), "unet": (50, 5, 28, 28)}
METHODS = ["rec-LRA", "last layer only", "backprop"]
NUMERALS = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]


@pytest.fixture
def examples(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder examples/, from which modules can be imported as a script there would."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(root / "examples"))
    yield root / "examples"
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(root / "examples")):
            del sys.modules[name]


@pytest.mark.parametrize("name", SHAPES)
def test_is_a_model_file(examples: Path, name: str) -> None:
    loaded = load_model(str(examples / f"{name}.py"))
    assert loaded.model(*loaded.example_inputs).shape == SHAPES[name]


@pytest.mark.parametrize("name", SHAPES)
def test_a_short_run_lowers_the_held_out_loss(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    module = importlib.import_module(name)
    path = tmp_path / "new" / "results.json"
    compare = ["--compare"] if name == "lstm" else []
    argv = ["--epochs", "1", "--steps", "20", "--seed", "3", "--out", str(path), *compare]
    assert importlib.import_module("_train").main(module.task, argv) == 0
    printed = capsys.readouterr()
    assert "error synapses" in printed.out
    assert "held out: loss" in printed.out
    assert "\x1b" not in printed.out + printed.err  # no colours, no bars, where it is no terminal
    record = json.loads(path.read_text(encoding="utf-8"))
    assert list(record["curves"]) == (METHODS if compare else METHODS[:1])
    for before, after in record["curves"].values():
        assert (before["epoch"], after["epoch"]) == (0, 1)
        assert after["held_out_loss"] < before["held_out_loss"]
    assert record["config"]["steps"] == 20
    assert record["config"]["seed"] == 3
    assert record["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize("name", SHAPES)
def test_every_parameter_has_a_rate(examples: Path, name: str) -> None:
    module = importlib.import_module(name)
    optimizer = importlib.import_module("_train")._optimizer
    names = [key for key, _ in module.build_model().named_parameters()]
    for method in ("rec-LRA", "backprop"):
        groups = optimizer(module.build_model(), module.task.rates[method]).param_groups
        assert len(groups) == len(names)
    last = optimizer(module.build_model(), module.task.rates["last layer only"]).param_groups
    assert len(last) == sum(key.startswith("head.") for key in names) == 2


@pytest.fixture
def gpt(examples: Path) -> ModuleType:
    """examples/gpt.py."""
    return importlib.import_module("gpt")


def test_the_poem(gpt: ModuleType) -> None:
    text = gpt.read_text()
    assert len(text) == 456_682
    assert sorted(set(text)) == sorted(gpt.LETTERS)
    books = [line for line in text.splitlines() if line.startswith("Book ") and len(line) < 10]
    assert books == [f"Book {number}" for number in NUMERALS]
    assert text.startswith("Book I\n\nOf Man's first disobedience, and the fruit\n")
    assert text.endswith("They, hand in hand, with wandering steps and slow,\nThrough Eden took their solitary way.\n")


def test_the_held_out_books_are_the_last_two(gpt: ModuleType) -> None:
    samples = gpt.samples()
    held = "".join(gpt.LETTERS[letter] for letter in samples.held_inputs[0])
    assert held.startswith("\nBook XI\n")
    kept = samples.inputs.numel() + samples.held_inputs.numel()
    assert 0 <= len(gpt.read_text()) - kept < 2 * gpt.LENGTH


def test_a_damaged_or_missing_poem(gpt: ModuleType, tmp_path: Path) -> None:
    whole = gpt.TEXT.read_bytes()
    others = [gzip.compress(b"\xff\xfe"), gzip.compress(b"Of Man's first disobedience")]
    for content in (b"", b"Of Man's first disobedience", whole[: len(whole) // 2], *others):
        (tmp_path / "poem.gz").write_bytes(content)
        with pytest.raises(rg.ReclraError, match="RG704"):
            gpt.read_text(tmp_path / "poem.gz")
    with pytest.raises(rg.ReclraError, match="RG703"):
        gpt.read_text(tmp_path / "none.gz")


def test_wrong_usage(gpt: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("_train").main
    for words in (["--epochs", "0"], ["--steps", "x"], ["--other"]):
        with pytest.raises(SystemExit) as caught:
            main(gpt.task, words)
        assert caught.value.code == 2
    (tmp_path / "file").write_text("")
    assert main(gpt.task, ["--out", str(tmp_path / "file" / "results.json")]) == 1
    assert "RG701" in capsys.readouterr().err


@pytest.mark.parametrize("name", SHAPES)
def test_the_recorded_curves_fall(root: Path, name: str) -> None:
    record: dict[str, Any] = json.loads((root / f"docs/results/examples-{name}.json").read_text(encoding="utf-8"))
    assert record["command"].startswith(f"python examples/{name}.py")
    assert record["commit"]
    assert not record["commit"].endswith("+")
    assert list(record["curves"]) == METHODS
    for method, rows in record["curves"].items():
        assert [row["epoch"] for row in rows] == list(range(record["config"]["epochs"] + 1))
        assert rows[-1]["held_out_loss"] < rows[0]["held_out_loss"], method
        assert rows[-1]["held_out_loss"] <= 1.01 * min(row["held_out_loss"] for row in rows), method
