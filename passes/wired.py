"""A wiring from a file, against the model: its digest, where its regions live, and the form, rule and shape of every
synapse."""

from __future__ import annotations

from collections import Counter

from reclra_graph.errors import Problem
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.options import SYNAPSE_RULES, Options, Wired
from reclra_graph.passes.reverse import ADJOINT
from reclra_graph.passes.synapse_forms import SynapseForms


def model_problems(regions: RegionGraph, options: Options) -> list[Problem]:
    """A plan.json that was made for another model."""
    wired = options.wiring
    if not isinstance(wired, Wired) or wired.model in ("", regions.digest):
        return []
    cause = f"the plan is for regions with the digest {wired.model}; this model's have {regions.digest}"
    return [Problem("RG605", cause, wired.place, "Give the plan of this model, or only its edges as a list.")]


def placement_problems(regions: RegionGraph, options: Options) -> list[Problem]:
    """Regions that are placed on no GPU, on several, or on one that there is not; and regions that there are not."""
    wired = options.wiring
    if not isinstance(wired, Wired) or not wired.placement:
        return []
    counts = Counter(number for number, _ in wired.placement)
    causes = [
        f"region {number} is placed {counts[number]} times, not once"
        for number in range(len(regions.regions))
        if counts[number] != 1
    ]
    causes += [f"there is no region {number} to place" for number in counts if not 0 <= number < len(regions.regions)]
    last = options.gpus - 1
    causes += [
        f"region {number} is placed on GPU {gpu}, but there {'is GPU 0 only' if not last else f'are GPUs 0 to {last}'}"
        for number, gpu in wired.placement
        if not 0 <= gpu <= last
    ]
    return [Problem("RG443", cause, wired.place) for cause in causes]


def _ends(name: str) -> tuple[int, int]:
    """Source and target of an edge by its name."""
    source, target = name.partition(".")[0].split("->")
    return int(source), int(target)


def synapse_problems(regions: RegionGraph, options: Options, forms: SynapseForms) -> list[Problem]:
    """Unknown rules, forms that do not exist or do not fit their edge, and shapes that are not the form's. To be called
    when all edges are known to join regions with error neurons."""
    wired = options.wiring
    if not isinstance(wired, Wired):
        return []
    found = []
    given, odd = dict(wired.forms), set[str]()
    for name, rule in wired.rules:
        if rule not in SYNAPSE_RULES:
            cause = f"edge {name} has the unknown rule {rule!r}; there are {', '.join(map(repr, SYNAPSE_RULES))}"
            found.append(Problem("RG442", cause, wired.place))
    for name, numbers in wired.branches:
        there = forms.adjoint([_ends(name)]) if given.get(name) == ADJOINT else ()
        wanted = sorted(edge.branch for edge in there)
        if sorted(numbers) != wanted:
            some = ", ".join(edge.name for edge in there) if len(there) > 1 else "none"
            cause = f"the file lists the branches {list(numbers)} of edge {name}, whose branches are {some}"
            odd.add(name)
            found.append(Problem("RG442", cause, wired.place))
    for name, form in given.items():
        source, target = _ends(name)
        fit = forms.fitting(source, target)
        if not forms.fits(source, target, form):
            more = (ADJOINT,) if forms.fits(source, target, ADJOINT) else ()
            could = ", ".join((*fit, *more))
            cause = f"edge {name} has the form {form!r}, which does not exist or does not fit; {could} would"
            odd.add(name)
            found.append(Problem("RG442", cause, wired.place))
    for name, shape in wired.shapes:
        source, target = _ends(name)
        pair = f"{source}->{target}"
        if pair in odd:
            continue
        edge = forms.edge(source, target, given[pair]) if pair in given else forms.usual(source, target)[0]
        if edge.form == ADJOINT:
            edge = next(item for item in forms.adjoint([(source, target)]) if item.name == name)
        if shape != edge.shape:
            cause = f"edge {name} has the shape {shape}; {edge.form} needs {edge.shape}"
            found.append(Problem("RG442", cause, wired.place))
    return found
