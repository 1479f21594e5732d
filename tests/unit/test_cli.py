"""The command line: what it writes and prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reclra_graph.cli.app import app, compile_app
from reclra_graph.export.artifacts import FILES, STATE
from tests.unit.command import EXAMPLE, GOOD, HEAD, MLP, Call, write


def test_compile_writes_all_files_and_says_so(reclra: Call, root: Path) -> None:
    result = reclra("compile", str(root / "examples" / "figure1.py"), "--gpus", "5")
    assert result.status == 0, result.err
    assert result.err == ""
    written = {path.name for path in Path("build/figure1").iterdir()}
    assert written == {*FILES, *STATE}
    for wanted in (
        "figure1  5 GPUs, 9 of 9 regions learn",
        "depth 2, relays 2, 5, 8",
        "9 (16)  (error of the loss)",
        "8 (14)  [9->8 dense",
        "wave 1 on 3 lanes",
        "wave 2 on 5 lanes",
        "in 8 synapses",
        "unit-cost model: a target and an update cost 1 each; the forward pass is not counted",
        "same wiring on one GPU: 18, so 3.6x as fast",
        "chain wiring on 5 GPUs: 10, so 2.0x as fast",
        "Seconds: ",
        "build/figure1/step.py",
        "build/figure1/report.txt",
    ):
        assert wanted in result.out, wanted


def test_json_says_the_same_for_machines(reclra: Call, root: Path) -> None:
    result = reclra("compile", str(root / "examples" / "figure1.py"), "--gpus", "5", "--json", "--out", "here")
    assert result.status == 0
    assert result.err == ""
    value = result.json()
    assert value["ok"] is True
    assert value["relays"] == [2, 5, 8]
    assert value["depth"] == 2
    assert [len(wave) for wave in value["waves"]] == [3, 5]
    assert value["prediction"]["makespan"] == 5
    assert value["prediction"]["speedup_over_one_gpu"] == 3.6
    assert value["prediction"]["speedup_over_chain"] == 2.0
    assert "forward pass is not counted" in value["prediction"]["model"]
    plan = json.loads(Path("here/plan.json").read_text())
    assert value["digest"] == plan["digest"]
    assert value["synapse_bytes"] == sum(edge["bytes"] for edge in plan["edges"])
    assert [region["id"] for region in value["regions"]] == [region["id"] for region in plan["regions"]]
    assert all(item["seconds"] >= 0 for item in value["seconds"])
    assert value["directory"] == "here"
    assert all(Path(path).is_file() for path in value["files"])
    assert {Path(path).name for path in value["files"]} == {path.name for path in Path("here").iterdir()}


def test_quiet_prints_nothing(reclra: Call) -> None:
    result = reclra("compile", write(GOOD), "--quiet")
    assert (result.status, result.out, result.err) == (0, "", "")
    assert Path("build/net/step.py").is_file()


def test_what_the_model_file_prints_stays_out_of_the_result(reclra: Call) -> None:
    result = reclra("compile", write(GOOD + "print('hello from the model')\n"), "--json")
    assert result.json()["ok"] is True
    assert "hello from the model" in result.err


def test_options_reach_the_plan(reclra: Call) -> None:
    arguments = (
        "--gpus 3 --wiring 3->2,2->1 --rule fixed --beta 0.25 --gamma 0.5 --norm 1 --sign printed --gain --loss mse "
        "--optimizer adamw --lr 0.05 --betas 0.8,0.9 --eps 1e-6 --weight-decay 0.1 --momentum 0.5 "
        "--synapse-decay 0.2 --mirror-noise 0.3 --update analytic --strict --seed 7 --input 6x4 --out o"
    )
    result = reclra("compile", write(MLP), *arguments.split(), "--json")
    assert result.status == 0, result.out
    plan = json.loads(Path("o/plan.json").read_text())
    assert plan["gpus"] == 3
    assert plan["seed"] == 7
    assert [(edge["source"], edge["target"]) for edge in plan["edges"]] in ([(3, 2), (2, 1)], [(2, 1), (3, 2)])
    assert {edge["rule"] for edge in plan["edges"]} == {"fixed"}
    assert plan["rates"] == {
        "beta": 0.25, "gamma": 0.5, "kappa": [], "norm": 1, "sign": "printed", "gain": True,
        "optimizer": "adamw", "lr": 0.05, "momentum": 0.5, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.1,
        "synapse_decay": 0.2, "mirror_noise": 0.3,
    }  # fmt: skip
    assert plan["outputs"] == [
        {"label": "output", "region": 3, "loss": "mse", "smoothing": 0.0, "ignore": None, "weights": []}
    ]


@pytest.mark.parametrize(("given", "cause"), [("3=x", "'x' for region 3"), ("a=1", "1.0 for region 'a'")])
def test_a_kappa_that_is_no_number_is_told_as_it_was_given(reclra: Call, given: str, cause: str) -> None:
    result = reclra("compile", write(GOOD), "--kappa", given, "--json")
    assert result.status == 2
    assert result.json()["errors"][0]["cause"] == f"kappa has {cause}"


def test_a_device_reaches_the_plan(reclra: Call) -> None:
    result = reclra("compile", write(GOOD), "--device", "v100", "--gpus", "2", "--out", "o", "--json")
    prediction = result.json()["prediction"]
    assert (prediction["device"], prediction["clock"]) == ("v100", "ns")
    assert prediction["makespan"] > 1000
    plan = json.loads(Path("o/plan.json").read_text())
    assert (plan["device"], plan["clock"], plan["makespan"]) == ("v100", "ns", prediction["makespan"])
    assert re.search(r"makespan on 2 GPUs: [\d.]+ (µs|ms)", Path("o/report.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("arguments", "depth", "relays"),
    [
        (("--wiring", "flat"), 1, []),
        (("--wiring", "chain"), 2, [2]),
        (("--depth", "2"), 2, [2]),
        (("--relays", "2"), 2, [2]),
        (("--relays", " 2 "), 2, [2]),
        (("--depth", "auto", "--wiring", "auto"), None, None),
    ],
)
def test_wirings(reclra: Call, arguments: tuple[str, ...], depth: int | None, relays: list[int] | None) -> None:
    value = reclra("compile", write(GOOD), *arguments, "--json").json()
    assert value["ok"] is True, value
    if depth is not None:
        assert (value["depth"], value["relays"]) == (depth, relays)


def test_relays_by_module_path(reclra: Call) -> None:
    text = HEAD + (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.middle, self.last = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)\n"
        "    def forward(self, x):\n"
        "        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))\n"
        "model = Net()\n"
    )
    value = reclra("compile", write(text + EXAMPLE), "--relays", "middle", "--json").json()
    assert value["relays"] == [2]


def test_a_second_run_replaces_only_its_own_files(reclra: Call) -> None:
    assert reclra("compile", write(GOOD), "--quiet").status == 0
    Path("build/net/notes.txt").write_text("mine")
    assert reclra("compile", "net.py", "--quiet", "--beta", "0.5").status == 0
    assert Path("build/net/notes.txt").read_text() == "mine"
    assert json.loads(Path("build/net/plan.json").read_text())["rates"]["beta"] == 0.5


def test_a_factory_of_a_module_in_this_folder(reclra: Call) -> None:
    write(HEAD + "def small():\n    return nn.Linear(4, 2)\n", "some_nets.py")
    value = reclra("compile", "some_nets:small", "--input", "5x4", "--json").json()
    assert value["name"] == "small"
    assert Path("build/small/step.py").is_file()


def test_several_inputs_of_several_dtypes(reclra: Call) -> None:
    text = HEAD + (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.second = nn.Linear(4, 3), nn.Linear(2, 3, bias=False)\n"
        "        self.last = nn.Linear(3, 2)\n"
        "    def forward(self, a, b):\n"
        "        return self.last(torch.tanh(self.first(a) + self.second(b.float())))\n"
        "model = Net()\n"
    )
    value = reclra("compile", write(text), "--input", "5x4", "--input", "5x2:int64", "--json").json()
    assert value["ok"] is True, value
    inputs = json.loads(Path("build/net/plan.json").read_text())["inputs"]
    assert [item["dtype"] for item in inputs] == ["float32", "int64"]


def test_long_models_are_cut_on_the_terminal_only(reclra: Call) -> None:
    text = HEAD + "model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(60)])\nexample_inputs = torch.zeros(2, 3)\n"
    result = reclra("compile", write(text), "--wiring", "chain")
    assert result.status == 0
    assert "more, in report.txt" in result.out
    assert len(result.out.splitlines()) < 120
    report = Path("build/net/report.txt").read_text()
    assert all(f"[{number + 1}->{number} dense 3x3]" in report for number in range(1, 60))


def test_explain_says_the_coverage_and_builds_nothing(reclra: Call) -> None:
    write(GOOD + "model[0].bias.requires_grad_(False)\n")
    result = reclra("explain", "net.py")
    assert result.status == 0, result.err
    assert "5 of 5 operators, 100 %, without a derivative" in result.out
    assert "3 of 3 regions learn" in result.out
    assert "frozen: 0.bias: " in result.out
    assert not Path("build").exists()
    value = reclra("explain", "net.py", "--json").json()
    assert value["ok"] is True
    assert [region["id"] for region in value["regions"]] == [0, 1, 2, 3]
    assert value["regions"][1]["parameters"] == ["0.weight"]
    assert value["frozen"][0]["parameter"] == "0.bias"


def test_explain_tells_errors_too(reclra: Call) -> None:
    result = reclra("explain", "missing.py", "--json")
    assert result.status == 1
    assert result.codes() == ["RG101"]


def test_progress_on_a_terminal_goes_to_standard_error(reclra: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    write(GOOD)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = reclra("compile", "net.py")
    assert shown.status == 0
    assert "compiling net" in shown.err or "reading net.py" in shown.err or "importing torch" in shown.err
    for flag in ("--json", "--quiet"):
        assert reclra("compile", "net.py", flag).err == ""


# -- as a user runs it ------------------------------------------------------------------------------------------------


def fresh(code: str, root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {code}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_help_does_not_import_torch(root: Path, tmp_path: Path) -> None:
    code = (
        "import atexit; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)));"
        "from reclra_graph.cli import compile_main; compile_main()"
    )
    result = fresh(code, root, tmp_path, "--help")
    assert result.returncode == 0
    assert result.stderr == "False"
    for option in ("--gpus", "--depth", "--relays", "--wiring", "--input", "--out", "--json"):
        assert option in result.stdout
    assert "compile [OPTIONS]" in result.stdout


def test_reclra_compile_in_a_fresh_process(root: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(GOOD)
    code = "from reclra_graph.cli import compile_main; compile_main()"
    result = fresh(code, root, tmp_path, "net.py", "--gpus", "2")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "3 of 3 regions learn" in result.stdout
    assert {path.name for path in (tmp_path / "build" / "net").iterdir()} == {*FILES, *STATE}


def test_both_programs_share_one_command() -> None:
    assert [command.callback for command in compile_app.registered_commands] == [
        command.callback for command in app.registered_commands if command.name == "compile"
    ]
