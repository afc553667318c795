"""Verifying the audit log: every edit, removal, insertion and swap, a cut tail and an old end are found, and named."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import placing
from amesh_django.audit.recording import record
from amesh_django.audit.verifying import Verified, verify
from amesh_django.models import AllowListSeal, AuditEvent, AuditSeal
from amesh_django.trust import current, current_list, integrity
from amesh_django.trust.chain import data_of
from tests.commands.test_management import call
from tests.support.databases import EACH_ON_ONE_PAIR
from tests.trust.rollbacks import Backup
from tests.trust.test_database_allow_list import entry, sql
from tests.trust.test_rollback import reason

pytestmark = pytest.mark.usefixtures("amesh_server")

#: Columns of an event that anyone may want to change.
COLUMNS = (
    "at", "kind", "actor_type", "actor", "device_id", "subject", "address", "reason_code", "text", "data", "revision", "mac", "link",
)  # fmt: skip


def found() -> Verified:
    return verify(current_list(), timezone.now())


def fault() -> str:
    """Return the first fault in a few words, or an empty text."""
    fault = found().fault
    return fault.text if fault is not None else ""


def seal_log() -> int:
    return placing.place_all(current_list()).events


class Log:
    """A log of 16 events: changes of the list, and others between them.

    Attributes:
        ends: the row with the end of the log after each step.
    """

    def __init__(self) -> None:
        self.devices = DatabaseAllowList(by="alice")
        self.ends: list[dict[str, Any]] = []
        for number in range(4):
            self.devices.add(entry(number, name=f"device {number}"))
            for _ in range(2):  # equal ones
                record("export", by="bob", subject=f"file {number}")
            if number % 2:
                assert seal_log() == 4
            self.ends.append(AuditSeal.objects.values().get())
            self.devices.set_permissions(entry(number).device_id, {"shell": True})
        assert (found().events, fault()) == (16, "")


@pytest.fixture
def log(default_database: Any) -> Log:
    return Log()


class Attacker:
    """Somebody who can write to the database, and has no key."""

    def __init__(self, log: Log, seed: int) -> None:
        self._ends = log.ends
        self._random = random.Random(seed)
        self.numbers = list(AuditEvent.objects.filter(seq__isnull=False).order_by("seq").values_list("seq", flat=True))

    def edit(self) -> str:
        """Change one column of an event."""
        number, column = self._random.choice(self.numbers), self._random.choice(COLUMNS)
        (value,) = AuditEvent.objects.filter(seq=number).values_list(column, flat=True)
        new: Any = f"{value or ''}x"[-32:]
        if column == "revision":
            new = (value or 0) + 1
        elif column == "at":
            new = value + dt.timedelta(microseconds=self._random.choice((1, -1, 10**9)))
        elif column in ("mac", "link"):
            place = self._random.randrange(64)
            new = value[:place] + ("0" if value[place] != "0" else "1") + value[place + 1 :]
        AuditEvent.objects.filter(seq=number).update(**{column: new})
        return f"changed {number}"

    def remove(self) -> str:
        """Remove one event or a few in a row, but not the last."""
        first = self._random.randrange(len(self.numbers) - 1)
        last = self._random.randrange(first, min(first + 4, len(self.numbers) - 1))
        AuditEvent.objects.filter(seq__in=self.numbers[first : last + 1]).delete()
        one, other = self.numbers[first], self.numbers[last]
        return f"missing {one}" if one == other else f"missing {one}–{other}"

    def cut(self) -> str:
        """Remove all events from one on."""
        first = self._random.randrange(len(self.numbers))
        AuditEvent.objects.filter(seq__gte=self.numbers[first]).delete()
        return f"cut off after {self.numbers[first] - 1}"

    def insert(self) -> str:
        """Insert a copy of an event, or one of the attacker's own, in a place that is taken or free, or in none."""
        copied = AuditEvent.objects.get(seq=self._random.choice(self.numbers))
        place = self._random.choice([*self.numbers, 0, -1, None, len(self.numbers) + 1, 10**9])
        copied.pk, copied.seq = None, place
        if self._random.random() < 0.5:
            copied.text, copied.mac, copied.link = "own", "f" * 64, "f" * 64
        copied.save()
        return "inserted" if place is None else f"inserted {place}"

    def swap(self) -> str:
        """Let two events change places."""
        one, other = self._random.sample(self.numbers, 2)
        first, second = AuditEvent.objects.get(seq=one), AuditEvent.objects.get(seq=other)
        first.seq, second.seq = other, one
        if self._random.random() < 0.5:
            first.link, second.link = second.link, first.link
        AuditEvent.objects.bulk_update([first, second], ["seq", "link"])
        return f"changed {min(one, other)}"

    def hide(self) -> str:
        """Take the place away from an event: it is one that never had one, then."""
        number = self._random.choice(self.numbers)
        AuditEvent.objects.filter(seq=number).update(seq=None, link="")
        return f"cut off after {number - 1}" if number == self.numbers[-1] else f"missing {number}"

    def restore(self) -> str:
        """Restore the row with the end of the log as it was."""
        end = self._random.choice(self._ends)
        AuditSeal.objects.update(**end)
        return f"old end {end['seq']}"

    def forge(self) -> str:
        """Change or remove the row with the end of the log."""
        if self._random.random() < 0.5:
            AuditSeal.objects.all().delete()
        else:
            AuditSeal.objects.update(seq=self._random.choice(self.numbers), mac="f" * 64)
        return "changed end"


