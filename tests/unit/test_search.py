"""``reclra search``: what is drawn, what is kept, what happens after an interruption, and what can go wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from reclra_graph.errors import ReclraError, UsageError
from reclra_graph.search import study
from reclra_graph.search.picture import pareto_svg
from reclra_graph.search.samples import Samples, read_samples
from reclra_graph.search.space import Space, span
from reclra_graph.search.study import FAILED, FINISHED, PRUNED, Row, Search, front, table
from reclra_graph.search.trial import Diverged, budget, held_out_error, run
from tests.unit.command import HEAD, Call

NET = HEAD + (
    "model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))\nexample_inputs = (torch.zeros(6, 4),)\n"
)


def points(count: int = 300) -> dict[str, torch.Tensor]:
    """Three classes that a straight cut tells apart."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return {"inputs": x, "targets": x[:, :3].argmax(1)}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    torch.save(points(), tmp_path / "samples.pt")
    return read_samples(tmp_path / "samples.pt", (4,), 0.2, 0)


def plan(**changed: Any) -> Search:
    settings: dict[str, Any] = {"model": "net", "data": "points", "fixed": (), "space": Space(), "held_out": 0.2}
    return Search(**{**settings, "limits": budget(9, 20), "seed": 0, **changed})


# -- the pieces -------------------------------------------------------------------------------------------------------


def test_samples_are_split_once_and_for_all(samples: Samples, tmp_path: Path) -> None:
    assert (len(samples.inputs), len(samples.held_inputs)) == (240, 60)
    seen = {tuple(row) for row in torch.cat((samples.inputs, samples.held_inputs)).tolist()}
    assert seen == {tuple(row) for row in points()["inputs"].tolist()}
    again = read_samples(tmp_path / "samples.pt", (2, 2), 0.2, 0)
    assert torch.equal(again.held_inputs.flatten(1), samples.held_inputs)
    other = read_samples(tmp_path / "samples.pt", (4,), 0.2, 1)
    assert not torch.equal(other.held_inputs, samples.held_inputs)


@pytest.mark.parametrize(
    ("content", "shape", "code"),
    [
        (None, (4,), "RG703"),
        (b"PK\3\4 half a file", (4,), "RG704"),
        ({"inputs": torch.zeros(3, 4)}, (4,), "RG704"),
        ([1, 2], (4,), "RG704"),
        ({"inputs": torch.zeros(3, 4), "targets": torch.zeros(2)}, (4,), "RG704"),
        (points(), (5,), "RG704"),
        ({**points(), "inputs": torch.full((300, 4), float("nan"))}, (4,), "RG704"),
        (points(2), (4,), "RG405"),
    ],
)
def test_samples_that_cannot_be_used(content: Any, shape: tuple[int, ...], code: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ReclraError) as caught:
        read_samples(path, shape, 0.1, 0)
    assert caught.value.codes == (code,)


def test_images_of_the_examples_are_read(root: Path) -> None:
    found = read_samples(root / "examples" / "data" / "fashion-mnist", (784,), 0.1, 0)
    assert found.inputs.shape[1:] == (784,)
    assert len(found.held_inputs) == round(0.1 * (len(found.inputs) + len(found.held_inputs)))


def test_ranges() -> None:
    assert span("beta", "0.01:1") == (0.01, 1.0)
    assert span("beta", "0.3") == (0.3, 0.3)
    for text in ("", "a", "1:2:3"):
        with pytest.raises(UsageError):
            span("beta", text)
    assert Space().problems() == ()
    wrong = Space(wirings=("round",), synapses=("thick",), rules=(), beta=(1.0, 0.5), lr=(0.0, 1.0))
    assert [item.place for item in wrong.problems()] == ["--wirings", "--rules", "--synapses", "--beta", "--lr"]


def test_rungs_of_a_budget() -> None:
    assert budget(900, 50).rungs == (100, 300, 900)
    assert budget(1, 50).rungs == (1,)


