"""plan.html: one page with the picture to pan and zoom, every region's error path and details, the wirings that were
compared, and the lanes over time. It loads nothing: style, script and data are in the file."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from typing import Any

from reclra_graph.export.boxes import bytes_text, time_text
from reclra_graph.export.gantt import gantt_svg
from reclra_graph.export.page import SCRIPT, STYLE
from reclra_graph.export.panels import size_text
from reclra_graph.export.svg import DEEPEST, DEPTHS, DEPTHS_DARK, clip, draw
from reclra_graph.ir.device import Device
from reclra_graph.ir.regions import Region
from reclra_graph.ir.schedule import Schedule
from reclra_graph.ir.wiring import Candidate, Edge, WiringPlan


def plan_html(schedule: Schedule) -> str:
    """The page. Works by keyboard, in light and dark surroundings, and without a network."""
    plan = schedule.tasks.plan
    model = escape(clip(plan.regions.graph.model, 80))
    learning = sum(region.learns for region in plan.regions.regions)
    memory = bytes_text(plan.synapse_bytes)
    facts = (
        f"{len(plan.regions.sites)} regions, {learning} of them learn · {plan.wiring} wiring, depth {plan.depth} · "
        f"{len(plan.edges)} error synapses, {memory} · {_count(len(schedule.lanes), 'lane')}, "
        f"{time_text(schedule)}"
    )
    options = "".join(
        f'<option value="{region.id}">r{region.id} {escape(clip(region.name or region.kind, 48))}</option>'
        for region in plan.regions.regions
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{model}: wiring plan</title>
<style>
{STYLE}{_depth_style()}
</style>
</head>
<body>
<header>
<h1>{model}</h1>
<p>{escape(facts)}</p>
</header>
<main>
<section class="picture" aria-label="Forward graph and error wiring">
<div class="tools">
<button type="button" id="out" aria-label="Zoom out">−</button>
<button type="button" id="whole">Fit width</button>
<button type="button" id="in" aria-label="Zoom in">+</button>
<output id="scale" aria-label="Zoom">100 %</output>
<label>Region <select id="find"><option value="">none</option>{options}</select></label>
<span class="hint">Drag to move, Ctrl + wheel or + − 0 to zoom; in the picture, arrow keys step through the regions,
Enter holds one, Esc lets go.</span>
</div>
<div id="stage" tabindex="0" role="region" aria-label="Picture, scrolls">
{draw(schedule, live=True)}</div>
</section>
<aside id="side" aria-live="polite" aria-label="Region"><p class="hint">Point at a region to see how its error comes
from the output, and what it learns.</p></aside>
<section aria-labelledby="lanes">
<h2 id="lanes">Lanes over time</h2>
<p class="hint">Targets filled, updates outlined, waits dotted, copies grey; a line under a bar: it lies on one longest
path; {_clock(schedule)}.</p>
<div class="wide" tabindex="0" role="region" aria-label="Lanes over time, scrolls">
{gantt_svg(schedule)}
</div>
{_waves(schedule)}
</section>
{_candidates(plan)}
</main>
<script type="application/json" id="data">{_data(schedule)}</script>
<script>
{SCRIPT}</script>
</body>
</html>
"""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _depth_style() -> str:
    """Colours of the chart's bars, by depth as in the picture."""

    def rules(colours: tuple[str, ...]) -> str:
        return "".join(
            f".rg-g{depth} rect{{stroke:{colour}}}.rg-target.rg-g{depth} rect{{fill:{colour}}}"
            for depth, colour in enumerate(colours)
        )

    return f"{rules(DEPTHS)}\n@media (prefers-color-scheme:dark){{{rules(DEPTHS_DARK)}}}"


def _waves(schedule: Schedule) -> str:
    """The waves in words, folded away where there are many."""
    items = []
    for wave in schedule.waves:
        lanes = Counter(lane for _, lane in wave)
        counts = f"{_count(len(wave), 'region')} on {_count(len(lanes), 'lane')}"
        regions = _some([f"{region} on lane {lane}" for region, lane in wave], 40)
        items.append(f"<li>targets of {counts}: {escape(regions)}</li>")
    shown = " open" if len(items) <= 8 else ""
    words = f"<summary>{_count(len(items), 'wave')}</summary><ol>{''.join(items)}</ol>"
    return f"<details{shown}>{words}</details>" if items else ""