ATTACKS: tuple[Callable[[Attacker], str], ...] = (
    Attacker.edit,
    Attacker.remove,
    Attacker.cut,
    Attacker.insert,
    Attacker.swap,
    Attacker.hide,
    Attacker.restore,
    Attacker.forge,
)


@pytest.mark.slow
@pytest.mark.parametrize("database", EACH_ON_ONE_PAIR, indirect=True)
def test_a_thousand_random_attacks_are_found_and_named(log: Log) -> None:
    times = 1000 if connection.vendor == "sqlite" else 80
    for seed in range(times):
        with transaction.atomic():
            expected = ATTACKS[seed % len(ATTACKS)](Attacker(log, seed))
            assert fault() == expected, (seed, ATTACKS[seed % len(ATTACKS)].__name__)
            transaction.set_rollback(True)
    assert fault() == ""


def test_a_log_with_the_list_restored_is_an_old_end(log: Log) -> None:
    """The seal of the list binds the end of the log, and an old list is rejected anyway."""
    seal = AllowListSeal.objects.values().get()
    backup = Backup()
    log.devices.add(entry(7))
    record("export")
    seal_log()
    AllowListSeal.objects.update(**seal)
    assert fault() == "old end 16"
    backup.restore()  # all of it: the log is good as such, and the list is rejected
    assert fault() == ""
    current.reset()
    assert reason() == "rolled_back"


def test_events_that_wait_for_their_place_too_long_are_named(log: Log) -> None:
    record("export", at=timezone.now() - dt.timedelta(hours=3, minutes=5))
    record("export")
    assert fault() == "unsealed for 3 h"
    assert found().unsealed == 2
    seal_log()
    assert (found().unsealed, fault()) == (0, "")


def test_a_damaged_log_stops_no_change_and_stays_damaged(log: Log) -> None:
    """Nobody must be able to prevent a revocation by damaging the log."""
    copied = AuditEvent.objects.get(seq=1)
    copied.pk, copied.seq = None, 17  # where the next event belongs
    copied.save()
    log.devices.revoke(entry(1).device_id)
    assert fault() == "inserted 17"
    AuditEvent.objects.filter(pk=copied.pk).delete()
    assert fault() == ""
    for damage in (lambda: AuditSeal.objects.all().delete(), lambda: AuditSeal.objects.update(seq=5, mac="f" * 64)):
        damage()
        record("export")
        assert seal_log() == 0  # nothing is placed after an end that amesh did not write
        first = (AuditEvent.objects.filter(seq__isnull=False).latest("seq").seq or 0) + 1
        log.devices.add(entry(first))
        assert seal_log() > 0
        assert verify(current_list(), timezone.now(), after=first - 1).fault.text == f"missing {first}"  # type: ignore[union-attr]
        assert verify(current_list(), timezone.now(), after=first).fault is None
        with transaction.atomic():
            AuditEvent.objects.filter(seq=first + 1).update(text="x")
            assert verify(current_list(), timezone.now(), after=first).fault.text == f"changed {first + 1}"  # type: ignore[union-attr]
            transaction.set_rollback(True)


