"""Archiving: the oldest events move to a file, what is needed of them stays, and a cut by somebody else is found."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.admin.devices.history import history
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import archiving, placing
from amesh_django.audit.recording import record
from amesh_django.audit.verifying import AuditLogFault, verify
from amesh_django.models import AllowListSeal, AuditEvent, AuditSeal, Device, Server
from amesh_django.trust import current, current_list
from amesh_django.trust.chain import data_of
from authmesh.protocol.errors import StorageError
from tests.commands.test_management import call
from tests.trust.test_clocks import rotate
from tests.trust.test_database_allow_list import entry, sql

pytestmark = pytest.mark.usefixtures("amesh_server", "default_database")

#: Events of the log that each test begins with.
EVENTS = 11


@pytest.fixture
def devices() -> DatabaseAllowList:
    """A list of which device 0 is trusted, 1 is revoked, 2 was purged, and 3 was changed."""
    found = DatabaseAllowList(by="alice")
    for number in range(4):
        found.add(entry(number, name=f"device {number}"))
        record("export", by="bob")
    for number in (1, 2):
        found.revoke(entry(number).device_id)
    found.purge(entry(2).device_id)
    placing.place_all(current_list())
    assert AuditEvent.objects.filter(seq__isnull=False).count() == EVENTS
    return found


def archive(path: Path, before: dt.datetime | None = None) -> archiving.Cut:
    sealed, now = current_list(), timezone.now()
    cut = archiving.plan(sealed, before or now + dt.timedelta(seconds=1))
    digest = archiving.archive(sealed, cut, path, by="carol", now=now)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    return cut


def fault() -> str:
    found = verify(current_list(), timezone.now()).fault
    return found.text if found is not None else ""


def test_the_oldest_events_move_to_a_file_that_is_verified_alone(devices: DatabaseAllowList, tmp_path: Path) -> None:
    archive(tmp_path / "1")
    found = verify(current_list(), timezone.now())
    assert (found.fault, found.events, found.start) == (None, 1, EVENTS)
    event = AuditEvent.objects.get()
    data = data_of(event)
    assert (event.kind, event.actor, event.text) == ("archive", "carol", "events 1 to 11")
    assert (data["from"], data["to"], data["file"]) == (1, EVENTS, "1")
    assert stat.S_IMODE((tmp_path / "1").stat().st_mode) == 0o600
    devices.set_permissions(entry(0).device_id, {"shell": True})
    archive(tmp_path / "2")
    assert verify(current_list(), timezone.now()).start == EVENTS + 2
    for name, first, last in (("1", 1, EVENTS), ("2", EVENTS + 1, EVENTS + 2)):
        checked = archiving.verify_file(current_list(), tmp_path / name)
        assert (checked.first, checked.last) == (first, last)
    devices.revoke(entry(0).device_id)
    assert fault() == "" and devices.verify().ok


def test_what_the_list_needs_of_them_stays(
    devices: DatabaseAllowList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "MAX_ROWS", 2)
    before = current_list().sealed_rows(None).rows
    archive(tmp_path / "1", AuditEvent.objects.get(seq=4).at)
    devices.set_permissions(entry(3).device_id, {"shell": True})
    after = {**before, entry(3).device_id: current_list().sealed_rows(None).rows[entry(3).device_id]}
    archive(tmp_path / "2")
    seal = current_list().read_seal()
    sealed = current_list().sealed_rows(seal)
    assert sealed.rows == after and sealed.is_complete
    lines, is_more = history(entry(1).device_id)
    assert [(str(line.action), line.by) for line in lines] == [("older events archived", "carol")] and not is_more
    sql("UPDATE amesh_device SET friendly_name = 'x' WHERE device_id = %s", entry(0).device_id)
    current.reset()
    (problem,) = devices.verify().problems
    assert "friendly_name is 'x', but was sealed as 'device 0'" in problem
    devices.revoke(entry(0).device_id)  # in a list that is rejected: the row is written as it was sealed
    assert devices.verify().ok and Device.objects.get(device_id=entry(0).device_id).friendly_name == "device 0"
    assert fault() == ""


def test_a_cut_that_somebody_made_with_sql_is_found(devices: DatabaseAllowList, tmp_path: Path) -> None:
    old = [AuditEvent.objects.get(seq=3)]
    archive(tmp_path / "1", AuditEvent.objects.get(seq=4).at)
    start = AuditSeal.objects.filter(pk=2).values().get()
    events = list(AuditEvent.objects.order_by("seq"))
    first = events[0].seq or 0
    AuditEvent.objects.filter(seq__in=(first, first + 1)).delete()
    assert fault() == f"missing {first}–{first + 1}"
    AuditSeal.objects.filter(pk=2).update(seq=first + 1, link=events[1].link)
    assert fault() == "changed start"
    AuditSeal.objects.filter(pk=2).delete()
    assert fault() == f"missing 1–{first + 1}"
    AuditSeal.objects.create(**start)
    AuditEvent.objects.bulk_create(events[:2])
    assert fault() == ""
    AuditEvent.objects.bulk_create(old)  # one that was archived, again
    assert fault() == "inserted 3"
    AuditEvent.objects.filter(seq=3).delete()
    archive(tmp_path / "2")
    AuditSeal.objects.filter(pk=2).update(**start)  # as it was before
    assert fault().startswith(f"missing {first}")
    assert not AllowListSeal.objects.filter(audit_seq=0).exists()


@pytest.mark.parametrize("damage", ["edit", "remove", "cut", "swap", "header", "empty"])
def test_a_file_that_was_changed_is_found(devices: DatabaseAllowList, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "1"
    archive(path)
    lines = path.read_text().splitlines(keepends=True)
    if damage == "edit":
        lines[3] = lines[3].replace("device 2", "device 9")
    elif damage == "remove":
        del lines[5]
    elif damage == "cut":
        del lines[-1]
    elif damage == "swap":
        lines[2:4] = lines[3], lines[2]
    elif damage == "header":
        lines[:] = [json.dumps({**json.loads(lines[0]), "to": EVENTS - 1}) + "\n", *lines[1:-1]]
    else:
        lines.clear()
    path.write_text("".join(lines))
    with pytest.raises(AuditLogFault):
        archiving.verify_file(current_list(), path)


def test_nothing_is_lost_if_it_is_refused(devices: DatabaseAllowList, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        archive(taken)
    assert taken.read_text() == "mine"
    with pytest.raises(archiving.NotArchived, match="No event is that old"):
        archive(tmp_path / "1", AuditEvent.objects.get(seq=1).at)
    cut = archiving.plan(current_list(), timezone.now() + dt.timedelta(seconds=1))
    AuditEvent.objects.filter(seq=4).update(text="x")
    with pytest.raises(AuditLogFault, match="Event 4"):
        archive(tmp_path / "1")
    AuditEvent.objects.filter(seq=4).update(text="")
    archive(tmp_path / "1", AuditEvent.objects.get(seq=3).at)
    with pytest.raises((archiving.NotArchived, AuditLogFault)):  # somebody was faster
        archiving.archive(current_list(), cut, tmp_path / "2", by="", now=timezone.now())
    assert not (tmp_path / "2").exists() and [path.name for path in tmp_path.glob(".*")] == []
    assert fault() == ""


def test_a_cut_that_was_made_while_the_file_was_written_is_noticed(
    devices: DatabaseAllowList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, sealed = archiving._write, current_list()
    cut = archiving.plan(sealed, timezone.now() + dt.timedelta(seconds=1))

    def slow(path: Path, lines: Any) -> str:
        digest = write(path, lines)
        monkeypatch.undo()
        archive(tmp_path / "other")
        return digest

    monkeypatch.setattr(archiving, "_write", slow)
    with pytest.raises(archiving.NotArchived, match="meanwhile"):
        archiving.archive(sealed, cut, tmp_path / "1", by="", now=timezone.now())
    assert fault() == "" and AuditEvent.objects.filter(kind="archive").count() == 1


def test_what_a_server_of_the_fleet_was_not_told_stays(devices: DatabaseAllowList, tmp_path: Path) -> None:
    epoch = AllowListSeal.objects.get().epoch
    columns = {"added_at": timezone.now(), "mac": "f" * 64, "epoch": epoch}
    Server.objects.create(device_id="am_1", url="https://a.example/", acked=2, **columns)
    Server.objects.create(device_id="am_2", url="https://b.example/", acked=0, **{**columns, "epoch": "other"})
    cut = archive(tmp_path / "1")
    assert cut.limited_by == "https://a.example/"
    assert min(AuditEvent.objects.filter(revision__isnull=False).values_list("revision", flat=True)) == 3
    with pytest.raises(archiving.NotArchived, match=r"The server https://a\.example/"):
        archive(tmp_path / "2")
    Server.objects.update(enabled=False)
    archive(tmp_path / "2")
    assert fault() == ""


def test_a_revision_is_never_cut_in_two(devices: DatabaseAllowList, tmp_path: Path) -> None:
    """The feed would take what is left of it for all of it, and the servers would lack the rest."""
    devices.add_all([entry(number) for number in (10, 11, 12)])
    rows = list(AuditEvent.objects.filter(revision=AllowListSeal.objects.get().revision).order_by("seq"))
    assert len(rows) == 3 and rows[0].at < rows[1].at
    assert archive(tmp_path / "1", rows[1].at).end.seq == (rows[0].seq or 0) - 1
    assert fault() == ""


def test_the_log_is_rekeyed_after_an_archive(devices: DatabaseAllowList, tmp_path: Path, settings: Any) -> None:
    archive(tmp_path / "1")
    new = tmp_path / "seal.key"
    new.write_text("ab" * 32)
    new.chmod(0o600)
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": [str(new), None]}
    lifecycle.reset()
    assert devices.rekey()
    archiving.verify_file(current_list(), tmp_path / "1")
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": [str(new)]}
    lifecycle.reset()
    assert fault() == "" and verify(current_list(), timezone.now()).start == EVENTS
    with pytest.raises(AuditLogFault, match="another secret"):
        archiving.verify_file(current_list(), tmp_path / "1")


def test_the_command_asks_archives_and_verifies(devices: DatabaseAllowList, tmp_path: Path) -> None:
    path, tomorrow = str(tmp_path / "1"), (timezone.now() + dt.timedelta(days=2)).date().isoformat()
    assert call("audit", "--archive", path, "--before", tomorrow, "--no-input").code == 1
    assert not Path(path).exists() and AuditEvent.objects.filter(seq=1).exists()
    done = call("audit", "--archive", path, "--before", tomorrow, "--yes", "--json")
    answer = json.loads(done.out)
    assert (done.code, answer["from"], answer["to"]) == (0, 1, EVENTS + 1)  # the settings were noted before
    assert list(AuditEvent.objects.order_by("id").values_list("kind", flat=True)) == [
        "archive",
        "setting",
        "checkpoint",
    ]
    done = call("audit", "--seal", "--verify")
    assert (done.code, f"The log begins after event {EVENTS + 1}" in done.out) == (0, True)
    assert call("audit", "--verify", "--from-checkpoint").code == 0
    assert f"events 1 to {EVENTS + 1}" in call("audit", "--verify", "--file", path).out
    assert "exists already" in call("audit", "--archive", path, "--before", tomorrow, "--yes").err
    Path(path).write_text("{}\n")
    assert call("audit", "--verify", "--file", path).code == 1
    for words in (
        ["--archive", path],
        ["--before", "1d"],
        ["--file", path],
        ["--archive", path, "--before", "1d", "--seal"],
    ):
        assert call("audit", *words).code == 2


def test_a_replaced_key_is_found_by_an_archived_event(devices: DatabaseAllowList, tmp_path: Path) -> None:
    """Revoking the new key in a rejected list revokes the old one, whose row somebody has changed."""
    rotate(0, 3)
    archive(tmp_path / "1")
    old = Device.objects.filter(device_id=entry(0).device_id)
    sql("UPDATE amesh_device SET revoked_at = NULL, revoked_by = '', revoke_reason = '' WHERE id = %s", old.get().pk)
    current.reset()
    devices.revoke(entry(3).device_id)
    assert old.get().revoked_by == "alice"
