"""Training runs go on exactly where they were stopped; checkpoints that are damaged, or cannot be written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reclra_graph.errors import ModelError, UsageError
from reclra_graph.methods.learner import Learner
from reclra_graph.train import checkpoint, trainer
from reclra_graph.train.log import read_log
from reclra_graph.train.trainer import Result
from tests.unit.image_files import write_own
from tests.unit.training import check_same_end, held, run, same


def fast(folder: Path, **given: Any) -> Result:
    """A run for which nothing has to be compiled."""
    return run(folder, method="bp", **given)


# -- stopped and gone on with -----------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"optimizer": "momentum", "lr": 0.05},
    "torch": {"optimizer": "torch:RMSprop", "lr": 0.01},
    "backprop": {"method": "bp", "optimizer": "adamw", "lr": 0.01},
}


class Countdown:
    """Says when so many steps are done."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def after_step(self, step: int, learner: Learner, batch: tuple[Any, Tensor]) -> None:
        self.left -= 1


@pytest.mark.parametrize("case", CASES)
def test_what_is_stopped_anywhere_goes_on_exactly(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path, "whole", **CASES[case])
    stops = 0
    usual = trainer.Trainer.late
    for steps in (7, 16, 3):  # in the middle of an epoch, and behind its end
        once = Countdown(steps)
        monkeypatch.setattr(trainer.Trainer, "late", property(lambda self, once=once: once.left <= 0))
        result = run(tmp_path, "parts", callbacks=[once], **CASES[case])
        assert (result.ended, result.test_error) == ("minutes", None)
        stops += steps
        assert result.steps == stops
    monkeypatch.setattr(trainer.Trainer, "late", usual)
    found = run(tmp_path, "parts", **CASES[case])
    check_same_end(tmp_path / "whole", tmp_path / "parts")
    assert (found.test_error, found.train_error) == (whole.test_error, whole.train_error)
    assert len(read_log(tmp_path / "parts" / "log.jsonl")) == 6
    assert len(found.summary["compile_seconds"]) == 4


SCRIPT = """
import sys, time, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.unit.training import run

class Slow:
    def after_step(self, step, learner, batch):
        print(step, flush=True)
        time.sleep(float(sys.argv[2]))

try:
    run(Path(sys.argv[1]), "killed", checkpoint_seconds=0, callbacks=[Slow()])
except KeyboardInterrupt:
    sys.exit(130)
"""


def started(tmp_path: Path, root: Path, until: int) -> subprocess.Popen[str]:
    """A run in a process of its own that has done so many steps."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "0.02"], cwd=root, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= until:
            break
    return process


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_killed_loses_nothing(tmp_path: Path, root: Path, sent: signal.Signals) -> None:
    run(tmp_path, "whole")
    process = started(tmp_path, root, until=23)
    process.send_signal(sent)
    assert process.wait(timeout=60) == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
    assert process.stdout is not None
    process.stdout.close()
    steps = held(tmp_path / "killed")["course"]["steps"]
    assert 20 <= steps < 60
    run(tmp_path, "killed", checkpoint_seconds=0)
    check_same_end(tmp_path / "whole", tmp_path / "killed")


def test_a_log_that_was_cut_short_is_made_whole(tmp_path: Path) -> None:
    result = fast(tmp_path)
    path = tmp_path / "run" / "log.jsonl"
    path.write_text(path.read_text()[:-30])
    assert len(read_log(path)) == 5
    fast(tmp_path)
    assert read_log(path) == list(result.records)


# -- what can go wrong with checkpoints -------------------------------------------------------------------------------


def test_a_run_with_other_settings_is_refused_and_told_apart(tmp_path: Path) -> None:
    fast(tmp_path, epochs=1)
    with pytest.raises(UsageError) as caught:
        fast(tmp_path, epochs=2, lr=0.2, options={"gain": True, "rule": "fixed"})
    assert caught.value.codes == ("RG710",)
    for said in ("epochs 1 then, 2 now", "lr 0.1 then, 0.2 now", "option rule none then, fixed now"):
        assert said in caught.value.problems[0].cause
    with pytest.raises(UsageError, match=r"weights .* then, .* now"):
        fast(tmp_path, epochs=1, seed=4)
    write_own(tmp_path / "own.pt", train=101, test=40)
    with pytest.raises(UsageError, match="data digest"):
        fast(tmp_path, epochs=1)
    fast(tmp_path, epochs=1, workers=0, checkpoint_seconds=5, fresh=True)
    assert fast(tmp_path, epochs=1, minutes=100).ended == "done"  # of no matter to the numbers


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    fast(tmp_path, epochs=1)
    path = tmp_path / "run" / "last.pt"
    whole = path.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            fast(tmp_path, epochs=1)
        assert caught.value.codes == ("RG711",)
    torch.save({"version": 99}, path)
    with pytest.raises(ModelError, match="no checkpoint of this version"):
        fast(tmp_path, epochs=1)
    assert fast(tmp_path, epochs=1, fresh=True).ended == "done"


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "trap",)

    fast(tmp_path, epochs=1)
    torch.save({"version": 1, "trap": Trap()}, tmp_path / "run" / "last.pt")
    with pytest.raises(ModelError) as caught:
        fast(tmp_path, epochs=1)
    assert caught.value.codes == ("RG711",)
    assert not (tmp_path / "trap").exists()


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = fast(tmp_path, epochs=6, minutes=0, checkpoint_seconds=0)
    assert once.ended == "minutes"
    before = (tmp_path / "run" / "last.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # files of more bytes fail
        with pytest.raises(ModelError, match="cannot be written: File too large") as caught:
            fast(tmp_path, epochs=6, checkpoint_seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.codes == ("RG701",)
    assert "goes on from the last checkpoint" in caught.value.problems[0].advice
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert [path.name for path in (tmp_path / "run").iterdir() if "partial" in path.name] == []
    fast(tmp_path, name="whole")
    fast(tmp_path)
    check_same_end(tmp_path / "whole", tmp_path / "run")

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(ModelError, match="No space left on device"):
        checkpoint.write(tmp_path / "run" / "last.pt", {})
    assert held(tmp_path / "run")["course"]["steps"] == 60


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError) as caught:
        fast(tmp_path, name="file/run", epochs=1)
    assert caught.value.codes == ("RG701",)


def test_random_numbers_go_on_where_they_were() -> None:
    import random

    torch.manual_seed(1)
    random.seed(1)
    state = checkpoint.random_state()
    first = (torch.rand(3), random.random())
    checkpoint.set_random_state(state)
    assert same(first, (torch.rand(3), random.random()))
