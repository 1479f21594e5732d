"""The examples, run as they stand, and the training command: results, resuming, and what can go wrong."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import reclra_graph as rg
from reclra_graph.data import FILES, read_idx

MODELS = ("mlp", "figure1", "residual_mlp", "lenet", "resnet18", "two_inputs", "pconv")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def main(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """examples/fashion_mnist.py, as a module."""
    monkeypatch.syspath_prepend(str(root / "examples"))
    return _load(root / "examples" / "fashion_mnist.py")


@pytest.fixture(scope="module")
def data(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 1,000 training and 200 test images, as uncompressed IDX files."""
    folder = tmp_path_factory.mktemp("data")
    for name in FILES:
        items = read_idx(root / "examples" / "data" / "fashion-mnist" / f"{name}.gz")
        items = items[: 1000 if name.startswith("train") else 200]
        header = bytes((0, 0, 8, items.dim())) + b"".join(size.to_bytes(4, "big") for size in items.shape)
        (folder / name).write_bytes(header + items.numpy().tobytes())
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_example_model(root: Path, name: str) -> None:
    module = _load(root / "examples" / f"{name}.py")
    output = module.build_model()(*module.example_inputs)
    assert output.shape == (len(module.example_inputs[0]), 10)


@pytest.mark.parametrize("name", MODELS)
def test_example_runs_as_it_stands(root: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(root / "examples" / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert ("loss" if name in ("two_inputs", "pconv") else "def step(") in printed


def test_every_example_is_listed(root: Path) -> None:
    files = {path.stem for path in (root / "examples").glob("[!_]*.py")}
    assert files == {*MODELS, "fashion_mnist", "vit", "gpt", "lstm", "unet"}


def test_examples_use_the_public_api_only(root: Path) -> None:
    for path in (root / "examples").glob("*.py"):
        for line in re.findall(r"^\s*(?:from|import) reclra_graph.*$", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert line.strip() == "import reclra_graph as rg" or "from reclra_graph.data import" in line, line


def test_figure1_comes_out_as_in_the_paper(root: Path) -> None:
    module = _load(root / "examples" / "figure1.py")
    plan = rg.compile(module.build_model(), module.example_inputs, gpus=5).plan
    assert (plan.depth, plan.relays) == (2, (2, 5, 8))


def test_resnet18_has_torchvisions_names(root: Path) -> None:
    keys = set(_load(root / "examples" / "resnet18.py").build_model().state_dict())
    assert {"conv1.weight", "layer2.0.downsample.1.running_mean", "layer4.1.bn2.bias", "fc.weight"} <= keys
    assert len(keys) == 122  # as torchvision.models.resnet18 has


def test_residual_mlp_refuses_a_gap_that_does_not_fit(root: Path) -> None:
    module = _load(root / "examples" / "residual_mlp.py")
    assert len(module.build_model(gap=3)) == 3
    with pytest.raises(ValueError, match="do not fall into blocks of 4"):
        module.build_model(gap=4)


def test_training_prints_the_plan_and_a_falling_error(
    main: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main.main(["--epochs", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "5,000 training and 1,000 test images" in printed.out
    assert "6 regions, 466,698 parameters" in printed.out
    assert f"{out / 'plan.html'}, {out / 'plan.svg'}" in printed.out
    first, second = (float(rate) for rate in re.findall(r"test error +([\d.]+)%", printed.out))
    assert second < first < 60
    assert "\x1b" not in printed.out + printed.err  # no colours, no bars, where it is no terminal
    for name in ("step.py", "plan.json", "plan.html", "plan.svg", "checkpoint.pt"):
        assert (out / name).stat().st_size > 0


def _results(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for epoch in results["epochs"]:
        epoch.pop("seconds")
    results.pop("finished")
    return results


@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_an_interrupted_run_resumes_exactly(
    main: ModuleType,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
) -> None:
    def run(name: str, *more: str) -> int:
        common = ["--model", model, "--data", str(data), "--epochs", "3", "--out", str(tmp_path / name)]
        status: int = main.main([*common, "--results", str(tmp_path / f"{name}.json"), *more])
        return status

    assert run("whole") == 0

    rate = main.error_rate
    calls = iter(range(100))

    def interrupt(*args: Any) -> float:
        if next(calls) == 3:  # in the second epoch, after its training steps
            raise KeyboardInterrupt
        result: float = rate(*args)
        return result

    monkeypatch.setattr(main, "error_rate", interrupt)
    assert run("parts") == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "parts.json").exists()
    monkeypatch.setattr(main, "error_rate", rate)
    torch.manual_seed(12345)
    assert run("parts", "--resume") == 0
    assert "resuming after epoch 1" in capsys.readouterr().out
    assert _results(tmp_path / "parts.json") == _results(tmp_path / "whole.json")
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")]
    for part in ("model", "synapses"):
        one, other = (state[part] for state in states)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_results_say_what_was_run_and_where(main: ModuleType, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    options = ["--epochs", "1", "--out", str(tmp_path / "out"), "--results", str(path), "--seed", "3", "--no-gain"]
    assert main.main(["--data", str(data), *options]) == 0
    text = path.read_text(encoding="utf-8")
    results = json.loads(text)
    assert str(tmp_path) not in text  # paths are the reader's own affair
    assert results["command"].startswith("python examples/fashion_mnist.py")
    for word in ("--seed 3", "--epochs 1", "--no-gain", "--data DIR"):
        assert word in results["command"]
    assert results["config"]["seed"] == 3
    assert results["config"]["gain"] is False
    assert results["images"] == {"train": 1000, "test": 200}
    assert results["versions"]["torch"] == torch.__version__
    (epoch,) = results["epochs"]
    assert epoch["epoch"] == 1
    assert epoch["seconds"] > 0
    assert 0 < epoch["train_error"] < 1
    assert results["test_error"] == epoch["test_error"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


def _fails(main: ModuleType, capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str]:
    status = main.main([str(word) for word in argv])
    return status, capsys.readouterr().err


def test_missing_data(main: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, message = _fails(main, capsys, "--data", tmp_path, "--out", tmp_path / "out")
    assert status == 1
    assert "RG703 missing-data" in message
    assert "torchvision.datasets.FashionMNIST" in message
    assert not (tmp_path / "out").exists()


def test_nothing_to_resume(main: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, message = _fails(main, capsys, "--data", data, "--out", tmp_path / "out", "--resume")
    assert status == 1
    assert "RG702" in message
    assert "no checkpoint" in message


def test_damaged_checkpoint(main: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    status, message = _fails(main, capsys, "--data", data, "--out", tmp_path, "--resume")
    assert status == 1
    assert "RG702" in message
    assert "cannot be read" in message


def test_resuming_another_run(main: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--data", data, "--out", tmp_path, "--epochs", 1)
    assert _fails(main, capsys, *common)[0] == 0
    status, message = _fails(main, capsys, *common, "--resume", "--seed", 5)
    assert status == 2
    assert "seed 0 then, 5 now" in message


def test_wrong_usage(main: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--model", "none"], ["--epochs", "0"], ["--lr", "nan"], ["--lr", "-1"], ["--batch", "x"]):
        with pytest.raises(SystemExit) as caught:
            main.main(words)
        assert caught.value.code == 2
    status, message = _fails(main, capsys, "--gpus", 0, "--out", tmp_path / "out")
    assert status == 2
    assert "RG401" in message


def test_unwritable_results(main: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    argv = ("--data", data, "--epochs", 1, "--out", tmp_path / "out", "--results", tmp_path / "file" / "results.json")
    status, message = _fails(main, capsys, *argv)
    assert status == 1
    assert "RG701" in message
    assert not (tmp_path / "out").exists()  # said before the training, not after it


def test_a_batch_larger_than_the_data(
    main: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, message = _fails(main, capsys, "--data", data, "--batch", 1001, "--out", tmp_path / "out")
    assert status == 2
    assert "the batch is 1,001, of 1,000 images" in message


@pytest.mark.parametrize("shape", [(784,), (1, 28, 28), (3, 32, 32)])
def test_images_fit_every_model(main: ModuleType, shape: tuple[int, ...]) -> None:
    images = torch.rand(2, 1, 28, 28)
    fitted = main.fit(images, shape)
    assert fitted.shape == (2, *shape)
    if shape == (3, 32, 32):
        assert torch.equal(fitted[:, 2, 2:30, 2:30], images[:, 0])
        assert float(fitted.sum()) == pytest.approx(3 * float(images.sum()))
    else:
        assert torch.equal(fitted.flatten(), images.flatten())


def test_the_readmes_tour_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    # The second block names models and inputs of the reader's own.
    exec(compile(blocks[0] + blocks[2], "README.md", "exec"), {})
    assert (tmp_path / "build" / "net" / "step.py").exists()


def test_the_readmes_commands_are_marked(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    commands = dict(re.findall(r"^<!-- command: (\w+) -->\n```bash\n(.+)\n```$", text, re.MULTILINE))
    assert commands["run"].endswith("examples/fashion_mnist.py")
    assert commands["test"].endswith("-m pytest -n auto")


def _excerpt(source: str) -> str:
    """The parts of an emitted file that the README shows: two regions forward, the output's error, and lane 1."""
    lines = source.splitlines()

    def block(start: str, end: str, after: int = 0) -> list[str]:
        first = next(index for index, line in enumerate(lines) if index >= after and start in line)
        last = next(index for index, line in enumerate(lines) if index > first and end in line)
        return lines[first:last]

    body = lines.index(next(line for line in lines if line.startswith("def step(")))
    parts = [
        lines[body : body + 2],
        block("-- lane 0: forward", "# r3:", body),
        block("# r9:", "del z9", body),
        block("-- lane 1:", "    # --", body),
        ["    return loss"],
    ]
    return "\n    ...\n\n".join("\n".join(part).rstrip() for part in parts)


def test_the_readme_shows_the_real_step(root: Path, request: pytest.FixtureRequest) -> None:
    module = _load(root / "examples" / "figure1.py")
    source = rg.compile(module.build_model(), module.example_inputs, gpus=5).source
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    wanted = f"<!-- emitted: figure1 -->\n```python\n{_excerpt(source)}\n```\n"
    if request.config.getoption("--update-golden"):
        pattern = r"<!-- emitted: figure1 -->\n(```python\n.*?\n```\n)?"
        text = re.sub(pattern, lambda _: wanted, text, count=1, flags=re.DOTALL)
        readme.write_text(text, encoding="utf-8")
    assert wanted in text, "run pytest with --update-golden"
