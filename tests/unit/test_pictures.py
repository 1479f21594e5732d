"""plan.svg, plan.html and plan.dot: what they show, and that no name in a model can break them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reclra_graph.export.boxes import bytes_text
from reclra_graph.export.dot import plan_dot, quoted
from reclra_graph.export.gantt import gantt_svg
from reclra_graph.export.html import plan_html
from reclra_graph.export.svg import clip, plan_svg
from tests.models import build, figure1_regions
from tests.unit.drawn_cases import CASES, branching, drawn, every_case
from tests.unit.drawn_plans import FIGURE_1, chain, flat, mlp, residual

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</script><b>\"&'\\ \n]]><!--"


@every_case
def test_svg_is_one_document_that_shows_every_region_and_lane(case: str) -> None:
    schedule = CASES[case]()
    root = ET.fromstring(plan_svg(schedule))
    assert root.tag == f"{SVG}svg"
    title, desc = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None
    assert desc is not None
    assert root.get("aria-labelledby", "").split() == [title.get("id"), desc.get("id")]
    regions = {group.get("data-region"): group for group in root.iter(f"{SVG}g") if group.get("class") == "rg-region"}
    assert set(regions) == {str(region.id) for region in schedule.tasks.plan.regions.regions}
    for number, group in regions.items():
        texts = [text.text for text in group.iter(f"{SVG}text")]
        assert f"r{number}" in texts
        lanes = [lane for wave in schedule.waves for region, lane in wave if str(region) == number]
        assert [text for text in texts if text and re.fullmatch(r"L\d+", text)] == [f"L{lane}" for lane in lanes]
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    assert 300 < width <= 1320
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x", "0")) >= 0
        assert float(rect.get("x", "0")) + float(rect.get("width", "0")) <= width + 0.1
        assert float(rect.get("y", "0")) + float(rect.get("height", "0")) <= height + 0.1


def test_bookkeeping_is_left_out_and_boxes_are_named_by_module() -> None:
    schedule = residual(2)
    scene, page = drawn(schedule)
    labels = [[scene.boxes[name].label for name in panel.boxes] for panel in scene.panels]
    main = ["conv1", "bn1", "relu", "conv2", "bn2"]
    assert labels == [
        ["input", "conv1", "bn1", "relu", "maxpool"],
        [*main, "add", "relu"],
        [*main, "down.0", "down.1", "add", "relu"],
        ["avgpool", "view", "fc"],
    ]
    assert [panel.title for panel in scene.panels] == ["stem", "layer.0", "layer.1", "head"]
    assert not any("count" in name or name in ("size",) or name.endswith("_out") for name in scene.boxes)
    assert scene.boxes[scene.post[2]].label == "relu"
    # The projection stands beside the second convolution, as late as it is needed; the add below both.
    rows = {scene.boxes[name].label: page.panels[2].inner.rows[name] for name in scene.panels[2].boxes}
    assert (rows["down.0"], rows["down.1"]) == (rows["conv2"], rows["bn2"])
    assert rows["add"] == rows["bn2"] + 1


def test_a_module_of_several_operators_is_one_box() -> None:
    scene, _ = drawn(branching("flat"))
    labels = [box.label for box in scene.boxes.values()]
    assert labels.count("drop") == 1
    assert not {"bernoulli", "div", "empty_like"} & set(labels)
    drop = next(box for box in scene.boxes.values() if box.label == "drop")
    assert drop.kind == "drop"
    assert [scene.boxes[source].label for source, name in scene.wires if name == drop.name] == ["mean"]


def test_depth_gives_the_colour() -> None:
    root = ET.fromstring(plan_svg(mlp(9, FIGURE_1, 5)))
    kinds = {
        group.get("data-source"): [path.get("class") for path in group.iter(f"{SVG}path")]
        for group in root.iter(f"{SVG}g")
        if group.get("class") == "rg-error"
    }
    assert kinds == {
        "9": ["rg-line rg-d1", "rg-a1"],
        **{source: ["rg-line rg-d2", "rg-a2"] for source in ("8", "5", "2")},
    }
    legend = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "rg-key"]
    assert legend[:3] == ["forward", "error synapses, depth 1 (3)", "error synapses, depth 2 (5)"]


@every_case
def test_html_is_whole_and_loads_nothing(case: str) -> None:
    schedule = CASES[case]()
    plan = schedule.tasks.plan
    page = plan_html(schedule)
    assert page.count("<script") == page.count("</script>") == 2
    assert "default-src 'none'" in page
    assert not re.search(r"\b(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    data = page_data(page)
    assert [region["id"] for region in data["regions"]] == [region.id for region in plan.regions.regions]
    assert [edge["name"] for edge in data["edges"]] == [edge.name for edge in plan.edges]
    assert page.count('class="rg-way"') == len(plan.edges)
    assert page.count('class="rg-slot') == len(schedule.slots)
    assert page.count("✓ chosen") == sum(candidate.chosen for candidate in plan.candidates)
    picture_part = page[page.index("<svg") : page.index("</svg>") + 6]
    for group in ET.fromstring(picture_part).iter(f"{SVG}g"):
        if group.get("class") == "rg-region":
            assert group.get("role") == "button"
            assert group.get("aria-label") == group.findtext(f"{SVG}title")
    ET.fromstring(gantt_svg(schedule))


def test_bars_of_micro_batches_say_what_they_are() -> None:
    step = build(*figure1_regions(), gpus=3, micro_batches=2)
    chart = gantt_svg(step.schedule)
    bars = [group for group in ET.fromstring(chart).iter(f"{SVG}g") if group.get("class", "").startswith("rg-slot")]
    assert len(bars) == len(step.schedule.slots)
    titles = [bar.findtext(f"{SVG}title") or "" for bar in bars]
    for region, part in ((3, 1), (9, 2)):
        assert any(title.startswith(f"update of region {region}, micro-batch {part}") for title in titles)
    assert all(bar.get("data-region") for bar in bars)
    assert {bar.findtext(f"{SVG}text") for bar in bars} >= {"y3@1", "W3@2", "e9@1"}


def page_data(page: str) -> dict[str, list[dict[str, object]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, list[dict[str, object]]] = json.loads(found[1])
    return data


def test_html_tells_everything_of_a_region() -> None:
    schedule = mlp(9, FIGURE_1, 5)
    page = plan_html(schedule)
    data = page_data(page)
    assert data["regions"][1]["rows"] == [
        ["Module", "net.2"],
        ["Line", "net.py:1"],
        ["Shape", "5"],
        ["Parameter", "net.2.weight  4×4  (linear_weight)"],
        ["Update", "analytic"],
        ["κ", "0.5"],
        ["Target", "lane 4, wave 2"],
    ]
    assert data["edges"][0] == {"name": "9->8", "source": 9, "target": 8, "text": "dense, eq6, 6×4, 24 B"}
    assert "it is the &lt;shortest&gt;" in page
    assert re.search(r'<tr class="chosen"><th scope="row">by hand', page)


def test_names_in_a_model_cannot_act() -> None:
    schedule = mlp(3, flat(3), model=NASTY, first=NASTY)
    plan = schedule.tasks.plan
    schedule = replace(schedule, tasks=replace(schedule.tasks, plan=replace(plan, why=NASTY, wiring=NASTY)))
    for text in (plan_svg(schedule), plan_html(schedule)):
        assert "<b>" not in text
        assert NASTY not in text
    root = ET.fromstring(plan_svg(schedule))
    assert root.findtext(f"{SVG}title", "").startswith(NASTY[:20])
    page = plan_html(schedule)
    assert page.count("<script") == page.count("</script>") == 2
    assert page_data(page)["regions"][1]["name"] == NASTY
    check_dot(plan_dot(schedule))


def check_dot(text: str) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Tokens of a DOT file; nodes declared, and edges with their attributes."""
    string = r'"(?:[^"\\\n]|\\.)*"'
    bare = re.sub(string, '""', text)
    assert bare.count('"') % 2 == 0
    assert not re.search(r"[<>&](?<!->)", bare.replace("->", ""))
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1, "[": 1, "]": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    statement = rf"^ *({string})(?: -> ({string}))?(?: \[((?:{string}|[^\]\"])*)\])?;$"
    nodes, edges = [], []
    for line in text.splitlines():
        found = re.match(statement, line)
        if found and found[2]:
            edges.append((found[1], found[2], found[3] or ""))
        elif found:
            nodes.append(found[1])
    assert len(nodes) == len(set(nodes))
    assert {name for one, two, _ in edges for name in (one, two)} <= set(nodes)
    return nodes, edges


