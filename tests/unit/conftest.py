"""The ``reclra`` fixture: the command line in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reclra_graph.cli.app import app, run
from tests.unit.command import Call, Result


@pytest.fixture
def reclra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run ``reclra ARGUMENTS`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["reclra", *arguments])
        with pytest.raises(SystemExit) as caught:
            run(app, "reclra")
        out, err = capsys.readouterr()
        code = caught.value.code
        return Result(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return call
