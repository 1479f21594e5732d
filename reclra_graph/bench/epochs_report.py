"""The report of ``reclra bench epochs``: epochs-cpu.json or epochs-cuda.json, and beside it a page and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reclra_graph.bench.epochs_arms import ARMS, WIRING
from reclra_graph.bench.epochs_bench import Found, Settings
from reclra_graph.bench.epochs_cases import MOMENTUM
from reclra_graph.bench.epochs_figures import arm_figures, compare
from reclra_graph.bench.epochs_picture import curves_svg
from reclra_graph.bench.jobs import Row, versions
from reclra_graph.bench.record import circumstances, plain, write_json, write_text, written
from reclra_graph.data.split import SPLIT_SEED
from reclra_graph.export.report import count

WHAT = (
    "seconds of training, without compilation and validation, until the error on held-out training images is at most "
    "a target; each run in a process of its own; of each arm the optimiser and rate with the lowest held-out error in "
    "its trials, the same trials for every arm; test images once, behind the last step"
)


def report(found: Sequence[Found], settings: Settings, command: str) -> dict[str, Any]:
    """The content of the JSON file."""
    about = circumstances(command)
    about["machine"]["threads"] = settings.each
    about["versions"] = {**about["versions"], **versions()}
    cases = [_case(item, settings) for item in found]
    return {
        **about,
        "what": WHAT,
        "config": {
            "device": settings.on,
            "threads": settings.each,
            "wiring": WIRING,
            "rule": settings.rule,
            "gain": True,
            "momentum": MOMENTUM,
            "weight_decay": 0.0,
            "schedule": "half a cosine from the rate to 0 over the run",
            "augmentation": "none",
            "split_seed": SPLIT_SEED,
            "tiny_nets": settings.quick,
            "tensor_float_32": settings.on == "cuda",
        },
        "ok": not any(case["failures"] or case["left"] for case in cases),
        "left": sum(case["left"] for case in cases),
        "cases": cases,
    }


def _case(found: Found, settings: Settings) -> dict[str, Any]:
    case = found.case
    rows = [row for held in (found.trials, found.runs) for arm in held.values() for row in arm]
    targets = settings.targets_of(case)
    arms = {
        name: {"peer": ARMS[name].peer, **arm_figures(found.trials[name], found.runs.get(name, ()), targets)}
        for name in settings.arms_of(case)
    }
    compare(arms, [name for name in arms if ARMS[name].peer])
    done: Row = next((row for row in rows if row["passed"]), {})
    sizes = next((row for row in (row for arm in found.runs.values() for row in arm) if row["passed"]), {})
    return {
        "name": case.name,
        "title": case.entitled(settings.width_of(case), settings.quick),
        "width": settings.width_of(case),
        "parameters": done.get("parameters"),
        "data": {"name": case.data, "digest": found.digest, **done.get("images", {})},
        "batch": settings.batch_of(case),
        "epochs": settings.epochs_of(case, trial=False),
        "trial_epochs": settings.epochs_of(case, trial=True),
        "length": sizes.get("length"),
        "seeds": list(settings.seeds_of(case)),
        "candidates": [{"optimizer": item.optimizer, "lr": item.lr} for item in settings.candidates_of(case)],
        "targets": list(targets),
        "arms": arms,
        "left": found.left,
        "failures": [
            {**item, "arm": row["arm"], "cell": f"{row['source']}, {row['optimizer']} at {row['lr']:g}"}
            for row in rows
            for item in row["failures"]
        ],
    }


def write(path: Path, content: Mapping[str, Any]) -> list[Path]:
    """Write the JSON file, the page and the picture. Returns their paths; raises ModelError RG701."""
    page, picture = path.with_suffix(".md"), path.with_suffix(".svg")
    write_json(path, content)
    write_text(page, markdown(content, picture.name))
    write_text(picture, curves_svg(content["cases"]))
    return [path, page, picture]


def lines(content: Mapping[str, Any]) -> list[str]:
    """The result in a few lines: one for each arm of a case, each that failed, and what is left."""
    found = []
    for case in content["cases"]:
        for name, arm in case["arms"].items():
            if "targets" in arm:
                times = [
                    f"{_percent(item['target'])} {_time(item)}{_times_as_fast(item, arm)}" for item in arm["targets"]
                ]  # fmt: skip
                end = "no test error" if arm["test_error"] is None else f"test error {_percent(arm['test_error'], 2)}"
                found.append(f"{case['name']}: {name}: {'; '.join(times)}; {end}")
            elif not case["left"]:
                found.append(f"{case['name']}: {name}: nothing that it was tried with learned")
        for item in case["failures"]:
            found.append(f"{case['name']}: {item['arm']}, {item['cell']}: {_failure(item)}")
        if case["left"]:
            found.append(f"{case['name']}: {count(case['left'], 'run')} left; run the same command again to go on")
    return found


def markdown(content: Mapping[str, Any], picture: str) -> str:
    """The report as a page."""
    config, cases = content["config"], content["cases"]
    parts = [
        f"# Seconds to an error on {'the CPU' if config['device'] == 'cpu' else 'a GPU'}",
        f"{written(content)} {count(config['threads'], 'thread')}.",
        "Seconds of training until the error on held-out training images is first at most a target; compilation and "
        "validation are not counted. Median over seeds; a run that does not reach a target counts as one that takes "
        "forever. Times as fast: as the fastest backpropagation at the same target. Every arm of a case begins with "
        "the same weights, meets the same batches in the same order for the same epochs, and was tuned by the same "
        "trials: each candidate (optimiser and rate) once, for fewer epochs, with the first seed; the lowest held-out "
        f"error chose. Rates fall by half a cosine to 0 over the run; momentum {config['momentum']:g}, no weight "
        f"decay, no augmentation. rec-LRA: {config['wiring']} wiring, synapse rule `{config['rule']}`, `gain`. Test "
        "images are looked at once, behind the last step.",
    ]
    if config["tiny_nets"]:
        parts.append("**Tiny nets: this says that everything runs, and nothing about speed.**")
    if content["left"]:
        parts.append(f"**Not finished: {count(content['left'], 'run')} left.**")
    parts.append(f"![Error on held-out images against seconds of training]({picture})")
    failed = [
        f"- **{case['name']}**, {item['arm']}, {item['cell']}: {plain(_failure(item))}"
        for case in cases
        for item in case["failures"]
    ]  # fmt: skip
    if failed:
        parts += ["## What fails", "\n".join(failed)]
    parts += [_section(case) for case in cases]
    return "\n\n".join(parts) + "\n"


def _section(case: Mapping[str, Any]) -> str:
    images, length = case["data"], case["length"]
    seeds = case["seeds"]
    about = [f"{case['parameters']:,} parameters" if case["parameters"] else "", f"batch {case['batch']}"]
    if "train" in images:
        about.append(f"{images['train']:,} training, {images['validation']:,} held-out, {images['test']:,} test images")
    if length:
        about.append(f"{count(length['steps'], 'step')}, judged every {length['every']}")
    about.append(f"{case['epochs']:g} epochs, trials of {case['trial_epochs']:g}")
    about.append(f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}")
    heads = ["arm", "ms per step", *(f"{_percent(target)}" for target in case["targets"])]
    heads += ["held-out error", "test error", "less backprop's", "less dense's"]
    times = _table(heads, (_times(name, arm) for name, arm in case["arms"].items()))
    names = [f"{item['optimizer']} {item['lr']:g}" for item in case["candidates"]]
    trials = _table(
        ["arm", *names, "chosen", "synapses", "compiled in"], (_trials(*item) for item in case["arms"].items())
    )
    left = f"\n\n**{count(case['left'], 'run')} left.**" if case["left"] else ""
    return (
        f"## {plain(case['title'])}\n\n`{case['name']}`: {', '.join(filter(None, about))}.{left}\n\n{times}\n\n"
        f"Held-out error at the end of each trial, and what it chose:\n\n{trials}"
    )


def _times(name: str, arm: Mapping[str, Any]) -> tuple[str, ...]:
    if "targets" not in arm:
        return (name, *[""] * 5)
    cost = arm["cost"]
    return (
        name,
        "" if arm["milliseconds"] is None else f"{arm['milliseconds']:.2f}",
        *(_time(item) + _times_as_fast(item, arm) for item in arm["targets"]),
        "not finite" if arm["error"] is None else _percent(arm["error"], 2),
        "not finite" if arm["test_error"] is None else _percent(arm["test_error"], 2),
        *("" if cost[kind] is None else f"{100 * cost[kind]:+.2f}" for kind in ("backprop", "dense")),
    )


def _trials(name: str, arm: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = arm["candidate"]
    shown = [item["ended"] or _percent(item["error"], 2) for item in arm["trials"]]
    edge = " (the edge of what was tried)" if chosen and chosen["at_edge"] else ""
    forms = ", ".join(f"{number} {form}" for form, number in arm.get("plan", {}).get("synapses", {}).items())
    return (
        name,
        *shown,
        "none" if chosen is None else f"{chosen['optimizer']} {chosen['lr']:g}{edge}",
        forms,
        f"{arm['compile_seconds']:.0f} s" if arm.get("compile_seconds") is not None else "",
    )


def _time(item: Mapping[str, Any]) -> str:
    """Such as "12.3 s", "12.3 s (2 of 3)" or "not reached"."""
    some = f" ({item['reached']} of {item['of']})" if 0 < item["reached"] < item["of"] else ""
    return f"not reached{some}" if item["seconds"] is None else f"{item['seconds']:.1f} s{some}"


def _times_as_fast(item: Mapping[str, Any], arm: Mapping[str, Any]) -> str:
    return "" if item["speedup"] is None or arm["peer"] else f", {item['speedup']:.2f}×"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %" if digits else f"{100 * share:g} %"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    width = len(heads)
    shown = ["| " + " | ".join(heads) + " |", "|" + "---|" * width]
    return "\n".join([*shown, *("| " + " | ".join([*row, *[""] * (width - len(row))]) + " |" for row in rows)])


def _failure(item: Mapping[str, str]) -> str:
    return f"{item['code']} {item['name']}: {item['cause']}"
