"""A look as text: one table of regions, one of edges."""

from __future__ import annotations

from collections.abc import Sequence

from reclra_graph.diagnostics.record import Look, Why

_REGION = (
    ("cosine", "cosine"), ("discrepancy", "D"), ("error", "|e|"), ("displacement", "|d|"), ("update", "|dW|"),
    ("weight", "|W|"), ("flips", "W flips"), ("update_flips", "dW flips"),
)  # fmt: skip
_EDGE = (
    ("angle", "angle"), ("sent", "sent"), ("synapse", "|E|"), ("change", "|dE|"), ("flips", "E flips"),
    ("change_flips", "dE flips"),
)  # fmt: skip
_DEGREES = {"angle", "sent"}
_SHARES = {"flips", "update_flips", "change_flips"}


def lines(look: Look) -> list[str]:
    """The tables, line by line. Angles are in degrees, shares in percent; "-" stands where there is no number, and the
    reasons below. Columns of what was not asked for are left out."""
    said = [] if look.step is None else [f"step {look.step:,}"]
    said += [f"{name} {value:.6g}" for name, value in (("loss", look.loss), ("cosine", look.cosine),
                                                       ("D", look.discrepancy)) if value is not None]  # fmt: skip
    said += [f"{look.samples} samples", f"{look.seconds:.3g} s"]
    found = [", ".join(said)]
    reasons: dict[str, list[str]] = {}
    for head, columns, items in (
        (("region", "", "learns"), _REGION, [((str(item.id), item.name, item.rule or "-"), item)
                                             for item in look.regions]),
        (("edge", "form", "rule"), _EDGE, [((item.name, item.form, item.rule), item) for item in look.edges]),
    ):  # fmt: skip
        shown = [
            (name, title)
            for name, title in columns
            if any(getattr(item, name) is not None or name in dict(item.why) for _, item in items)
        ]
        if items and shown:
            rows = [(*first, *(_cell(name, getattr(item, name)) for name, _ in shown)) for first, item in items]
            found += ["", *_aligned((*head, *(title for _, title in shown)), rows, left=3)]
            for first, item in items:
                _collect(reasons, first[0], item.why, dict(shown))
    _collect(reasons, "total", look.why, {})
    if reasons:
        found += ["", *(f"- {text}: {_listed(places)}" for text, places in reasons.items())]
    return found


def _collect(reasons: dict[str, list[str]], place: str, why: Why, titles: dict[str, str]) -> None:
    for name, reason in why:
        reasons.setdefault(f"{titles.get(name, name)}: {reason}", []).append(place)


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places) if len(places) <= 8 else f"{', '.join(places[:7])} and {len(places) - 7} more"


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in _DEGREES:
        return f"{value:.1f}"
    return f"{100 * value:.2f} %" if name in _SHARES else f"{value:.3f}" if name == "cosine" else f"{value:.3g}"


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns of equal width, the first ``left`` of them set to the left."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
