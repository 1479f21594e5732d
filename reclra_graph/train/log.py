"""What a run tells of itself while it goes on: a line of JSON for every evaluation, and TensorBoard's files."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reclra_graph.errors import ModelError, Problem

Record = dict[str, Any]
"""``step``, ``epoch``, ``seconds`` of training, ``lr``, ``loss`` (the mean since the last record), ``error`` on the
validation images (None where there are none), ``samples_per_second``, and what callbacks add."""


class Log:
    """The file log.jsonl of a run, and where asked for TensorBoard's."""

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        """Raises ModelError RG712 where TensorBoard is asked for and not installed."""
        self.path, self.folder = path, tensorboard
        self.kind: Any = None if tensorboard is None else _writer()
        self.writer: Any = None

    def begin(self, records: Sequence[Record]) -> None:
        """Start over with the records that a checkpoint holds: later ones come again. Raises ModelError RG701."""
        if self.kind is not None:
            try:
                self.writer = self.kind(str(self.folder), purge_step=records[-1]["step"] + 1 if records else None)
            except OSError as error:
                raise _unwritable(Path(str(self.folder)), error) from None
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            partial.write_text("".join(map(_line, records)), encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _unwritable(self.path, error) from None

    def write(self, record: Record) -> None:
        """Append a record, at once. Raises ModelError RG701."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise _unwritable(self.path, error) from None
        if self.writer is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self.writer.add_scalar(name, value, record["step"])
            self.writer.flush()

    def close(self) -> None:
        """No more is written."""
        if self.writer is not None:
            self.writer.close()


def read_log(path: Path) -> list[Record]:
    """The records of a log; a line that is cut short ends them."""
    found: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _unwritable(path: Path, error: OSError) -> ModelError:
    return ModelError(Problem("RG701", f"cannot be written: {error.strerror}", str(path)))


def _writer() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError:
        advice = "Install it: pip install 'reclra-graph[tensorboard]'. The same figures stand in log.jsonl."
        raise ModelError(Problem("RG712", "TensorBoard is not installed", "--tensorboard", advice)) from None
