"""plan.dot: the picture for Graphviz and the tools that read its language."""

from __future__ import annotations

from reclra_graph.export.boxes import Picture, bytes_text, picture
from reclra_graph.export.panels import Box, Panel
from reclra_graph.export.svg import COLOURS, DEPTHS
from reclra_graph.ir.schedule import Schedule


def plan_dot(schedule: Schedule) -> str:
    """A digraph: a cluster per block and per region in it, forward edges in grey, error edges dashed in red, which do
    not constrain the layout."""
    plan = schedule.tasks.plan
    scene = picture(plan)
    lane_of = {region: lane for wave in schedule.waves for region, lane in wave}
    lines = [
        f"digraph {quoted(plan.regions.graph.model)} {{",
        '  graph [rankdir=TB, compound=true, fontname="Helvetica", labeljust=l, style=rounded, color="#cfd5e0"];',
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=10, height=0.3];',
        f'  edge [color="{DEPTHS[0]}", arrowsize=0.7];',
    ]
    for at, panel in enumerate(scene.panels):
        lines += _cluster(at, panel, scene, lane_of)
    lines += [f"  {quoted(source)} -> {quoted(name)};" for source, name in scene.wires]
    for edge in plan.edges:
        if edge.source in scene.post and edge.target in scene.post:
            words = f"error synapse {edge.name}, {edge.words}, {bytes_text(edge.bytes)}"
            lines.append(
                f"  {quoted(scene.post[edge.source])} -> {quoted(scene.post[edge.target])} "
                f'[style=dashed, color="{DEPTHS[1]}", constraint=false, tooltip={quoted(words)}];'
            )
    return "\n".join([*lines, "}"]) + "\n"


def quoted(text: str) -> str:
    """A DOT string: quotes and backslashes escaped, line breaks as the two characters that mean one."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\r", "").replace("\n", "\\n") + '"'


def _cluster(at: int, panel: Panel, scene: Picture, lane_of: dict[int, int]) -> list[str]:
    """A panel, and in it a cluster for every region."""
    lines = [f"  subgraph cluster_{at} {{", f"    label={quoted(f'{panel.title}  {panel.shape}')};"]
    members: dict[int, list[Box]] = {}
    for name in panel.boxes:
        members.setdefault(scene.boxes[name].region, []).append(scene.boxes[name])
    for region, boxes in members.items():
        lane = f"  lane {lane_of[region]}" if region in lane_of else ""
        lines.append(f"    subgraph cluster_{at}_r{region} {{")
        lines.append(f'      label={quoted(f"r{region}{lane}")}; fontsize=9; color="#e3e7ef";')
        for box in boxes:
            fill, line = COLOURS[box.kind][:2]
            lines.append(
                f"      {quoted(box.name)} [label={quoted(box.label)}, tooltip={quoted(box.title)}, "
                f'fillcolor="{fill}", color="{line}"];'
            )
        lines.append("    }")
    return [*lines, "  }"]
