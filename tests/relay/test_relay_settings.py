"""The settings of the relay, its reports, and its messages if an extra is not installed."""

from __future__ import annotations

import builtins
import sys
from dataclasses import fields
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, override_settings

from amesh_django import conf as app_conf
from amesh_django.checks import check_settings
from amesh_django.relay import conf, reports
from amesh_django.relay.conf import RelaySettings
from amesh_django.relay.exchange.base import Unavailable
from amesh_django.relay.hub.current import current_hub, stop_hub
from tests.relay.relay_world import OTC, asynchronous, relay, until
from tests.support.sources import without


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"MAX_SESSION": 1}, "unknown", "AMESH['RELAY']['MAX_SESSION'] is not a setting. Known: REDIS_URL"),
        ([], "value", "AMESH['RELAY'] must be a dict"),
        ({"MAX_SESSIONS": 0}, "value", "must be an integer greater than or equal to 1; it is 0"),
        ({"MAX_SESSIONS": "5"}, "value", "must be an integer greater than or equal to 1; it is '5'"),
        ({"MAX_MESSAGE_BYTES": 10}, "value", "or equal to 1024"),
        ({"TRUSTED_PROXIES": -1}, "value", "or equal to 0"),
        ({"IDLE_SECONDS": None}, "value", "must not be None"),
        ({"REDIS_URL": 7}, "value", "must be text"),
        ({"REDIS_URL": "http://:secret@x"}, "value", "must begin with redis://"),
        ({"REDIS_PREFIX": ""}, "value", "must not be empty"),
        ({"ALLOWED_ORIGINS": "https://x"}, "value", "must be a list of origins"),
        ({"ALLOWED_ORIGINS": ["example.com"]}, "value", "must be a list of origins"),
    ],
)
def test_wrong_settings(settings: Any, kind: str, words: str) -> None:
    with override_settings(AMESH={"RELAY": settings}):
        ((found, sentence),) = conf.problems()
        assert found == kind
        assert words in sentence
        assert "secret" not in sentence
        with pytest.raises(ImproperlyConfigured):
            conf.relay_settings()
        reported = {"unknown": "amesh.E001", "value": "amesh.E002"}[kind]
        assert [(found.id, found.msg) for found in check_settings(None)] == [(reported, sentence)]


def test_the_app_does_not_validate_the_relay() -> None:
    with override_settings(AMESH={"RELAY": {"MAX_SESSIONS": 0}}):
        assert app_conf.problems() == []
        assert app_conf.amesh_settings().RELAY == {"MAX_SESSIONS": 0}
    with override_settings(AMESH={"CLOCK_SKEW_SECONDS": 0}):
        assert conf.problems() == []
        with pytest.raises(ImproperlyConfigured):
            conf.relay_settings()
    with override_settings(AMESH=[]):
        assert conf.problems() == []


def test_settings() -> None:
    with override_settings(AMESH={}):
        assert conf.relay_settings() == RelaySettings()
    chosen = {field.name: field.default for field in fields(RelaySettings)}
    chosen |= {"MAX_SESSIONS": 7, "ALLOWED_ORIGINS": ["*", "https://x"], "REDIS_URL": "unix:///run/redis.sock"}
    with override_settings(AMESH={"RELAY": chosen}):
        assert conf.problems() == []
        assert conf.relay_settings().MAX_SESSIONS == 7


@pytest.mark.parametrize(
    ("said", "proxies"),
    [(None, 0), ("", 0), ("1", 1), ("true", 1), ("YES", 1), ("2", 2), ("0", 0), ("no", 0), ("-1", 0), ("9" * 50, 0)],
)
def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch, said: str | None, proxies: int) -> None:
    monkeypatch.delenv("AMESH_TRUST_PROXY", raising=False)
    if said is not None:
        monkeypatch.setenv("AMESH_TRUST_PROXY", said)
    assert conf.trusted_proxies(RelaySettings()) == proxies
    assert conf.trusted_proxies(RelaySettings(TRUSTED_PROXIES=3)) == 3
    assert conf.trusted_proxies(RelaySettings(TRUSTED_PROXIES=0)) == 0


def test_redis_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://a/0")
    assert conf.redis_url(RelaySettings()) == "redis://a/0"
    assert conf.redis_url(RelaySettings(REDIS_URL="")) == ""
    assert conf.redis_url(RelaySettings(REDIS_URL="redis://b/0")) == "redis://b/0"
    monkeypatch.setenv("REDIS_URL", "redis+sentinel://for-somebody-else")
    with override_settings(AMESH={}):
        assert conf.problems() == []
    monkeypatch.delenv("REDIS_URL")
    assert conf.redis_url(RelaySettings()) == ""


