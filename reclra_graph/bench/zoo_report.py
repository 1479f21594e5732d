"""The zoo's report: a summary of the rows, zoo.json, and the same as a table to read."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from reclra_graph.bench.jobs import Row, versions
from reclra_graph.bench.record import circumstances, plain, write_json, write_text, written
from reclra_graph.bench.zoo import Settings
from reclra_graph.errors import CODES

BAR = {"own": 1.0, "libraries": 0.97, "ratio": 3.0}
"""What is asked for: shares of models that pass, and the median of compile over export time at most."""


def report(rows: Sequence[Row], settings: Settings, command: str) -> dict[str, Any]:
    """The content of zoo.json."""
    # Imported here, for torch: who only asks for the command's help does not wait for it.
    from reclra_graph.bench.checks import CLOSE, EXACT, RATES, STEPS

    about = circumstances(command)
    about["versions"] = {**about["versions"], **versions()}
    return {
        **about,
        "what": "each model in a process of its own: compile, verify, one step against the reference interpreter, "
        f"{STEPS} steps on one batch, every parameter, eval",
        "config": {
            "seed": settings.seed,
            "jobs": settings.jobs,
            "threads": settings.threads,
            "timeout_seconds": settings.timeout,
            "memory_gib": settings.memory,
            "steps": STEPS,
            "rates": list(RATES),
            "tolerance": {"float64": EXACT, "float32": CLOSE},
        },
        "summary": summary(rows),
        "models": list(rows),
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Models passed by source and in all, failures by code, and the median ratio of compile to export time."""
    sources = dict.fromkeys(row["source"] for row in rows)
    groups = {name: [row for row in rows if row["source"] == name] for name in sources}
    libraries = [row for row in rows if row["source"] != "own"]
    codes: dict[str, int] = {}
    for row in rows:
        for code in dict.fromkeys(item["code"] for item in row["failures"]):
            codes[code] = codes.get(code, 0) + 1
    ratios = [row["ratio"] for row in rows if row.get("ratio") is not None]
    return {
        "sources": {name: _share(group) for name, group in groups.items()},
        "libraries": _share(libraries) if libraries else None,
        "failures": dict(sorted(codes.items())),
        "uncoded": [_name(row) for row in rows if any(item["code"] not in CODES for item in row["failures"])],
        "compile_over_export": {"median": round(statistics.median(ratios), 3), "models": len(ratios)}
        if ratios
        else None,
        "bar_met": bar_met(rows),
    }


def bar_met(rows: Sequence[Row]) -> bool:
    """Whether the rows meet ``BAR``, with a code for every failure."""
    own = [row for row in rows if row["source"] == "own"]
    libraries = [row for row in rows if row["source"] != "own"]
    ratios = [row["ratio"] for row in rows if row.get("ratio") is not None]
    enough = all(
        not group or sum(row["passed"] for row in group) >= BAR[name] * len(group)
        for name, group in (("own", own), ("libraries", libraries))
    )
    coded = all(item["code"] in CODES for row in rows for item in row["failures"])
    return enough and coded and (not ratios or statistics.median(ratios) <= BAR["ratio"])


def _share(rows: Sequence[Row]) -> dict[str, Any]:
    passed = sum(row["passed"] for row in rows)
    return {"models": len(rows), "passed": passed, "share": round(passed / len(rows), 4)}


def _name(row: Row) -> str:
    return f"{row['source']} {row['name']}"


def write(path: Path, content: dict[str, Any]) -> list[Path]:
    """Write zoo.json and, beside it, the table. Returns both paths; raises ModelError RG701."""
    table = path.with_suffix(".md")
    write_json(path, content)
    write_text(table, markdown(content))
    return [path, table]


def headline(content: dict[str, Any]) -> list[str]:
    """The result in a few lines."""
    found = content["summary"]
    lines = [
        f"{name}: {share['passed']} of {share['models']} pass ({100 * share['share']:.1f} %)"
        for name, share in [*found["sources"].items(), ("all libraries", found["libraries"])]
        if share
    ]
    if found["compile_over_export"]:
        ratio = found["compile_over_export"]
        lines.append(f"compile time over export time: median {ratio['median']:.2f} of {ratio['models']} models")
    if found["failures"]:
        lines.append("failures: " + ", ".join(f"{code} {count}" for code, count in found["failures"].items()))
    return lines


def markdown(content: dict[str, Any]) -> str:
    """The report as a page: the result, every failure with its cause, and a row for each model."""
    parts = [
        "# The zoo",
        f"{written(content)} Weights, inputs and targets are random.",
        "\n".join(f"- {line}" for line in headline(content)),
    ]
    failed = [row for row in content["models"] if not row["passed"]]
    if failed:
        parts.append("## What fails")
        parts.append("\n".join(_bullet(row) for row in failed))
    parts.append("## Every model")
    parts.append(
        "Seconds to compile and their ratio to the seconds of `torch.export` with decompositions alone; parameters "
        "updated of those that require grad; the largest relative difference of one step from the reference "
        "interpreter; the loss before and after 20 steps on the one batch, with the learning rate."
    )
    parts.append("\n".join(_table(content["models"])))
    return "\n\n".join(parts) + "\n"


def _bullet(row: Row) -> str:
    causes = dict.fromkeys(
        f"{item['code']} {item['name']} ({item['stage']}): {item['cause']}" for item in row["failures"]
    )
    shown = [*causes][:3] + ([f"{len(causes) - 3} more"] if len(causes) > 3 else [])
    return f"- **{_name(row)}**: " + "; ".join(plain(text) for text in shown)


def _table(rows: Iterable[Row]) -> list[str]:
    heads = (
        "model",
        "weights",
        "captured by",
        "regions",
        "wiring",
        "compile s",
        "ratio",
        "updated",
        "step",
        "loss",
        "result",
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        checks = row["checks"]
        parameters, falls, reference = (checks.get(name) for name in ("parameters", "falls", "reference"))
        cells = (
            _name(row),
            _count(row.get("parameters")),
            row.get("frontend"),
            row.get("regions"),
            row.get("wiring"),
            f"{row['seconds']['compile']:.1f}" if "frontend" in row else None,
            f"{row['ratio']:.2f}" if row.get("ratio") is not None else None,
            f"{parameters['updated']}/{parameters['all']}" if parameters else None,
            f"{reference['difference']:.0e}" if reference and reference["difference"] is not None else None,
            _loss(falls) if falls else None,
            "passes" if row["passed"] else ", ".join(dict.fromkeys(item["code"] for item in row["failures"])),
        )
        lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return lines


def _count(value: int | None) -> str | None:
    if value is None:
        return None
    return f"{value / 1e6:.1f} M" if value >= 1e5 else f"{value:,}"


def _loss(falls: dict[str, Any]) -> str:
    before, after = (f"{value:.3g}" if value is not None else "?" for value in (falls["before"], falls["after"]))
    return f"{before} → {after} at {falls['lr']:g}"
