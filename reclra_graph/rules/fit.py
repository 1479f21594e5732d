"""Which learning rule fits which edge: what a rule needs of its synapse's form, of the regions at both ends, and of
what lies between the two."""

from __future__ import annotations

from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Edge
from reclra_graph.options import AS_WEIGHT, Options
from reclra_graph.rules.way import obstacle

OUTER = ("dkp", "mirror", "readout")
"""Rules that learn by an outer product which knows nothing of E (``rules.outer``)."""
WHOLE = ("dense", "channel", "token", "conv")
"""Forms that store E itself, every entry free to learn."""


def form_fits(form: str, rule: str) -> bool:
    """Whether a synapse of this form can learn by this rule. What is stored of a low-rank or an implicit one learns
    exactly by Eq. 6 alone, which multiplies E from the source's side; an adjoint one learns as its weight does."""
    return rule not in OUTER or form in WHOLE or (form == "adjoint" and rule in AS_WEIGHT)


def default_rule(regions: RegionGraph, source: int, options: Options) -> str:
    """The rule of an edge from this region where the user gave one for all: only outputs have a loss to read out, so
    with "readout" the edges that leave relays learn by "dkp"."""
    return "dkp" if options.rule == "readout" and source not in regions.outputs else options.rule


def misfit(regions: RegionGraph, edge: Edge) -> str:
    """Why an edge cannot learn by its rule, to be read behind "edge 9->5"; "" where it can."""
    if not form_fits(edge.form, edge.rule):
        return f"has the form {edge.form!r}, of which not every entry can learn as the rule {edge.rule!r} says"
    if edge.rule == "readout" and edge.source not in regions.outputs:
        return f"has the rule 'readout', but region {edge.source} is no output: it has no loss to read out"
    return obstacle(regions, edge.source, edge.target) if edge.rule == "mirror" else ""


REMEDY = "Give the edge another rule or form, or another wiring; 'eq6' and 'fixed' fit every edge."
"""What to do about a misfit."""
