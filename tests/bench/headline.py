"""The README's table of speed, made of docs/results/step-cpu.json: ``python tests/bench/headline.py`` writes it there.

A test compares the two, so that no figure stands in the README that is not in the results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "docs/results/step-cpu.json"
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


def table(content: Mapping[str, Any]) -> str:
    """The README's lines on speed: every case, reached or not, and how it was measured."""
    machine, versions = content["machine"], content["versions"]
    rows = [
        "| one training step, batch as in the file | times as fast | asked for | memory |",
        "|---|---|---|---|",
    ]
    summary = {item["case"]: item for item in content["summary"]}
    for case in content["cases"]:
        item = summary.get(case["name"])
        if item is None:
            why = ", ".join(dict.fromkeys(failure["code"] for failure in case["failures"])) or "skipped"
            rows.append(f"| {case['title']} | no figure: {why} | {case['bar'] or ''} | |")
            continue
        bar = "" if item["bar"] is None else f"{item['bar']:g}{'' if item['bar_met'] else ', not reached'}"
        memory = "" if item["memory_ratio"] is None else f"{item['memory_ratio']:.2f}"
        rows.append(f"| {case['title']} | {item['speedup']:.2f} | {bar} | {memory} |")
    said = (
        f'Against the faster of eager backprop and `torch.compile(mode="max-autotune")`, with a fused SGD, in turns in '
        f"one process, on {machine['cores']} cores of an {machine['processor']} with torch {versions['torch']}; flat "
        "wiring unless named; memory as a share of that backprop's. Random data: this is speed alone "
        "([step-cpu.md](docs/results/step-cpu.md))."
    )
    return "\n".join([said, "", *rows])


def replaced(text: str, content: Mapping[str, Any]) -> str:
    """The README with the table of these results."""
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{table(content)}\n{END}{after}"


def main() -> None:
    """Write the table into the README."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    README.write_text(replaced(README.read_text(encoding="utf-8"), content), encoding="utf-8")


if __name__ == "__main__":
    main()
