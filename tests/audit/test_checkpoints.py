"""Checkpoints: one an hour, signed, and checked by an auditor who has nothing but the public key; verifying from the newest."""

from __future__ import annotations

import base64
import datetime as dt
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import checkpoints, sweeping
from amesh_django.audit.checkpoints import Checkpoint
from amesh_django.audit.placing import Placed
from amesh_django.audit.recording import record
from amesh_django.audit.sweeping import sweep
from amesh_django.audit.verifying import verify
from amesh_django.models import AuditEvent, AuditSeal
from amesh_django.trust import current_list
from amesh_django.trust.chain import data_of
from amesh_django.trust.owner import open_device
from authmesh.protocol.errors import KeyStoreError
from authmesh.protocol.keys import encode_public_key
from tests.commands.test_management import call
from tests.support.documents import blocks
from tests.support.services import ROOT
from tests.trust.test_database_allow_list import entry

pytestmark = pytest.mark.usefixtures("amesh_server", "default_database")

NOW = timezone.now()


def later(minutes: int) -> dt.datetime:
    return NOW + dt.timedelta(minutes=minutes)


def made() -> list[Checkpoint]:
    return [one for _event, one in checkpoints.every(current_list())]


def test_one_is_made_each_hour_in_which_something_happened(caplog: pytest.LogCaptureFixture) -> None:
    assert sweep(NOW) == sweeping.Swept(Placed(0, 0), None)  # an empty log
    DatabaseAllowList().add(entry(1))
    record("export")
    caplog.set_level("INFO", "amesh_django.audit")
    swept = sweep(NOW)
    one = swept.checkpoint
    assert swept.placed.events == 1 and one is not None and one.is_signed
    assert (one.seq, one.revision) == (2, 1)
    assert one.link == AuditEvent.objects.get(seq=2).link
    (logged,) = [found for found in caplog.records if getattr(found, "event", "") == "checkpoint"]
    assert Checkpoint.from_json(logged.checkpoint) == one  # type: ignore[attr-defined]
    assert sweep(later(61)).checkpoint is None  # nothing happened
    record("export")
    assert sweep(later(59)) == sweeping.Swept(Placed(1, 0), None)
    assert sweep(later(-10)).checkpoint is None  # the clock of another host
    again = sweep(later(60)).checkpoint
    assert again is not None and again.seq == 4 and made() == [one, again]
    assert verify(current_list(), timezone.now()).fault is None


def test_the_signature_binds_every_member() -> None:
    record("export")
    one = sweep(NOW).checkpoint
    assert one is not None
    for name, value in {
        **one.as_json(),
        "seq": 7,
        "link": "0" * 64,
        "revision": 9,
        "at": "2026",
        "deviceId": "am_x",
    }.items():
        other = Checkpoint.from_json({**one.as_json(), name: value})
        assert other is not None and other.is_signed == (other == one), name
    assert Checkpoint.from_json({**one.as_json(), "seq": True}) is None


