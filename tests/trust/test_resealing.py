"""Resealing: what a person is shown when the audit log tells nothing, and that exactly that is sealed."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent
from amesh_django.trust import current_list
from authmesh.protocol.errors import AllowListError
from tests.trust.test_database_allow_list import entry, sql

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")

_SET_BACK = "UPDATE amesh_device SET revoked_at = NULL, revoked_by = '', revoke_reason = '', revision = 1"


@pytest.fixture
def devices() -> DatabaseAllowList:
    return DatabaseAllowList(by="alice")


@pytest.fixture
def stolen(devices: DatabaseAllowList) -> DatabaseAllowList:
    """A list with a device that was revoked, and that somebody made trusted again with SQL."""
    device = entry(1, name="stolen", permissions={"shell": True})
    devices.add(device)
    devices.revoke(device.device_id)
    sql(_SET_BACK)
    return devices


def integrity(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("amesh_integrity", *words, stdout=out, stderr=err)
    except CommandError as error:
        return error.returncode, out.getvalue(), f"{err.getvalue()}{error}"
    return 0, out.getvalue(), err.getvalue()


def test_a_key_whose_revocation_is_still_to_come_is_named(stolen: DatabaseAllowList) -> None:
    """As for a key that was replaced. Anyone who sets that with SQL has a device that is accepted until then."""
    sql("UPDATE amesh_device SET revoked_at = '2099-01-01 00:00:00', revoked_by = 'am_x', revoke_reason = 'rotated'")
    assert [text.split(",")[-1] for text in stolen.verify().trusted] == [" until 2099-01-01 00:00:00+00:00"]
    stolen.reseal()
    assert not current_list().snapshot().by_key[entry(1).public_key].revoked
    sql("UPDATE amesh_device SET revoke_reason = ''")
    assert stolen.verify().trusted == []
    stolen.reseal()
    assert current_list().snapshot().by_key[entry(1).public_key].revoked


def test_a_log_with_missing_events_is_said_and_all_who_would_be_trusted_are_named(stolen: DatabaseAllowList) -> None:
    AuditEvent.objects.filter(kind="revoke").delete()
    report = stolen.verify()
    assert not report.ok
    assert [problem.split(":")[0] for problem in report.problems] == ["No difference can be named"]
    trusted = f'{entry(1).device_id} (stolen) as controller, with the permissions {{"shell":true}}'
    assert report.trusted == [trusted]
    code, out, _err = integrity()
    assert code == 1
    assert "No difference can be named" in out
    assert f"Resealing would trust 1 device:\n  {trusted}" in out


def test_a_copied_event_does_not_hide_a_difference(stolen: DatabaseAllowList) -> None:
    event = AuditEvent.objects.get(kind="trust")
    event.pk, event.seq = None, 9
    event.save()
    assert any("revoked_at is ''" in problem for problem in stolen.verify().problems)


def test_a_list_with_another_key_says_that_nothing_can_be_compared(
    devices: DatabaseAllowList, settings: Any, tmp_path: Any
) -> None:
    devices.add(entry(1))
    key = tmp_path / "seal.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILE": str(key)}
    lifecycle.reset()
    report = devices.verify()
    assert "it is not known which rows were changed" in report.problems[-1]
    assert report.trusted == [f"{entry(1).device_id} (caller) as controller"]


def test_rows_that_change_before_the_answer_are_not_sealed(
    devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.add(entry(1))
    sql("UPDATE amesh_device SET friendly_name = 'renamed'")

    class Person(io.StringIO):
        def readline(self, *size: Any) -> str:
            sql("UPDATE amesh_device SET permissions_json = '{\"shell\":true}'")
            return "y\n"

    monkeypatch.setattr(sys, "stdin", Person())
    code, _out, err = integrity("--reseal")
    assert code == 1
    assert "The devices were changed after they were shown. Nothing was sealed." in err
    assert "manage.py amesh_integrity" in err
    assert not devices.verify().ok
    assert not AuditEvent.objects.filter(kind="reseal").exists()
    sql("UPDATE amesh_device SET permissions_json = '{}'")  # as it was shown
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert integrity("--reseal")[0] == 0
    assert devices.verify().ok


def test_a_program_reseals_exactly_what_it_was_shown(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    sql("UPDATE amesh_device SET friendly_name = 'renamed'")
    code, out, _err = integrity("--json", "--no-input")
    shown = json.loads(out)
    assert (code, shown["trusted"]) == (1, [f"{entry(1).device_id} (renamed) as controller"])
    words = ("--reseal", "--yes", "--json", "--digest", shown["digest"])
    sql("UPDATE amesh_device SET role = 'target'")
    code, out, err = integrity(*words)
    assert (code, json.loads(out)["resealed"]) == (1, False)
    assert "Nothing was sealed." in err
    sql("UPDATE amesh_device SET role = 'controller'")
    code, out, _err = integrity(*words)
    assert (code, json.loads(out)["resealed"]) == (0, True)
    assert devices.verify().ok
    assert integrity("--digest", shown["digest"])[0] == 2


def test_a_list_is_resealed_by_code_as_it_was_reported(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    digest = devices.verify().digest
    devices.add(entry(2))
    with pytest.raises(AllowListError, match="Nothing was sealed"):
        devices.reseal(digest=digest)
    devices.reseal(digest=devices.verify().digest)