@asynchronous
async def test_the_hub_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    hub = current_hub()
    assert current_hub() is hub
    with override_settings(AMESH={"RELAY": {"IDLE_SECONDS": 5}}):
        other = current_hub()
        assert other is not hub
        assert other.settings.IDLE_SECONDS == 5
        await stop_hub()
    await hub.stop()
    await stop_hub()


@asynchronous
async def test_time_passes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amesh_django.relay.hub.hub._SWEEP_SECONDS", 0.01)
    async with relay(IDLE_SECONDS=1) as world:
        world.hub.start()
        client = await world.client()
        world.clock.now += 1
        assert await client.closed() == 1001


@asynchronous
async def test_a_bug_while_time_passes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("amesh_django.relay.hub.hub._SWEEP_SECONDS", 0.01)
    async with relay() as world:

        async def broken() -> None:
            raise ValueError("secret")

        monkeypatch.setattr(world.hub, "sweep", broken)
        world.hub.start()
        await until(lambda: caplog.text.count("ValueError") > 1)
        assert "secret" not in caplog.text


@override_settings(ROOT_URLCONF="amesh_django.relay.urls")
@asynchronous
async def test_in_the_urls_of_a_project() -> None:
    async with relay():
        client = AsyncClient()
        response = await client.get("/health")
        assert (response.status_code, response.content) == (200, b'{"status":"ok","sessions":0}')
        assert response["Cache-Control"] == "no-store"
        assert (await client.post("/health")).status_code == 405
        assert b"amesh_relay_connections 0.0" in (await client.get("/metrics")).content


@asynchronous
async def test_metrics() -> None:
    async with relay() as world:
        target, controller = await world.pair()
        await target.send("nonsense")
        await target.error()
        text = (await reports.metrics(world.hub)).body.decode()
        for line in (
            "amesh_relay_connections 2.0",
            "amesh_relay_sides 2.0",
            "amesh_relay_sessions 1.0",
            "amesh_relay_pairings_total 1.0",
            'amesh_relay_refusals_total{code="unknown_type"} 1.0',
        ):
            assert line in text.splitlines(), line
        await controller.send("done")
        await target.receive()
        await controller.send("listen", otc=OTC)
        await controller.send("done")  # it has changed its mind: nothing was finished
        text = (await reports.metrics(world.hub)).body.decode()
        assert "amesh_relay_pairings_finished_total 1.0" in text
        assert "amesh_relay_sessions_opened_total 2.0" in text
        assert "amesh_relay_sessions 0.0" in text


@asynchronous
async def test_metrics_while_redis_is_down() -> None:
    async with relay() as world:

        async def down() -> int:
            raise Unavailable

        exchange: Any = world.hub.exchange
        sessions, exchange.sessions = exchange.sessions, down
        text = (await reports.metrics(world.hub)).body.decode()
        assert "amesh_relay_connections 0.0" in text
        assert "amesh_relay_sessions " not in text
        health = await reports.health(world.hub)
        assert (health.status, health.body) == (503, b'{"status":"unavailable","sessions":0}')
        exchange.sessions = sessions


@asynchronous
async def test_metrics_where_they_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    async with relay() as world:
        report = await reports.metrics(world.hub)
        assert report.status == 404
        assert b"pip install 'amesh-django[metrics]'" in report.body


@pytest.mark.process
@pytest.mark.parametrize(
    ("package", "module"),
    [("channels", "amesh_django.relay.routing"), ("daphne", "amesh_django.relay.server")],
)
def test_without_the_extra(package: str, module: str) -> None:
    without(
        {package},
        "import os, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; django.setup()\n"
        "import amesh_django.relay.views\n"
        f"try:\n    import {module}\n"
        "except django.core.exceptions.ImproperlyConfigured as error:\n"
        f"    assert str(error) == \"The relay needs {package}. Install it: pip install 'amesh-django[relay]'.\"\n"
        "else:\n    raise SystemExit('nothing was said')",
    )


@pytest.mark.process
def test_redis_without_the_extra() -> None:
    without(
        {"redis"},
        "import os, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; django.setup()\n"
        "from amesh_django.relay.conf import RelaySettings\n"
        "from amesh_django.relay.hub.current import make_exchange\n"
        "make_exchange(RelaySettings(REDIS_URL=''))\n"
        "try:\n    make_exchange(RelaySettings(REDIS_URL='redis://x'))\n"
        "except django.core.exceptions.ImproperlyConfigured as error:\n"
        "    assert 'amesh-django[relay]' in str(error)\n"
        "else:\n    raise SystemExit('nothing was said')",
    )