@every_case
def test_dot_holds_the_same_graph(case: str) -> None:
    schedule = CASES[case]()
    scene, _ = drawn(schedule)
    nodes, edges = check_dot(plan_dot(schedule))
    assert sorted(nodes) == sorted(quoted(name) for name in scene.boxes)
    forward = [(one, two) for one, two, words in edges if not words]
    assert forward == [(quoted(one), quoted(two)) for one, two in scene.wires]
    error = [(one, two) for one, two, words in edges if "style=dashed" in words and "constraint=false" in words]
    plan = schedule.tasks.plan
    assert error == [(quoted(scene.post[edge.source]), quoted(scene.post[edge.target])) for edge in plan.edges]
    assert len(forward) + len(error) == len(edges)
    clusters = re.findall(r"^  subgraph (cluster_\d+) \{", plan_dot(schedule), re.MULTILINE)
    assert len(clusters) == len(set(clusters)) == len(scene.panels)


def test_same_bytes_under_any_hash_seed(root: Path) -> None:
    program = (
        "import hashlib\n"
        "from reclra_graph.export.dot import plan_dot\n"
        "from reclra_graph.export.html import plan_html\n"
        "from reclra_graph.export.svg import plan_svg\n"
        "from tests.unit.drawn_plans import FIGURE_1, mlp, residual\n"
        "for plan in (mlp(9, FIGURE_1, 5), residual(5)):\n"
        "    for draw in (plan_svg, plan_html, plan_dot):\n"
        "        print(hashlib.sha256(draw(plan).encode()).hexdigest())\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "12345")
    }
    assert len(seen) == 1
    assert len(seen.pop().split()) == 6


@pytest.mark.parametrize("wiring", [flat, chain])
def test_large_plans_stay_small(wiring: Callable[[int], tuple[tuple[int, int], ...]]) -> None:
    half, whole = mlp(200, wiring(200), 5), mlp(400, wiring(400), 5)
    for draw, most in ((plan_svg, 400_000), (plan_html, 700_000), (plan_dot, 200_000)):
        text = draw(half)
        assert len(text) < most
        assert len(draw(whole)) < 2.3 * len(text)


def test_short_texts() -> None:
    assert clip("abcdefgh", 5) == "ab…gh"
    assert clip("abc", 5) == "abc"
    assert [bytes_text(count) for count in (0, 999, 1000, 65536, 123_456_789)] == [
        "0 B",
        "999 B",
        "1.0 KB",
        "65.5 KB",
        "123 MB",
    ]
