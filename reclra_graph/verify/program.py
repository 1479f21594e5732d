"""StepProgram: it parses, imports torch alone, binds every name it reads, holds no autograd, has a line per task."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

from reclra_graph.errors import Problem
from reclra_graph.ir.operators import OPAQUE
from reclra_graph.ir.program import StepProgram

ALLOWED_IMPORTS = {"torch", "torch.nn.functional", "contextlib", "math", "operator"}
AUTOGRAD = {
    "autograd", "backward", "enable_grad", "set_grad_enabled", "no_grad", "inference_mode", "requires_grad",
    "requires_grad_",    "grad", "vjp", "jvp", "jacrev", "jacfwd", "func", "functorch", "create_graph", "retain_graph",
}  # fmt: skip


def program_problems(program: StepProgram) -> Iterator[Problem]:
    """Broken invariants of an emitted program; the place is its line."""
    try:
        tree = ast.parse(program.source)
    except SyntaxError as error:
        yield Problem("RG501", f"the emitted file does not parse: {error.msg}", f"step.py:{error.lineno}")
        return
    yield from _imports(tree)
    graph = program.schedule.tasks.plan.regions.graph
    # Opaque sub-modules take their own derivative; what does it is fixed text of these two functions.
    spared: set[int] = set()
    if any(operator.target == OPAQUE for operator in graph.operators):
        for part in tree.body:
            if isinstance(part, ast.FunctionDef) and part.name in ("opaque", "opaque_vjp"):
                spared.update(id(node) for node in ast.walk(part))
    for node in ast.walk(tree):
        word = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if word in ("eval", "exec", "__import__", "compile"):
            yield Problem("RG501", f"the emitted file calls {word}", f"step.py:{getattr(node, 'lineno', 0)}")
        if word in AUTOGRAD and id(node) not in spared:
            yield Problem("RG501", f"the emitted file mentions {word}", f"step.py:{getattr(node, 'lineno', 0)}")
    steps = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "step"]
    if len(steps) != 1:
        yield Problem("RG501", "the emitted file has no step function", "step.py")
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in ("step", "mirror"):
            yield from _bindings(tree, node)
    lines = dict(program.lines)
    for task in program.schedule.tasks.tasks:
        line = lines.get(task.name, 0)
        if not steps[0].lineno < line <= (steps[0].end_lineno or 0):
            yield Problem("RG501", f"task {task.name} has no line in the emitted file", f"task {task.name}")


def _imports(tree: ast.Module) -> Iterator[Problem]:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name not in ALLOWED_IMPORTS:
                yield Problem("RG501", f"the emitted file imports {name}", f"step.py:{getattr(node, 'lineno', 0)}")


def _bindings(tree: ast.Module, step: ast.FunctionDef) -> Iterator[Problem]:
    """Every name the step reads was bound on a line before, and not deleted since (the function has no branches)."""
    known = set(dir(builtins))
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            known.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            known.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign):
            known.update(target.id for target in node.targets if isinstance(target, ast.Name))
    known.update(argument.arg for argument in step.args.args)
    for statement in _statements(step.body):
        names = [item for item in ast.walk(statement) if isinstance(item, ast.Name)]
        for name in names:
            if isinstance(name.ctx, ast.Load) and name.id not in known:
                yield Problem("RG501", f"the name {name.id} is not bound", f"step.py:{name.lineno}")
        for name in names:
            if isinstance(name.ctx, ast.Del):
                if name.id not in known:
                    yield Problem("RG501", f"the name {name.id} is deleted and was not bound", f"step.py:{name.lineno}")
                known.discard(name.id)
            elif isinstance(name.ctx, ast.Store):
                known.add(name.id)


def _statements(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements in order, with the header of a ``with`` before what is in it."""
    for statement in body:
        if isinstance(statement, ast.With):
            for item in statement.items:
                yield item.context_expr
            yield from _statements(statement.body)
        else:
            yield statement
