"""Deliveries by a Celery worker and beat, and by ``amesh_propagate --watch``: processes that are killed, and a broker that hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.conf import settings
from django.core.management import call_command
from django.test import override_settings

from amesh_django import lifecycle
from amesh_django.fleet import bell, servers
from amesh_django.fleet.leases import moment_of
from amesh_django.models import Server
from authmesh.device.grants import Grant
from authmesh.protocol.fleet.feed import FeedMessage
from tests.fleet.peers import Peer, Reply, peer
from tests.fleet.servers import hub, laptops
from tests.fleet.sites import Site
from tests.support import databases, services
from tests.support.services import until

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: A revocation that waits for its broker takes longer than this, however busy the machine is: the broker never answers.
HELD_UP_SECONDS = 5.0


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: services.Redis,
    _postgres_template: services.Postgres,
    django_db_blocker: DjangoDbBlocker,
) -> Iterator[Site]:
    """A hub with PostgreSQL and a broker. This process is one of its processes, which rings nobody by itself."""
    folder: Path = tmp_path_factory.mktemp("hub")
    with databases.postgres_copy(_postgres_template, "amesh_hub_of_celery") as database, django_db_blocker.unblock():
        found = Site("hub", folder, database, broker=redis_server.url)
        amesh = {**settings.AMESH, "DIR": str(found.directory), "URL": found.url}
        with databases.as_default(database), override_settings(AMESH=amesh):
            lifecycle.reset()
            before = bell._bell.ringer
            bell.connect(None)
            yield found
            bell.connect(before)
        lifecycle.reset()


@pytest.fixture
def other(site: Site) -> Iterator[Peer]:
    """A server that is up to date."""
    with peer() as found:
        hub().add(found.device.entry("target"))
        row = servers.add(found.device.identity.device_id, found.url)
        yield found
        servers.remove(row.device_id)


def settle(other: Peer) -> None:
    """Let a server have all there is."""
    other.epoch, other.applied = servers.head()
    rows = Server.objects.filter(device_id=other.device.identity.device_id)
    rows.update(epoch=other.epoch, acked=other.applied, last_sent_at=moment_of(time.time()))


def acknowledged(other: Peer) -> bool:
    row = Server.objects.get(device_id=other.device.identity.device_id)
    return (row.epoch, row.acked, row.lease_by) == (*servers.head(), "")


def laptop() -> str:
    (device,) = laptops(1)
    return device.identity.device_id


@contextmanager
def stopped(server: services.Server) -> Iterator[None]:
    """Let a server accept connections and answer nothing."""
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)


@pytest.mark.unversioned  # Celery and the broker are the same on both pairs; test_tasks.py runs the tasks
def test_the_worker_delivers_and_a_broker_that_hangs_or_is_down_holds_nobody_up(
    site: Site, other: Peer, redis_server: services.Redis
) -> None:
    """First without beat: it is the ring that delivers."""
    names = [device.identity.device_id for device in laptops(3)]
    settle(other)
    revoking = (
        "import time; from tests import celery_app\n"
        "started = time.monotonic()\n"
        "trusted.revoke_all([{!r}])\n"
        "result = time.monotonic() - started"
    )
    with site.worker() as worker:
        until(lambda: "ready." in worker.output())
        assert site.python(revoking.format(names[0])) < HELD_UP_SECONDS
        until(lambda: acknowledged(other))
        assert other.told() == [("revoke", names[0])]
        with stopped(redis_server):
            assert site.python(revoking.format(names[1])) < HELD_UP_SECONDS
            assert not acknowledged(other)
        nowhere = f"redis://{services.HOST}:{services.free_port()}/0"
        assert site.python(revoking.format(names[2]), TEST_BROKER_URL=nowhere) < HELD_UP_SECONDS
        with site.beat():
            until(lambda: acknowledged(other))
    assert other.told() == [("revoke", name) for name in names]


@pytest.mark.unversioned  # Celery and the broker are the same on both pairs; test_tasks.py runs the tasks
def test_a_broker_that_is_flushed_loses_nothing(site: Site, other: Peer, redis_server: services.Redis) -> None:
    """The ring is gone before a worker took it: the sweeper, which beat rings, finds the server."""
    name = laptop()
    settle(other)
    redis_server.flush()
    site.python(f"from tests import celery_app; trusted.revoke_all([{name!r}])")
    assert redis_server.command("LLEN", "amesh") == ":1"
    redis_server.flush()
    with site.worker(), site.beat():
        until(lambda: acknowledged(other))
    assert other.told() == [("revoke", name)]


@pytest.mark.unversioned  # Celery is the same on both pairs; test_delivery.py has what a lease of a dead process means
@pytest.mark.parametrize("when", ["during", "after"])
def test_a_worker_that_is_killed_loses_nothing(when: str, site: Site, other: Peer) -> None:
    """While the server handles the POST, and after the server has applied it but before the answer arrives."""
    name = laptop()
    settle(other)
    before, row = other.applied, servers.find(other.device.identity.device_id)
    with site.worker() as worker:

        def behave(message: FeedMessage, reply: Reply) -> Reply | None:
            worker.send(signal.SIGKILL)
            if when == "during":
                other.applied = before
            return None

        other.behave = behave
        hub().revoke_all([name])
        site.python(f"from tests import celery_app; from amesh_django import tasks; tasks.ring({row.pk})")
        until(lambda: not worker.runs)
    other.behave = lambda message, reply: reply
    call_command("amesh_propagate")
    assert not acknowledged(other)  # the lease has not ended
    Server.objects.filter(pk=row.pk).update(lease_until=moment_of(time.time() - 1))
    call_command("amesh_propagate")
    assert acknowledged(other) and set(other.told()) == {("revoke", name)}
    # What was applied is not sent again but by the message that was not acknowledged.
    assert [message.after for message in other.messages] == [before, before]


def test_a_hub_that_is_killed_between_commit_and_ring_loses_nothing(site: Site, other: Peer) -> None:
    name = laptop()
    settle(other)
    code = (
        "import os; from django.db import transaction; from tests import celery_app\n"
        "with transaction.atomic():\n"
        "    transaction.on_commit(lambda: os.kill(os.getpid(), 9))\n"
        f"    trusted.revoke_all([{name!r}])"
    )
    with pytest.raises(RuntimeError, match="ended with -9"):
        site.python(code)
    assert not acknowledged(other)
    call_command("amesh_propagate")
    assert acknowledged(other) and other.told() == [("revoke", name)]


def test_without_celery_a_process_watches(site: Site, other: Peer) -> None:
    """PostgreSQL tells it of each change, and SIGTERM ends it after what it has begun."""
    name = laptop()
    settle(other)
    with site.program("django", "amesh_propagate", "--watch") as watching:
        until(lambda: "Changes are carried to the servers" in watching.output())
        time.sleep(0.3)
        took = []
        for act in (hub().suspend, hub().lift, hub().suspend, hub().lift):
            act([name])
            took.append(until(lambda: acknowledged(other)))
            time.sleep(0.1)
        assert min(took) < 0.4, took  # a poll would need half a second on average
        watching.send(signal.SIGTERM)
        until(lambda: not watching.runs, 5)
        assert watching._running.returncode == 0
    assert other.told() == [("suspend", name), ("lift", name)] * 2


def test_a_real_server_does_what_the_hub_says(site: Site, sqlite_database: dict[str, str], tmp_path: Path) -> None:
    """It is enrolled by the hub: trust, suspend, lift, leave a group, revoke; and the signed list when it comes back without its memory."""
    server = Site("server", tmp_path, sqlite_database)
    server.trust(site.device, enroll=True)
    hub().add(server.device.entry("target"))
    hub().put_group("shop", [])
    row = servers.add(server.device_id, server.url, scope_of_events="enroll", groups=["shop"])
    one, two = laptops(2)
    names = [device.identity.device_id for device in (one, two)]
    in_shop = Grant(groups=frozenset({"shop"}))

    def refused() -> list[bool]:
        call_command("amesh_propagate")
        row.refresh_from_db()
        assert (row.epoch, row.acked, row.last_error, row.refused_json) == (*servers.head(), "", "[]")
        return [not server.accepts(device) for device in (one, two)]

    with server.serving():
        assert refused() == [True, True]
        hub().grant(names, in_shop)
        assert refused() == [False, False]
        hub().suspend(names[:1])
        hub().grant(names[1:], Grant(), taken=in_shop)
        assert refused() == [True, True]
        hub().lift(names[:1])
        hub().grant(names[1:], in_shop)
        assert refused() == [False, False]
        hub().revoke_all(names[1:])
        hub().reseal(by="alice")
        hub().suspend(names[:1])
        assert refused() == [True, True]
    servers.remove(row.device_id)
