"""The metrics for Prometheus, in one process and over several."""

from __future__ import annotations

import datetime as dt
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client, override_settings
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.conf import amesh_settings
from amesh_django.models import AuditEvent
from amesh_django.signals import request_accepted
from amesh_django.test import AmeshClient, EphemeralDevice
from authmesh.protocol.check import CHECK_PATH
from tests.support import services
from tests.verification.wire import World, send, signed

URL = "/amesh/metrics"


def samples(text: str) -> dict[str, float]:
    """Return the samples of a page: name, with the values of its labels → value."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.fixture
def counted(amesh_server: Any, settings: Any) -> Callable[[], dict[str, float]]:
    """A function that returns the samples now."""
    settings.AMESH = {**settings.AMESH, "METRICS": True, "MAX_CONTROLLERS": 7}

    def read() -> dict[str, float]:
        answer = Client().get(URL)
        assert answer.status_code == 200 and answer["Content-Type"].startswith("text/plain; version=")
        return samples(answer.content.decode())

    return read


def test_requests(counted: Any, amesh_trust: Callable[..., EphemeralDevice]) -> None:
    client = AmeshClient(amesh_trust())
    before = counted()
    for _ in range(3):
        assert client.get(CHECK_PATH).status_code == 200
    assert AmeshClient(EphemeralDevice()).get(CHECK_PATH).status_code == 401
    assert Client().get(CHECK_PATH).status_code == 400
    after = counted()
    change = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name)}
    assert 0 < change.pop("amesh_verification_seconds_sum") < 60
    assert {name: n for name, n in change.items() if "bucket" not in name} == {
        "amesh_requests_accepted_total": 3,
        "amesh_requests_refused_total unknown_device": 1,
        "amesh_requests_refused_total missing_header": 1,
        "amesh_verification_seconds_count": 3,
    }


def test_the_state_of_the_list(counted: Any, amesh_trust: Callable[..., EphemeralDevice]) -> None:
    revoked, _ = amesh_trust(), amesh_trust(role="target")
    amesh_trust()
    DatabaseAllowList().revoke(revoked.identity.device_id)
    found = counted()
    names = ("seal_ok", "list_revision", "devices active", "devices revoked", "controllers", "controllers_limit")
    assert [found[f"amesh_{name}"] for name in names] == [1, 4, 2, 1, 1, 7]
    assert found["amesh_audit_unsealed_seconds"] == 0
    AuditEvent.objects.create(kind="export", at=timezone.now() - dt.timedelta(seconds=90))
    assert 90 <= counted()["amesh_audit_unsealed_seconds"] < 120
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_device SET friendly_name = 'other'")
    lifecycle.reset()
    found = counted()
    assert found["amesh_seal_ok"] == 0 and "amesh_devices active" not in found


def test_a_nonce_store_that_does_not_answer(
    counted: Any, amesh_trust: Callable[..., EphemeralDevice], settings: Any
) -> None:
    settings.CACHES = {"amesh": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    client = AmeshClient(amesh_trust())
    before = counted().get("amesh_nonce_store_errors_total", 0)
    assert client.get(CHECK_PATH).status_code == 503
    assert counted()["amesh_nonce_store_errors_total"] == before + 1


def test_the_page_on_monitoring_lists_every_metric(counted: Any, amesh_trust: Callable[..., EphemeralDevice]) -> None:
    AmeshClient(amesh_trust()).get(CHECK_PATH)
    Client().get(CHECK_PATH)
    page = Client().get(URL).content.decode()
    names = {family.name for family in text_string_to_metric_families(page)}
    served = {name for name in names if not name.endswith("_created")}
    table = re.findall(r"^\| (`amesh_.+?) \| ", (services.ROOT / "docs/monitoring.md").read_text(), re.MULTILINE)
    listed = {name.removesuffix("_total") for row in table for name in re.findall(r"`(amesh_[a-z_]+)", row)}
    assert listed - {"amesh_django"} == served


@pytest.mark.django_db
def test_without_the_setting(amesh_client: AmeshClient) -> None:
    assert Client().get(URL).status_code == 404
    assert not request_accepted.has_listeners()
    with override_settings(AMESH={"METRICS": True}):
        assert request_accepted.has_listeners() and amesh_settings().METRICS
    assert not request_accepted.has_listeners()


@pytest.mark.process
def test_several_processes_are_added_up(world: World, redis: services.Redis, tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    log_format = 'access %({amesh.device_id}e)s "%(r)s" %(s)s'
    options = ("-w", "2", "--access-logfile", "-", "--access-logformat", log_format)
    more = {"TEST_REDIS_URL": redis.url, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with world.serve("gunicorn", *options, **more) as server:
        workers: list[str] = []
        while len(set(workers)) < 2 and len(workers) < 1000:  # until both have answered
            workers.append(signed(server, world.laptop, "GET", "/decorator/sync").headers["X-Worker"])
        assert signed(server, world.stranger, "GET", "/decorator/sync").status == 401
        found = samples(send(server, "GET", URL).body.decode())
        printed = server.output()
    assert len(set(workers)) == 2
    assert found["amesh_requests_accepted_total"] == found["amesh_verification_seconds_count"] == len(workers)
    assert found["amesh_requests_refused_total unknown_device"] == 1
    assert (found["amesh_seal_ok"], found["amesh_controllers"]) == (1, 2)
    # The access log of gunicorn names the device.
    assert printed.count(f'access {world.laptop.device_id} "GET /decorator/sync HTTP/1.1" 200') == len(workers)
    assert printed.count('access - "GET /decorator/sync HTTP/1.1" 401') == 1


@pytest.mark.process
def test_a_command_writes_nothing_where_the_processes_count(world: World, tmp_path: Path) -> None:
    """The folder belongs to the servers. A build may not have it."""
    for folder in (tmp_path / "counters", tmp_path / "missing"):
        if folder.name == "counters":
            folder.mkdir()
        environment = world.environment(PROMETHEUS_MULTIPROC_DIR=str(folder))
        services.run([sys.executable, "-m", "django", "check", "--tag", "compatibility"], env=environment)
    assert [*(tmp_path / "counters").iterdir()] == []
