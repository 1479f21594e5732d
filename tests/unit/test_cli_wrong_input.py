"""The command line and every wrong input it can meet: code, cause, place, remedy, exit status, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

import reclra_graph.api
from tests.unit.command import EXAMPLE, GOOD, HEAD, MLP, Call, write

WRONG_FILES = {
    "not Python": ("x = = 1\n", ["RG102"]),
    "raises on import": (HEAD + "1 / 0\n", ["RG103"]),
    "leaves on import": ("raise SystemExit(0)\n", ["RG103"]),
    "no model": (HEAD + EXAMPLE, ["RG104"]),
    "no model and no inputs": (HEAD, ["RG104", "RG106"]),
    "several models": (HEAD + "a = nn.Linear(4, 2)\nb = nn.Linear(4, 2)\n" + EXAMPLE, ["RG105"]),
    "no example inputs": (MLP, ["RG106"]),
    "bad example inputs": (MLP + "example_inputs = 'x'\n", ["RG107"]),
    "factory that fails": (HEAD + EXAMPLE + "def build_model():\n    raise ValueError('no')\n", ["RG109"]),
    "inputs that the model rejects": (MLP + "example_inputs = (torch.zeros(5, 7),)\n", ["RG201"]),
    "more inputs than forward takes": (MLP + "example_inputs = (torch.zeros(5, 4), torch.zeros(5, 4))\n", ["RG201"]),
    "an output that does not depend on the input": (
        HEAD + "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.last = nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        return self.last(torch.ones(len(x), 4))\n"
        "model = Net()\n" + EXAMPLE,
        ["RG203"],
    ),
    "no parameters": (HEAD + "model = nn.Sequential(nn.Tanh(), nn.Flatten())\n" + EXAMPLE, ["RG301"]),
    "nothing learns": (GOOD + "model.requires_grad_(False)\n", ["RG302"]),
    "an operator without a rule": (
        HEAD + "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.w, self.last = nn.Parameter(torch.rand(4)), nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        return self.last(torch.special.gammainc(self.w, x.abs()))\n"
        "model = Net()\n" + EXAMPLE,
        ["RG303"],
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_model_files(reclra: Call, case: str) -> None:
    text, codes = WRONG_FILES[case]
    write(text)
    machine = reclra("compile", "net.py", "--json")
    assert machine.status == 1
    assert machine.err == ""
    assert machine.codes() == codes
    for error in machine.json()["errors"]:
        assert error["cause"]
        assert error["remedy"]
        assert error["place"]
    person = reclra("compile", "net.py")
    assert person.status == 1
    assert person.out == ""
    for error in machine.json()["errors"]:
        assert f"{error['code']} {error['name']}: " in person.err
        assert error["remedy"] in person.err
    assert "Traceback" not in person.err
    assert {path.name for path in Path().iterdir()} - {"__pycache__"} == {"net.py"}


def test_strict_refuses_local_derivatives(reclra: Call) -> None:
    text = HEAD + (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.points, self.last = nn.Parameter(torch.rand(6, 4)), nn.Linear(6, 2)\n"
        "    def forward(self, x):\n"
        "        return self.last(torch.cdist(x, self.points))\n"
        "model = Net()\n"
    )
    write(text + EXAMPLE)
    value = reclra("compile", "net.py", "--strict", "--json").json()
    assert [error["code"] for error in value["errors"]] == ["RG304"]
    assert value["errors"][0]["place"].endswith("net.py:8")
    assert [region["update"] for region in reclra("compile", "net.py", "--json").json()["regions"]] == [
        None,
        "local_vjp",
        "analytic",
    ]


@pytest.mark.parametrize("argument", ["missing.py", "no_such_package:net", "missing", "a:b:c", ""])
def test_model_not_found(reclra: Call, argument: str) -> None:
    result = reclra("compile", argument, "--json")
    assert result.status == 1
    assert result.codes() == ["RG101"] or argument == ""
    assert not Path("build").exists()


WRONG_OPTIONS = {
    "--gpus 0": (2, ["RG401"]),
    "--gpus -3": (2, ["RG401"]),
    "--depth 0": (2, ["RG402"]),
    "--depth deep": (2, ["RG402"]),
    "--depth 99": (None, ["RG402"]),
    "--relays 77": (None, ["RG403"]),
    "--relays nowhere.linear": (None, ["RG403"]),
    "--wiring star": (2, ["RG404"]),
    "--wiring 3->9": (None, ["RG404"]),
    "--wiring 3->x": (None, ["RG404"]),
    "--rule magic": (2, ["RG405"]),
    "--beta 0": (2, ["RG405"]),
    "--beta nan": (2, ["RG405"]),
    "--gamma -1": (2, ["RG405"]),
    "--norm 3": (2, ["RG405"]),
    "--sign up": (2, ["RG405"]),
    "--loss hinge": (2, ["RG405"]),
    "--optimizer adam": (2, ["RG405"]),
    "--lr inf": (2, ["RG405"]),
    "--update guess": (2, ["RG405"]),
    "--strict --update local_vjp": (2, ["RG304"]),
    "--device h300": (2, ["RG430"]),
    "--device none.json --gpus 0": (2, ["RG401", "RG431"]),
    "--input 5by4": (2, ["RG108"]),
    "--gpus 0 --rule magic --input 0": (2, ["RG401", "RG405", "RG108"]),
}


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_wrong_options(reclra: Call, options: str) -> None:
    status, codes = WRONG_OPTIONS[options]
    result = reclra("compile", write(GOOD), "--json", *options.split())
    assert result.codes() == codes
    assert result.status == result.json()["exit_status"]
    assert result.status in ((1, 2) if status is None else (status,))
    assert not Path("build").exists()


@pytest.mark.parametrize("options", ["--gpus many", "--no-such-option", "--beta x", "--seed 1.5", "extra words"])
def test_usage_that_the_parser_refuses(reclra: Call, options: str) -> None:
    write(GOOD)
    person = reclra("compile", "net.py", *options.split())
    assert person.status == 2
    assert person.out == ""
    machine = reclra("compile", "net.py", "--json", *options.split())
    assert machine.status == 2
    assert machine.json()["ok"] is False
    assert machine.json()["errors"][0]["cause"]
    assert not Path("build").exists()


def test_no_command_and_unknown_commands(reclra: Call) -> None:
    assert reclra("sing").status == 2
    assert reclra("compile").status == 2
    assert "compile" in reclra("--help").out


def test_unwritable_output_folder(reclra: Call) -> None:
    write(GOOD)
    Path("taken").write_text("a file")
    for out in ("taken", "taken/below"):
        result = reclra("compile", "net.py", "--out", out, "--json")
        assert result.status == 1
        assert result.codes() == ["RG701"]
    assert Path("taken").read_text() == "a file"
    Path("build").write_text("a file in the place of the default folder")
    assert reclra("compile", "net.py", "--json").codes() == ["RG701"]


def test_everything_is_found_at_once(reclra: Call) -> None:
    write(HEAD)
    Path("taken").write_text("a file")
    result = reclra("compile", "net.py", "--gpus", "0", "--rule", "magic", "--out", "taken", "--json")
    assert result.status == 2
    assert result.codes() == ["RG401", "RG405", "RG701", "RG104", "RG106"]
    person = reclra("compile", "net.py", "--gpus", "0", "--rule", "magic", "--out", "taken")
    assert "5 problems" in person.err


def test_a_bug_is_told_as_one(reclra: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    write(GOOD)
    monkeypatch.setattr(reclra_graph.api, "compile", broken)
    machine = reclra("compile", "net.py", "--json")
    assert machine.status == 1
    assert machine.codes() == ["RG501"]
    person = reclra("compile", "net.py")
    assert person.status == 1
    assert "RuntimeError: boom" in person.err
    assert "Traceback" in person.err


@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_an_interrupt_stops_without_a_trace(reclra: Call, flag: tuple[str, ...]) -> None:
    result = reclra("compile", write("raise KeyboardInterrupt\n"), *flag)
    assert result.status not in (0, 2)
    assert "Traceback" not in result.err
    assert not Path("build").exists()
