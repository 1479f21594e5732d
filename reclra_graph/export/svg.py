"""plan.svg: the forward graph in panels, with the error wiring laid over it. Needs no other program, font or file."""

from __future__ import annotations

from collections import Counter
from html import escape
from itertools import pairwise

from reclra_graph.export.boxes import Picture, bytes_text, picture, time_text
from reclra_graph.export.layout import BOX_HEIGHT, BOX_WIDTH, DOT, ENTRY, number
from reclra_graph.export.lines import Line
from reclra_graph.export.panels import size_text
from reclra_graph.export.routing import HEAD, Page, Placed, lay_out
from reclra_graph.ir.schedule import Schedule
from reclra_graph.ir.wiring import WiringPlan

DEEPEST = 6
"""Depths from here on share a colour."""

_LABEL = 14
"""Most characters of a box's label."""

COLOURS = {
    # kind: (fill, line, text) in light, (fill, line) in dark
    "input": ("#ffffff", "#c9ced8", "#20242c", "#20242c", "#596273"),
    "dense": ("#cfdff5", "#9fb8da", "#16273f", "#26405f", "#4d6f9c"),
    "norm": ("#e6e8ed", "#c6cad3", "#262b35", "#333947", "#596273"),
    "act": ("#d9efda", "#a9cfab", "#173019", "#23472a", "#4a7f52"),
    "join": ("#fde7b8", "#dfc07a", "#3d2d05", "#58431a", "#95762f"),
    "pool": ("#eadcf5", "#c6acdb", "#301643", "#452f58", "#7d5c99"),
    "attention": ("#cdeeed", "#93c9c7", "#0b3433", "#1b4746", "#3f8583"),
    "drop": ("#f8dde2", "#dbaab4", "#43131d", "#532b34", "#935863"),
    "shape": ("#efefef", "#cfcfcf", "#333333", "#2e3138", "#555b66"),
    "other": ("#f3eee6", "#d3c9b8", "#332b1d", "#3d382f", "#746a58"),
    "out": ("#b3cdf1", "#7c9fd0", "#10233f", "#2f5587", "#6b95cf"),
}
DEPTHS = ("#8a93a5", "#cb4b45", "#d6861a", "#8456c0", "#1f8f86", "#3b6fd1", "#c2408f")
DEPTHS_DARK = ("#8d97aa", "#f0736c", "#f0a73e", "#b08ae6", "#45c2b6", "#7ba4f5", "#ea77bd")


def style() -> str:
    """Style sheet of the picture, for light and dark surroundings; every rule is below ``.rg-plan``."""
    light = [
        ".rg-plan{font-family:system-ui,'DejaVu Sans',Verdana,sans-serif;font-size:10.5px}",
        ".rg-bg{fill:#fbfbfa}.rg-plan text{fill:#20242c}.rg-plan .rg-h{font-size:18px;font-weight:700}",
        ".rg-plan .rg-key{font-size:12px;fill:#677083}.rg-plan .rg-t{font-size:11px;font-weight:700;fill:#394254}",
        ".rg-plan .rg-s,.rg-plan .rg-id{font-size:9px;fill:#737c8e}.rg-plan .rg-id{font-size:8.5px}",
        ".rg-panel rect{fill:#fff;stroke:#cfd5e0}.rg-hull{fill:#f5f7fb;stroke:#e3e7ef}.rg-dot{fill:#586174}",
        ".rg-e{text-anchor:end}.rg-box text,.rg-lane text{text-anchor:middle}.rg-lane rect{fill:#45506a}",
        ".rg-plan .rg-lane text{fill:#fff;font-size:8px;font-weight:700}",
        ".rg-line{fill:none;stroke-width:1.4}.rg-d1{stroke-width:1.6}.rg-way{fill:none;stroke:none}",
    ]
    dark = [
        ".rg-bg{fill:#15181e}.rg-plan text{fill:#e4e7ee}.rg-plan .rg-key{fill:#9aa4b7}.rg-plan .rg-t{fill:#d5dbe8}",
        ".rg-plan .rg-s,.rg-plan .rg-id{fill:#98a2b5}.rg-panel rect{fill:#1c2028;stroke:#3a4252}",
        ".rg-hull{fill:#222732;stroke:#2f3644}.rg-dot{fill:#a9b3c6}.rg-lane rect{fill:#c5cfe4}",
        ".rg-plan .rg-lane text{fill:#1a2030}",
    ]
    for kind, (fill, line, text, dark_fill, dark_line) in COLOURS.items():
        light.append(f".rg-{kind} rect{{fill:{fill};stroke:{line}}}.rg-plan .rg-{kind} text{{fill:{text}}}")
        dark.append(f".rg-{kind} rect{{fill:{dark_fill};stroke:{dark_line}}}.rg-plan .rg-{kind} text{{fill:#e8ebf2}}")
    for depth, (one, two) in enumerate(zip(DEPTHS, DEPTHS_DARK, strict=True)):
        dash = "" if depth == 0 else ";stroke-dasharray:6 3" if depth == 1 else ";stroke-dasharray:3.5 2.5"
        light.append(f".rg-d{depth}{{stroke:{one}{dash}}}.rg-a{depth}{{fill:{one}}}")
        dark.append(f".rg-d{depth}{{stroke:{two}}}.rg-a{depth}{{fill:{two}}}")
    return "\n".join(light) + "\n@media (prefers-color-scheme:dark){\n" + "\n".join(dark) + "\n}"


