"""Settings and system checks: each id is provoked, and a correct project has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import django
import pytest
from django.core.checks import Error, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.urls import include, path
from django.views.decorators.cache import cache_page
from rest_framework.authentication import BasicAuthentication
from rest_framework.decorators import api_view, permission_classes
from rest_framework.permissions import IsAdminUser, IsAuthenticated, IsAuthenticatedOrReadOnly
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from amesh_django import checks, metrics
from amesh_django.conf import amesh_settings, nonce_cache
from amesh_django.drf import AmeshAuthentication, HasDevicePermission, IsTrustedDevice
from amesh_django.middleware import AmeshMiddleware
from authmesh.device import LocalDevice
from tests.support import databases
from tests.support.sources import PYPROJECT

pytestmark = pytest.mark.django_db
BACKENDS = "django.core.cache.backends"
DJANGO_REDIS = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://127.0.0.1:1"}


class OwnMiddleware(AmeshMiddleware):
    pass


def ids(**options: Any) -> dict[str, str]:
    found = [message for message in run_checks(**options) if str(message.id).startswith("amesh.")]
    assert all(message.hint or str(message.id) != "amesh.W001" for message in found)
    assert all(isinstance(message, Error) == (".E" in str(message.id)) for message in found)
    return {str(message.id): f"{message.msg} {message.hint or ''}" for message in found}


@pytest.fixture(autouse=True)
def _healthy(amesh_server: LocalDevice, settings: Any) -> None:
    settings.CACHES = {"default": DJANGO_REDIS, "amesh": DJANGO_REDIS}


def test_a_correct_project_has_no_messages() -> None:
    assert ids(databases=["default"]) == {}


@pytest.mark.parametrize(
    ("amesh", "expected", "words"),
    [
        ({"CLOCKSKEW": 1}, "amesh.E001", "Known: DIR"),
        ([], "amesh.E002", "must be a dict"),
        ({"CLOCK_SKEW_SECONDS": "30"}, "amesh.E002", "integer greater"),
        ({"CLOCK_SKEW_SECONDS": True}, "amesh.E002", "integer greater"),
        ({"CLOCK_SKEW_SECONDS": 0}, "amesh.E002", "or equal to 1"),
        ({"ROTATE_OVERLAP_SECONDS": 3601}, "amesh.E002", "at most 3600"),
        ({"MAX_BODY_BYTES": None}, "amesh.E002", "None"),
        ({"PROTECT": "/api/"}, "amesh.E002", "list"),
        ({"PROTECT": ["api/"]}, "amesh.E002", "begin with /"),
        ({"DEVICES_ARE_USERS": "no"}, "amesh.E002", "True or False"),
        ({"DIR": 5}, "amesh.E002", "text"),
        ({"NONCE_WINDOW_SECONDS": 59}, "amesh.E003", "replayed"),
        ({"CLOCK_SKEW_SECONDS": 31}, "amesh.E003", "Set it to 62"),
    ],
)
def test_wrong_settings(settings: Any, amesh: Any, expected: str, words: str) -> None:
    settings.AMESH = amesh
    found = ids()
    assert list(found) == [expected]
    assert words in found[expected]
    with pytest.raises(ImproperlyConfigured):
        amesh_settings()


@pytest.mark.parametrize("amesh", [{"PROTECT": ["/internal/"]}, {"EXEMPT": ["/health"]}])
def test_paths_that_nothing_protects(settings: Any, amesh: dict[str, Any]) -> None:
    settings.AMESH = amesh
    assert list(ids()) == ["amesh.W019"]
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.OwnMiddleware"]
    assert ids() == {}


def test_nonces_in_a_database_with_atomic_requests(settings: Any) -> None:
    options = {"MAX_ENTRIES": 100_000}
    settings.CACHES = {"amesh": {"BACKEND": f"{BACKENDS}.db.DatabaseCache", "LOCATION": "nonces", "OPTIONS": options}}
    assert ids() == {}
    with databases.as_default({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "ATOMIC_REQUESTS": True}):
        assert list(ids()) == ["amesh.W018"]


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ({"BACKEND": f"{BACKENDS}.dummy.DummyCache"}, "amesh.E005"),
        ({"BACKEND": f"{BACKENDS}.filebased.FileBasedCache", "LOCATION": "/nowhere"}, "amesh.E006"),
        ({"BACKEND": f"{BACKENDS}.locmem.LocMemCache"}, "amesh.W001"),
        ({"BACKEND": f"{BACKENDS}.db.DatabaseCache", "LOCATION": "nonces"}, "amesh.W002"),
    ],
)
def test_unfit_nonce_stores(settings: Any, cache: dict[str, str], expected: str) -> None:
    settings.CACHES = {"default": cache}
    found = ids()
    assert list(found) == [expected]
    if expected == "amesh.W001":
        assert found[expected].startswith("Using in-memory nonce store")
        settings.DEBUG = True
        assert ids() == {}


def test_a_large_database_cache_is_accepted(settings: Any) -> None:
    options = {"MAX_ENTRIES": 100_000}
    settings.CACHES = {"amesh": {"BACKEND": f"{BACKENDS}.db.DatabaseCache", "LOCATION": "n", "OPTIONS": options}}
    assert ids() == {}


def test_nonces_in_the_cache_of_the_project(settings: Any) -> None:
    settings.CACHES = {"default": DJANGO_REDIS}
    assert nonce_cache() == "default"
    found = ids()
    assert list(found) == ["amesh.W007"]
    assert "cache.clear()" in found["amesh.W007"] and "KEY_PREFIX" in found["amesh.W007"]
    settings.AMESH = {**settings.AMESH, "NONCE_CACHE": "default"}
    assert ids() == {}
    settings.AMESH = {name: value for name, value in settings.AMESH.items() if name != "NONCE_CACHE"}
    settings.DEBUG = True
    assert ids() == {}
    settings.DEBUG, settings.CACHES = False, {"default": DJANGO_REDIS, "amesh": DJANGO_REDIS}
    assert (nonce_cache(), ids()) == ("amesh", {})


def test_a_cache_that_does_not_exist(settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "NONCE_CACHE": "nonces"}
    assert list(ids()) == ["amesh.E004"]


def test_no_identity(settings: Any, tmp_path: Path) -> None:
    settings.AMESH = {"DIR": str(tmp_path)}
    assert ids() == {}  # in a build
    found = ids(databases=["default"])
    assert list(found) == ["amesh.W003"]
    assert "amesh_init" in found["amesh.W003"]


def test_a_directory_open_to_others(amesh_server: LocalDevice) -> None:
    amesh_server.path.chmod(0o755)
    assert "chmod 700" in ids(databases=["default"])["amesh.W004"]


def test_missing_triggers() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER amesh_django_touched_insert")
    assert list(ids(databases=["default"])) == ["amesh.W005"]
    assert ids() == {}


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["amesh.W015"]),
        ({"CONN_MAX_AGE": 60}, []),
        ({"CONN_MAX_AGE": None}, []),
        ({"OPTIONS": {"pool": True}}, []),
        ({"OPTIONS": {"pool": {"max_size": 10}}}, []),
        ({"OPTIONS": {"pool": False}}, ["amesh.W015"]),
        ({"ENGINE": "django.db.backends.sqlite3"}, []),
    ],
)
def test_connections_that_each_request_makes(options: dict[str, Any], expected: list[str]) -> None:
    with databases.as_default({"ENGINE": "django.db.backends.postgresql", "NAME": "notes", **options}):
        assert list(ids()) == []
        found = ids(include_deployment_checks=True)
    assert list(found) == expected
    if expected:
        assert "CONN_MAX_AGE to 60" in found[expected[0]] and "OPTIONS['pool']" in found[expected[0]]


def test_a_seal_key_file_that_cannot_be_used(settings: Any, tmp_path: Path) -> None:
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILE": str(tmp_path / "missing")}
    assert "openssl rand" in ids(databases=["default"])["amesh.W006"]


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ((5, 2, 18, "final", 0), False),
        ((5, 2, 19, "final", 0), True),
        ((6, 1, 3, "final", 0), True),
        ((6, 2, 0, "alpha", 1), False),
        ((7, 0, 0, "final", 0), False),
    ],
)
def test_a_version_of_django_that_is_not_supported(
    version: Any, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(django, "VERSION", version)
    found = ids()
    assert list(found) == ([] if supported else ["amesh.E007"])
    if not supported:
        assert "5.2.19 or newer, and older than 6.2" in found["amesh.E007"]


def test_the_supported_versions_of_django_are_those_of_the_distribution() -> None:
    oldest, too_new = (".".join(map(str, version)) for version in checks.SUPPORTED_DJANGO)
    assert f"django>={oldest},<{too_new}" in PYPROJECT["project"]["optional-dependencies"]["django"]


def _views() -> tuple[Any, ...]:
    """Return the URLs of a project whose views name no authentication classes, except for one."""

    class Default(APIView):
        permission_classes: Any = (IsAuthenticated,)

    class Own(Default):
        authentication_classes = (AmeshAuthentication,)

    @api_view(["GET"])
    @permission_classes([IsAuthenticatedOrReadOnly | IsAdminUser])
    def function(request: Request) -> Response:
        return Response()

    def default(*permissions: Any) -> Any:
        return type("Other", (Default,), {"permission_classes": permissions}).as_view()

    return (
        path("x/", include([path("d/", cache_page(60)(Default.as_view()))])),
        path("f/", function),
        path("own/", Own.as_view()),
        path("option/", Own.as_view(authentication_classes=[BasicAuthentication])),
        path("anyone/", default()),
        path("devices/", default(IsAuthenticated, IsTrustedDevice)),
        path("shell/", default(HasDevicePermission("shell") | IsAuthenticated)),
        path("staff/", default(IsAuthenticated, IsAdminUser)),
        path("plain/", lambda request: HttpResponse()),
    )


def test_views_that_every_device_may_use(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.AMESH = {**settings.AMESH, "DEVICES_ARE_USERS": True}
    settings.ROOT_URLCONF = _views()
    assert ids() == {}
    monkeypatch.setattr(
        APIView, "authentication_classes", [AmeshAuthentication]
    )  # as the setting of REST framework does
    settings.ROOT_URLCONF = _views()
    found = ids()
    assert list(found) == ["amesh.W010"]
    assert f": {__name__}.Default, {__name__}.function. Set " in found["amesh.W010"]
    settings.AMESH = {**settings.AMESH, "DEVICES_ARE_USERS": False}
    assert ids() == {}


def test_many_views_that_every_device_may_use(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(APIView, "authentication_classes", [AmeshAuthentication])
    settings.AMESH = {**settings.AMESH, "DEVICES_ARE_USERS": True}
    views = [type(f"View{n:02}", (APIView,), {"permission_classes": [IsAuthenticated]}) for n in range(12)]
    settings.ROOT_URLCONF = tuple(path(f"{n}/", view.as_view()) for n, view in enumerate(views))
    message = ids()["amesh.W010"]
    assert "View09, and 2 more." in message and "View10" not in message


def test_metrics_without_their_library(settings: Any, monkeypatch: Any) -> None:
    settings.AMESH = {"METRICS": True}
    assert checks.check_metrics(None) == []
    monkeypatch.setattr(metrics, "is_installed", lambda: False)
    assert [message.id for message in checks.check_metrics(None)] == ["amesh.E008"]
    settings.AMESH = {}
    assert checks.check_metrics(None) == []