@pytest.mark.slow
def test_processes_that_sweep_at_once_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads find that it is time before one of them has the lock."""
    record("export")
    sweep(NOW)
    record("export")
    threads, gate, signed, errors = 4, threading.Barrier(4), checkpoints.signed, []

    def sign(*arguments: Any) -> Checkpoint:
        found = signed(*arguments)
        gate.wait(10)
        return found

    def work() -> None:
        try:
            sweep(later(90))
        except Exception as error:
            errors.append(error)
        finally:
            connections.close_all()

    monkeypatch.setattr(checkpoints, "signed", sign)
    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not errors and len(made()) == 2
    assert verify(current_list(), timezone.now()).fault is None


def test_a_key_that_cannot_sign_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sign(*arguments: Any) -> Any:
        raise KeyStoreError("The key needs a PIN.")

    monkeypatch.setattr(checkpoints, "signed", sign)
    record("export")
    assert sweep(NOW).placed.events == 1
    record("export")
    assert sweep(NOW + dt.timedelta(seconds=59)).placed.events == 1
    assert [found.message for found in caplog.records] == [
        "No checkpoint of the audit log could be made: The key needs a PIN."
    ]
    monkeypatch.undo()
    assert sweep(later(2)).checkpoint is not None


def test_verifying_from_the_newest_one() -> None:
    devices = DatabaseAllowList()
    for number in range(3):
        devices.add(entry(number))
    assert "There is no valid checkpoint" in call("audit", "--verify", "--from-checkpoint").out
    assert "A checkpoint was made: the log ended with event 5." in call("audit", "--seal").out
    devices.add(entry(4))
    done = call("audit", "--verify", "--from-checkpoint")
    assert (done.code, "after event 5" in done.out, ": 2 events." in done.out) == (0, True, True)
    AuditEvent.objects.filter(seq=2).update(text="x")  # before it
    assert call("audit", "--verify", "--from-checkpoint").code == 0
    for damage in ({"mac": "f" * 64}, {"seq": 2}):  # the row that names it: then all is verified
        kept = AuditSeal.objects.filter(pk=3).values().get()
        AuditSeal.objects.filter(pk=3).update(**damage)
        assert "changed 2" in call("audit", "--verify", "--from-checkpoint").err
        AuditSeal.objects.filter(pk=3).update(**kept)
    AuditEvent.objects.filter(seq=7).update(text="x")
    assert "changed 7" in call("audit", "--verify", "--from-checkpoint").err
    event = AuditEvent.objects.get(seq=6)
    AuditEvent.objects.filter(seq=6).update(data=json.dumps({**data_of(event), "seq": 4}))
    assert "changed 2" in call("audit", "--verify", "--from-checkpoint").err
    for words in (
        ["--from-checkpoint"],
        ["--verify", "--from-checkpoint", "--after", "2"],
        ["--checkpoints", "--seal"],
    ):
        assert call("audit", *words).code == 2


def test_a_rekey_renews_the_links_so_that_a_new_one_is_made(tmp_path: Path, settings: Any) -> None:
    DatabaseAllowList().add(entry(1))
    sweep(NOW)
    new = tmp_path / "seal.key"
    new.write_text("ab" * 32)
    new.chmod(0o600)
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": [str(new), None]}
    lifecycle.reset()
    assert DatabaseAllowList().rekey()
    assert checkpoints.newest(current_list()) is None
    assert sweep(later(1)).checkpoint is not None
    assert call("audit", "--verify", "--from-checkpoint").code == 0


@pytest.mark.process
def test_an_auditor_checks_them_with_the_public_key_only(tmp_path: Path) -> None:
    """By the program in docs/fleet.md."""
    if connection.vendor != "sqlite":  # it reads two files, whatever wrote them
        return
    (program,) = [block.text for block in blocks(ROOT / "docs" / "fleet.md") if "check.py" in block.text]
    (tmp_path / "check.py").write_text(program)
    DatabaseAllowList().add(entry(1))
    sweep(NOW)
    record("export")
    sweep(later(70))
    call_out = call("audit", "--checkpoints").out
    lines, events = tmp_path / "lines", tmp_path / "events"
    lines.write_text(call_out)
    events.write_text(call("audit", "--json").out)
    assert json.loads(call("audit", "--checkpoints", "--json").out)["checkpoints"] == [
        json.loads(line) for line in call_out.splitlines()
    ]

    def check(key: bytes) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-I", "check.py", base64.b64encode(key).decode(), str(lines), str(events)]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    own = open_device().identity.public_key
    assert base64.b64decode(encode_public_key(own)) == own
    done = check(own)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 2)
    assert "was not signed by this server" in check(entry(1).public_key).stderr
    kept = events.read_text()
    events.write_text(kept.replace(AuditEvent.objects.get(seq=1).link, "0" * 64, 1))
    assert "the log was written again" in check(own).stderr
    events.write_text(kept)
    lines.write_text(call_out.replace('"revision": 1', '"revision": 2', 1))
    assert "was not signed by this server" in check(own).stderr
