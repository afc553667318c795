"""Projects without the admin, without REST framework, or without the package of an extra."""

from __future__ import annotations

import sys

import pytest

from tests.support.services import run
from tests.support.sources import PYPROJECT, without

pytestmark = pytest.mark.process

PROJECT = """
import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "amesh_django"],
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
    TEMPLATES=[{{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}}],
    USE_TZ={use_tz},
)
django.setup()
call_command("check", fail_level="ERROR")
call_command("migrate", verbosity=0)

import amesh_django.decorators, amesh_django.middleware
from amesh_django import lifecycle
from amesh_django.trust import current_list
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.test.devices import EphemeralDevice
import pathlib, tempfile

folder = pathlib.Path(tempfile.mkdtemp())
EphemeralDevice("server").write(folder)
settings.AMESH = {{"DIR": str(folder)}}
lifecycle.reset()
devices = DatabaseAllowList()
device = EphemeralDevice("caller")
devices.add(device.entry("controller"))
assert devices.verify().ok
assert list(current_list().snapshot().by_key) == [device.identity.public_key]
devices.revoke(device.identity.device_id)
assert devices.read() == []
assert devices.verify().ok

from django.template import engines

assert engines["django"].from_string("{{% load amesh_admin %}}done").render() == "done"
print("done")
"""


@pytest.mark.parametrize("use_tz", [True, False])
def test_a_project_without_admin_and_rest_framework(use_tz: bool) -> None:
    assert run([sys.executable, "-W", "error", "-c", PROJECT.format(use_tz=use_tz)]).endswith("done\n")


DJANGO = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()
"""
# Django's own check of the caches ends with an error that names the package only.
CHECK = """
import os
os.environ["TEST_REDIS_URL"] = "redis://127.0.0.1:1"
import django
from django.core.checks import run_checks
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()
print(*(message.hint for message in run_checks(tags=["security"])))
"""
AMESH = """
import runpy, sys, tempfile
sys.stderr = sys.stdout
sys.argv = ["amesh", "--dir", tempfile.mkdtemp(), *{words!r}]
runpy.run_module("authmesh", run_name="__main__")
"""

#: What uses an extra, and the package without which it cannot: extra, package, program, what the program says.
USES = [
    # Python and Django themselves name the package. No code of ours runs before them.
    ("django", "django", "import amesh_django.middleware", "No module named 'django'"),
    ("postgres", "psycopg", DJANGO + "import django.db.backends.postgresql.base", "psycopg"),
    ("drf", "rest_framework", "import amesh_django.drf", ""),
    ("drf", "rest_framework", "from amesh_django.test import AmeshAPIClient", ""),
    ("openapi", "drf_spectacular", "import amesh_django.openapi", ""),
    ("redis", "django_redis", CHECK, ""),
    ("relay", "channels", DJANGO + "import amesh_django.relay.routing", ""),
    ("relay", "daphne", DJANGO + "from django.core.management import call_command; call_command('amesh_relay')", ""),
    (
        "metrics",
        "prometheus_client",
        DJANGO + "import asyncio; from amesh_django.relay import reports\n"
        "print(asyncio.run(reports.metrics(None)).body.decode())",
        "",
    ),
    ("celery", "celery", "import amesh_django.tasks", ""),
    ("aiohttp", "aiohttp", "from authmesh import AmeshAiohttpMiddleware; AmeshAiohttpMiddleware()", ""),
    (
        "metrics",
        "prometheus_client",
        DJANGO + "from amesh_django.checks import check_metrics\nfrom django.test import override_settings\n"
        "with override_settings(AMESH={'METRICS': True}): print(*(found.hint for found in check_metrics(None)))",
        "",
    ),
    ("requests", "requests", "from authmesh import AmeshRequestsAuth; AmeshRequestsAuth()", ""),
    ("cli", "rich", AMESH.format(words=["--help"]), ""),
    ("tpm", "tpm2_pytss", "from authmesh.keystore.tpm.place import load_library; load_library()", ""),
    (
        "macos",
        "Security",
        "import platform; platform.system = lambda: 'Darwin'\n"
        "from authmesh.keystore.macos.chain import load_library; load_library()",
        "",
    ),
]


@pytest.mark.parametrize(("extra", "package", "program", "says"), USES, ids=[f"{use[0]}-{use[1]}" for use in USES])
def test_a_missing_package_says_which_extra_has_it(extra: str, package: str, program: str, says: str) -> None:
    lines = "\n".join(f"    {line}" for line in program.splitlines())
    said = without({package}, f"try:\n{lines}\nexcept (Exception, SystemExit) as error:\n    print(error)")
    assert (says or f"pip install 'amesh-django[{extra}]'") in said
    assert "Traceback" not in said


def test_every_extra_is_missed_once() -> None:
    assert {extra for extra, *_ in USES} == set(PYPROJECT["project"]["optional-dependencies"])
