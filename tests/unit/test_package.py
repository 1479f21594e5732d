"""The package as a whole: its folders, its public names, and which part may import which."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import reclra_graph

# Every part of the package by rank: a part imports only from lower ranks, or from itself.
RANK = {
    "errors": 0,
    "user_cache": 0,
    "circumstances": 1,
    "options": 1,
    "data": 1,
    "example_inputs": 1,
    "structure": 1,
    "check_model": 2,
    "formats": 2,
    "wiring_file": 2,
    "model_file": 3,
    "ir": 2,
    "rules": 3,
    "verify": 4,
    "pconv": 4,
    "export": 5,
    "reference_rules": 5,
    "runtime": 6,
    "reference": 6,
    "reference_back": 5,
    "passes": 7,
    "api": 8,
    "diagnostics": 8,
    "methods": 9,
    "train": 10,
    "bench": 11,
    "search": 12,
    "cli": 13,
}


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def test_packages_are_the_folders_on_disk(root: Path, project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    inside = {
        "reclra_graph" + "".join(f".{part}" for part in path.parent.relative_to(root / "reclra_graph").parts)
        for path in (root / "reclra_graph").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    outside = {
        ".".join(("reclra_graph", *path.parent.relative_to(root).parts))
        for folder in ("passes", "cli")
        for path in (root / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert sorted(listed) == sorted(inside | outside)
    assert listed == sorted(listed)


def test_every_package_folder_has_an_init(root: Path, project: dict[str, Any]) -> None:
    table = project["tool"]["setuptools"]["package-dir"]
    for package in project["tool"]["setuptools"]["packages"]:
        folder = root / table.get(package, package.replace(".", "/"))
        assert (folder / "__init__.py").is_file(), package


def test_links_are_relative(root: Path) -> None:
    for name in ("passes", "cli"):
        link = root / "reclra_graph" / name
        if link.is_symlink():
            assert link.readlink() == Path("..") / name


def test_public_names_are_exactly_these() -> None:
    assert reclra_graph.__all__ == [
        "CompiledStep",
        "Diagnostics",
        "ModelError",
        "Options",
        "PerturbativeConv2d",
        "Problem",
        "ReclraError",
        "StackedStep",
        "StepError",
        "Trainer",
        "UsageError",
        "VerificationError",
        "__version__",
        "assign_grads",
        "compile",
        "fit",
        "load",
        "replace_conv",
        "stack",
    ]


@pytest.mark.parametrize("name", reclra_graph.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(reclra_graph, name) is not None
    assert name in dir(reclra_graph)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'teach'"):
        _ = reclra_graph.teach


def _fresh(root: Path, code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def test_importing_the_package_imports_nothing_heavy(root: Path) -> None:
    heavy = {"torch", "networkx", "rich", "typer", "onnx"}
    assert _fresh(root, f"import sys, reclra_graph; print(sorted({heavy} & sys.modules.keys()))") == "[]"


def test_a_checkout_without_links_still_imports(root: Path, tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("passes", "cli"):
        shutil.copytree(root / name, tmp_path / name, ignore=ignore)
    shutil.copytree(root / "reclra_graph", tmp_path / "reclra_graph", ignore=ignore, symlinks=True)
    for name in ("passes", "cli"):
        link = tmp_path / "reclra_graph" / name
        if link.is_symlink():
            link.unlink()
        else:
            shutil.rmtree(link)
        link.write_text(f"../{name}")  # what git leaves where the system has no symbolic links
    code = "import reclra_graph.passes, reclra_graph.cli; print(reclra_graph.passes.__file__)"
    assert Path(_fresh(tmp_path, code)) == tmp_path / "passes" / "__init__.py"


def _modules(root: Path) -> dict[str, Path]:
    """Dotted name and file of every module of the package."""
    table: dict[str, Path] = {}
    for folder in (root / "reclra_graph", root / "passes", root / "cli"):
        for path in sorted(folder.rglob("*.py")):
            if "__pycache__" in path.parts or path.parent.is_symlink():
                continue
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts if parts[0] == "reclra_graph" else ("reclra_graph", *parts)
            table[".".join(part for part in parts if part != "__init__")] = path
    return table


def _imports(path: Path, module: str, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in known else str(node.module) for name in names)
    assert not {name for name in found if name.split(".")[0] in ("passes", "cli")}, module
    return {name for name in found if name.split(".")[0] == "reclra_graph"}


def test_imports_go_one_way(root: Path) -> None:
    modules = _modules(root)
    wrong = []
    for module, path in modules.items():
        part = module.split(".")[1] if "." in module else ""
        if not part:
            continue  # the package itself exports lazily from all parts
        assert part in RANK, f"{module}: give the new part a rank"
        for target in _imports(path, module, set(modules)):
            other = target.split(".")[1] if "." in target else ""
            if other and other != part and RANK[other] >= RANK[part]:
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_only_the_renderer_imports_rich(root: Path) -> None:
    importers = [
        module
        for module, path in _modules(root).items()
        if re.search(r"^\s*(from|import) rich\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert set(importers) <= {"reclra_graph.cli.render"}


def test_version_is_in_the_changelog(root: Path) -> None:
    assert f"## {reclra_graph.__version__}" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_markers_documented_in_contributing(root: Path, project: dict[str, Any]) -> None:
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for marker in project["tool"]["pytest"]["ini_options"]["markers"]:
        name, command = marker.split(":")[0], re.findall(r"`(python .*)`", marker)[0]
        assert name in text
        assert command in text, command
