"""The app in projects that have less than ours: no admin, no REST framework."""

from __future__ import annotations

import sys

import pytest

from tests.support.services import run

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
from amesh_django.trust import snapshot
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
assert list(snapshot.current().by_key) == [device.identity.public_key]
devices.revoke(device.identity.device_id)
assert devices.read() == []
assert devices.verify().ok
print("done")
"""


@pytest.mark.parametrize("use_tz", [True, False])
def test_a_project_without_admin_and_rest_framework(use_tz: bool) -> None:
    assert run([sys.executable, "-W", "error", "-c", PROJECT.format(use_tz=use_tz)]).endswith("done\n")
