"""The house stays in order: who imports whom, what is committed, how long a file is."""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command

from tests.support.services import ROOT
from tests.support.sources import PACKAGES, PYPROJECT, committed, modules, without

pytestmark = [pytest.mark.process, pytest.mark.unversioned]

MAX_LINES = 400
#: The contracts of import-linter, so that none goes away unnoticed.
CONTRACTS = {
    "app",
    "audit",
    "circles",
    "device",
    "fleet",
    "front-ends",
    "ground",
    "no-django",
    "package",
    "pairing",
    "relay",
    "trust",
    "usage",
}

#: What a device must run without: Django, and what needs it.
DJANGO = {"amesh_django", "celery", "channels", "daphne", "django", "django_redis", "rest_framework", "twisted"}
#: What comes with an extra, other than Django and REST framework.
OPTIONAL = {
    "aiohttp",
    "channels",
    "click",
    "daphne",
    "django_redis",
    "drf_spectacular",
    "prometheus_client",
    "psycopg",
    "redis",
    "requests",
    "rich",
    "segno",
    "tpm2_pytss",
    "twisted",
    "websockets",
    "zope",
    "Security",
    "urllib3",
}
#: Imports all modules of authmesh except those named.
IMPORT_ALL = """
import importlib, pkgutil, authmesh
for found in pkgutil.walk_packages(authmesh.__path__, "authmesh."):
    if found.name not in {except_for!r}:
        importlib.import_module(found.name)
"""

# Written in halves, so that this file does not name what it forbids.
REGISTRIES = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "deb." + "debian.org")
MACHINE = re.compile(r"(?<![\w.~}/-])/(?:wo" + r"rk|ro" + r"ot)/|/opt/py" + "pi")


def test_every_import_goes_down() -> None:
    assert {contract["id"] for contract in PYPROJECT["tool"]["importlinter"]["contracts"]} == CONTRACTS
    # Not through `run`: its output, with the offending lines, is the message.
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_a_device_runs_without_django() -> None:
    """Also through other libraries, which the contract ``no-django`` does not follow."""
    without(DJANGO, IMPORT_ALL.format(except_for={"authmesh.__main__"}))


def test_a_device_runs_without_extras() -> None:
    needs_one = {
        "authmesh.__main__",
        "authmesh.client.aiohttp_body",
        "authmesh.commands.app",
        "authmesh.commands.terminal.rich_console",
    }
    without(DJANGO | OPTIONAL, IMPORT_ALL.format(except_for=needs_one))


def test_the_app_runs_without_its_extras() -> None:
    without(
        OPTIONAL,
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
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in modules(*PACKAGES)
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    ]
    assert not long, f"split these, {MAX_LINES} lines are the most: " + "; ".join(long)


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    output = StringIO()
    try:
        call_command("makemigrations", "--check", "--dry-run", stdout=output, stderr=output)
    except SystemExit:
        pytest.fail("run `make migrations`, then commit what it wrote:\n" + output.getvalue())
