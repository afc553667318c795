"""A server that was down, with processes and databases of its own: it refuses the revoked device on its first request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from amesh_django.test.devices import EphemeralDevice
from tests.fleet.sites import Site, trusting
from tests.support import databases
from tests.support.services import until

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.unversioned]


class Pair:
    """A hub without a worker that tells its servers anything, a server that has heard it, and two devices that both trust."""

    def __init__(self, hub: Site, server: Site) -> None:
        self.hub, self.server = hub, server
        self.devices = [EphemeralDevice("lost"), EphemeralDevice("lost, too")]
        both = "".join(trusting(device) for device in self.devices)
        server.python(both + trusting(hub.device, revoke=True))
        with server.serving():
            hub.python(
                both + trusting(server.device, "target") + "from amesh_django.fleet import servers\n"
                "from amesh_django.fleet.delivery import deliver\n"
                f"servers.add({server.device_id!r}, {server.url!r}, by='alice')\n"
                "[deliver(row.pk) for row in Server.objects.all()]"
            )
            assert server.accepts(self.devices[0])

    def revoked(self) -> EphemeralDevice:
        """Return a device that was revoked at the hub just now."""
        device = self.devices.pop()
        self.hub.python(f"trusted.revoke({device.identity.device_id!r}, reason='stolen')")
        return device

    def let_an_hour_pass(self) -> None:
        """Let the server have heard its hub an hour ago."""
        self.server.python(
            "import datetime as dt\nfrom django.db import transaction\nfrom amesh_django.fleet.overview import hub_rows\n"
            "with transaction.atomic():\n"
            f"    rows = hub_rows()\n    row = rows.lock({self.hub.device_id!r})\n"
            "    row.last_contact_at -= dt.timedelta(hours=1)\n    rows.save_hub(row)"
        )


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _sqlite_template: Path
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("returning")
    with ExitStack() as stack:

        def database(name: str) -> dict[str, str]:
            if request.param == "postgres":
                template = request.getfixturevalue("_postgres_template")
                return stack.enter_context(databases.postgres_copy(template, f"amesh_returning_{name}"))
            (folder / f"{name}-database").mkdir()
            return databases.sqlite_copy(_sqlite_template, folder / f"{name}-database")

        yield Pair(*(Site(name, folder, database(name)) for name in ("hub", "server")))


def test_a_server_that_was_down_asks_once_and_refuses(pair: Pair) -> None:
    lost = pair.revoked()
    # All workers begin before the first request: one that begins later asks for itself.
    with (
        pair.hub.serving(GUNICORN_CMD_ARGS="--access-logfile - --threads 4") as running,
        pair.server.serving(workers=4, GUNICORN_CMD_ARGS="--preload") as restarted,
        ThreadPoolExecutor(8) as pool,
    ):
        until(lambda: restarted.output().count("Booting worker") == 4)
        assert not pair.hub.accepts(lost)  # it has begun, so that its answer to the server takes no second
        assert list(pool.map(lambda _n: pair.server.accepts(lost), range(8))) == [False] * 8
        assert running.output().count("POST /amesh/feed/pull") == 1


def test_a_server_that_returns_while_its_hub_is_away(pair: Pair) -> None:
    lost = pair.revoked()
    pair.let_an_hour_pass()
    settings = {"URL": pair.server.url, "WHEN_STALE": "refuse"}
    with pair.server.serving(TEST_AMESH=json.dumps(settings)) as restarted:
        answer = pair.server.answer(lost)
        assert (answer.status_code, answer.json()) == (503, {"error": "trust_is_stale"})
        assert answer.headers["Retry-After"] == "5"
        assert f"trust_is_stale (the hub {pair.hub.device_id} was heard last at " in restarted.output()
    with pair.server.serving() as restarted:
        assert pair.server.accepts(lost)
        assert f"trust_is_stale: the hub {pair.hub.device_id} was heard last at " in restarted.output()
        with pair.hub.serving():
            assert not pair.hub.accepts(lost)  # it has begun, so that its answer to the server takes no second
            # The hub tells nothing by itself: the server asks again.
            assert until(lambda: not pair.server.accepts(lost)) < 5
