"""Nonce stores: atomic, they forget no live nonce, and they fail closed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.management import call_command
from django.db import connection, transaction
from redis import Redis as Client

from amesh_django.verification.nonces import CacheNonceStore, store_for
from authmesh.nonces import InMemoryNonceStore
from authmesh.protocol.errors import NonceStoreUnavailable
from tests.support.services import ROOT, Redis

DATABASE = "django.core.cache.backends.db"
DJANGO_REDIS = "django_redis.cache.RedisCache"
DJANGOS_OWN = "django.core.cache.backends.redis.RedisCache"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_nonce_is_new_once_until_it_expires() -> None:
    clock = Clock()
    store = InMemoryNonceStore(clock=clock)
    assert store.record("am_a", "n", 61)
    assert not store.record("am_a", "n", 61)
    assert store.record("am_b", "n", 61)
    clock.now += 60.99
    assert not store.record("am_a", "n", 61)
    clock.now += 0.01
    assert store.record("am_a", "n", 61)


def test_local_memory_forgets_no_live_nonce() -> None:
    store = InMemoryNonceStore()
    assert all(store.record("am_a", str(n), 61) for n in range(5000))
    assert not any(store.record("am_a", str(n), 61) for n in range(5000))


def test_a_full_local_memory_rejects_until_nonces_expire() -> None:
    clock = Clock()
    store = InMemoryNonceStore(clock=clock, capacity=3)
    assert all(store.record("am_a", str(n), 61) for n in range(3))
    with pytest.raises(NonceStoreUnavailable):
        store.record("am_a", "4", 61)
    clock.now += 61
    assert store.record("am_a", "4", 61)
    assert len(store._expiries) == len(store._order) == 1


def test_a_local_memory_cache_is_replaced_by_one_that_does_not_cull() -> None:
    assert isinstance(store_for("default"), InMemoryNonceStore)


@pytest.mark.parametrize(
    ("backend", "words"), [("dummy.DummyCache", "dummy cache"), ("filebased.FileBasedCache", "file cache")]
)
@pytest.mark.django_db
def test_a_cache_that_cannot_store_nonces_rejects_every_request(
    amesh_client: Any, settings: Any, backend: str, words: str, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    """At the first use, because no server runs the system checks."""
    settings.CACHES = {"default": {"BACKEND": f"django.core.cache.backends.{backend}", "LOCATION": str(tmp_path)}}
    for _ in range(2):
        response = amesh_client.get("/amesh/check")
        assert (response.status_code, response.json()) == (503, {"error": "nonce_store_unavailable"})
    assert f"nonce_store_unfit ({words})" in caplog.text and "All signed requests are rejected." in caplog.text


@pytest.mark.parametrize("debug", [False, True])
def test_local_memory_warns_once_in_a_process(settings: Any, debug: bool, caplog: pytest.LogCaptureFixture) -> None:
    settings.DEBUG = debug
    store = store_for("default")
    assert not caplog.records
    assert store.record("am_a", "1", 61) and store.record("am_a", "2", 61)
    assert caplog.text.count("Using in-memory nonce store: with more than one process") == (0 if debug else 1)


@pytest.mark.parametrize("backend", [DJANGO_REDIS, DJANGOS_OWN])
def test_redis(redis: Redis, settings: Any, backend: str) -> None:
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": redis.url}}
    store = store_for("default")
    assert store.record("am_a", "n", 61)
    assert not store.record("am_a", "n", 61)
    assert store.record("am_b", "n", 61)
    with Client.from_url(redis.url) as client:
        (key,) = client.keys("*am_a:n*")
        assert 59 <= client.ttl(key) <= 61


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("backend", [DJANGO_REDIS, DJANGOS_OWN])
def test_redis_down_is_an_outage_not_a_replay(redis: Redis, settings: Any, backend: str, ignore: bool) -> None:
    options = {"IGNORE_EXCEPTIONS": ignore} if backend == DJANGO_REDIS else {}
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": redis.url, "OPTIONS": options}}
    store = store_for("default")
    assert store.record("am_a", "before", 61)
    with redis.down(), pytest.raises(NonceStoreUnavailable):
        store.record("am_a", "during", 61)
    caches["default"].close()


@pytest.mark.parametrize("answer", [None, "OK", 1, 0])
def test_an_answer_that_is_neither_yes_nor_no_is_an_outage(answer: object) -> None:
    class Odd:
        def add(self, *args: Any, **kwargs: Any) -> object:
            return answer

    with pytest.raises(NonceStoreUnavailable):
        CacheNonceStore(Odd()).record("am_a", "n", 61)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "backend", ["", *(pytest.param(name, marks=pytest.mark.process) for name in (DJANGO_REDIS, DJANGOS_OWN))]
)
def test_of_many_threads_one_wins(backend: str, request: pytest.FixtureRequest, settings: Any) -> None:
    if backend:
        redis = request.getfixturevalue("redis")
        settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": redis.url}}
    store = store_for("default")
    barrier, won = threading.Barrier(16), []

    def try_it() -> None:
        barrier.wait()
        if store.record("am_a", "n", 61):
            won.append(1)

    threads = [threading.Thread(target=try_it) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [1]


@pytest.mark.process
def test_redis_url_is_the_redis_of_the_nonces(redis: Redis, tmp_path: Path) -> None:
    """In the project that ships, the variable means what the public documentation of amesh says."""
    program = (
        "import django; django.setup()\n"
        "from amesh_django.conf import amesh_settings\n"
        "from amesh_django.verification.nonces import store_for\n"
        "store = store_for(amesh_settings().NONCE_CACHE)\n"
        "print(store.record('am_a', 'n', 61), store.record('am_a', 'n', 61))\n"
    )
    env = os.environ | {
        "DJANGO_SETTINGS_MODULE": "relay_project.settings",
        "DJANGO_DATA_DIR": str(tmp_path),
        "REDIS_URL": redis.url,
    }
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True False\n", done.stderr
    with Client.from_url(redis.url) as client:
        assert list(client.scan_iter("*amesh:nonce:am_a:n*"))


@pytest.mark.django_db(transaction=True)
def test_a_nonce_is_not_written_in_a_transaction_that_may_be_rolled_back(settings: Any) -> None:
    options = {"MAX_ENTRIES": 100_000}
    settings.CACHES = {"amesh": {"BACKEND": f"{DATABASE}.DatabaseCache", "LOCATION": "nonces", "OPTIONS": options}}
    call_command("createcachetable")
    try:
        store = store_for("amesh")
        assert (store.record("am_a", "n", 61), store.record("am_a", "n", 61)) == (True, False)
        with (
            transaction.atomic(),
            pytest.raises(NonceStoreUnavailable, match=r"rolled back.*ATOMIC_REQUESTS") as refused,
        ):
            store.record("am_a", "other", 61)
        assert refused.value.reason == "nonce_store_unfit"
        assert store.record("am_a", "other", 61)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE nonces")


@pytest.mark.django_db
def test_the_transaction_of_a_test_case_is_not_that_of_a_request(settings: Any) -> None:
    options = {"MAX_ENTRIES": 100_000}
    settings.CACHES = {"amesh": {"BACKEND": f"{DATABASE}.DatabaseCache", "LOCATION": "nonces", "OPTIONS": options}}
    call_command("createcachetable")
    assert store_for("amesh").record("am_a", "n", 61)