def _some(words: list[str], most: int) -> str:
    """The first of many words, and how many there are."""
    shown = ", ".join(words[:most])
    return shown if len(words) <= most else f"{shown} … ({len(words)} in all)"


def _candidates(plan: WiringPlan) -> str:
    """Table of the wirings that were compared."""
    if not plan.candidates:
        return ""
    rows = "".join(_candidate(candidate, plan.device) for candidate in plan.candidates)
    return f"""<section aria-labelledby="wirings">
<h2 id="wirings">Wirings compared</h2>
<div class="wide" tabindex="0" role="region" aria-label="Wirings compared, scrolls">
<table>
<caption>{escape(plan.why)}</caption>
<thead><tr><th scope="col">Wiring</th><th scope="col">Depth</th><th scope="col">Relays</th>
<th scope="col">Time, {_count(plan.gpus, "GPU")}</th><th scope="col">Time, one</th><th scope="col">Faster</th>
<th scope="col">Synapse memory</th><th scope="col">Error paths, sum</th></tr></thead>
<tbody>{rows}</tbody>
</table>
</div>
</section>"""


def _clock(schedule: Schedule) -> str:
    """What the time axis counts."""
    plan = schedule.tasks.plan
    if plan.device.clock == "unit":
        return "one time unit is one target or one update"
    parts = schedule.tasks.micro_batches
    batch = f"{parts} micro-batches of {plan.batch}" if parts > 1 else f"a batch of {plan.batch}"
    return f"times as predicted for the device {escape(plan.device.name)} and {batch}"


def _candidate(candidate: Candidate, device: Device) -> str:
    mark = ' <strong class="mark">✓ chosen</strong>' if candidate.chosen else ""
    cells = (
        str(candidate.depth),
        _some([str(region) for region in candidate.relays], 10) or "none",
        device.shown(candidate.makespan),
        device.shown(candidate.makespan_one),
        f"{candidate.makespan_one / candidate.makespan:.1f}×" if candidate.makespan else "",
        bytes_text(candidate.bytes),
        str(candidate.path),
    )
    kind = ' class="chosen"' if candidate.chosen else ""
    body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr{kind}><th scope="row">{escape(candidate.name)}{mark}</th>{body}</tr>'


def _data(schedule: Schedule) -> str:
    """What the script shows of regions and synapses, as JSON that no ``</script>`` or ``<!--`` can end."""
    plan = schedule.tasks.plan
    place = {region: (lane, wave) for wave, members in enumerate(schedule.waves, 1) for region, lane in members}
    data = {
        "outputs": list(plan.regions.outputs),
        "deepest": DEEPEST,
        "regions": [_region(plan, region, place) for region in plan.regions.regions],
        "edges": [
            {
                "name": edge.name,
                "source": edge.source,
                "target": edge.target,
                "text": _synapse(edge),
            }
            for edge in plan.edges
        ],
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _synapse(edge: Edge) -> str:
    """Form, rule, shape and memory of a synapse, and the weight that it mirrors."""
    parts = [edge.form, edge.rule, "×".join(map(str, edge.shape)) or "without weights", bytes_text(edge.bytes)]
    return ", ".join([*parts, *([f"mirrors {edge.weight}"] if edge.weight else [])])


def _region(plan: WiringPlan, region: Region, place: dict[int, tuple[int, int]]) -> dict[str, Any]:
    """One region: its id and name, and the rows of its table."""
    types = {parameter.key: parameter.type for parameter in plan.regions.graph.parameters}
    rows = [("Module", region.name or "—"), ("Line", region.line or "—"), ("Shape", size_text(region.shape))]
    if region.block:
        rows.append(("Block", region.block))
    for key in region.parameters:
        rules = ", ".join(
            dict.fromkeys(update.rule.rpartition(".")[2] for update in region.updates if update.parameter == key)
        )
        shape = size_text(types[key].shape) if key in types else ""
        rows.append(("Parameter", f"{key}  {shape}  ({rules})"))
    if region.kind != "input":
        rows.append(("Update", plan.update_of.get(region.id, "does not learn")))
        rows.append(("κ", f"{plan.rates.kappa_of(region.id):g}"))
    if region.id in place:
        lane, wave = place[region.id]
        rows.append(("Target", f"lane {lane}, wave {wave}"))
    elif region.id in plan.regions.outputs:
        rows.append(("Error", "from the loss"))
    return {"id": region.id, "name": region.name or region.kind, "rows": rows}
