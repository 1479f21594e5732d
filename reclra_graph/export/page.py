"""Style and script of plan.html. The script writes text only, never markup, so that no name in a model can act."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--page:#f3f4f6;--card:#fff;--stage:#fbfbfa;--text:#20242c;--soft:#5d6678;--line:#d3d8e2;
--mark:#b3352f;--hold:#2458b8}
@media (prefers-color-scheme:dark){:root{--page:#0f1217;--card:#191d24;--stage:#15181e;--text:#e4e7ee;--soft:#9aa4b7;
--line:#39414f;--mark:#ff8b84;--hold:#8db4ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:14px/1.45 system-ui,'DejaVu Sans',Verdana,sans-serif}
header{padding:16px 20px 4px}h1{margin:0;font-size:20px}
h2{margin:0 0 6px;font-size:16px}summary{font-weight:600;margin:10px 0 4px;cursor:pointer}
h3{margin:12px 0 4px;font-size:14px}
header p,.hint,caption{color:var(--soft);margin:2px 0}
main{display:grid;grid-template-columns:minmax(0,1fr) 320px;gap:14px;padding:12px 20px 32px;align-items:start}
section,aside{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px}
main>section:not(.picture){grid-column:1/-1;min-width:0}
aside{position:sticky;top:12px;max-height:calc(100vh - 24px);overflow:auto;overflow-wrap:anywhere}
.tools{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin-bottom:8px}
.tools .hint{font-size:12px;flex:1 1 260px}
button,select{font:inherit;color:inherit;background:var(--page);border:1px solid var(--line);border-radius:6px;
padding:3px 10px;min-height:30px}select{max-width:220px}
button:hover,select:hover{border-color:var(--hold)}
:focus-visible{outline:2px solid var(--hold);outline-offset:2px}
#stage{overflow:auto;max-height:78vh;border:1px solid var(--line);border-radius:6px;cursor:grab;background:var(--stage)}
#stage.drag{cursor:grabbing;user-select:none}#stage svg{display:block}
#stage text{user-select:none}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}caption{text-align:left;padding-bottom:8px}
th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--line);vertical-align:top;white-space:nowrap}
aside th,aside td{white-space:normal;padding-right:8px}aside th{white-space:nowrap;font-weight:500;color:var(--soft)}
tr.chosen th,tr.chosen td{font-weight:600}.mark{color:var(--mark);margin-left:6px}
aside h2{font-size:15px}aside ul{margin:2px 0 8px;padding-left:0;list-style:none}aside li{padding:2px 0}
aside button{padding:0 8px;min-height:24px;margin-right:6px}
.rg-region,.rg-slot[data-region]{cursor:pointer}.rg-region:focus{outline:none}
.rg-region:focus-visible .rg-box rect,.rg-region.held .rg-box rect{stroke:var(--hold);stroke-width:2.2}
.rg-region.on .rg-hull{stroke:var(--mark);stroke-width:1.6}
.rg-dim .rg-region:not(.on) .rg-box,.rg-dim .rg-region:not(.on) .rg-lane{opacity:.38}
.rg-dim .rg-error{opacity:.2}.rg-dim .rg-way.on{stroke:var(--mark);stroke-width:3}
.rg-way{pointer-events:none}
.rg-gantt{display:block;font:11px system-ui,'DejaVu Sans',sans-serif}.rg-gantt text{fill:var(--text)}
.rg-gantt .rg-tick,.rg-slot text{text-anchor:middle}.rg-rule{stroke:var(--line);fill:none}
.rg-slot rect{fill:var(--card);stroke-width:1.5}.rg-gantt .rg-target text{fill:#fff;font-weight:600}
.rg-wait rect{fill:url(#rg-hatch);stroke:none}.rg-copy rect{fill:var(--soft);opacity:.55}
.rg-slot.rg-forward rect{fill:var(--line);stroke:var(--soft)}.rg-critical{stroke:var(--mark);stroke-width:2.4;fill:none}
.rg-dim .rg-slot:not(.on){opacity:.3}
@media (prefers-color-scheme:dark){.rg-gantt .rg-target text{fill:#10131a}}
@media (max-width:900px){main{grid-template-columns:minmax(0,1fr);padding:8px}aside{position:static;max-height:none}}
@media print{.tools,aside{display:none}#stage{max-height:none}}
"""

