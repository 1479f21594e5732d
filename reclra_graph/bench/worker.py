"""One model in a process of its own: ``python -m reclra_graph.bench.worker SOURCE NAME ROW SEED THREADS GIB``.

The row is written after every stage, so that the process that started this one knows where it was when it had to be
stopped. It ends by itself when its standard input does: when that other process is gone.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from reclra_graph.bench.jobs import leave_with


def main(arguments: list[str]) -> int:
    """Measure one model and write its row."""
    source, name, path, seed, threads, memory = arguments
    threading.Thread(target=leave_with, args=(sys.stdin.buffer,), daemon=True).start()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")  # random weights: nothing to fetch
    import torch

    from reclra_graph.bench.measure import Measurement, Row
    from reclra_graph.bench.record import write_json

    torch.set_num_threads(int(threads))

    def report(row: Row) -> None:
        row["peak_memory_mib"] = _peak()
        write_json(Path(path), row)

    Measurement(source, name, int(seed), float(memory), report).run()
    return 0


def _peak() -> int | None:
    """Largest memory in use so far, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    used: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used) // (1024 if sys.platform != "darwin" else 1 << 20)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