def plan_svg(schedule: Schedule) -> str:
    """The picture as one SVG document, 1250 px wide or a little more."""
    return draw(schedule, live=False)


def draw(schedule: Schedule, *, live: bool) -> str:
    """The picture. ``live``: for plan.html, with regions that take the focus and every error edge by itself."""
    plan = schedule.tasks.plan
    scene = picture(plan)
    page = lay_out(plan, scene)
    title, legend, top, wide = _header(schedule, page)
    width, height = max(page.width, wide), page.height + top
    role = 'role="group"' if live else 'role="img"'
    lane_of = {region: lane for wave in schedule.waves for region, lane in wave}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="rg-plan" {role} aria-labelledby="rg-title rg-desc" '
        f'width="{number(width)}" height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}">',
        f'<title id="rg-title">{escape(title)}</title>',
        f'<desc id="rg-desc">{escape(_description(schedule))}</desc>',
        f"<style>\n{style()}\n</style>",
        f'<rect class="rg-bg" width="{number(width)}" height="{number(height)}"/>',
        *legend,
        f'<g transform="translate(0 {number(top)})">',
    ]
    for placed in page.panels:
        parts.append(
            f'<g class="rg-panel"><rect x="{number(placed.x)}" y="{number(placed.y)}" width="{number(placed.width)}" '
            f'height="{number(placed.height)}" rx="8"/>'
            f"{_text(placed.x + 12, placed.y + 18, placed.panel.title, 'rg-t')}"
            f"{_text(placed.x + 12, placed.y + 30, placed.panel.shape, 'rg-s')}</g>"
        )
    parts += _regions(plan, scene, page, lane_of, live)
    for placed in page.panels:
        parts += _wires(placed)
    parts += [_line(plan, line) for line in page.lines]
    if live:
        parts += [f'<path class="rg-way" data-edge="{escape(name)}" d="{data}"/>' for name, data in page.ways.items()]
    parts += ["</g>", "</svg>"]
    return "\n".join(parts) + "\n"


