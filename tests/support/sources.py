"""The files of this repository as tests look at them, and an interpreter in which some packages cannot be imported."""

from __future__ import annotations

import ast
import functools
import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.support.services import ROOT, run

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
#: The folders of what is shipped.
PACKAGES = ("amesh_django", "cli/authmesh", "relay_project")

#: A program in which the packages *names* cannot be imported; it runs *code*.
FORBID = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Forbid())
{code}
"""


def without(names: set[str], code: str) -> str:
    """Run code in a new interpreter in which these packages cannot be imported, and return what it printed."""
    return run([sys.executable, "-W", "error", "-c", FORBID.format(names=names, code=code)])


@functools.cache
def committed() -> tuple[Path, ...]:
    """Return every file that is in git or about to be."""
    listing = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    return tuple(path for name in listing.split("\0") if name and (path := ROOT / name).is_file())


def modules(*places: str) -> list[Path]:
    """Return every Python file in these folders, and these files."""
    return sorted(
        path
        for place in places
        for path in ((ROOT / place).rglob("*.py") if (ROOT / place).is_dir() else [ROOT / place])
    )


def lies_in(path: Path, place: str) -> bool:
    """Return True if a file is *place* or lies in it."""
    return path == ROOT / place or ROOT / place in path.parents


@functools.cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())
