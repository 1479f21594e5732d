"""docs/errors: a page for each code, and each page's example run as it stands there.

A page shows files (fenced Python or text, named in their first line) and a console: ``$`` commands, and what they
print. ``...`` in the console stands for anything; ``--update-golden`` rewrites what is printed and no longer fits.
"""

from __future__ import annotations

import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reclra_graph.cli.app import app, compile_app, run
from reclra_graph.errors import CODES, Problem

PAGES = Path(__file__).resolve().parents[2] / "docs" / "errors"
SECTIONS = ["## Example", "## What to do"]
FENCE = re.compile(r"^```(\w+)( cuda)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HOME = "/home/me/models"


def text_of(code: str) -> str:
    path = PAGES / f"{code}.md"
    assert path.is_file(), f"docs/errors/{code}.md is missing: copy RG101.md, say what {CODES[code][0]} means, show it"
    return path.read_text(encoding="utf-8")


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    missing = [code for code in CODES if not (PAGES / f"{code}.md").is_file()]
    assert missing == [], "write docs/errors/CODE.md for each"
    assert {path.stem for path in PAGES.glob("*.md")} == {"README", *CODES}


@pytest.mark.parametrize("code", CODES)
def test_a_page_has_its_parts(code: str, root: Path) -> None:
    text = text_of(code)
    title, empty, meaning = text.splitlines()[:3]
    assert title == f"# {code} {CODES[code][0]}"
    assert not empty
    assert len(meaning) > 20
    assert [line for line in text.splitlines() if line.startswith("## ")] in (SECTIONS, SECTIONS[1:])
    assert "console" in [kind for kind, _, _ in FENCE.findall(text)] or not raised(code, root), (
        f"{code} needs an example"
    )
    assert len(text) < 3000


def raised(code: str, root: Path) -> bool:
    """Whether the package's code can raise it."""
    files = [path for part in ("reclra_graph", "passes", "cli") for path in (root / part).rglob("*.py")]
    return any(f'"{code}"' in path.read_text(encoding="utf-8") for path in files if path.name != "errors.py")


def test_the_table_lists_every_page() -> None:
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(RG\d{3})\]\((RG\d{3})\.md\) \| ([a-z-]+) \| \S", text, re.MULTILINE)
    assert rows == [(code, code, name) for code, (name, _) in CODES.items()]


def test_a_problem_names_its_page() -> None:
    problem = Problem("RG101", "cause", "place")
    assert problem.page == "docs/errors/RG101.md"
    assert str(problem).endswith("\n    see: docs/errors/RG101.md")


# -- the examples -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Run a command in this process and an empty folder; returns what it prints."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    before = set(sys.modules)

    def call(command: str) -> str:
        program, *arguments = shlex.split(command)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if program == "python":
                run_file(Path(arguments[0]))
            else:
                monkeypatch.setattr(sys, "argv", [program, *arguments])
                with pytest.raises(SystemExit):
                    run(compile_app if program == "reclra-compile" else app, program)
        out, err = capsys.readouterr()
        for name in set(sys.modules) - before:
            if name.startswith("reclra_model_"):
                del sys.modules[name]
        return f"{out}{err}".replace(str(folder), HOME)

    return call


def run_file(path: Path) -> None:
    """As ``python FILE`` would, but of a traceback only its last part."""
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path.resolve()), "exec"), {"__name__": "__main__"})
    except Exception as error:
        sys.stderr.write("".join(traceback.format_exception_only(error)))


def printed(text: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a console."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def fits(shown: str, real: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in shown.rstrip("\n").split("..."))
    return re.fullmatch(pattern, real.rstrip("\n"), re.DOTALL) is not None


@pytest.mark.parametrize("code", CODES)
def test_an_example_prints_what_the_page_shows(
    code: str, shell: Callable[[str], str], request: pytest.FixtureRequest
) -> None:
    text = text_of(code)
    seen = ""
    for kind, needs, body in FENCE.findall(text):
        if kind in ("python", "text"):
            name = re.match(r"# (\S+\.(?:py|txt))\n", body)
            assert name is not None, "the first line of a file names it: # net.py"
            Path(name.group(1)).write_text(body, encoding="utf-8")
        if kind != "console":
            continue
        if needs and not torch.cuda.is_available():
            pytest.skip("this example needs a GPU")
        for command, shown in printed(body):
            real = shell(command)
            seen += real
            if fits(shown, real):
                continue
            if request.config.getoption("--update-golden"):
                text = text.replace(f"$ {command}\n{shown}", f"$ {command}\n{real}")
            else:
                assert real == shown, f"{code}: {command} prints something else; see also --update-golden"
    if request.config.getoption("--update-golden"):
        (PAGES / f"{code}.md").write_text(text, encoding="utf-8")
    # `bench zoo` says behind the name in which stage it happened.
    assert re.search(rf"{code} {CODES[code][0]}( \([a-z-]+\))?: ", seen) or "```console" not in text
