"""What is imported is declared, and what is declared is used: of the distribution, its extras, and the groups for development."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import ROOT
from tests.support.sources import PACKAGES, PYPROJECT, committed, lies_in, modules, tree

# It reads our sources and pyproject.toml.
pytestmark = pytest.mark.unversioned

PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
GROUPS: dict[str, list[Any]] = PYPROJECT["dependency-groups"]
#: ``mysite`` is the project of the documentation, in tests/docs/typed.
OURS = {"amesh_django", "authmesh", "mysite", "relay_project", "tests"}

#: Which extras a folder or file may import from, beside what every device has. A file goes by all entries that it lies in.
EXTRAS_OF = {
    "amesh_django": {"django"},
    "amesh_django/admin/pairing/qr.py": {"cli"},
    "amesh_django/checks/views.py": {"drf"},
    "amesh_django/drf.py": {"drf"},
    "amesh_django/metrics.py": {"metrics"},
    "amesh_django/openapi.py": {"openapi"},
    "amesh_django/pairing/consumer.py": {"relay"},
    "amesh_django/relay": {"metrics", "relay"},
    "amesh_django/test/drf.py": {"drf"},
    "amesh_django/tasks.py": {"celery"},
    "amesh_django/throttling.py": {"drf"},
    "cli/authmesh/client/aiohttp_body.py": {"aiohttp"},
    "cli/authmesh/client/aiohttp_middleware.py": {"aiohttp"},
    "cli/authmesh/client/requests_auth.py": {"requests"},
    "cli/authmesh/commands": {"cli"},
    "cli/authmesh/keystore/macos": {"macos"},
    "cli/authmesh/keystore/tpm": {"tpm"},
    "cli/authmesh/pairing/wire": {"cli"},
    "manage.py": {"django"},
    "relay_project": {"drf", "redis", "relay"},
    "relay_project/celery.py": {"celery"},
    "tests": set(EXTRAS),
}
#: Files that may import a library of a group for development, with the reason.
FROM_GROUPS = {
    "tests": "test",
    "amesh_django/test/plugin.py": "test",  # nothing but pytest imports this file
}
#: Libraries that are used without being imported: a file that uses each, and the words that show it.
USED_BY_NAME = {
    "autobahn": ("amesh_django/relay/private.py", "from daphne.ws_protocol import WebSocketProtocol"),  # its base class
    "celery-types": ("relay_project/celery.py", "from celery"),
    "django-jazzmin": ("tests/admin/test_themes.py", '"jazzmin"'),
    "django-redis": ("relay_project/settings.py", "django_redis.cache.RedisCache"),
    "django-stubs": ("pyproject.toml", "mypy_django_plugin.main"),
    "django-unfold": ("tests/admin/test_themes.py", '"unfold"'),
    "djangorestframework-stubs": ("pyproject.toml", "mypy_drf_plugin.main"),
    "gunicorn": ("tests/support/services.py", '"gunicorn"'),
    "import-linter": ("Makefile", "lint-imports"),
    "psycopg": ("tests/support/services.py", "django.db.backends.postgresql"),  # this back end imports it
    "mypy": ("Makefile", "-m mypy"),
    "pytest-timeout": ("pyproject.toml", "\ntimeout = "),
    "pytest-xdist": ("Makefile", "-m pytest -n"),
    "ruff": ("Makefile", "-m ruff"),
    "types-channels": ("amesh_django/relay/consumer.py", "from channels"),
    "types-requests": ("cli/authmesh/client/requests_auth.py", "import requests"),
    "uvicorn": ("tests/support/services.py", '"uvicorn"'),
}
#: Libraries that are not installed on every system: module → distribution.
ELSEWHERE = {"Security": "pyobjc-framework-security"}


def normal(name: str) -> str:
    """Return the name of a distribution as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: Iterable[Any]) -> Iterator[str]:
    """Yield the distributions that requirements name, with those of the extras and groups that they refer to."""
    for requirement in requirements:
        if isinstance(requirement, dict):
            yield from names(GROUPS[requirement["include-group"]])
            continue
        found = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert found, requirement
        name, extras = normal(found[1]), found[2]
        if name == PROJECT["name"]:
            for extra in extras.split(","):
                yield from names(EXTRAS[extra])
        else:
            yield name


