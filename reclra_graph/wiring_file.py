"""Wirings from files: a list of error edges; edges with the forms of their synapses and the GPUs of their regions; or a
plan.json, edited or not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from reclra_graph.errors import ModelError, Problem
from reclra_graph.options import Wired

SUFFIX = ".json"
_KEYS = ("edges", "forms", "placement")


def read_wiring(path: str | Path) -> Wired:
    """What a file says about the wiring, checked for its form but not yet against any model.

    Three forms: ``["9->5", [5, 4]]``; ``{"edges": [...], "forms": {"9->5": "channel"}, "placement": [[1, 0], [2, 1]]}``
    with pairs of region and GPU; a plan.json, of which the edges count, with the form, rule and shape of each, and the
    placement. Raises ModelError: RG101 where there is no file, RG441 with everything that is wrong in it.
    """
    place = str(path)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(Problem("RG101", f"{place} does not exist", place)) from None
    except OSError as error:
        raise ModelError(Problem("RG441", f"it cannot be read: {error.strerror}", place)) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(Problem("RG441", f"it is not JSON: {error}", place)) from None
    return _Reader(place).read(data)


class _Reader:
    def __init__(self, place: str) -> None:
        self.place = place
        self.problems: list[Problem] = []
        self.edges: list[str] = []
        self.said: dict[str, dict[str, Any]] = {"form": {}, "rule": {}, "shape": {}}
        self.branches: dict[str, list[int]] = {}

    def read(self, data: object) -> Wired:
        if not isinstance(data, (dict, list)):
            raise ModelError(Problem("RG441", "it holds neither a list of edges nor an object", self.place))
        table: dict[str, Any] = data if isinstance(data, dict) else {"edges": data}
        saved = "version" in table
        if "edges" not in table:
            self._wrong("it has no edges", "")
        for key in table:
            if not saved and key not in _KEYS:
                self._wrong(f"{key!r} is none of {', '.join(map(repr, _KEYS))}", f": {key}")
        listed = table.get("edges", [])
        if not isinstance(listed, list):
            self._wrong("its edges are not a list", ": edges")
            listed = []
        for index, item in enumerate(listed):
            self._edge(item, f": edges[{index}]")
        self._forms({} if saved else table.get("forms", {}))
        placement = self._placement(table.get("placement", []))
        model = table.get("regions_digest", "") if saved else ""
        if saved and (not isinstance(model, str) or not model):
            self._wrong("it does not say which model it is for: it has no regions_digest", ": regions_digest")
        if self.problems:
            raise ModelError(self.problems)
        forms, rules, shapes = (tuple(self.said[key].items()) for key in ("form", "rule", "shape"))
        branches = tuple((name, tuple(numbers)) for name, numbers in self.branches.items())
        return Wired(self.place, tuple(self.edges), forms, rules, shapes, model, placement, branches)

    def _edge(self, item: object, where: str) -> None:
        if isinstance(item, str):
            self.edges.append(_edge_name(item))
        elif isinstance(item, list) and len(item) == 2 and all(_whole(end) for end in item):
            self.edges.append(f"{item[0]}->{item[1]}")
        elif isinstance(item, dict) and _whole(item.get("source")) and _whole(item.get("target")):
            pair, branch = f"{item['source']}->{item['target']}", item.get("branch", 0)
            name = self._branch(pair, branch, where)
            for key in ("form", "rule"):
                if key in item and not isinstance(item[key], str):
                    self._wrong(f"the {key} of {name} is {item[key]!r}, not a text", where)
                elif key in item:
                    self.said[key][pair if key == "form" else name] = item[key]
            if "shape" in item and (item["shape"] or item.get("form") != "adjoint"):
                self._shape(name, item["shape"], where)
        else:
            self._wrong(f"{json.dumps(item)} is not an edge", where)

    def _branch(self, pair: str, branch: object, where: str) -> str:
        """Note an edge, or one branch of it; returns its name."""
        if not _whole(branch) or not isinstance(branch, int) or branch < 0:
            self._wrong(f"the branch of {pair} is {branch!r}, not a whole number", where)
        elif branch:
            if pair not in self.branches:
                self.edges.append(pair)
            self.branches.setdefault(pair, []).append(branch)
            return f"{pair}.{branch}"
        else:
            self.edges.append(pair)
        return pair

    def _shape(self, name: str, shape: object, where: str) -> None:
        if isinstance(shape, list) and len(shape) >= 2 and all(_whole(size) for size in shape):
            self.said["shape"][name] = tuple(shape)
        else:
            self._wrong(f"the shape of {name} is {json.dumps(shape)}, not two sizes or more", where)

    def _forms(self, forms: object) -> None:
        if not isinstance(forms, dict):
            self._wrong("its forms are not an object", ": forms")
            return
        for key, form in forms.items():
            name = _edge_name(key)
            if name not in self.edges:
                self._wrong(f"it has a form for {key!r}, which is none of its edges", ": forms")
            elif not isinstance(form, str):
                self._wrong(f"the form of {key} is {form!r}, not a text", ": forms")
            else:
                self.said["form"][name] = form

    def _placement(self, listed: object) -> tuple[tuple[int, int], ...]:
        if not isinstance(listed, list):
            self._wrong("its placement is not a list", ": placement")
            return ()
        found = []
        for index, item in enumerate(listed):
            pair = [item.get("region"), item.get("gpu")] if isinstance(item, dict) else item
            if isinstance(pair, list) and len(pair) == 2 and all(_whole(number) for number in pair):
                found.append((pair[0], pair[1]))
            else:
                self._wrong(f"{json.dumps(item)} is no region with its GPU", f": placement[{index}]")
        return tuple(found)

    def _wrong(self, cause: str, where: str) -> None:
        self.problems.append(Problem("RG441", cause, f"{self.place}{where}"))


def _edge_name(text: str) -> str:
    """``" 09 -> 5"`` as ``"9->5"``."""
    return "->".join(re.sub("^0+(?=[0-9])", "", part.strip()) for part in text.split("->"))


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
