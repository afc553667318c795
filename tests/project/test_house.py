"""The house stays in order: who imports whom, what is committed, what is shipped."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from io import StringIO
from pathlib import Path
from typing import Any

import grimp
import pytest
from django.core.management import call_command

from tests.support.services import ROOT, run

pytestmark = [pytest.mark.process, pytest.mark.unversioned]

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("amesh_django", "cli/authmesh", "relay_project")
MOST_LINES = 400

# Written in halves, so that this file does not name what it forbids.
REGISTRIES = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "deb." + "debian.org")
MACHINE = re.compile(r"(?<![\w.~}/-])/(?:wo" + r"rk|ro" + r"ot)/|/opt/py" + "pi")

FORBID = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(f"{{name}} must not be imported here")

sys.meta_path.insert(0, Forbid())
{code}
"""


def contract(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["id"] == name)
    return found


def rooms_below_django() -> list[str]:
    """The rooms of GROUND and FIRST that exist by now."""
    names = re.findall(r"\w+", " ".join(contract("floors")["layers"][1:]))
    return [name for name in names if (ROOT / "amesh_django" / name).is_dir()]


def committed() -> list[Path]:
    """Every file that is in git or about to be."""
    listing = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def without(names: set[str], code: str) -> None:
    """Run code in a fresh interpreter in which none of these packages can be imported."""
    run([sys.executable, "-W", "error", "-c", FORBID.format(names=names, code=code)])


def test_every_import_goes_down() -> None:
    # Not through `run`: its output, with the offending lines, is the message.
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_the_contract_names_every_room() -> None:
    missing = {f"amesh_django.{room}" for room in rooms_below_django()} - {*contract("no-django")["source_modules"]}
    assert not missing, f"add {missing} to `source_modules` of the contract `no-django` in pyproject.toml"


def test_the_command_line_imports_only_ground_and_first() -> None:
    graph = grimp.build_graph("amesh_django", "authmesh", cache_dir=None)
    allowed = {"amesh_django", "authmesh", *(f"amesh_django.{room}" for room in rooms_below_django())}
    modules = {"authmesh", *graph.find_descendants("authmesh")}
    imported = {name for module in modules for name in graph.find_modules_directly_imported_by(module)}
    above = {
        name for name in imported if ".".join(name.split(".")[:2]) not in allowed and not name.startswith("authmesh.")
    }
    assert not above, f"move what authmesh needs of {above} down to the first floor"


def test_ground_and_first_run_without_django() -> None:
    modules = ["amesh_django", "authmesh.commands.main", *(f"amesh_django.{room}" for room in rooms_below_django())]
    without({"django", "rest_framework", "channels", "celery"}, f"import {', '.join(modules)}")


def test_the_app_runs_without_its_extras() -> None:
    extras = {
        "redis",
        "django_redis",
        "celery",
        "channels",
        "channels_redis",
        "daphne",
        "tpm2_pytss",
        "click",
        "rich",
        "segno",
        "websockets",
    }
    without(
        extras | {"requests", "psycopg"},
        "import os, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; django.setup()\n"
        "from django.core.checks import run_checks\n"
        "run_checks(); import tests.urls, authmesh.client",
    )


def test_no_file_names_a_registry_or_a_machine() -> None:
    found = []
    for path in committed():
        text = path.read_bytes().decode(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {host}" for host in REGISTRIES if host in text]
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in MACHINE.finditer(text)]
    assert not found, "name the package, not where this machine got it: " + "; ".join(found)


def test_files_stay_small() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    long = [
        f"{path.relative_to(ROOT)}: {n}" for path in modules if (n := len(path.read_text().splitlines())) > MOST_LINES
    ]
    assert not long, f"split these, {MOST_LINES} lines are the most: " + "; ".join(long)


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    output = StringIO()
    try:
        call_command("makemigrations", "--check", "--dry-run", stdout=output, stderr=output)
    except SystemExit:
        pytest.fail("run `make migrations`, then commit what it wrote:\n" + output.getvalue())


def test_the_constraints_name_every_requirement() -> None:
    """Each direct requirement has a pinned version, so that nothing is resolved anew on another machine."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    project = PYPROJECT["project"]
    extras = {name: r for name, r in project["optional-dependencies"].items() if name != "macos"}
    wanted = {
        normal(re.split(r"[\[<>=; ]", text)[0])
        for group in (project["dependencies"], *extras.values())
        for text in group
    }
    missing = wanted - pinned - {"amesh-django"}
    assert not missing, f"run `make constraints`: {missing} has no version in constraints.txt"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