def test_a_run_is_judged_at_each_rung_and_leaves_the_model_alone(samples: Samples) -> None:
    model = net()
    before = {key: item.clone() for key, item in model.state_dict().items()}
    seen: list[tuple[int, float]] = []
    ticks: list[int] = []

    def reached(rung: int, error: float) -> bool:
        seen.append((rung, error))
        return True

    step = run(model, torch.zeros(6, 4), {"lr": 0.5}, samples, budget(90, 20), 0, reached, ticks.append)
    assert [rung for rung, _ in seen] == [0, 1, 2]
    assert ticks == list(range(1, 91))
    assert seen[-1][1] < seen[0][1]
    assert all(torch.equal(item, before[key]) for key, item in model.state_dict().items())
    with torch.no_grad():
        wrong = (step.model(samples.held_inputs).argmax(1) != samples.held_targets).float().mean()
    assert held_out_error(step, samples) == pytest.approx(float(wrong))


def test_a_run_stops_where_it_is_told_to_or_diverges(samples: Samples) -> None:
    ticks: list[int] = []
    run(net(), torch.zeros(6, 4), {}, samples, budget(9, 20), 0, lambda rung, error: False, ticks.append)
    assert ticks == [1]
    with pytest.raises(Diverged):
        run(net(), torch.zeros(6, 4), {"lr": 1e38}, samples, budget(90, 20), 0, lambda rung, error: True)


def test_other_losses_are_judged_by_their_distance(samples: Samples) -> None:
    from dataclasses import replace

    numbers = replace(
        samples, targets=torch.zeros(len(samples.inputs), 3), held_targets=torch.ones(len(samples.held_inputs), 3)
    )
    step = run(net(), torch.zeros(6, 4), {"loss": "mse"}, numbers, budget(1, 20), 0, lambda rung, error: True)
    with torch.no_grad():
        distance = 0.5 * (step.model(numbers.held_inputs) - 1).square().sum(1).mean()
    assert held_out_error(step, numbers) == pytest.approx(float(distance), rel=1e-5)


# -- the search -------------------------------------------------------------------------------------------------------


def test_a_search_ends_with_the_trials_asked_for_and_goes_on(samples: Samples, tmp_path: Path) -> None:
    rows = study.search(plan(), net(), torch.zeros(6, 4), samples, 3, tmp_path / "s")
    assert [row.number for row in rows] == [0, 1, 2]
    assert {row.state for row in rows} <= {FINISHED, PRUNED, FAILED}
    assert all(row.memory > 0 for row in rows if row.state == FINISHED)
    more = study.search(plan(), net(), torch.zeros(6, 4), samples, 4, tmp_path / "s")
    assert more[:3] == rows
    assert len(more) == 4


def test_the_same_seed_searches_the_same(samples: Samples, tmp_path: Path) -> None:
    runs = [study.search(plan(), net(), torch.zeros(6, 4), samples, 3, tmp_path / name) for name in "ab"]
    assert runs[0] == runs[1]


def test_an_interrupted_trial_is_begun_again(samples: Samples, tmp_path: Path) -> None:
    def stop(ended: int, total: int, row: Row | None, step: int, best: float | None) -> None:
        if ended == 1 and row is None and step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.search(plan(), net(), torch.zeros(6, 4), samples, 3, tmp_path / "s", stop)
    rows = study.search(plan(), net(), torch.zeros(6, 4), samples, 3, tmp_path / "s")
    whole = study.search(plan(), net(), torch.zeros(6, 4), samples, 3, tmp_path / "t")
    assert len(rows) == 3
    assert rows[0] == whole[0]
    assert rows[1].options == whole[1].options  # the settings under way then
    assert 1 not in {row.number for row in rows}


def test_another_search_in_the_folder_is_refused(samples: Samples, tmp_path: Path) -> None:
    study.search(plan(), net(), torch.zeros(6, 4), samples, 1, tmp_path / "s")
    for other in (plan(seed=1), plan(limits=budget(10, 20)), plan(space=Space(wirings=("flat",)))):
        with pytest.raises(UsageError) as caught:
            study.search(other, net(), torch.zeros(6, 4), samples, 2, tmp_path / "s")
        assert caught.value.codes == ("RG902",)


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, samples: Samples, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError) as caught:
        study.search(plan(), net(), torch.zeros(6, 4), samples, 1, tmp_path / "s")
    assert caught.value.codes == ("RG901",)


