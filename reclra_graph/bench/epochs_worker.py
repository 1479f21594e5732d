"""One process of ``reclra bench epochs``: ``python -m reclra_graph.bench.epochs_worker REQUEST ROW THREADS CHECKPOINT
DEADLINE``.

REQUEST is a ``reclra_graph.bench.epochs_measure.Request`` as JSON, DEADLINE seconds since 1970 or "none". The process
ends by itself when its standard input does.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from reclra_graph.bench.jobs import leave_with
from reclra_graph.bench.record import write_json


def main(arguments: list[str]) -> int:
    """Train what is requested and write its row, after every evaluation."""
    request, path, threads, checkpoint, deadline = arguments
    threading.Thread(target=leave_with, args=(sys.stdin.buffer,), daemon=True).start()
    import torch

    from reclra_graph.bench.epochs_measure import Request, measured

    torch.set_num_threads(int(threads))
    measured(
        Request(**json.loads(request)),
        lambda row: write_json(Path(path), row),
        Path(checkpoint),
        None if deadline == "none" else float(deadline),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
