"""How errors speak: their texts are data and never cut apart, no text lives in a docstring, and a name means one thing."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services import ROOT, run
from tests.support.sources import PACKAGES, modules, tree

# It reads our sources.
pytestmark = pytest.mark.unversioned

#: Methods that make another text of a text.
CUTS = {
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "strip",
}
#: Attributes that hold a text for people.
TEXTS = {"args", "default_hint", "default_message", "hint", "message"}
#: Classes whose name stood for two things.
NAMES_OF_ONE = {"Device", "Line", "Link", "Lost", "Record", "Refused", "Signer"}

#: Prints each error of both packages with its text.
ERRORS = """
import importlib, inspect, json, os, pkgutil
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
import django
django.setup()
import amesh_django, authmesh
for package in (authmesh, amesh_django):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
from authmesh.protocol.errors import AmeshError
texts, classes = {}, [AmeshError]
while classes:
    kind = classes.pop()
    classes += kind.__subclasses__()
    needed = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    error = kind(*(AmeshError() for _ in needed))
    texts[kind.__module__ + "." + kind.__qualname__] = [str(error), str(error.message)]
print(json.dumps(texts))
"""


def of_a_message(node: ast.expr) -> bool:
    """Return True if an expression is the text of an error, or made of one: ``str(error)``, ``error.message``, a part of these."""
    while True:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            node = node.func.value
        elif isinstance(node, ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Attribute):
            return node.attr in TEXTS
        else:
            break
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == "str"
        and bool(node.args)
        and isinstance(node.args[0], ast.Name | ast.Attribute)
    )


def is_cut(node: ast.AST) -> bool:
    """Return True for a call or slice that takes the text of an error apart.

    The first line of it is not meant: other libraries write their errors in several lines.
    """
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        return node.slice.lower is not None and of_a_message(node.value)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in CUTS:
        return False
    words = [ast.unparse(argument) for argument in node.args]
    if not words or words[0] in ("'\\n'", "chr(10)"):
        return False
    return ". " in ast.literal_eval(words[0]) if words[0] == "'. '" else of_a_message(node.func.value)


def found(kind: type[ast.AST], *folders: str) -> Iterator[tuple[Path, ast.AST]]:
    return ((path, node) for path in modules(*folders) for node in ast.walk(tree(path)) if isinstance(node, kind))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"


@pytest.mark.slow
def test_no_text_of_an_error_is_cut_apart() -> None:
    cuts = [f"{place(path, node)} {ast.unparse(node)}" for path, node in found(ast.expr, *PACKAGES) if is_cut(node)]
    assert not cuts, "use the attributes `message` and `hint`, or text(spell): " + "; ".join(cuts)


@pytest.mark.parametrize(
    ("code", "cut"),
    [
        ("str(error).partition('. ')[0]", True),
        ("text.split('. ')", True),
        ("error.message.removesuffix('.')", True),
        ("failure.hint.replace('amesh', 'manage.py')", True),
        ("error.args[0].strip('.')", True),
        ("str(error)[1:]", True),
        ("str(error.__cause__).lower().split(':')", True),
        ("str(error).partition('\\n')[0]", False),
        ("error.message.strip()", False),
        ("str(refused)[:40]", False),
        ("name.replace('-', '_')", False),
        ("sys.args[1:]", True),
        ("str(path.name()).split('.')", False),
    ],
)
def test_what_counts_as_cutting(code: str, cut: bool) -> None:
    assert any(is_cut(node) for node in ast.walk(ast.parse(code))) is cut


def test_a_device_knows_nothing_of_django_settings_and_manage_py() -> None:
    wrong = [
        f"{place(path, node)} {word}"
        for path, node in found(ast.Constant, "cli/authmesh")
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for word in ("manage.py", "AMESH[")
        if word in node.value
    ]
    assert not wrong, "name a command with Run(…), and let the front end name its settings: " + "; ".join(wrong)


def test_a_name_means_one_thing() -> None:
    defined = [node.name for _, node in found(ast.ClassDef, *PACKAGES) if isinstance(node, ast.ClassDef)]
    twice = {name: count for name, count in Counter(defined).items() if name in NAMES_OF_ONE and count > 1}
    assert not twice, f"these classes are defined more than once: {twice}"


def test_no_test_changes_the_defaults_of_a_function() -> None:
    changed = [
        str(path.relative_to(ROOT))
        for path in modules("tests")
        if path != Path(__file__) and "defaults__" in path.read_text()
    ]
    assert not changed, "make it a parameter: " + "; ".join(changed)


@pytest.mark.process
def test_every_error_has_a_text_without_docstrings() -> None:
    with_docstrings, without = (
        json.loads(run([sys.executable, *options, "-c", ERRORS]).splitlines()[-1]) for options in ([], ["-OO"])
    )
    assert len(without) > 40
    silent = [name for name, (text, message) in without.items() if not (text and message)]
    assert not silent, f"give these errors a default_message: {silent}"
    differing = [name for name, texts in without.items() if texts != with_docstrings[name]]
    assert not differing, f"these errors take their text from a docstring: {differing}"


def test_cannot_has_one_spelling() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (*modules(*PACKAGES), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\bcan['’]t\b", line, re.IGNORECASE)
    ]
    assert not found, f"write cannot: {found}"