def row(number: int, error: float, time: int, state: str = FINISHED) -> Row:
    return Row(number, state, {"wiring": "flat", "lr": 0.1}, (0.9, error), time)


def test_the_front_holds_what_nothing_beats() -> None:
    rows = (row(0, 0.3, 5), row(1, 0.2, 7), row(2, 0.25, 9), row(3, 0.3, 4), row(4, 0.01, 1, PRUNED), row(5, 0.2, 7))
    assert [item.number for item in front(rows)] == [3, 1]
    lines = table(rows, "ns").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:7]] == ["1", "5", "2", "3", "0"]
    assert lines[-1] == "5 finished, 1 pruned, 0 failed."


def test_the_picture_shows_every_finished_trial() -> None:
    rows = (row(0, 0.3, 5_000_000), row(1, 0.2, 7_000_000), row(2, 0.5, 6_000_000), row(3, 0.1, 1, FAILED))
    text = pareto_svg(rows, front(rows), "ns")
    drawn = ElementTree.fromstring(text)
    circles = drawn.findall(".//{*}circle")
    assert len(circles) == 3
    assert all(60 < float(item.attrib["cx"]) < 620 and 40 < float(item.attrib["cy"]) < 352 for item in circles)
    assert "predicted step, ms" in text
    ElementTree.fromstring(pareto_svg((row(0, 0.3, 0),), (row(0, 0.3, 0),), "units"))
    assert "No trial" in pareto_svg((), (), "ns")


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_it_found(reclra: Call) -> None:
    Path("net.py").write_text(NET, encoding="utf-8")
    torch.save(points(), "samples.pt")
    result = reclra("search", "net.py", "--data", "samples.pt", "--trials", "3", "--steps", "9", "--wirings", "flat")
    assert result.status == 0, result.err
    assert result.err == ""
    folder = Path("build/search-net")
    content = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    assert len(content["trials"]) == 3
    assert {item["options"]["wiring"] for item in content["trials"]} == {"flat"}
    assert content["best"] in content["pareto"]
    assert {"command", "commit", "machine", "versions", "search", "clock"} <= set(content)
    assert re.match(r"\| trial \| held-out error", (folder / "pareto.md").read_text(encoding="utf-8"))
    assert (folder / "best" / "step.py").is_file()
    assert f"written: {folder}/best" in result.out


def test_a_changed_model_is_another_search(reclra: Call) -> None:
    torch.save(points(), "samples.pt")
    command = ("search", "net.py", "--data", "samples.pt", "--trials", "1", "--steps", "2")
    Path("net.py").write_text(NET, encoding="utf-8")
    assert reclra(*command).status == 0
    Path("net.py").write_text(NET.replace("8", "9"), encoding="utf-8")
    result = reclra(*command)
    assert result.status == 2
    assert "RG902" in result.err


def test_a_model_that_cannot_learn_leaves_no_folder(reclra: Call) -> None:
    Path("net.py").write_text(
        HEAD + "model = nn.Sequential()\nexample_inputs = (torch.zeros(6, 4),)\n", encoding="utf-8"
    )
    torch.save(points(), "samples.pt")
    result = reclra("search", "net.py", "--data", "samples.pt")
    assert result.status == 1
    assert "RG301" in result.err
    assert not Path("build").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--data", "nowhere.pt"), "RG703"),
        (("--data", "samples.pt", "--wirings", "round"), "RG405"),
        (("--data", "samples.pt", "--beta", "big"), "RG405"),
        (("--data", "samples.pt", "--steps", "0"), "RG405"),
        (("--data", "samples.pt", "--trials", "0"), "RG405"),
        (("--data", "samples.pt", "--held-out", "1"), "RG405"),
        (("--data", "samples.pt", "--loss", "hinge"), "RG405"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], code: str, reclra: Call) -> None:
    Path("net.py").write_text(NET, encoding="utf-8")
    torch.save(points(), "samples.pt")
    result = reclra("search", "net.py", *arguments)
    assert result.status in (1, 2)
    assert code in result.err
    assert not Path("build").exists()
