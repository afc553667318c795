"""Verifications: the log says when it was verified last, by whom, and what was found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_django
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import checkpoints
from amesh_django.audit.recording import record
from amesh_django.audit.verifications import last_verified, verify_and_record
from amesh_django.models import AuditEvent
from amesh_django.trust import current_list
from tests.commands.test_management import call
from tests.support.databases import as_default
from tests.trust.test_database_allow_list import entry

pytestmark = pytest.mark.usefixtures("amesh_server")


@pytest.fixture(autouse=True)
def _database(sqlite_database: dict[str, str], django_db_blocker: pytest_django.DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock(), as_default(sqlite_database):
        yield


def test_the_newest_verification_says_who_and_what_was_found() -> None:
    assert last_verified() is None
    devices = DatabaseAllowList(by="alice")
    for number in range(3):
        devices.add(entry(number))
    with translation.override("de"):
        verify_and_record("anna")
    found = last_verified()
    assert found is not None and found.is_good
    assert (found.by, found.events, found.after, found.fault) == ("anna", 3, 0, "")

    checkpoint = checkpoints.make(current_list(), timezone.now(), at_once=True)
    assert checkpoint is not None
    devices.add(entry(3))
    seen: list[int] = []
    verify_and_record("bob", begin=checkpoint.end, progress=seen.append)
    found = last_verified()
    assert found is not None and (found.by, found.events, found.after) == ("bob", 2, 3)

    AuditEvent.objects.filter(seq=2).update(text="nothing happened")
    with translation.override("de"):
        assert verify_and_record("carol").fault is not None
    found = last_verified()
    assert found is not None and not found.is_good
    assert (found.by, found.fault) == ("carol", "changed 2")


def test_neither_a_forged_nor_a_copied_event_is_the_newest_verification() -> None:
    DatabaseAllowList(by="alice").add(entry(1))
    verify_and_record("anna")
    good = AuditEvent.objects.get(kind="verified")
    AuditEvent.objects.filter(seq=1).update(text="nothing happened")
    verify_and_record("bob")
    good.pk = None
    good.save()
    for _ in range(3):
        AuditEvent.objects.create(kind="verified", at=timezone.now(), actor="mallory", mac="0" * 64)
    found = last_verified()
    assert found is not None and (found.by, found.fault) == ("bob", "changed 1")


def test_the_newest_verification_is_found_by_an_index() -> None:
    record("verified", by="anna")
    with CaptureQueriesContext(connection) as queries:
        assert last_verified() is not None
    found = [one["sql"] for one in queries if "amesh_auditevent" in one["sql"]]
    assert len(found) == 2
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {found[0]}")
        assert "amesh_events_by_kind" in str(cursor.fetchall())


def test_the_command_leaves_a_verification() -> None:
    DatabaseAllowList(by="alice").add(entry(1))
    call("audit", "--verify")
    found = last_verified()
    assert found is not None and found.is_good and found.by
