"""The system checks of a hub."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from celery import Celery

from amesh_django import tasks
from amesh_django.checks import check_fleet
from amesh_django.fleet import servers, sweeping
from amesh_django.models import Server, Sweep
from tests.fleet.servers import add_server, laptops

pytestmark = pytest.mark.usefixtures("db", "amesh_server")


def found() -> dict[str, str]:
    return {message.id or "": message.msg for message in check_fleet(None, databases=["default"])}


@pytest.fixture
def celery(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """The application of a project, with a queue for amesh."""
    assert (
        not tasks.is_configured()
    )  # also makes the application that Celery has by itself: the first one is kept for all tests
    application = Celery("mysite", set_as_current=False, broker="memory://")
    application.conf.task_routes = {"amesh.*": {"queue": "amesh"}}
    monkeypatch.setattr(tasks, "current_app", application)
    return application


@pytest.fixture
def hub_url(settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "URL": "https://hub.example/amesh/"}


def test_a_server_that_is_no_hub_is_not_checked(settings: Any, celery: Celery) -> None:
    laptops(1)
    celery.conf.task_always_eager = True
    assert found() == {} and check_fleet(None) == []


def test_a_hub_must_have_an_address_for_its_servers(settings: Any, celery: Celery) -> None:
    add_server()
    Sweep.objects.create(swept_at=sweeping.moment_of(time.time()))
    assert list(found()) == ["amesh.W017"]
    settings.AMESH = {**settings.AMESH, "URL": "https://hub.example/amesh/"}
    assert found() == {}


def test_a_sweeper_that_does_not_run_is_found_while_a_server_lacks_changes(hub_url: None, celery: Celery) -> None:
    server, _device = add_server()
    assert "has not run yet" in found()["amesh.W011"]
    Sweep.objects.create(swept_at=sweeping.moment_of(time.time() - 55))
    assert found() == {}
    Sweep.objects.update(swept_at=sweeping.moment_of(time.time() - 65))
    assert "1 of the servers" in found()["amesh.W011"] and "for 65 seconds" in found()["amesh.W011"]
    epoch, revision = servers.head()
    Server.objects.update(epoch=epoch, acked=revision)
    assert found() == {}
    laptops(1)
    servers.pause(server.device_id)
    assert found() == {}


def test_pairings_must_not_hold_up_revocations(
    hub_url: None, celery: Celery, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_server()
    Sweep.objects.create(swept_at=sweeping.moment_of(time.time()))
    assert found() == {}
    settings.AMESH = {**settings.AMESH, "PAIRING_TASK": True}
    assert list(found()) == ["amesh.W023"]
    own = Celery("mysite", set_as_current=False, broker="memory://")
    own.conf.task_routes = {"amesh.pair": {"queue": "amesh-pair"}, "amesh.*": {"queue": "amesh"}}
    monkeypatch.setattr(tasks, "current_app", own)
    assert found() == {}


def test_celery_must_run_the_tasks_in_a_worker_and_in_a_queue_of_their_own(
    hub_url: None, celery: Celery, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_server()
    Sweep.objects.create(swept_at=sweeping.moment_of(time.time()))
    celery.conf.task_always_eager = True
    assert list(found()) == ["amesh.W013"]
    settings.DEBUG = True
    assert found() == {}
    shared = Celery("mysite", set_as_current=False, broker="memory://")
    monkeypatch.setattr(tasks, "current_app", shared)
    assert "'celery'" in found()["amesh.W012"]
    monkeypatch.setattr(tasks, "current_app", Celery("default", set_as_current=False))  # what Celery makes for itself
    assert found() == {}
    monkeypatch.delitem(sys.modules, "celery")
    assert found() == {}
