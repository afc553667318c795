"""The private names of daphne, autobahn and Twisted: the installed releases have them, and only one module uses them."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

from tests.support.services import ROOT

RELAY = ROOT / "amesh_django" / "relay"
PACKAGES = ("autobahn", "daphne", "twisted")


def missing_names() -> list[str]:
    """Return the private names that the installed releases do not have."""
    from amesh_django.relay.private import PRIVATE  # here, because it installs the reactor of daphne

    return [f"{owner}.{name}" for owner, names, _ in PRIVATE for name in names if not has_name(owner, name)]


def has_name(path: str, name: str) -> bool:
    try:
        owner: Any = pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return False
    if isinstance(owner, FunctionType):
        return name in inspect.signature(owner).parameters
    return hasattr(owner, name) or (isinstance(owner, type) and name in names_in_methods(owner))


def names_in_methods(owner: type) -> Iterator[str]:
    """Yield the names that the methods of a class mention. The attributes of its instances are among them."""
    members = [member for parent in owner.__mro__ for member in vars(parent).values()]
    pending = [member.__code__ for member in members if isinstance(member, FunctionType)]
    while pending:
        code = pending.pop()
        yield from code.co_names
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def test_the_installed_releases_have_every_private_name() -> None:
    missing = missing_names()
    installed = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    assert not missing, f"{installed}: no longer there: {', '.join(missing)}. Adapt amesh_django/relay/private.py."


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("daphne.server:Server", "kill_all_applications"),
        ("daphne.ws_protocol:WebSocketProtocol", "serverClose"),
        ("twisted.internet.tcp:Server", "bufferSize"),
    ],
)
def test_a_name_that_is_gone_is_reported(monkeypatch: pytest.MonkeyPatch, owner: str, name: str) -> None:
    for parent in pkgutil.resolve_name(owner).__mro__:
        if name in vars(parent):
            monkeypatch.delattr(parent, name)
    monkeypatch.setitem(globals(), "names_in_methods", lambda owner: iter(()))
    assert f"{owner}.{name}" in missing_names()


def test_what_was_never_there_is_reported() -> None:
    assert not has_name("daphne.server:Server", "no_such_name")
    assert not has_name("daphne.server:Server.__init__", "no_such_parameter")
    assert not has_name("daphne.no_such_module", "name")
    assert not has_name("daphne.server:NoSuchClass", "name")
    assert has_name("twisted.internet.tcp:Server", "_tempDataBuffer")  # an attribute of the instances only


def test_every_name_in_the_list_is_used() -> None:
    from amesh_django.relay.private import PRIVATE

    mentioned: set[str] = set()
    for name in ("private", "server"):
        for node in ast.walk(ast.parse((RELAY / f"{name}.py").read_text())):
            match node:
                case ast.Attribute(attr=found) | ast.keyword(arg=str(found)) | ast.Name(id=found):
                    mentioned.add(found)
                case ast.FunctionDef(name=found) | ast.AsyncFunctionDef(name=found):
                    mentioned.add(found)
    used_by_name = {"application", "run", "abort_start", "_tempDataBuffer"}  # positional; by amesh_relay; by getattr
    listed = {name for _, names, _ in PRIVATE for name in names}
    assert listed - mentioned - used_by_name == set()


def test_only_one_module_imports_what_is_private() -> None:
    found = set()
    for path in RELAY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {path.name for name in names if name.partition(".")[0] in ("autobahn", "daphne")}
    assert found == {"private.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_release_is_allowed_that_was_not_tried(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = [
        found[1]
        for text in project["optional-dependencies"]["relay"]
        if (found := re.fullmatch(rf"{package}>=[\d.]+,<([\d.]+)", text))
    ]
    assert parts(importlib.metadata.version(package)) < parts(bound)


def parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
