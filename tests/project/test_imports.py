"""Imports inside functions: each has a reason, or it belongs at the top of its module.

The reasons are in ``function_imports.json`` beside this file: ``"module:imported": "reason"``. After imports were moved, run
``python -m tests.project.test_imports``: it removes stale entries and adds new ones without a reason, for which this test fails.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from tests.support.services import ROOT

REASONS = Path(__file__).with_name("function_imports.json")
#: Package → its folder.
PACKAGES = {"amesh_django": ROOT / "amesh_django", "authmesh": ROOT / "cli/authmesh"}


def modules() -> dict[str, Path]:
    """Return the name of each module of the packages, and its file."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            names = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(name for name in names if name != "__init__")] = path
    return found


def imported(node: ast.Import | ast.ImportFrom, module: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules that a statement imports, by their full names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    source = node.module or ""
    if node.level:
        package = module.split(".")
        package = package[: len(package) - node.level + (path.name == "__init__.py")]
        source = ".".join(filter(None, (*package, source)))
    for alias in node.names:
        name = f"{source}.{alias.name}"
        yield name if name in known else source


def in_functions(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements inside functions."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom))


def function_imports() -> set[str]:
    """Return ``module:imported`` for each import inside a function."""
    known = modules()
    return {
        f"{module}:{name}"
        for module, path in known.items()
        for node in in_functions(ast.parse(path.read_text()))
        for name in imported(node, module, path, known)
    }


def reasons() -> dict[str, str]:
    found: dict[str, str] = json.loads(REASONS.read_text())
    return found


def test_each_import_in_a_function_has_a_reason() -> None:
    unlisted = function_imports() - {name for name, reason in reasons().items() if reason.strip()}
    assert not unlisted, (
        f"move these to the top of their modules, or give each a reason in {REASONS.name}: {sorted(unlisted)}"
    )


def test_each_reason_has_its_import() -> None:
    stale = set(reasons()) - function_imports()
    assert not stale, f"remove these from {REASONS.name}: {sorted(stale)}"


def test_the_list_is_in_order() -> None:
    assert list(reasons()) == sorted(reasons())


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    source = """
import top
def f():
    import a, b.c
    from . import sibling
    class C:
        async def g(self):
            from ..other import name
            if self:
                from .sibling import x, y
"""
    known = {"p.q.sibling": Path(), "p.q.mod": Path()}
    nodes = list(in_functions(ast.parse(source)))

    def names(module: str, path: str) -> set[str]:
        return {name for node in nodes for name in imported(node, module, Path(path), known)}

    assert names("p.q.mod", "mod.py") == {"a", "b.c", "p.q.sibling", "p.other"}
    assert names("p.q", "__init__.py") == {"a", "b.c", "p.q.sibling", "p.other"}


if __name__ == "__main__":
    old = reasons() if REASONS.exists() else {}
    new = {name: old.get(name, "") for name in sorted(function_imports())}
    REASONS.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n")
    print(f"{len(new)} imports, {sum(not reason for reason in new.values())} without a reason: {REASONS}")