SCRIPT = """"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const stage = byId("stage"), side = byId("side"), find = byId("find");
  const svg = stage.querySelector("svg"), chart = document.querySelector(".rg-gantt");
  const natural = [svg.viewBox.baseVal.width, svg.viewBox.baseVal.height];
  const regions = new Map(data.regions.map((region) => [region.id, region]));
  const groups = new Map(), ways = new Map(), incoming = new Map(), outgoing = new Map();
  const push = (map, key, value) => map.has(key) ? map.get(key).push(value) : map.set(key, [value]);
  for (const node of document.querySelectorAll("[data-region]")) push(groups, Number(node.dataset.region), node);
  for (const node of svg.querySelectorAll(".rg-way")) ways.set(node.dataset.edge, node);
  for (const edge of data.edges) { push(incoming, edge.target, edge); push(outgoing, edge.source, edge); }
  const drawn = [...svg.querySelectorAll(".rg-region")].map((node) => Number(node.dataset.region));
  const box = (id) => (groups.get(id) || []).find((node) => node.classList.contains("rg-region"));
  let held = null, shown = null, lit = [], scale = 1, focused = drawn[drawn.length - 1];

  // Every error edge on a way from the output to a region.
  const path = (id) => {
    const nodes = new Set([id]), edges = new Set(), todo = [id];
    while (todo.length) {
      for (const edge of incoming.get(todo.pop()) || []) {
        edges.add(edge.name);
        if (!nodes.has(edge.source)) { nodes.add(edge.source); todo.push(edge.source); }
      }
    }
    return [nodes, edges];
  };

  const element = (name, text, parent) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };

  const list = (title, edges, other) => {
    element("h3", title, side);
    if (!edges.length) { element("p", "none", side).className = "hint"; return; }
    const items = element("ul", undefined, side);
    for (const edge of edges) {
      const item = element("li", undefined, items);
      const jump = element("button", edge.source + "→" + edge.target, item);
      jump.type = "button";
      jump.setAttribute("aria-label", "Go to region " + edge[other]);
      jump.addEventListener("click", () => { hold(edge[other], true); });
      item.append(edge.text);
    }
  };

  const describe = (id) => {
    const region = regions.get(id);
    side.replaceChildren();
    element("h2", "r" + id + " · " + region.name, side);
    const table = element("tbody", undefined, element("table", undefined, side));
    for (const [name, value] of region.rows) {
      const row = element("tr", undefined, table);
      element("th", name, row).scope = "row";
      element("td", value, row);
    }
    const way = [id];
    for (let at = id; incoming.has(at); way.unshift(at)) at = incoming.get(at)[0].source;
    if (way.length > 1) {
      element("h3", path(id)[0].size > way.length ? "Error path, one of several" : "Error path", side);
      element("p", way.join(" → "), side);
    }
    list("Error synapses that arrive", incoming.get(id) || [], "source");
    list("Error synapses that leave", outgoing.get(id) || [], "target");
  };

  const show = (id) => {
    if (id === shown) return;
    shown = id;
    for (const node of lit) node.classList.remove("on");
    lit = [];
    svg.classList.toggle("rg-dim", id !== null);
    chart.classList.toggle("rg-dim", id !== null);
    if (id === null) return;
    const [nodes, edges] = path(id);
    for (const node of nodes) lit.push(...(groups.get(node) || []));
    for (const name of edges) if (ways.has(name)) lit.push(ways.get(name));
    for (const node of lit) node.classList.add("on");
    describe(id);
  };

  const hold = (id, move) => {
    if (held !== null && box(held)) {
      box(held).classList.remove("held");
      box(held).setAttribute("aria-pressed", "false");
    }
    held = id;
    find.value = id === null ? "" : String(id);
    const name = location.pathname + location.search + (id === null ? "" : "#r" + id);
    try { history.replaceState(null, "", name); } catch (error) { /* a page without an address of its own */ }
    show(id);
    const node = id === null ? null : box(id);
    if (!node) return;
    node.classList.add("held");
    node.setAttribute("aria-pressed", "true");
    rove(id);
    if (move) node.scrollIntoView({block: "center", inline: "center"});
  };

  // One region at a time takes part in the tab order; arrow keys move on from it.
  const rove = (id) => {
    const before = box(focused);
    if (before) before.setAttribute("tabindex", "-1");
    focused = id;
    if (box(id)) box(id).setAttribute("tabindex", "0");
  };

  const zoom = (next, x, y) => {
    next = Math.min(4, Math.max(0.1, next));
    const left = x === undefined ? stage.clientWidth / 2 : x, top = y === undefined ? stage.clientHeight / 2 : y;
    const atX = (stage.scrollLeft + left) / scale, atY = (stage.scrollTop + top) / scale;
    scale = next;
    svg.setAttribute("width", natural[0] * scale);
    svg.setAttribute("height", natural[1] * scale);
    stage.scrollLeft = atX * scale - left;
    stage.scrollTop = atY * scale - top;
    byId("scale").textContent = Math.round(scale * 100) + " %";
  };
  const fit = () => zoom((stage.clientWidth - 2) / natural[0]);

  const regionOf = (event) => {
    const node = event.target.closest && event.target.closest("[data-region]");
    return node ? Number(node.dataset.region) : null;
  };
  let dragging = null, moved = false;
  for (const part of [svg, chart]) {
    part.addEventListener("pointerover", (event) => {
      if (held === null && !dragging) show(regionOf(event));
    });
    part.addEventListener("pointerleave", () => { if (held === null) show(null); });
    part.addEventListener("click", (event) => {
      if (moved && part === svg) return;
      const id = regionOf(event);
      hold(id === held ? null : id, part === chart);
    });
  }
  // On the frame, not the picture: browsers let an SVG with such a listener take the focus itself.
  stage.addEventListener("focusin", (event) => {
    const id = regionOf(event);
    if (id === null) return;
    rove(id);
    if (held === null) show(id);
  });
  stage.addEventListener("focusout", (event) => {
    if (held === null && !svg.contains(event.relatedTarget)) show(null);
  });
  stage.addEventListener("keydown", (event) => {
    const at = drawn.indexOf(focused), steps = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1};
    if (regionOf(event) === null) return;
    let next = null;
    if (event.key in steps) next = drawn[Math.min(drawn.length - 1, Math.max(0, at + steps[event.key]))];
    else if (event.key === "Home") next = drawn[0];
    else if (event.key === "End") next = drawn[drawn.length - 1];
    else if (event.key === "Enter" || event.key === " ") hold(focused === held ? null : focused, false);
    else return;
    event.preventDefault();
    if (next !== null) { if (held !== null) hold(null, false); box(next).focus(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { hold(null, false); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || !stage.contains(event.target)) return;
    if (event.key === "+" || event.key === "=") zoom(scale * 1.25);
    else if (event.key === "-") zoom(scale / 1.25);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const frame = stage.getBoundingClientRect();
    zoom(scale * Math.exp(-event.deltaY / 400), event.clientX - frame.left, event.clientY - frame.top);
  }, {passive: false});
  stage.addEventListener("pointerdown", (event) => {
    moved = false;
    if (event.button !== 0 || event.pointerType === "touch") return;
    dragging = [event.clientX + stage.scrollLeft, event.clientY + stage.scrollTop, event.clientX, event.clientY];
  });
  window.addEventListener("pointermove", (event) => {
    if (!dragging) return;
    if (!moved && Math.hypot(event.clientX - dragging[2], event.clientY - dragging[3]) < 4) return;
    moved = true;
    stage.classList.add("drag");
    stage.scrollLeft = dragging[0] - event.clientX;
    stage.scrollTop = dragging[1] - event.clientY;
  });
  for (const name of ["pointerup", "pointercancel"]) {
    window.addEventListener(name, () => { dragging = null; stage.classList.remove("drag"); });
  }
  byId("in").addEventListener("click", () => zoom(scale * 1.25));
  byId("out").addEventListener("click", () => zoom(scale / 1.25));
  byId("whole").addEventListener("click", fit);
  find.addEventListener("change", () => hold(find.value === "" ? null : Number(find.value), true));
  if (natural[0] > stage.clientWidth - 2) zoom(Math.max(0.6, (stage.clientWidth - 2) / natural[0]));
  rove(focused);
  const start = /^#r(\\d+)$/.exec(location.hash);
  if (start && regions.has(Number(start[1]))) hold(Number(start[1]), true);
})();
"""
