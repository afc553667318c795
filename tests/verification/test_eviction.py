"""A Redis that deletes or forgets live nonces is reported by a check, by doctor, and, if it deletes them, in the log at the first use."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.core.checks import run_checks

from amesh_django.management import doctor
from amesh_django.verification.nonces import store_for
from tests.support.services import Redis, running_redis

pytestmark = [pytest.mark.process, pytest.mark.django_db]

BACKENDS = ["django_redis.cache.RedisCache", "django.core.cache.backends.redis.RedisCache"]


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    """A Redis of this module, because the tests change its configuration and its users."""
    with running_redis() as server:
        yield server


@pytest.fixture(params=BACKENDS)
def reports(request: pytest.FixtureRequest, own_redis: Redis, settings: Any, caplog: pytest.LogCaptureFixture) -> Any:
    """A function that returns what check, doctor, and the log say about the nonce store."""
    user = "amesh:secret@"
    own_redis.command("ACL", "SETUSER", "amesh", "reset", "on", ">secret", "~*", "&*", "+@all")
    own_redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    own_redis.command("CONFIG", "SET", "appendonly", "yes")
    location = own_redis.url.replace("redis://", f"redis://{user}")
    settings.CACHES = {"amesh": {"BACKEND": request.param, "LOCATION": location}}

    def found() -> tuple[str, str, str]:
        checked = " ".join(
            f"{message.id} {message.msg} {message.hint}"
            for message in run_checks(include_deployment_checks=True)
            if str(message.id) in ("amesh.W008", "amesh.W009", "amesh.W014")
        )
        (finding,) = doctor.nonce_cache()
        caplog.clear()
        store = store_for("amesh")
        store.record("am_a", "1", 61)
        first = caplog.text
        caplog.clear()
        store.record("am_a", "2", 61)
        assert not caplog.text
        return checked, f"{finding.status} {finding.message}", first

    yield found
    caches["amesh"].close()


def test_a_redis_that_does_not_evict(reports: Any) -> None:
    assert reports() == ("", "ok The cache 'amesh' stores nonces, for all processes that use it.", "")


@pytest.mark.parametrize("denied", [(), ("-config",)], ids=["CONFIG", "INFO"])
def test_a_redis_that_evicts(reports: Any, own_redis: Redis, denied: tuple[str, ...]) -> None:
    own_redis.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    if denied:
        own_redis.command("ACL", "SETUSER", "amesh", *denied)
    checked, finding, first = reports()
    assert checked.startswith("amesh.W008") and finding.startswith("problem")
    for text in (checked, finding, first):
        assert "maxmemory-policy is volatile-lru" in text


def test_a_redis_that_does_not_tell(reports: Any, own_redis: Redis) -> None:
    own_redis.command("ACL", "SETUSER", "amesh", "-config", "-info")
    checked, finding, first = reports()
    assert checked.startswith("amesh.W009") and finding.startswith("warning")
    for text in (checked, finding, first):
        assert "CONFIG and INFO are forbidden" in text


@pytest.mark.parametrize("denied", [(), ("-config",)], ids=["CONFIG", "INFO"])
def test_a_redis_that_forgets(reports: Any, own_redis: Redis, denied: tuple[str, ...]) -> None:
    own_redis.command("CONFIG", "SET", "appendonly", "no")
    if denied:
        own_redis.command("ACL", "SETUSER", "amesh", *denied)
    checked, finding, _ = reports()
    assert checked.startswith("amesh.W014") and finding.startswith("warning")
    for text in (checked, finding):
        assert "appendonly is no" in text and "could be replayed" in text


@pytest.mark.parametrize("appendonly", ["yes", "no"])
def test_what_a_killed_redis_remembers(settings: Any, appendonly: str) -> None:
    """Why ``appendonly``: Redis writes a nonce to the file before it answers, so a kill loses none."""
    with running_redis(appendonly) as own:
        settings.CACHES = {"amesh": {"BACKEND": BACKENDS[1], "LOCATION": own.url}}
        store = store_for("amesh")
        assert all(store.record("am_a", str(number), 61) for number in range(100))
        own.stop(signal.SIGKILL)
        own.start()
        replayed = sum(store.record("am_a", str(number), 61) for number in range(100))
        assert replayed == (0 if appendonly == "yes" else 100)
        caches["amesh"].close()
