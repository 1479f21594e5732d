"""Loading a model file: what it may offer, and every way in which it can be wrong."""

from __future__ import annotations

import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from reclra_graph.errors import ModelError, ReclraError
from reclra_graph.model_file import load_model, neighbours, safe_name

GOOD = """
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    example_inputs = (torch.zeros(5, 4),)
"""


def write(folder: Path, text: str, name: str = "net.py") -> str:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def refused(argument: str, *inputs: str) -> ReclraError:
    path, modules = list(sys.path), set(sys.modules)
    with pytest.raises(ReclraError) as caught:
        load_model(argument, inputs)
    assert sys.path == path
    left = {name for name in set(sys.modules) - modules if name.startswith("reclra_model_")}
    assert "RG103" not in caught.value.codes or not left
    for problem in caught.value.problems:
        assert problem.cause
        assert problem.place
        assert problem.advice
    return caught.value


def test_model_and_inputs(tmp_path: Path) -> None:
    loaded = load_model(write(tmp_path, GOOD))
    assert loaded.name == "net"
    assert isinstance(loaded.model, nn.Sequential)
    assert [tuple(item.shape) for item in loaded.example_inputs] == [(5, 4)]


def test_build_model(tmp_path: Path) -> None:
    text = """
        import torch
        from torch import nn

        def build_model():
            return nn.Linear(4, 2)

        example_inputs = torch.zeros(5, 4)
    """
    assert isinstance(load_model(write(tmp_path, text)).model, nn.Linear)


def test_one_model_under_another_name_beside_a_loss(tmp_path: Path) -> None:
    text = """
        import torch
        from torch import nn

        net = backbone = nn.Linear(4, 2)
        criterion = nn.CrossEntropyLoss()
        example_inputs = torch.zeros(5, 4)
    """
    assert isinstance(load_model(write(tmp_path, text)).model, nn.Linear)


def test_a_model_file_imports_its_neighbours_and_each_folder_has_its_own(tmp_path: Path) -> None:
    for folder, width in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, f"WIDTH = {width}\n", "layers.py")
        text = """
            import torch
            from torch import nn
            from layers import WIDTH

            model = nn.Linear(WIDTH, 2)
            example_inputs = torch.zeros(5, WIDTH)
        """
        path = list(sys.path)
        loaded = load_model(write(tmp_path / folder, text))
        assert tuple(loaded.example_inputs[0].shape) == (5, width)
        assert sys.path == path
        assert "layers" not in sys.modules


