"""The addresses for load balancers: live, and ready."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test import Client

from amesh_django import health, lifecycle
from amesh_django.test import AmeshClient

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