def test_a_reseal_is_one_event_with_a_digest(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    sql("UPDATE amesh_device SET friendly_name = 'renamed'")
    digest = log.devices.verify().digest
    log.devices.reseal()
    event = AuditEvent.objects.get(kind="reseal")
    assert (event.seq, event.actor, event.device_id) == (17, "alice", "")
    data = data_of(event)
    assert (data["digest"], data["devices"], len(data["rows"]), data["removed"]) == (digest, 4, 4, [])
    sql("UPDATE amesh_device SET friendly_name = 'again' WHERE device_id = %s", entry(2).device_id)
    (problem,) = log.devices.verify().problems
    assert "friendly_name is 'again', but was sealed as 'renamed'" in problem
    # Of many devices, it takes several events.
    monkeypatch.setattr(integrity, "MAX_RESEALED", 3)
    sql("UPDATE amesh_device SET friendly_name = 'other'")
    log.devices.reseal()
    assert fault() == ""
    first, second = AuditEvent.objects.order_by("-seq")[:2][::-1]
    assert [len(data_of(one)["rows"]) for one in (first, second)] == [3, 1] and second.revision == first.revision
    assert "digest" in data_of(first) and "digest" not in data_of(second)
    sql("UPDATE amesh_device SET friendly_name = 'third' WHERE device_id = %s", entry(2).device_id)
    (problem,) = log.devices.verify().problems
    assert "friendly_name is 'third', but was sealed as 'other'" in problem


def test_the_chain_holds_across_a_rekey(log: Log, tmp_path: Path, settings: Any) -> None:
    new = tmp_path / "seal.key"
    new.write_text("ab" * 32)
    new.chmod(0o600)
    record("export")  # waits for its place
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": [str(new), None]}
    lifecycle.reset()
    assert fault() == ""
    log.devices.add(entry(8))
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": [None]}  # a process that knows the old secret only
    lifecycle.reset()
    assert fault() == ""
    AuditEvent.objects.filter(seq=9).update(text="edited")
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": [str(new), None]}
    lifecycle.reset()
    assert log.devices.rekey()
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": [str(new)]}
    lifecycle.reset()
    assert fault() == "changed 9"  # what was damaged stays so
    AuditEvent.objects.filter(seq=9).update(text="")
    assert fault() == "changed 9"
    assert verify(current_list(), timezone.now(), after=9).fault is None
    assert seal_log() == 1
    assert AuditEvent.objects.get(kind="rekey").actor == "alice"
    assert log.devices.verify().ok
    assert verify(current_list(), timezone.now(), after=9).fault is None


def test_the_command_shows_and_verifies(log: Log) -> None:
    done = call("audit", "--device", entry(1).device_id)
    assert [line.split("  ")[2:] for line in done.out.splitlines()] == [
        ["trust", f"device 1 ({entry(1).device_id})", "by alice"],
        ["grant", f"device 1 ({entry(1).device_id})", "by alice"],
    ]
    shown = json.loads(call("audit", "--kind", "export", "--json").out)["events"]
    assert len(shown) == 8 and shown[0]["subject"] == "file 0" and shown[0]["seq"] == 4
    assert "There are no such events." in call("audit", "--since", "2099-01-01").out
    assert len(json.loads(call("audit", "--since", "1h", "--json").out)["events"]) == 16
    assert call("audit", "--verify").out == "The audit log is as amesh wrote it: 16 events.\n"
    AuditEvent.objects.filter(seq__in=(7, 8)).delete()
    done = call("audit", "--verify")
    assert (done.code, "missing 7–8" in done.err) == (1, True)
    done = call("audit", "--verify", "--json")
    assert (done.code, json.loads(done.out)["fault"]["text"]) == (1, "missing 7–8")
    assert call("audit", "--verify", "--after", "8").code == 0
    for words in (["--verify", "--kind", "trust"], ["--after", "3"], ["--kind", "trusted"], ["--since", "soon"]):
        assert call("audit", *words).code == 2
    for words in (["--since", "999999d"], ["--verify", "--after", "-1"], ["--verify", "--after", "999"]):
        assert call("audit", *words).code == 2
    sql("UPDATE amesh_auditseal SET seq = seq - 1")
    done = call("audit", "--seal")
    assert done.code == 1 and "where the audit log ends was changed" in done.err and "amesh_audit --verify" in done.err
    assert "waited" not in done.out


def test_a_value_that_its_column_cannot_hold_is_named(log: Log) -> None:
    if connection.vendor != "sqlite":  # the others do not store such values
        return
    sql(f"UPDATE {AuditEvent._meta.db_table} SET at = 'x' WHERE seq = 5")  # noqa: S608
    assert fault() == "changed 5"


@pytest.mark.parametrize("is_missing", [True, False])
def test_a_seal_of_the_list_that_is_gone_or_forged_is_a_fault_and_a_reseal_says_so(log: Log, is_missing: bool) -> None:
    """Without it, nothing contradicts an old end of the log: here, the newest change is removed."""
    end = AuditSeal.objects.values().get()
    log.devices.revoke(entry(1).device_id)
    AuditEvent.objects.filter(seq=17).delete()
    AuditSeal.objects.update(**end)
    if is_missing:
        AllowListSeal.objects.all().delete()
    else:
        AllowListSeal.objects.update(hmac="f" * 64)
    word = "missing" if is_missing else "changed"
    assert fault() == f"list seal {word}"
    log.devices.revoke(entry(2).device_id)
    assert data_of(AuditEvent.objects.get(kind="revoke"))["seal"] == word
    assert fault() == f"list seal {word}"
    log.devices.reseal()
    event = AuditEvent.objects.get(kind="reseal")
    assert (data_of(event)["seal"], event.text) == (word, f"the seal of the list was {word}")
    assert fault() == ""
    log.devices.reseal()
    event = AuditEvent.objects.filter(kind="reseal").latest("id")
    assert ("seal" in data_of(event), event.text) == (False, "")