def test_neighbours_can_still_be_imported_while_the_context_lasts(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 7\n", "late_neighbour.py")
    with neighbours(str(tmp_path / "net.py")):
        import late_neighbour  # type: ignore[import-not-found]

        assert late_neighbour.VALUE == 7
        assert "late_neighbour" in sys.modules
    assert "late_neighbour" not in sys.modules


@pytest.mark.parametrize("name", ["torch.py", "json.py", "my-net v2.py", "модель.py"])
def test_any_file_name_is_safe(tmp_path: Path, name: str) -> None:
    before = sys.modules["torch"]
    loaded = load_model(write(tmp_path, GOOD, name))
    assert sys.modules["torch"] is before
    assert loaded.name == safe_name(Path(name).stem)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("net", "net"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "model"),
        ("", "model"),
        ("a b\tc", "a_b_c"),
        ("a\0b", "a_b"),
        ("v1.5", "v1.5"),
        ("x" * 300, "x" * 80),
        ("модель", "model"),
    ],
)
def test_safe_names(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_factory_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo_here").mkdir()
    text = """
        import torch
        from torch import nn

        class Makers:
            @staticmethod
            def small():
                return nn.Linear(4, 2)

        def tiny():
            return nn.Linear(4, 1)

        ready = nn.Linear(4, 3)
        number = 3
        example_inputs = torch.zeros(5, 4)
    """
    write(tmp_path / "zoo_here", text, "nets.py")
    monkeypatch.chdir(tmp_path)
    assert load_model("zoo_here.nets:tiny").name == "tiny"
    assert isinstance(load_model("zoo_here.nets:Makers.small").model, nn.Linear)
    assert isinstance(load_model("zoo_here.nets:ready").model, nn.Linear)
    assert refused("zoo_here.nets:missing").codes == ("RG104",)
    assert refused("zoo_here.nets:Makers.missing").codes == ("RG104",)
    assert refused("zoo_here.nets:number").codes == ("RG104",)
    assert refused("zoo_here.missing:tiny").codes == ("RG101",)
    assert refused("no_such_package.nets:tiny").codes == ("RG101",)


def test_factory_that_brings_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
        import torch
        from torch import nn

        def pair():
            return nn.Linear(4, 1), torch.zeros(3, 4)

        def by_keyword():
            return nn.Linear(4, 1), {"input": torch.zeros(3, 4)}

        def triple():
            return nn.Linear(4, 1), torch.zeros(3, 4), 5

        def bad_inputs():
            return nn.Linear(4, 1), "x"

        example_inputs = torch.zeros(9, 4)
    """
    write(tmp_path, text, "pairs.py")
    monkeypatch.chdir(tmp_path)
    loaded = load_model("pairs:pair")
    assert loaded.example_inputs[0].shape == (3, 4)
    assert load_model("pairs:pair", ["7x4"]).example_inputs[0].shape == (7, 4)
    assert load_model("pairs:by_keyword").example_kwargs["input"].shape == (3, 4)
    assert refused("pairs:triple").codes == ("RG109",)
    assert refused("pairs:bad_inputs").codes == ("RG107",)
    (tmp_path / "file.py").write_text((tmp_path / "pairs.py").read_text().replace("def pair", "def build_model"))
    assert load_model(str(tmp_path / "file.py")).example_inputs[0].shape == (3, 4)


def test_factory_whose_module_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "import no_such_thing\n", "needs_more.py")
    write(tmp_path, "def f(:\n", "broken_module.py")
    monkeypatch.chdir(tmp_path)
    error = refused("needs_more:f")
    assert error.codes == ("RG103",)
    assert "no_such_thing" in error.problems[0].cause
    assert error.problems[0].place.startswith(f"{tmp_path / 'needs_more.py'}:1")
    assert refused("broken_module:f").codes == ("RG102",)


def test_file_not_found(tmp_path: Path) -> None:
    error = refused(str(tmp_path / "missing.py"))
    assert error.codes == ("RG101",)
    assert error.exit_status == 1


def test_a_name_that_no_system_accepts() -> None:
    assert refused("net\0.py").codes == ("RG101",)
    assert refused("a" * 5000 + ".py").codes == ("RG101",)
    assert refused("~nobody-here/net.py").codes == ("RG101",)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "net.py").mkdir()
    assert refused(str(tmp_path / "net.py")).codes == ("RG102",)
    assert refused(str(tmp_path)).codes == ("RG102",)


@pytest.mark.parametrize("name", ["net.txt", "net.pt", "net.pth", "net.ckpt", "net"])
def test_other_kinds_of_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02cos\nsystem\n")
    assert refused(str(tmp_path / name)).codes == ("RG102",)


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(torch, "load", forbidden)
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt")
    error = refused(str(tmp_path / "net.pt"))
    assert error.codes == ("RG102",)
    assert "pickle" in error.problems[0].cause


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"\xff\xfe\x00", b"x = (\n", b"def f(:\n  pass\n"])
def test_not_python(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.py").write_bytes(content)
    assert refused(str(tmp_path / "net.py")).codes == ("RG102",)


def test_a_syntax_error_shows_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "x = 1\ny = = 2\n")
    (problem,) = refused(path).problems
    assert problem.place == f"{path}:2"
    assert "y = = 2" in problem.cause


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import sys; sys.exit('no GPU here')", "no GPU here"),
        ("import no_such_package", "no_such_package"),
        ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
def test_raises_on_import(tmp_path: Path, statement: str, what: str) -> None:
    path = write(tmp_path, f"import torch\n{statement}\n")
    (problem,) = refused(path).problems
    assert problem.code == "RG103"
    assert what in problem.cause
    line = len(statement.splitlines()) + 1
    assert problem.place == f"{path}:{line}: {statement.splitlines()[-1]}"


def test_a_neighbour_that_raises_is_named_with_its_own_line(tmp_path: Path) -> None:
    write(tmp_path, "x = 1\nraise ValueError('bad')\n", "failing_part.py")
    (problem,) = refused(write(tmp_path, "import failing_part\n")).problems
    assert problem.place.startswith(f"{tmp_path / 'failing_part.py'}:2")
    assert "failing_part" not in sys.modules


def test_a_keyboard_interrupt_passes_and_leaves_nothing(tmp_path: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    with pytest.raises(KeyboardInterrupt):
        load_model(write(tmp_path, "raise KeyboardInterrupt\n"))
    assert sys.path == path
    assert not {name for name in set(sys.modules) - modules if name.startswith("reclra_model_")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model = 3\n",
        "model = 'net'\n",
        "import torch\nmodel = torch.nn.Linear\n",
        "build_model = 3\n",
        "from torch import nn\nclass Net(nn.Module): pass\n",
    ],
)
def test_no_model(tmp_path: Path, text: str) -> None:
    error = refused(write(tmp_path, text + "import torch\nexample_inputs = torch.zeros(2, 2)\n"))
    assert error.codes == ("RG104",)


def test_a_class_without_an_instance_gets_the_line_to_write(tmp_path: Path) -> None:
    text = "import torch\nclass Net(torch.nn.Module): pass\nexample_inputs = torch.zeros(2, 2)\n"
    (problem,) = refused(write(tmp_path, text)).problems
    assert "`model = Net(...)`" in problem.advice


def test_several_models(tmp_path: Path) -> None:
    text = "import torch\na = torch.nn.Linear(2, 2)\nb = torch.nn.Linear(2, 2)\nexample_inputs = torch.zeros(2, 2)\n"
    (problem,) = refused(write(tmp_path, text)).problems
    assert problem.code == "RG105"
    assert "a, b" in problem.cause


@pytest.mark.parametrize(
    "body", ["raise ValueError('bad width')", "return 3", "return None", "raise SystemExit(1)", "return nn.Linear"]
)
def test_factory_failing(tmp_path: Path, body: str) -> None:
    text = f"import torch\nfrom torch import nn\ndef build_model():\n    {body}\nexample_inputs = torch.zeros(2, 2)\n"
    path = write(tmp_path, text)
    (problem,) = refused(path).problems
    assert problem.code == "RG109"
    if "raise" in body:
        assert problem.place == f"{path}:4: {body}"


def test_factory_with_arguments(tmp_path: Path) -> None:
    text = "import torch\ndef build_model(width): ...\nexample_inputs = torch.zeros(2, 2)\n"
    (problem,) = refused(write(tmp_path, text)).problems
    assert problem.code == "RG109"
    assert "width" in problem.cause


def test_everything_independent_is_found_at_once(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "x = 1\n"))
    assert isinstance(error, ModelError)
    assert error.codes == ("RG104", "RG106")
    both = refused(write(tmp_path, "x = 1\n"), "64by28", "0")
    assert both.codes == ("RG108", "RG108", "RG104")
    assert refused(str(tmp_path / "missing.py"), "64by28").codes == ("RG108", "RG101")


def test_models_that_cannot_train_are_found_with_the_rest(tmp_path: Path) -> None:
    text = textwrap.dedent(GOOD) + "model[0].double()\nmodel[2].to('meta')\nexample_inputs = 'x'\n"
    assert refused(write(tmp_path, text)).codes == ("RG107", "RG122", "RG121")
    assert refused(write(tmp_path, text), "5x4").codes == ("RG122", "RG121")
    assert refused(write(tmp_path, text), "5by4").codes == ("RG108", "RG122", "RG121")


def test_a_compiled_model_is_the_model_itself(tmp_path: Path) -> None:
    text = textwrap.dedent(GOOD) + "model = torch.compile(model, backend='eager')\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert isinstance(load_model(write(tmp_path, text)).model, nn.Sequential)
