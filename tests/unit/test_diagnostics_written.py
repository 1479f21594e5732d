"""What diagnostics write: JSON lines, event files, a table, a picture, and the command that reads them."""

from __future__ import annotations

import builtins
import json
import re
import sys
import types
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import reclra_graph as rg
from reclra_graph.diagnostics import EdgeLook, JsonLines, Look, ParameterLook, RegionLook, TensorBoard, read_looks
from reclra_graph.diagnostics.picture import FEW, MOST, POINTS, diagnostics_svg
from reclra_graph.diagnostics.series import spread
from reclra_graph.diagnostics.table import lines
from reclra_graph.errors import ModelError, UsageError
from tests.unit.command import Call


def look(step: int | None, regions: int = 3) -> Look:
    """A look at a net of so many regions; the last is the output."""
    when = 0 if step is None else step
    return Look(
        step=step, samples=8, loss=2.0 / (1 + when), cosine=0.5, discrepancy=1e-3, seconds=0.25,
        regions=tuple(
            RegionLook(
                k, f"blocks.{k}.layer", "analytic", (f"{k}.weight",), cosine=k / regions, error=0.1, displacement=0.2,
                discrepancy=10.0**-k if k < regions else None, update_flips=0.25 if when else None, flips=0.0,
                why=() if k < regions else (("discrepancy", "an output has the loss's own error, and no target"),),
            )
            for k in range(1, regions + 1)
        ),
        edges=tuple(
            EdgeLook(f"{regions}->{k}", "dense", "eq6", ("1.weight", "2.weight"), angle=90.0 - k, sent=80.0 + when)
            for k in range(1, regions)
        ),
        parameters=(ParameterLook("1.weight", 0.25, 1.0, None, (("gradient", "backprop does not reach it"),)),),
    )  # fmt: skip


# -- JSON lines --------------------------------------------------------------------------------------------------------


def test_a_look_goes_to_json_and_back() -> None:
    for wanted in (look(3), look(None), Look(step=2, why=(("loss", "it is not finite"),))):
        assert Look.from_dict(json.loads(json.dumps(wanted.as_dict(), allow_nan=False))) == wanted
    found = look(3).as_dict()
    assert found["regions"][2]["discrepancy"] is None
    assert found["regions"][2]["why"] == {"discrepancy": "an output has the loss's own error, and no target"}
    assert "synapse" not in found["edges"][0]  # not asked for


def test_each_look_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "made" / "log.jsonl"
    writer = JsonLines(path)
    for number in range(3):
        writer.write(look(number))
        assert read_looks(path) == [look(k) for k in range(number + 1)]


def test_a_run_goes_on_behind_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    JsonLines(path).write(look(0))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(look(10).as_dict())[:50])  # killed here
    assert read_looks(path) == [look(0)]
    JsonLines(path).write(look(20))
    assert read_looks(path) == [look(0), look(20)]
    path.write_text("only a beginning", encoding="utf-8")
    JsonLines(path).write(look(1))
    assert read_looks(path) == [look(1)]


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"charm": 1}', '{"loss": "high"}', '{"regions": [{"id": 1}]}', '{"regions": 3}',
             '{"edges": [{"name": "2->1", "form": "dense", "rule": "eq6", "why": 3}]}', '{"step": true}',
             '{"loss": NaN}', '{"regions": [{"id": 1, "name": 2}]}', '{"regions": [{"id": 1.5, "name": "x"}]}'],
)  # fmt: skip
def test_damaged_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(look(0).as_dict()) + f"\n{line}\n", encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        read_looks(path)
    assert caught.value.codes == ("RG704",)
    assert "line 2" in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError) as caught:
        read_looks(tmp_path / "none.jsonl")
    assert caught.value.codes == ("RG101",)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff\n")
    for name in ("binary", "."):
        with pytest.raises(ModelError) as caught:
            read_looks(tmp_path / name)
        assert caught.value.codes == ("RG704",)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError) as caught:
        JsonLines(tmp_path / "file" / "log.jsonl").write(look(0))
    assert caught.value.codes == ("RG701",)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ModelError, match="No space left") as caught:
        JsonLines(tmp_path / "log.jsonl").write(look(0))
    assert caught.value.codes == ("RG701",)


# -- TensorBoard -------------------------------------------------------------------------------------------------------


class Events:
    made: list[Events] = []  # noqa: RUF012  # read by the tests

    def __init__(self, folder: str) -> None:
        self.folder, self.seen, self.flushed, self.closed = folder, {}, 0, False  # type: ignore[var-annotated]
        Events.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen[tag, step] = value

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_every_number_by_its_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Events  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    writer = TensorBoard(tmp_path / "runs")
    writer.write(look(10))
    writer.write(look(None))
    writer.close()
    events = Events.made[-1]
    assert (events.folder, events.flushed, events.closed) == (str(tmp_path / "runs"), 2, True)
    assert events.seen["total/cosine", 10] == 0.5
    assert events.seen["cosine/2 blocks.2.layer", 10] == 2 / 3
    assert events.seen["angle/3->1", 1] == 89.0
    assert ("discrepancy/3 blocks.3.layer", 10) not in events.seen


def test_tensorboard_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="reclra-graph\\[tensorboard\\]") as caught:
        TensorBoard(tmp_path)
    assert caught.value.codes == ("RG910",)


