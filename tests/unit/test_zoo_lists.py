"""Lists of models for the zoo: what a line may say, which lists there are, which models of them are meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from reclra_graph.bench import own
from reclra_graph.bench.lists import Entry, named, parse, selected
from reclra_graph.errors import UsageError


def test_a_list_is_read_in_order_each_model_once() -> None:
    text = "# models\ntimm b  # a remark\n\ntorchvision a\ntimm b\nfile my models/net.py\n"
    assert parse(text) == (Entry("timm", "b"), Entry("torchvision", "a"), Entry("file", "my models/net.py"))


def test_every_wrong_line_is_told_with_its_place() -> None:
    with pytest.raises(UsageError) as caught:
        parse("timm\nkeras b\ntimm c\n", "models.txt")
    assert caught.value.codes == ("RG801", "RG801")
    assert [problem.place for problem in caught.value.problems] == ["models.txt:1", "models.txt:2"]


def test_a_list_without_models_is_refused() -> None:
    with pytest.raises(UsageError, match="names no model"):
        parse("# nothing\n")


def test_the_open_list_has_its_models() -> None:
    entries = named("open")
    assert len(entries) == len(set(entries)) == 124
    counts = {source: sum(entry.source == source for entry in entries) for source in ("torchvision", "timm")}
    assert counts == {"torchvision": 24, "timm": 57}


def test_all_is_own_and_open() -> None:
    assert [entry.name for entry in named("own")] == list(own.names())
    assert named("all") == (*named("own"), *named("open"))
    assert len(own.names()) >= 28


def test_a_file_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("timm resnet18\n", encoding="utf-8")
    assert named(str(path)) == (Entry("timm", "resnet18"),)


@pytest.mark.parametrize("make", [None, b"\xff\xfe\xff"])
def test_a_file_that_cannot_be_read_is_told(make: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if make is not None:
        path.write_bytes(make)
    with pytest.raises(UsageError, match="RG801"):
        named(str(path))


def test_models_are_chosen_by_name_with_or_without_their_source() -> None:
    entries = (Entry("own", "a"), Entry("timm", "a"), Entry("timm", "b"))
    assert selected(entries, ["a"]) == entries[:2]
    assert selected(entries, ["timm/a", "b"]) == entries[1:]
    with pytest.raises(UsageError, match="the list has no c"):
        selected(entries, ["a", "c"])
