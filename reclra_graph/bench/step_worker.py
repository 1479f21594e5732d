"""One process of ``reclra bench step``: ``python -m reclra_graph.bench.step_worker REQUEST ROW THREADS``.

REQUEST is a ``reclra_graph.bench.step_measure.Request`` as JSON. The process ends by itself when its standard input
does.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from reclra_graph.bench.jobs import leave_with
from reclra_graph.bench.record import write_json


def main(arguments: list[str]) -> int:
    """Measure what is requested and write its row, after every stage."""
    request, path, threads = arguments
    threading.Thread(target=leave_with, args=(sys.stdin.buffer,), daemon=True).start()
    import torch

    from reclra_graph.bench.step_measure import Request, measured

    torch.set_num_threads(int(threads))
    given = json.loads(request)
    given.update(arms=tuple(given["arms"]), formats=tuple(given["formats"]))
    measured(Request(**given), lambda row: write_json(Path(path), row))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
