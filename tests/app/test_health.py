"""The addresses for load balancers: live, and ready."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections
from django.test import Client
from django.urls import resolve, reverse

from amesh_django import health, lifecycle
from amesh_django.test import AmeshClient
from authmesh.protocol.check import CHECK_PATH
from tests.support.databases import as_default

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker

pytestmark = pytest.mark.django_db

READY, LIVE = "/amesh/health", "/amesh/health/live"


def answer(url: str) -> tuple[int, dict[str, str]]:
    found = Client().get(url)
    assert "no-store" in found["Cache-Control"]
    return found.status_code, found.json()


def test_a_server_is_ready(amesh_client: AmeshClient) -> None:
    assert answer(READY) == answer(LIVE) == (200, {"status": "ok"})
    assert Client().head(READY).status_code == 200
    assert Client().post(READY).status_code == Client().post(LIVE).status_code == 405


def test_a_server_whose_list_was_changed_outside_django(amesh_client: AmeshClient, caplog: Any) -> None:
    assert answer(READY)[0] == 200
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_device SET friendly_name = 'other'")
    lifecycle.reset()
    assert [answer(READY) for _ in range(3)] == [(503, {"status": "unavailable"})] * 3
    assert answer(LIVE)[0] == 200
    (record,) = [record for record in caplog.records if record.name == "amesh_django.health"]  # once, not each time
    assert record.event == "not_ready" and "do not match their seal" in record.getMessage()


def test_a_server_without_its_nonce_store(amesh_client: AmeshClient, settings: Any, caplog: Any) -> None:
    settings.CACHES = {"amesh": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert answer(READY)[0] == 503
    assert "dummy cache" in caplog.text


def test_a_server_without_its_migrations(amesh_client: AmeshClient, caplog: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'amesh'")
    assert answer(READY)[0] == 503
    assert "manage.py migrate amesh" in caplog.text


def test_a_server_with_wrong_settings(amesh_client: AmeshClient, settings: Any) -> None:
    settings.AMESH = {"NO_SUCH_KEY": 1}
    assert answer(READY) == (503, {"status": "unavailable"})


def test_a_result_holds_for_a_second(amesh_client: AmeshClient) -> None:
    assert health.is_ready(lambda: 1000.0)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_allowlistseal SET hmac = 'x'")
    assert health.is_ready(lambda: 1000.9)
    assert not health.is_ready(lambda: 1001.1)


def test_a_database_that_is_down_and_atomic_requests(
    amesh_client: AmeshClient, django_db_blocker: DjangoDbBlocker, tmp_path: Path
) -> None:
    """Django opens the transaction before it calls a view. A process is not restarted because its database is down."""
    nowhere = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "missing" / "file"),
        "ATOMIC_REQUESTS": True,
    }
    with django_db_blocker.unblock(), as_default(nowhere):
        assert (answer(LIVE)[0], answer(READY)[0]) == (200, 503)
        refused = amesh_client.get(CHECK_PATH)
        assert (refused.status_code, refused.json()) == (503, {"error": "allow_list_unavailable"})
        assert Client().get("/amesh/metrics").status_code == 404


def test_the_views_have_no_transaction_of_the_request() -> None:
    for name in ("check", "enroll", "rotate", "live", "ready", "metrics"):
        view = resolve(reverse(f"amesh_django:{name}")).func
        assert getattr(view, "_non_atomic_requests", None) == {*connections}, name
