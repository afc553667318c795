"""drf-spectacular describes views that use AmeshAuthentication, in a project that only adds both apps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import ROOT

pytestmark = [pytest.mark.process, pytest.mark.slow]

SETTINGS = """
SECRET_KEY = "x" * 60
INSTALLED_APPS = [
    "django.contrib.auth", "django.contrib.contenttypes", "rest_framework", "drf_spectacular", "amesh_django",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
ROOT_URLCONF = "shop_urls"
USE_TZ = True
REST_FRAMEWORK = {
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "amesh_django.drf.AmeshAuthentication",
        "rest_framework.authentication.BasicAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
}
SPECTACULAR_SETTINGS = {"TITLE": "Shop", "VERSION": "1"}
"""
URLS = """
from django.urls import include, path
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.generics import CreateAPIView
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.serializers import CharField, Serializer

from amesh_django.drf import AmeshAuthentication, HasDevicePermission, IsTrustedDevice


class Note(Serializer):
    text = CharField()


class Sensor(AmeshAuthentication):
    pass


class Robot(AmeshAuthentication):
    pass


class RobotScheme(OpenApiAuthenticationExtension):
    target_class = Robot
    name = "robot"

    def get_security_definition(self, auto_schema):
        return {"type": "http", "scheme": "AuthMesh"}


class Default(CreateAPIView):
    serializer_class = Note


class Devices(Default):
    permission_classes = [IsTrustedDevice & (HasDevicePermission("a") | HasDevicePermission("b"))]
    authentication_classes = [Sensor]


class Own(Default):
    authentication_classes = [Robot]


class Both(Default):
    permission_classes = [IsTrustedDevice | IsAuthenticated]


class Anyone(Default):
    permission_classes = [AllowAny]


urlpatterns = [
    path("default/", Default.as_view()),
    path("devices/", Devices.as_view()),
    path("own/", Own.as_view()),
    path("both/", Both.as_view()),
    path("anyone/", Anyone.as_view()),
    path("", include("amesh_django.urls")),
]
"""


def test_a_schema_has_no_warning_and_names_the_scheme(tmp_path: Path) -> None:
    (tmp_path / "shop_settings.py").write_text(SETTINGS)
    (tmp_path / "shop_urls.py").write_text(URLS)
    command = ["django", "spectacular", "--validate", "--fail-on-warn", "--format", "openapi-json", "--skip-checks"]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "shop_settings",
            "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "cli"))),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    schema: dict[str, Any] = json.loads(done.stdout)
    scheme = schema["components"]["securitySchemes"]["AuthMesh"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "AuthMesh")
    assert {path: found["post"]["security"] for path, found in schema["paths"].items()} == {
        "/anyone/": [{"AuthMesh": []}, {"basicAuth": []}, {}],
        "/both/": [{"AuthMesh": []}, {"basicAuth": []}],
        "/default/": [{"AuthMesh": []}, {"basicAuth": []}],
        "/devices/": [{"AuthMesh": []}],
        "/own/": [{"robot": []}],
    }
