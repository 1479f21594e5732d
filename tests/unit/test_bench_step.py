"""``reclra bench step``: what is measured of a case, the figures made of it, what fails, and the command."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

import reclra_graph as rg
from reclra_graph.bench import loader, record, step_arms, step_bench, step_measure, step_memory, step_report
from reclra_graph.bench.record import spread
from reclra_graph.bench.step_arms import ARMS, USUAL, Arm, Settings, lacks, step_of
from reclra_graph.bench.step_cases import CASES, usual
from reclra_graph.bench.step_figures import figures, headlines, verdict
from reclra_graph.bench.step_measure import Request, measured
from reclra_graph.bench.step_picture import speed_svg
from reclra_graph.options import OPTIMISATIONS
from tests.bench import headline
from tests.unit.command import Call

EAGER = ("backprop-eager", "reclra-eager")


@pytest.fixture(scope="module")
def mlp() -> dict[str, Any]:
    return measured(Request("mlp", EAGER, rounds=4, warm_up=2, tiny=True))


def test_a_row_has_every_arm_with_its_times_losses_and_work(mlp: dict[str, Any]) -> None:
    assert mlp["passed"], mlp["failures"]
    assert mlp["stage"] == "done"
    assert list(mlp["cells"]) == list(EAGER)
    assert set(mlp["probes"]) == {"flops", "bandwidth"}
    for cell in mlp["cells"].values():
        assert cell["sound"]
        assert len(cell["seconds"]) == 4
        assert min(cell["seconds"]) > 0
        assert [batch for batch, _ in cell["losses"][:2]] == [0, 1]
        assert cell["loss"]["last"] < cell["loss"]["first"]
        assert cell["flops"] > 0
        assert cell["bytes"] > 0
    assert mlp["cells"]["reclra-eager"]["plan"]["synapses"] == {"dense": 3}
    assert mlp["cells"]["backprop-eager"]["peer"]
    assert mlp["case"]["parameters"] == 12 * 16 + 16 + 2 * (16 * 16 + 16) + 16 * 10 + 10


def test_an_mlp_counts_the_products_of_its_layers(mlp: dict[str, Any]) -> None:
    # Forward and weights' gradients of every layer, gradients of the inputs of all but the first; element-wise work
    # beside them.
    layers = (12 * 16, 16 * 16, 16 * 16, 16 * 10)
    products = 2 * 4 * (2 * sum(layers) + sum(layers[1:]))
    assert products <= mlp["cells"]["backprop-eager"]["flops"] <= 1.5 * products


def test_images_are_measured_in_both_memory_formats(torchvision: ModuleType) -> None:
    row = measured(Request("vgg11", EAGER, rounds=3, warm_up=1, tiny=True))
    assert row["passed"], row["failures"]
    names = [f"{arm}, {kind}" for arm in EAGER for kind in ("contiguous", "channels_last")]
    assert list(row["cells"]) == names
    found = figures(row, {})
    assert found["best_peer"] in names[:2]
    begins = [row["cells"][name]["losses"][0][1] for name in names]
    assert begins == pytest.approx([begins[0]] * 4, rel=1e-4)


def test_arms_are_offered_where_they_can_run() -> None:
    case, cpu, cuda = CASES["mlp"], Settings(tiny=True), Settings("cuda", tiny=True)
    assert lacks(ARMS["backprop-graphed"], case, cpu) == "needs a CUDA device"
    assert lacks(ARMS["reclra-graphed"], case, cpu) == "needs a CUDA device"
    assert lacks(ARMS["reclra-graphed"], case, cuda) == ""
    assert lacks(ARMS["reclra-fused-graphed"], case, cpu) == "needs a CUDA device"
    assert lacks(ARMS["reclra-fused-graphed"], case, cuda) == ""
    assert lacks(ARMS["backprop-compiled"], case, cpu) == ""
    assert lacks(ARMS["reclra-eager"], case, cpu) == ""
    assert "CompiledStep.later()" in lacks(Arm("later", step_arms.reclra_eager, method="later"), case, cpu)
    assert lacks(ARMS["backprop-eager"], CASES["resnet50-224"], cuda) == ""


def test_an_optimisation_that_changes_nothing_is_not_left_out() -> None:
    settings = Settings(tiny=True)
    assert lacks(ARMS["without-straight"], CASES["vit-tiny"], settings) == ""
    assert lacks(ARMS["without-straight"], CASES["mlp"], settings) == "changes nothing in this step"
    assert {arm.without for arm in ARMS.values()} == {"", "recompute", *OPTIMISATIONS}


def test_what_an_optimisation_gains(mlp: dict[str, Any]) -> None:
    row = json.loads(json.dumps(mlp))
    whole = row["cells"].pop("reclra-eager")
    row["cells"] = {
        "reclra-fused": whole,
        "without-factors": {
            **whole, "arm": "without-factors", "without": "factors", "beside": "reclra-fused",
            "seconds": [3 * value for value in whole["seconds"]],
        },
    }  # fmt: skip
    memory = {
        name: {"peak_bytes": peak, "before_bytes": 1, "failures": []}
        for name, peak in (("reclra-fused", 100), ("without-factors", 150))
    }
    cell = figures(row, memory)["cells"]["without-factors"]
    assert cell["gain"]["median"] == pytest.approx(3)
    assert cell["memory_gain"] == 1.5
    content = content_of(row, memory={"mlp": memory})
    assert content["summary"] == []  # nothing to compare with
    assert "mlp: without factors: 3.000 times as long and 1.50 times the memory" in step_report.lines(content)
    assert "| factors | mlp | 3.000 (3.000 to 3.000) | 1.50 |" in step_report.markdown(content, "x.svg")


def test_ablation_names_the_arms_itself() -> None:
    settings = step_bench.Settings(ablate=True, models=("mlp",))
    assert settings.measured == ("reclra-fused", *(f"without-{name}" for name in ("recompute", *OPTIMISATIONS)))
    assert settings.request("mlp").arms == settings.measured
    assert not settings.problems()
    wrong = step_bench.Settings(ablate=True, arms=("reclra-eager",), formats=("rows",)).problems()
    assert [item.place for item in wrong] == ["--arms", "--formats"]


def test_cases_in_bfloat16_are_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    low = replace(CASES["mlp"], name="mlp-low", dtype="bfloat16")
    monkeypatch.setitem(CASES, "mlp-low", low)
    row = measured(Request("mlp-low", EAGER, rounds=3, warm_up=1, tiny=True))
    assert row["passed"], row["failures"]
    assert all(cell["sound"] for cell in row["cells"].values())
    step = step_of(ARMS["reclra-eager"].make(low, Settings(tiny=True)))
    assert step is not None
    assert step.plan.regions.graph.autocast == "bfloat16"
    assert lacks(ARMS["reclra-graphed"], CASES["resnet50-224"], Settings("cuda", tiny=True)) == ""


def test_a_fused_step_is_built_by_its_method(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fused:
        def __init__(self, step: rg.CompiledStep) -> None:
            self.step = step

        def __call__(self, inputs: Tensor, target: Tensor) -> Tensor:
            return self.step(inputs, target)

    monkeypatch.setattr(rg.CompiledStep, "fused", lambda step: Fused(step), raising=False)
    row = measured(Request("mlp", ("reclra-fused",), rounds=3, warm_up=1, tiny=True))
    assert row["passed"], row["failures"]
    assert row["cells"]["reclra-fused"]["plan"]["regions"] == 4
    assert step_of(ARMS["backprop-eager"].make(CASES["mlp"], Settings(tiny=True))) is None


def test_what_ran_as_the_step_itself_is_no_figure_of_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unfused:
        why = "no compiler here"

        def __init__(self, step: rg.CompiledStep) -> None:
            self.step = step

        def __call__(self, inputs: Tensor, target: Tensor) -> Tensor:
            return self.step(inputs, target)

    monkeypatch.setattr(rg.CompiledStep, "fused", lambda step: Unfused(step))
    row = measured(Request("mlp", ("reclra-fused",), rounds=3, warm_up=1, tiny=True))
    assert not row["passed"]
    assert [item["code"] for item in row["failures"]] == ["RG809"]
    assert "no compiler here" in row["failures"][0]["cause"]


def test_every_arm_begins_with_the_same_weights_and_data() -> None:
    for case in (CASES["mlp"], CASES["gpt2"]):
        first, second = (Settings(seed=3, tiny=True).net(case) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
        (one,), (other,) = (Settings(seed=3, tiny=True).batches(case, first, 1) for _ in range(2))
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[0].shape == (case.batch, *first.shape)


# -- what fails -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_is_told() -> None:
    row = measured(Request("mlp", EAGER, rounds=3, warm_up=2, lr=1e30, tiny=True))
    assert not row["passed"]
    assert {(item["stage"], item["code"]) for item in row["failures"]} == {
        ("backprop-eager", "RG808"),
        ("reclra-eager", "RG604"),
    }
    json.dumps(row, allow_nan=False)
    found = figures(row, {})
    assert found["best_peer"] is None
    assert not any("speedup" in cell for cell in found["cells"].values())


def test_a_loss_that_does_not_fall_is_told() -> None:
    row = measured(Request("mlp", EAGER, rounds=3, warm_up=2, lr=0.0, tiny=True))
    assert [item["code"] for item in row["failures"]] == ["RG808", "RG808"]
    assert "does not fall" in row["failures"][0]["cause"]
    assert not row["passed"]


def test_the_verdict_on_losses() -> None:
    falling: list[tuple[int, float | None]] = [(0, 3.0), (1, 4.0), (0, 2.0), (1, 2.0), (0, 1.0)]
    assert verdict(falling, None) == ({"first": 3.5, "last": 1.5}, "")
    assert verdict(falling, 3.001)[1] == ""
    assert "other arms" in verdict(falling, 2.0)[1]
    assert "not finite" in verdict([(0, 3.0), (0, None)], None)[1]
    assert "does not fall" in verdict([(0, 3.0), (0, 3.0)], None)[1]
    assert "twice" in verdict([(0, 3.0), (1, 2.0)], None)[1]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """An arm that fails in its fourth step."""

    def make(case: Any, settings: Settings) -> step_arms.Run:
        count = iter(range(10))
        whole = step_arms.backprop_eager(case, settings)

        def run(inputs: Tensor, target: Tensor) -> Tensor:
            if next(count) == 3:
                raise RuntimeError("out of luck")
            return whole(inputs, target)

        return run

    monkeypatch.setitem(ARMS, "broken", Arm("broken", make, peer=True))
    return "broken"


def test_an_arm_that_fails_leaves_the_others_alone(broken: str) -> None:
    row = measured(Request("mlp", (broken, "backprop-eager"), rounds=4, warm_up=2, tiny=True))
    assert [(item["code"], item["stage"]) for item in row["failures"]] == [("RG809", broken)]
    assert "out of luck" in row["failures"][0]["cause"]
    assert row["cells"]["backprop-eager"]["sound"]
    assert "sound" not in row["cells"][broken]
    page = step_report.markdown(content_of(row), "x.svg")
    assert "| broken |" in page
    assert "RG809" in page


def test_a_case_whose_library_is_missing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    row = measured(Request("resnet50", EAGER, tiny=True))
    assert row["passed"]
    assert "reclra-graph[zoo]" in row["skipped"]
    content = content_of(row)
    assert content["ok"]
    assert "resnet50: not measured" in step_report.lines(content)[0]
    assert "reclra-graph[zoo]" in step_report.markdown(content, "x.svg")


def test_a_case_whose_example_is_missing_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "ROOT", tmp_path)
    record.example.cache_clear()
    assert "checkout" in measured(Request("resnet18", EAGER, tiny=True))["skipped"]


# -- figures, page, picture -------------------------------------------------------------------------------------------


def content_of(*rows: dict[str, Any], memory: dict[str, Any] | None = None) -> dict[str, Any]:
    return step_report.report(rows, memory or {}, step_bench.Settings(quick=True), "reclra bench step --quick")


def test_ratios_are_those_of_the_raw_numbers(mlp: dict[str, Any]) -> None:
    memory = {
        name: {"peak_bytes": peak, "before_bytes": 1, "failures": []}
        for name, peak in zip(EAGER, (200, 150), strict=True)
    }
    found = figures(mlp, memory)
    peer, ours = (found["cells"][name] for name in EAGER)
    assert found["best_peer"] == EAGER[0]
    ratios = [theirs / own for theirs, own in zip(peer["seconds"], ours["seconds"], strict=True)]
    assert ours["speedup"] == spread(ratios)
    assert ours["speedup"]["median"] == pytest.approx(statistics.median(ratios), abs=1e-4)
    assert peer["speedup"]["median"] == 1
    assert ours["milliseconds"]["median"] == pytest.approx(1e3 * statistics.median(ours["seconds"]), abs=1e-4)
    assert ours["memory_ratio"] == 0.75
    share = ours["flops"] / statistics.median(ours["seconds"]) / mlp["probes"]["flops"]
    assert ours["peak_shares"]["flops"] == pytest.approx(share, abs=1e-4)
    (line,) = headlines([found])
    assert (line["case"], line["cell"], line["peer"]) == ("mlp", *EAGER[::-1])
    assert line["bar_met"] is (ours["speedup"]["median"] >= 1.5)


def test_the_best_peer_is_the_fastest_that_is_sound(mlp: dict[str, Any]) -> None:
    row = json.loads(json.dumps(mlp))
    row["cells"]["faster"] = {**row["cells"]["backprop-eager"], "seconds": [1e-9] * 4}
    assert figures(row, {})["best_peer"] == "faster"
    row["cells"]["faster"]["sound"] = False
    assert figures(row, {})["best_peer"] == "backprop-eager"


def test_the_report_is_written_with_its_page_and_picture(mlp: dict[str, Any], tmp_path: Path) -> None:
    content = content_of(mlp)
    files = step_report.write(tmp_path / "step.json", content)
    assert [path.name for path in files] == ["step.json", "step.md", "step.svg"]
    assert json.loads(files[0].read_text(encoding="utf-8"))["cases"][0]["cells"].keys() == mlp["cells"].keys()
    page = files[1].read_text(encoding="utf-8")
    assert "| **backprop-eager** |" in page
    assert "Tiny nets" in page
    picture = ElementTree.parse(files[2]).getroot()
    titles = [item.text for item in picture.iter() if item.tag.endswith("title")]
    assert [title.split(":")[0] for title in titles if title] == ["mlp, backprop-eager", "mlp, reclra-eager"]
    assert "Nothing was measured" in speed_svg([])


def test_memory_is_what_the_step_holds_and_adds() -> None:
    held = torch.zeros(1000)
    before = step_memory.held_bytes()
    more = torch.zeros(1 << 16)
    assert step_memory.held_bytes() - before == 4 << 16
    assert step_memory.added_bytes(lambda: held.add(held).mul(held)) == 8000  # the second while the first is there
    kept: list[Tensor] = []

    def replaces() -> None:
        kept.clear()
        kept.append(torch.empty(1000))

    replaces()
    assert step_memory.added_bytes(replaces) == 0  # what it takes it gave back before
    assert more.numel()


def test_memory_of_an_arm() -> None:
    row = measured(Request("mlp", cell=("reclra-eager", ""), warm_up=1, tiny=True))
    assert row["passed"], row["failures"]
    assert row["cell"] == "reclra-eager"
    assert row["peak_bytes"] > row["before_bytes"] > 0


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_measures_reports_and_goes_on(reclra: Call) -> None:
    command = ("bench", "step", "--quick", "--models", "mlp", "--arms", ",".join(EAGER), "--threads", "1")
    result = reclra(*command, "--out", "results/step.json")
    assert result.status == 0, result.out + result.err
    assert result.out.splitlines()[0].startswith("mlp: reclra-eager is ")
    assert result.out.splitlines()[-1] == "written: results/step.svg"
    content = json.loads(Path("results/step.json").read_text(encoding="utf-8"))
    assert {"command", "finished", "commit", "machine", "versions", "what", "config", "summary"} <= set(content)
    assert content["config"]["tiny_nets"]
    for cell in content["cases"][0]["cells"].values():
        assert cell["peak_bytes"] > cell["bytes_before"]
    rows = {path: path.stat().st_mtime_ns for path in Path("build/step").rglob("*.json")}
    assert len(rows) == 3
    again = reclra(*command, "--json")
    assert again.status == 0
    assert again.json()["ok"]
    assert again.json()["files"] == []
    assert again.json()["cases"] == content["cases"]
    assert rows == {path: path.stat().st_mtime_ns for path in Path("build/step").rglob("*.json")}
    assert not Path("docs").exists()


def test_what_failed_is_measured_again_and_fails_the_command(reclra: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = Path("dies.py").resolve()
    dies.write_text("import sys\nprint('no room')\nsys.exit(5)\n", encoding="utf-8")
    monkeypatch.setattr(step_bench, "WORKER", (str(dies),))
    monkeypatch.setattr(step_bench, "_WATCH", 0.02)
    command = ("bench", "step", "--quick", "--models", "mlp,gpt")
    result = reclra(*command)
    assert result.status == 1
    assert "mlp: RG809 bench-cell-failed (start): the process ended with exit status 5: no room" in result.out
    assert "gpt: RG809" in result.out
    dies.write_text("import sys\nprint('no luck')\nsys.exit(5)\n", encoding="utf-8")
    assert "no luck" in reclra(*command).out


def test_an_interruption_says_how_to_go_on(reclra: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step_bench, "run", interrupted)
    result = reclra("bench", "step", "--quick")
    assert result.status == 130
    assert "run the same command again" in result.err


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (("--models", "resnet19"), ["--models"]),
        (("--models", ","), ["--models"]),
        (("--arms", "adam,eve"), ["--arms", "--arms"]),
        (("--rounds", "0", "--warm-up", "0"), ["--rounds", "--warm-up"]),
        (("--rounds", "1", "--warm-up", "2"), ["--rounds"]),
        (("--batch", "0", "--threads", "0"), ["--batch", "--threads"]),
        (("--lr", "0"), ["--lr"]),
        (("--seed", "-1"), ["--seed"]),
        (("--device", "abacus"), ["--device"]),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], places: list[str], reclra: Call) -> None:
    result = reclra("bench", "step", *arguments, "--json")
    assert result.status == 2
    assert result.codes() == ["RG405"] * len(places)
    assert [error["place"] for error in result.json()["errors"]] == places
    assert not Path("build").exists()


def test_a_gpu_that_is_not_there_is_told(reclra: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reclra("bench", "step", "--device", "cuda", "--json").codes() == ["RG405"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(reclra: Call) -> None:
    Path("file").write_text("", encoding="utf-8")
    result = reclra("bench", "step", "--quick", "--out", "file/step.json", "--json")
    assert result.status == 1
    assert result.codes() == ["RG701"]


def test_the_cases_of_the_issue_are_there() -> None:
    assert usual("cpu") == (
        "resnet18", "resnet18-blocks", "resnet50", "vit-tiny", "vit-tiny-token", "gpt", "vgg11", "mlp",
    )  # fmt: skip
    lanes = {dict(CASES[name].options).get("gpus", 1) for name in usual("cuda") if name.startswith("mlp")}
    assert lanes == {1, 2, 5, 8}
    assert {"resnet50-224", "vit-b16", "gpt2"} <= set(usual("cuda"))
    assert "resnet18-pconv" in set(CASES) - {*usual("cpu"), *usual("cuda")}


def test_pseudo_convolutions_are_measured_when_they_are_asked_for() -> None:
    net, other = (CASES[name].build(True).model for name in ("resnet18-pconv", "resnet18"))
    kinds = [[type(module).__name__ for module in model.modules()] for model in (net, other)]
    assert [kind.count("PerturbativeConv2d") for kind in kinds] == [16, 0]
    assert [kind.count("Conv2d") for kind in kinds] == [4, 20]
    row = measured(Request("resnet18-pconv", EAGER, formats=("contiguous",), rounds=3, warm_up=1, tiny=True))
    assert row["passed"], row["failures"]
    assert all(cell["sound"] for cell in row["cells"].values())


def test_the_help_names_every_case_of_the_cpu_and_every_arm() -> None:
    from reclra_graph.cli.bench_step import step_command

    said = step_command.__doc__ or ""
    for name in (*usual("cpu"), *USUAL):
        assert name in said


def test_a_request_changes_the_case_it_asks_for() -> None:
    assert Request("mlp").chosen == CASES["mlp"]
    assert Request("mlp", batch=7, lr=0.5).chosen.batch == 7
    assert Request("mlp", tiny=True).chosen.batch == 4
    assert step_measure.label("a", "contiguous", images=False) == "a"


def test_the_headline_in_the_readme_is_that_of_the_results() -> None:
    content = json.loads(headline.RESULTS.read_text(encoding="utf-8"))
    text = headline.README.read_text(encoding="utf-8")
    assert headline.replaced(text, content) == text
    content["summary"][0]["speedup"] += 1
    assert headline.replaced(text, content) != text


def test_memory_is_asked_of_the_format_in_which_an_arm_is_fastest() -> None:
    cells = {
        "a, contiguous": {"arm": "a", "sound": True, "seconds": [3.0, 2.0, 2.0]},
        "a, channels_last": {"arm": "a", "sound": True, "seconds": [1.0, 1.0, 9.0]},
        "b, contiguous": {"arm": "b", "sound": False, "seconds": [0.1]},
        "b, channels_last": {"arm": "b", "sound": True, "seconds": [1.0]},
        "c, contiguous": {"arm": "c"},
    }
    assert step_bench.fastest(cells) == ["a, channels_last", "b, channels_last"]