def test_nothing_of_tensorboard_is_imported_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, usual = [], builtins.__import__

    def watched(name: str, *rest: Any) -> Any:
        seen.append(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", watched)
    assert rg.Diagnostics is not None
    assert not [name for name in seen if "tensorboard" in name]


# -- table and picture -------------------------------------------------------------------------------------------------


def test_the_table_aligns_and_gives_each_reason_once() -> None:
    said = lines(look(1200))
    assert said[0] == "step 1,200, loss 0.00166528, cosine 0.5, D 0.001, 8 samples, 0.25 s"
    assert said[2].split() == ["region", "learns", "cosine", "D", "|e|", "|d|", "W", "flips", "dW", "flips"]
    assert said[3].split() == [
        "1",
        "blocks.1.layer",
        "analytic",
        "0.333",
        "0.1",
        "0.1",
        "0.2",
        "0.00",
        "%",
        "25.00",
        "%",
    ]
    assert said[5].split()[4] == "-"
    assert len({len(row) for row in said[2:6]}) == 1
    assert said[7].split() == ["edge", "form", "rule", "angle", "sent"]
    assert said[8].split() == ["3->1", "dense", "eq6", "89.0", "1280.0"]
    assert said[-1] == "- D: an output has the loss's own error, and no target: 3"
    many = lines(Look(regions=tuple(RegionLook(k, "", why=(("cosine", "zero"),)) for k in range(20))))
    assert many[-1] == "- cosine: zero: 0, 1, 2, 3, 4, 5, 6 and 13 more"
    assert lines(Look(step=0, why=(("loss", "it is not finite"),)))[-1] == "- loss: it is not finite: total"


def drawn(looks: list[Look]) -> tuple[str, list[ElementTree.Element]]:
    text = diagnostics_svg(looks)
    return text, list(ElementTree.fromstring(text).iter())


@pytest.mark.parametrize("regions", [3, 20])
def test_a_few_are_lines_and_many_are_rows(regions: int) -> None:
    text, found = drawn([look(10 * k, regions) for k in range(12)])
    lined = [item for item in found if item.tag.endswith("polyline")]
    assert bool(lined) == (regions <= FEW)
    labels = [item for item in found if item.tag.endswith("text") and item.get("class") == "end"]
    assert len(labels) == 3 * regions - 1 + 2 * (regions - 1)
    levels = sorted(float(item.get("y", 0)) for item in labels)
    assert min(high - low for low, high in pairwise(levels)) >= 12  # none covers another
    height = float(re.search(r'viewBox="0 0 \d+ (\d+)"', text)[1])  # type: ignore[index]
    assert levels[-1] < height


def test_more_than_can_be_drawn_is_thinned_out_and_averaged() -> None:
    text, found = drawn([look(k, 90) for k in range(POINTS + 1)])
    assert f"({MOST} of 90)" in text
    assert len([item for item in found if item.get("class") == "end"]) == 5 * MOST
    assert len(text) < 2_000_000


def test_pictures_of_little() -> None:
    for looks in ([], [Look(step=1)], [Look(step=1, why=(("loss", "it is not finite"),))]):
        assert "No look has numbers to draw." in drawn(looks)[0]
    assert "circle" in drawn([look(5)])[0]  # one point is no line
    assert "NaN" not in drawn([look(5, 20)])[0]


def test_a_look_without_numbers_parts_a_line() -> None:
    _, found = drawn([look(0), look(1), Look(step=2), look(3), look(4)])
    cosines = [item for item in found if item.tag.endswith("polyline")][:6]
    assert [len((item.get("points") or "").split()) for item in cosines] == [2] * 6


def test_labels_keep_apart_and_inside() -> None:
    assert spread([50, 50, 50], 0, 100, 10) == [50, 60, 70]
    assert spread([99, 100, 98], 0, 100, 10) == [90, 100, 80]
    assert spread([0, 0, 100], 0, 100, 10) == [0, 10, 100]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_shows_the_last_look_and_draws_all(reclra: Call) -> None:
    writer = JsonLines("log.jsonl")
    for number in (0, 10):
        writer.write(look(number))
    result = reclra("diagnostics", "log.jsonl")
    assert result.status == 0
    assert result.out.startswith("step 10, loss 0.181818, ")
    assert "written: log.svg" in result.out
    assert Path("log.svg").read_text(encoding="utf-8") == diagnostics_svg([look(0), look(10)])
    value = reclra("diagnostics", "log.jsonl", "--out", "pictures/all.svg", "--json").json()
    assert (value["looks"], value["files"]) == (2, ["pictures/all.svg"])
    assert Look.from_dict(value["last"]) == look(10)


def test_the_command_refuses_what_is_no_log(reclra: Call) -> None:
    assert reclra("diagnostics", "none.jsonl", "--json").codes() == ["RG101"]
    Path("bad.jsonl").write_text("no JSON\n")
    result = reclra("diagnostics", "bad.jsonl")
    assert result.status == 1
    assert "RG704" in result.err
    Path("empty.jsonl").write_text("")
    assert "nothing was looked at yet" in reclra("diagnostics", "empty.jsonl").out
    Path("folder.svg").mkdir()
    assert reclra("diagnostics", "empty.jsonl", "--out", "folder.svg", "--json").codes() == ["RG701"]