BASE = set(names(PROJECT["dependencies"]))
DECLARED = {name: set(names(requirements)) for kind in (EXTRAS, GROUPS) for name, requirements in kind.items()}


@functools.cache
def imports(path: Path) -> set[str]:
    """Return the top-level modules that a file imports, other than ours and Python's."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found - OURS - sys.stdlib_module_names


@pytest.fixture(scope="module")
def distributions() -> dict[str, set[str]]:
    """Module → the distributions that bring it."""
    installed = {module: {normal(name) for name in found} for module, found in packages_distributions().items()}
    return {module: {name} for module, name in ELSEWHERE.items()} | installed


@pytest.mark.slow
def test_every_import_is_declared_where_it_is_used(distributions: dict[str, set[str]]) -> None:
    undeclared = []
    for path in modules(*PACKAGES, "tests", "manage.py"):
        parts = [extra for place, extras in EXTRAS_OF.items() if lies_in(path, place) for extra in extras]
        parts += [group for place, group in FROM_GROUPS.items() if lies_in(path, place)]
        allowed = BASE.union(*(DECLARED[part] for part in parts))
        undeclared += [
            f"{path.relative_to(ROOT)} imports {module}"
            for module in sorted(imports(path))
            if not distributions.get(module, set()) & allowed
        ]
    assert not undeclared, "declare these in pyproject.toml, or where an extra may be used in EXTRAS_OF: " + "; ".join(
        undeclared
    )


def used(distributions: dict[str, set[str]], *folders: str) -> set[str]:
    """Return the libraries that files in these folders import, and those that are used without that."""
    imported = {
        name for path in modules(*folders) for module in imports(path) for name in distributions.get(module, set())
    }
    return imported | set(USED_BY_NAME)


@pytest.mark.slow
def test_every_declared_library_is_used(distributions: dict[str, set[str]]) -> None:
    shipped = BASE.union(*(DECLARED[name] for name in EXTRAS)) - used(distributions, *PACKAGES)
    assert not shipped, f"no package uses {sorted(shipped)}: remove it from pyproject.toml"
    developing = set().union(*(DECLARED[name] for name in GROUPS)) - used(distributions, *PACKAGES, "tests")
    assert not developing, f"nothing uses {sorted(developing)}: remove it from [dependency-groups]"


def test_what_is_used_by_name_still_is() -> None:
    gone = [name for name, (file, words) in USED_BY_NAME.items() if words not in (ROOT / file).read_text()]
    assert not gone, f"{gone} is no longer used as USED_BY_NAME says"
    undeclared = set(USED_BY_NAME) - BASE.union(*DECLARED.values())
    assert not undeclared, f"{sorted(undeclared)} is no longer declared: remove it from USED_BY_NAME"


def test_every_extra_and_its_place_exist() -> None:
    assert set().union(*EXTRAS_OF.values()) == set(EXTRAS)
    gone = [place for place in (*EXTRAS_OF, *FROM_GROUPS) if not (ROOT / place).exists()]
    assert not gone, f"{gone} does not exist: correct EXTRAS_OF or FROM_GROUPS"


@pytest.mark.process
def test_every_extra_that_is_named_exists() -> None:
    unknown = []
    for path in committed():
        for found in re.finditer(r"amesh-django\[([a-z,]+)\]", path.read_bytes().decode(errors="replace")):
            wrong = set(found[1].split(",")) - set(EXTRAS)
            unknown += [f"{path.relative_to(ROOT)}: {extra}" for extra in sorted(wrong)]
    assert not unknown, "there is no such extra in pyproject.toml: " + "; ".join(unknown)


def test_the_constraints_name_every_requirement() -> None:
    """Each direct requirement has a pinned version, so that another machine resolves nothing by itself."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    missing = BASE.union(*DECLARED.values()) - DECLARED["macos"] - pinned
    assert not missing, f"run `make constraints`: {sorted(missing)} has no version in constraints.txt"