def clip(text: str, most: int) -> str:
    """Text of at most ``most`` characters, the middle left out of longer ones."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def region_text(plan: WiringPlan, region: int) -> str:
    """One line about a region, for tooltips and screen readers."""
    item = plan.regions.regions[region]
    words = [f"region {item.id}", item.name or item.kind, size_text(item.shape)]
    edges = plan.incoming.get(region, ())
    if edges:
        words.append(f"error from {', '.join(dict.fromkeys(str(edge.source) for edge in edges))}")
    elif region in plan.regions.outputs:
        words.append("carries the loss's error")
    return ", ".join(words)


def _brief(shape: tuple[int, ...]) -> str:
    """A shape in six characters or fewer, or else its channels."""
    text = size_text(shape)
    return text if len(text) <= 6 else f"{shape[0]} ch"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{number(x)}" y="{number(y)}">{escape(text)}</text>'


def _header(schedule: Schedule, page: Page) -> tuple[str, list[str], float, float]:
    """Title text, the drawn title and legend, and their height and width."""
    plan = schedule.tasks.plan
    name = clip(plan.regions.graph.model, 40)
    title = f"{name} · forward graph and error wiring"
    counts = Counter(min(plan.level.get(edge.source, 0) + 1, DEEPEST) for edge in plan.edges)
    entries = [(0, "forward")]
    for depth, many in sorted(counts.items()):
        words = f"error synapses, depth {depth}{' and more' if depth == DEEPEST else ''} ({many})"
        entries.append((depth, words))
    memory = plan.synapse_bytes
    lanes = len(schedule.lanes)
    facts = (
        f"{len(plan.regions.sites)} regions · {plan.wiring} wiring, depth {plan.depth} · "
        f"{len(plan.edges)} error synapses, {bytes_text(memory)} · "
        f"{lanes} lane{'s' if lanes != 1 else ''}, {time_text(schedule)} · "
        "r3 region · L1 lane that computes its target"
    )
    limit = max(page.width, 20 + 6.7 * len(facts))
    parts = [_text(20, 32, title, "rg-h")]
    rooms = [34 + 6.7 * len(words) + 20 for _, words in entries]
    x, y = 20 + 10.6 * len(title) + 24, 32.0
    if x + sum(rooms) > limit:
        x, y = 20.0, y + 23
    wide = 20 + 10.6 * len(title)
    for (depth, words), room in zip(entries, rooms, strict=True):
        if x + room > limit and x > 20:
            x, y = 20.0, y + 21
        parts.append(f'<path class="rg-line rg-d{depth}" d="M{number(x)} {number(y - 4)}h22"/>')
        parts.append(_text(x + 28, y, words, "rg-key"))
        x += room
        wide = max(wide, x)
    parts.append(_text(20, y + 22, facts, "rg-key"))
    return title, parts, y + 30, max(wide, 20 + 6.7 * len(facts))


def _description(schedule: Schedule) -> str:
    """What the picture shows, in words."""
    plan = schedule.tasks.plan
    joined = list(dict.fromkeys(f"{edge.source} to {edge.target}" for edge in plan.edges))
    shown, more = joined[:40], f" and {len(joined) - 40} more" if len(joined) > 40 else ""
    return (
        f"The forward graph of {plan.regions.graph.model} in panels, operators as boxes, and over it the error "
        f"synapses between regions: {', '.join(shown)}{more}. Error enters at region "
        f"{', '.join(str(number) for number in plan.regions.outputs)}."
    )


def _regions(plan: WiringPlan, scene: Picture, page: Page, lane_of: dict[int, int], live: bool) -> list[str]:
    """Every region: a faint shape behind its boxes, its id, its boxes, and the lane of its target."""
    where: dict[int, dict[int, list[str]]] = {}
    for name, box in scene.boxes.items():
        where.setdefault(box.region, {}).setdefault(scene.panel_of[name], []).append(name)
    last = {item.operator for number in plan.regions.outputs for item in plan.regions.regions[number].updates}
    parts = []
    for region in sorted(where):
        post = scene.post.get(region)
        words = escape(region_text(plan, region))
        focus = f' tabindex="-1" role="button" aria-label="{words}"' if live else ""
        parts.append(f'<g class="rg-region" data-region="{region}"{focus}><title>{words}</title>')
        for at, names in sorted(where[region].items()):
            placed = page.panels[at]
            whole = size_text(plan.regions.regions[region].shape)
            shape = whole if region == 0 and len(whole) <= 11 else _brief(plan.regions.regions[region].shape)
            parts += _hulls(placed, names)
            spots = [placed.spot(name) for name in names]
            y, x = min((y, x) for x, y in spots)
            parts.append(_text(x - BOX_WIDTH / 2 + 1, y - BOX_HEIGHT / 2 - 4, f"r{region}", "rg-id"))
            if post in names and whole != placed.panel.shape:
                parts.append(_text(x + BOX_WIDTH / 2 - 1, y - BOX_HEIGHT / 2 - 4, shape, "rg-id rg-e"))
            for name, (bx, by) in zip(names, spots, strict=True):
                box = scene.boxes[name]
                kind = "out" if name in last and box.kind == "dense" else box.kind
                badge = f"L{lane_of[region]}" if name == post and region in lane_of else ""
                spare = 6.0 * len(badge) + 8 if badge else 0.0
                label = clip(box.label, _LABEL - (5 if badge else 0))
                parts.append(
                    f'<g class="rg-box rg-{kind}"><title>{escape(box.title)}</title>'
                    f'<rect x="{number(bx - BOX_WIDTH / 2)}" y="{number(by - BOX_HEIGHT / 2)}" '
                    f'width="{number(BOX_WIDTH)}" height="{number(BOX_HEIGHT)}" rx="4"/>'
                    f"{_text(bx - spare / 2, by + 4, label, 'rg-b')}</g>"
                )
                if badge:
                    left = bx + BOX_WIDTH / 2 - spare - 5
                    parts.append(
                        f'<g class="rg-lane"><title>lane {badge[1:]} computes the target of region {region}</title>'
                        f'<rect x="{number(left)}" y="{number(by - 6)}" width="{number(spare)}" height="12" rx="6"/>'
                        f"{_text(left + spare / 2, by + 3, badge, 'rg-l')}</g>"
                    )
        parts.append("</g>")
    return parts


def _hulls(placed: Placed, names: list[str]) -> list[str]:
    """One shape around the boxes of a region, or one per column where other boxes stand between them."""
    inner = placed.inner
    mine = set(names)

    def rect(group: list[str]) -> tuple[float, float, float, float]:
        spots = [placed.spot(name) for name in group]
        left, top = min(x for x, _ in spots), min(y for _, y in spots)
        return left, top, max(x for x, _ in spots), max(y for _, y in spots)

    left, top, right, bottom = rect(names)
    others = (placed.spot(name) for name in inner.spots if name not in mine and name != ENTRY)
    groups = [names]
    if any(left - BOX_WIDTH < x < right + BOX_WIDTH and top - BOX_HEIGHT < y < bottom + BOX_HEIGHT for x, y in others):
        columns: dict[float, list[str]] = {}
        for name in sorted(names, key=lambda item: inner.rows[item]):
            columns.setdefault(round(inner.spots[name][0], 1), []).append(name)
        groups = []
        for column in columns.values():
            groups.append([column[0]])
            for before, name in pairwise(column):
                if inner.rows[name] == inner.rows[before] + 1:
                    groups[-1].append(name)
                else:
                    groups.append([name])
    parts = []
    for group in groups:
        left, top, right, bottom = rect(group)
        x, y = number(left - BOX_WIDTH / 2 - 5), number(top - BOX_HEIGHT / 2 - 14)
        wide, high = number(right - left + BOX_WIDTH + 10), number(bottom - top + BOX_HEIGHT + 19)
        parts.append(f'<rect class="rg-hull" x="{x}" y="{y}" width="{wide}" height="{high}" rx="6"/>')
    return parts


def _wires(placed: Placed) -> list[str]:
    """Forward wires within a panel."""
    inner = placed.inner
    data = "".join(f"M{number(x)} {number(y)}l-3.5 -7h7z" for x, y in inner.heads)
    parts = [f'<g transform="translate({number(placed.left)} {number(placed.y + HEAD)})">']
    if ENTRY in inner.spots:
        x, y = inner.spots[ENTRY]
        parts.append(f'<circle class="rg-dot" cx="{number(x)}" cy="{number(y)}" r="{number(DOT)}"/>')
    parts += [f'<path class="rg-line rg-d0" d="{path}"/>' for path in inner.paths]
    return [*parts, f'<path class="rg-a0" d="{data}"/>', "</g>"]


def _line(plan: WiringPlan, line: Line) -> str:
    """Lines between panels, and error lines, with their arrowheads."""
    depth = min(line.depth, DEEPEST)
    shapes = {">": "l-8 -4v8z", "<": "l8 -4v8z", "v": "l-4 -8h8z"}
    heads = "".join(f"M{number(x)} {number(y)}{shapes[way]}" for x, y, way in line.heads)
    if depth == 0:
        return f'<path class="rg-line rg-d0" d="{line.data}"/><path class="rg-a0" d="{heads}"/>'
    targets = ", ".join(str(edge.target) for edge in plan.outgoing.get(line.source, ()))
    words = escape(f"error of region {line.source} to {clip(targets, 60)}")
    return (
        f'<g class="rg-error" data-source="{line.source}"><title>{words}</title>'
        f'<path class="rg-line rg-d{depth}" d="{line.data}"/><path class="rg-a{depth}" d="{heads}"/></g>'
    )
