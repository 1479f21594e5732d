"""The report of ``reclra bench step``: step-cpu.json or step-cuda.json, and beside it a page and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reclra_graph.bench.jobs import Row, versions
from reclra_graph.bench.record import circumstances, plain, write_json, write_text, written
from reclra_graph.bench.step_bench import Settings
from reclra_graph.bench.step_cases import BATCHES
from reclra_graph.bench.step_figures import figures, headlines
from reclra_graph.bench.step_picture import speed_svg
from reclra_graph.export.report import count

WHAT = (
    "one training step: all arms of a case in one process, in turns whose order rotates; ratios within a round, to the "
    "backpropagation with the least median; memory of each arm, in the format in which it is fastest, in a "
    "process of its own"
)

GAINS = (
    "The fused step without one optimisation, beside the same step with all of them: how many times as long it takes, "
    "median and quartiles of the ratios within a round, and how many times the memory."
)


def report(
    rows: Sequence[Row], memory: Mapping[str, Mapping[str, Row]], settings: Settings, command: str
) -> dict[str, Any]:
    """The content of the JSON file."""
    about = circumstances(command)
    about["machine"]["threads"] = settings.each
    about["versions"] = {**about["versions"], **versions()}
    rounds, warm_up = settings.timed
    cases = [figures(row, memory.get(row["name"], {})) for row in rows]
    return {
        **about,
        "what": WHAT,
        "config": {
            "device": settings.on,
            "threads": settings.each,
            "rounds": rounds,
            "warm_up": warm_up,
            "batches": BATCHES,
            "seed": settings.seed,
            "tiny_nets": settings.quick,
            "tensor_float_32": settings.on == "cuda",
        },
        "ok": not any(case["failures"] for case in cases),
        "summary": headlines(cases),
        "cases": cases,
    }


def write(path: Path, content: Mapping[str, Any]) -> list[Path]:
    """Write the JSON file, the page and the picture. Returns their paths; raises ModelError RG701."""
    page, picture = path.with_suffix(".md"), path.with_suffix(".svg")
    write_json(path, content)
    write_text(page, markdown(content, picture.name))
    if not content["summary"]:
        return [path, page]
    write_text(picture, speed_svg(content["cases"]))
    return [path, page, picture]


def lines(content: Mapping[str, Any]) -> list[str]:
    """The result in a few lines: one for each case, or for each of its arms where there is nothing to compare, and for
    each that failed or was left out."""
    found = []
    for item in content["summary"]:
        bar = "" if item["bar"] is None else f", asked for {item['bar']:g}"
        memory = "" if item["memory_ratio"] is None else f", memory {item['memory_ratio']:.2f}"
        low, high = item["quartiles"]
        found.append(
            f"{item['case']}: {item['cell']} is {item['speedup']:.3f} ({low:.3f} to {high:.3f}) times as fast as "
            f"{item['peer']}{bar}{memory}"
        )
    compared = {item["case"] for item in content["summary"]}
    for case in content["cases"]:
        if case["skipped"]:
            found.append(f"{case['name']}: not measured: {case['skipped']}")
        for name, cell in case["cells"].items():
            if "gain" in cell:
                gain = cell["gain"]["median"]
                memory = f" and {cell['memory_gain']:.2f} times the memory" if "memory_gain" in cell else ""
                found.append(f"{case['name']}: without {cell['without']}: {gain:.3f} times as long{memory}")
            elif case["name"] not in compared and "milliseconds" in cell:
                found.append(f"{case['name']}: {name} takes {cell['milliseconds']['median']:.3f} ms")
        found += [f"{case['name']}: {_failure(item)}" for item in case["failures"]]
    return found


def markdown(content: Mapping[str, Any], picture: str) -> str:
    """The report as a page."""
    config, cases = content["config"], content["cases"]
    parts = [
        f"# One training step on {'the CPU' if config['device'] == 'cpu' else 'a GPU'}",
        f"{written(content)} {count(config['threads'], 'thread')}, {count(config['rounds'], 'round')} behind "
        f"{count(config['warm_up'], 'step')}, seed {config['seed']}; weights, inputs and targets are random, and the "
        "same for every arm of a case.",
    ]
    if config["tiny_nets"]:
        parts.append("**Tiny nets: this says that everything runs, and nothing about speed.**")
    if content["summary"]:
        parts += [
            f"![Times as fast as the best backpropagation]({picture})",
            "## In short",
            _summary(content["summary"]),
        ]
    if gains := _gains(cases):
        parts += ["## What each optimisation gains", GAINS, gains]
    failed = [f"- **{case['name']}**: {plain(_failure(item))}" for case in cases for item in case["failures"]]
    if failed:
        parts += ["## What fails", "\n".join(failed)]
    missing = list(_missing(cases))
    if missing:
        parts += ["## Not measured", "\n".join(missing)]
    parts += [
        "## Every arm",
        "Milliseconds of a step, and how many times as fast as the best backpropagation it is: median and quartiles; "
        "ratios within a round. Memory: what is held before a step and what it adds at the worst moment, and its "
        "ratio to that of the best backpropagation. Arithmetic and memory traffic as the cost model counts them, "
        "operator by operator, so that what is compiled counts as what it was compiled from; per second and as a share "
        "of the best matrix product and the best copy of the same process. Loss: the mean over the batches at first "
        "and at last.",
        "\n\n".join(_case(case) for case in cases if case["cells"]),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(items: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            item["case"],
            item["cell"],
            item["peer"],
            _spread(item["speedup"], item["quartiles"], 2),
            "" if item["bar"] is None else f"{item['bar']:g}: {'yes' if item['bar_met'] else 'no'}",
            "" if item["memory_ratio"] is None else f"{item['memory_ratio']:.2f}",
        )
        for item in items
    ]
    heads = ("case", "fastest", "best backpropagation", "times as fast", "asked for", "memory ratio")
    return _table(heads, rows) if rows else "Nothing was measured beside a backpropagation."


def _gains(cases: Sequence[Mapping[str, Any]]) -> str:
    """A table of all optimisations that were left out, one at a time; "" where none was."""
    rows = [
        (
            cell["without"],
            case["name"] + (f", {cell['format']}" if cell["format"] else ""),
            _spread(cell["gain"]["median"], cell["gain"]["quartiles"], 3),
            f"{cell['memory_gain']:.2f}" if "memory_gain" in cell else "",
        )
        for case in cases
        for cell in case["cells"].values()
        if "gain" in cell
    ]
    heads = ("without", "case", "times as long", "times the memory")
    return _table(heads, sorted(rows, key=lambda row: row[0])) if rows else ""


def _missing(cases: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """A line for each case that was left out, and for each arm with the cases that it was left out of."""
    absent: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        if case["skipped"]:
            yield f"- **{case['name']}**: {plain(case['skipped'])}"
        for item in case["absent"].items():
            absent.setdefault(item, []).append(case["name"])
    offered = sum(1 for case in cases if case["cells"])
    for (arm, why), names in absent.items():
        where = "" if len(names) == offered else f" in {', '.join(names)}"
        yield f"- {arm}{where}: {plain(why)}"


def _case(case: Mapping[str, Any]) -> str:
    options = "".join(f", {name} {value}" for name, value in case["options"].items())
    counts = f"{case['parameters']:,} parameters, " if "parameters" in case else ""
    probes = case["probes"] or {"flops": 0.0, "bandwidth": 0.0}
    about = (
        f"{case['title']}: {counts}batch {case['batch']}, {case['wiring']} wiring{options}, {case['dtype']}, "
        f"{case['optimizer']} at {case['lr']:g}; best matrix product {probes['flops'] / 1e9:,.1f} GFLOP/s, best copy "
        f"{probes['bandwidth'] / 1e9:,.1f} GB/s."
    )
    heads = ("arm", "ms", "times as fast", "MiB", "ratio", "GFLOP", "of peak", "GB", "of peak", "loss", "result")
    return f"### {case['name']}\n\n{about}\n\n{_table(heads, [_cell(case, name) for name in case['cells']])}"


def _cell(case: Mapping[str, Any], name: str) -> tuple[str, ...]:
    cell = case["cells"][name]
    times, fast, shares = cell.get("milliseconds"), cell.get("speedup"), cell.get("peak_shares", {})
    loss, peak, ratio = cell.get("loss", {}), cell.get("peak_bytes"), cell.get("memory_ratio")
    codes = dict.fromkeys(item["code"] for item in case["failures"] if item["stage"] == name)
    return (
        f"**{name}**" if name == case["best_peer"] else name,
        _spread(times["median"], times["quartiles"], 3 if times["median"] < 10 else 1) if times else "",
        _spread(fast["median"], fast["quartiles"], 2) if fast else "",
        f"{peak / 2**20:,.1f}" if peak is not None else "",
        f"{ratio:.2f}" if ratio is not None else "",
        f"{cell['flops'] / 1e9:,.2f}" if times else "",
        f"{100 * shares['flops']:.0f} %" if shares else "",
        f"{cell['bytes'] / 1e9:,.2f}" if times else "",
        f"{100 * shares['bytes']:.0f} %" if shares else "",
        f"{loss['first']:.3f} → {loss['last']:.3f}" if loss.get("first") is not None else "",
        ", ".join(codes) or ("measured" if times else "not measured"),
    )


def _spread(middle: float, quartiles: Sequence[float], digits: int) -> str:
    low, high = quartiles
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    shown = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*shown, *("| " + " | ".join(row) + " |" for row in rows)])


def _failure(item: Mapping[str, str]) -> str:
    return f"{item['code']} {item['name']} ({item['stage']}): {item['cause']}"
