"""A server that was down, with processes and databases of its own: it refuses the revoked device on its first request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from amesh_django.test.devices import EphemeralDevice
from tests.fleet.sites import Site, introduce
from tests.support import databases
from tests.support.services import until

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.unversioned]


def deliver(hub: Site) -> None:
    hub.python("from amesh_django.fleet.delivery import deliver\n[deliver(row.pk) for row in Server.objects.all()]")


def test_a_server_that_was_down_asks_once_and_refuses(_sqlite_template: Path, tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    hub = Site("hub", tmp_path, databases.sqlite_copy(_sqlite_template, tmp_path / "1"))
    server = Site("server", tmp_path, databases.sqlite_copy(_sqlite_template, tmp_path / "2"))
    lost = EphemeralDevice("lost")
    introduce(hub, server, "revoke")
    hub.trust(lost)
    server.trust(lost)
    with hub.serving(GUNICORN_CMD_ARGS="--access-logfile - --threads 4") as running:
        hub.python(
            f"from amesh_django.fleet import servers\nservers.add({server.device_id!r}, {server.url!r}, by='alice')"
        )
        with server.serving():
            deliver(hub)
            assert server.accepts(lost)
        hub.python(f"trusted.revoke({lost.identity.device_id!r}, reason='stolen')")
        before = running.output().count("POST /amesh/feed/pull")
        # All workers begin before the first request: one that begins later asks for itself.
        with server.serving(workers=4, GUNICORN_CMD_ARGS="--preload") as restarted, ThreadPoolExecutor(8) as pool:
            until(lambda: restarted.output().count("Booting worker") == 4)
            assert list(pool.map(lambda _n: server.accepts(lost), range(8))) == [False] * 8
        assert running.output().count("POST /amesh/feed/pull") - before == 1
