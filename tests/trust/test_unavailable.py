"""A database that is down, and connections to PostgreSQL that the server has closed while they were idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from pytest_django.plugin import DjangoDbBlocker

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.enrollment import rotating, tokens
from amesh_django.test import AmeshClient, EphemeralDevice
from amesh_django.trust import current_list
from authmesh.device import LocalDevice
from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.errors import AllowListUnavailable
from tests.enrollment.machines import come, make
from tests.enrollment.test_rotation import ask
from tests.support.databases import as_default
from tests.support.services import Postgres

Break = Callable[[], None]


@pytest.fixture
def device(
    postgres_database: dict[str, str], amesh_server: LocalDevice, django_db_blocker: DjangoDbBlocker
) -> Iterator[EphemeralDevice]:
    """A trusted device, on PostgreSQL. The connection of this thread stays open from one request to the next."""
    found = EphemeralDevice()
    with django_db_blocker.unblock(), as_default(postgres_database):
        DatabaseAllowList().add(found.entry())
        yield found


@pytest.fixture(params=["terminated", "restarted"])
def break_connection(
    request: pytest.FixtureRequest,
    device: EphemeralDevice,
    postgres_server: Postgres,
    postgres_database: dict[str, str],
) -> Break:
    """Break all connections to the database: end their sessions, or restart the server."""

    def terminate() -> None:
        name = postgres_database["NAME"]
        postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608

    def restart() -> None:
        with postgres_server.down():
            pass

    return terminate if request.param == "terminated" else restart


def test_a_stale_connection_is_opened_again(device: EphemeralDevice, break_connection: Break) -> None:
    client = AmeshClient(device)
    for _again in range(2):
        assert client.get(CHECK_PATH).status_code == 200
        connection.ensure_connection()
        break_connection()
    assert client.get(CHECK_PATH).status_code == 200
    break_connection()
    DatabaseAllowList().revoke(device.identity.device_id)
    assert client.get(CHECK_PATH).status_code == 401


def test_a_stale_connection_in_a_transaction_is_left_alone(device: EphemeralDevice, break_connection: Break) -> None:
    """What the transaction has done is lost: it must not go on with a connection of its own."""
    with pytest.raises(AllowListUnavailable), transaction.atomic():
        connection.ensure_connection()
        before = connection.connection
        break_connection()
        try:
            current_list().snapshot()
        finally:
            assert connection.connection is before
    assert current_list().snapshot().by_key


def test_a_connection_that_works_is_not_closed(device: EphemeralDevice) -> None:
    """The read fails for another reason."""
    before = connection.connection
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE amesh_allowlistseal RENAME TO somewhere_else")
    with pytest.raises(AllowListUnavailable):
        current_list().snapshot()
    assert connection.connection is before


def fails(*arguments: Any, **options: Any) -> Any:
    """Use the connection just when the database ends the session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize("where", ["user", "enroll", "rotate"])
def test_a_connection_that_ends_after_the_list_was_read_is_no_manipulation(
    device: EphemeralDevice, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    client, token = AmeshClient(device), make()
    if where == "user":
        DatabaseAllowList().map_user(device.identity.device_id, get_user_model().objects.create_user("robot"))
        monkeypatch.setattr(get_user_model()._default_manager, "filter", fails)
        answer = client.get(CHECK_PATH)
    elif where == "enroll":
        monkeypatch.setattr(tokens, "find", fails)
        answer = come(token, EphemeralDevice())
    else:
        monkeypatch.setattr(rotating, "_replace", fails)
        answer = ask(device, EphemeralDevice(), amesh_server)
    assert (answer.status_code, answer.json()) == (503, {"error": "allow_list_unavailable"})
    assert int(answer["Retry-After"]) > 0
    connection.close()
    monkeypatch.undo()
    assert client.get(CHECK_PATH).status_code == 200
    assert DatabaseAllowList().count("controller") == 1


def test_a_database_that_is_down_is_no_manipulation(device: EphemeralDevice, postgres_server: Postgres) -> None:
    client = AmeshClient(device)
    assert client.get(CHECK_PATH).status_code == 200
    with postgres_server.down():
        for _again in range(2):
            answer = client.get(CHECK_PATH)
            assert (answer.status_code, answer.json()) == (503, {"error": "allow_list_unavailable"})
            assert int(answer["Retry-After"]) > 0
        for use in (
            DatabaseAllowList().read,
            lambda: DatabaseAllowList().get(device.identity.device_id),
            lambda: DatabaseAllowList().revoke(device.identity.device_id),
            lambda: DatabaseAllowList().set_permissions(device.identity.device_id, {}),
        ):
            with pytest.raises(AllowListUnavailable):
                use()
    assert client.get(CHECK_PATH).status_code == 200
