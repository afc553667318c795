"""States, groups, and scopes under the seal: what a device is, what it may, and what is noticed if somebody edits it with SQL."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.urls import path

from amesh_django.allow_list import DatabaseAllowList, DeviceDenied
from amesh_django.decorators import device_required
from amesh_django.models import AllowListSeal, Device, DeviceGroup, SealedModelError
from amesh_django.states import UNRESTRICTED, Standing, state_of
from amesh_django.test import AmeshClient, EphemeralDevice
from amesh_django.trust import current, current_list, sealing
from amesh_django.trust.sealing import COLUMNS, now
from amesh_django.trust.verified import KnownDevice
from authmesh.protocol.errors import AllowListIntegrityFailure
from authmesh.protocol.multiset import encode_row, row_hash
from tests.trust.test_database_allow_list import entry, reason_of_failure, sql
from tests.trust.test_forged_rows import forge

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")

NOW = 1_764_000_000.0
LATER = dt.timedelta(days=90)


@pytest.fixture
def devices() -> DatabaseAllowList:
    """A list of two controllers and a target."""
    found = DatabaseAllowList(by="alice")
    found.add_all([entry(1), entry(2, permissions={"scopes": ["orders:read"]}), entry(3, "target")])
    return found


def change(number: int = 1, **columns: Any) -> None:
    """Change sealed columns of a device, as amesh does."""
    current_list().change("alice", lambda pending: _update(pending, number, columns))


def _update(pending: Any, number: int, columns: dict[str, Any]) -> None:
    pending.update(pending.find(device_id=entry(number).device_id), **columns)


def known(number: int = 1) -> KnownDevice:
    return current_list().snapshot().by_key[entry(number).public_key]


@pytest.mark.parametrize(
    ("standing", "state"),
    [
        (Standing(), "active"),
        (Standing(revoked_from=NOW), "revoked"),
        (Standing(revoked_from=NOW + 1), "active"),  # a key that was replaced
        (Standing(expires_from=NOW), "expired"),
        (Standing(expires_from=NOW + 0.001), "active"),
        (Standing(is_suspended=True), "suspended"),
        (Standing(is_suspended=True, suspended_until=NOW + 0.001), "suspended"),
        (Standing(is_suspended=True, suspended_until=NOW), "active"),
        (Standing(suspended_until=NOW + 1), "active"),
        (Standing(is_pending=True), "pending"),
        (Standing(is_denied=True), "denied"),
        # Of several, the first of: revoked, denied, suspended, expired, pending.
        (Standing(NOW, True, True, None, NOW, True), "revoked"),
        (Standing(None, True, True, None, NOW, True), "denied"),
        (Standing(None, False, True, None, NOW, True), "suspended"),
        (Standing(None, False, True, NOW, NOW, True), "expired"),
        (Standing(None, False, True, NOW, NOW + 1, True), "pending"),
    ],
)
def test_the_state_follows_from_columns_and_clock(standing: Standing, state: str) -> None:
    assert state_of(standing, NOW) == state


@device_required
def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


urlpatterns = [path("view", view)]


@pytest.mark.urls(__name__)
def test_only_an_active_device_is_accepted(devices: DatabaseAllowList, caplog: pytest.LogCaptureFixture) -> None:
    device, past = EphemeralDevice(), now() - LATER
    devices.add(device.entry())
    client, device_id = AmeshClient(device), device.identity.device_id
    assert client.get("/view").status_code == 200
    # Each comes before those above it.
    for column, state in {
        "pending_since": "pending",
        "expires_at": "expired",
        "suspended_at": "suspended",
        "denied_at": "denied",
        "revoked_at": "revoked",
    }.items():
        current_list().change(
            "alice", lambda pending, name=column: pending.update(pending.find(device_id=device_id), **{name: past})
        )
        caplog.clear()
        answer = client.get("/view")
        assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"})
        assert f"device_{state}" in caplog.text
        assert Device.objects.get(device_id=device_id).state == state
        assert devices.find(device.identity.public_key) is None
        assert device_id not in [entry.device_id for entry in devices.read()]
        assert devices.verify().ok


def test_expiry_and_the_end_of_a_suspension_need_no_change_of_the_list(devices: DatabaseAllowList) -> None:
    moment = now()
    change(1, expires_at=moment + LATER)
    change(2, suspended_at=moment, suspended_until=moment + LATER)
    before, end = AllowListSeal.objects.get().revision, (moment + LATER).timestamp()
    assert [known(number).state(end - 1) for number in (1, 2)] == ["active", "suspended"]
    assert [known(number).state(end) for number in (1, 2)] == ["expired", "active"]
    assert AllowListSeal.objects.get().revision == before


def test_a_row_and_a_seal_without_the_new_columns_are_those_of_before(devices: DatabaseAllowList) -> None:
    sealed = current_list()
    for values in sealed.rows():
        old = encode_row(*sealing.row_texts(values[:13]))
        assert sealed.hash_row(values) == row_hash(sealed.keys.hash, old)
    row = sealed.read_seal()
    assert row is not None and row.groups == ""
    message = encode_row(
        "amesh-database-seal-v2",
        sealed.keys.owner,
        *[
            str(getattr(row, name))
            for name in ("revision", "digest", "count", "controllers", "mask", "epoch", "continues")
        ],
    )
    old = row._replace(audit_seq=0, audit_link="")
    assert sealed._seal_hmac(old) == sealing.hmac.digest(sealed.keys.seal, message, "sha256").hex()


NEW = {
    "pending_since": "added_at",
    "denied_at": "added_at",
    "denied_by": "'mallory'",
    "deny_reason": "'no'",
    "suspended_at": "added_at",
    "suspended_until": "added_at",
    "suspended_by": "'mallory'",
    "suspend_reason": "'no'",
    "expires_at": "added_at",
    "groups_json": "'[\"admins\"]'",
    "kept_until": "added_at",
    "kept_by": "'mallory'",
    "kept_reason": "'no'",
    "replaced_until": "added_at",
    "replaced_by": "'mallory'",
    "note": "'no'",
    "rotation_requested_at": "added_at",
}


def assign(column: str, value: str) -> str:
    return f"UPDATE amesh_device SET {column} = {value} WHERE role = 'target'"  # noqa: S608 -- of this test only


def test_each_new_column_is_sealed(devices: DatabaseAllowList) -> None:
    """Each is set, and emptied again, with SQL; with and without triggers that tell."""
    assert set(NEW) == set(COLUMNS[13:])
    current_list().snapshot()
    for column, value in NEW.items():
        null = "NULL" if column.endswith(("_at", "_since", "_until")) else "''"
        sql(assign(column, value))
        assert reason_of_failure() == "rows_mismatch"
        assert any(column in problem for problem in devices.verify().problems), column
        sql(assign(column, null))
        current.reset()
        assert known(3).standing is UNRESTRICTED
        forge(assign(column, value))
        with pytest.raises(AllowListIntegrityFailure):
            devices.devices()
        sql(assign(column, null))
        current.reset()
    moment = now()
    change(3, **{name: moment if name.endswith(("_at", "_since", "_until")) else '["x"]' for name in NEW})
    assert devices.verify().ok
    for column in NEW:
        null = "NULL" if column.endswith(("_at", "_since", "_until")) else "''"
        forge(assign(column, null))
        current.reset()
        assert reason_of_failure() == "rows_mismatch", column
        devices.reseal()
    assert devices.verify().ok


def test_scopes_are_those_of_the_device_and_of_its_groups(devices: DatabaseAllowList) -> None:
    assert (known(1).scopes, known(2).scopes) == (frozenset(), {"orders:read"})
    current_list().change("alice", lambda pending: pending.put_group("store", ["stock:read", "orders:read"]))
    change(2, groups_json='["store", "unknown"]')
    assert known(2).scopes == {"orders:read", "stock:read"}
    # A process that has verified the list applies a change of a group without reading all rows.
    kept = current_list().snapshot()
    current_list().change("alice", lambda pending: pending.put_group("store", ["stock:*"]))
    assert current_list().snapshot() is kept
    assert known(2).scopes == {"orders:read", "stock:*"}
    current.reset()
    assert known(2).scopes == {"orders:read", "stock:*"}
    current_list().change("alice", lambda pending: pending.delete_group("store"))
    assert known(2).scopes == {"orders:read"}
    assert AllowListSeal.objects.get().groups == ""
    assert devices.verify().ok


@pytest.mark.parametrize(
    "statement",
    [
        """UPDATE amesh_devicegroup SET scopes_json = '["admin:*"]'""",
        """UPDATE amesh_devicegroup SET name = 'other'""",
        """INSERT INTO amesh_devicegroup (id, name, scopes_json) VALUES (9, 'other', '[]')""",
        "DELETE FROM amesh_devicegroup",
        """UPDATE amesh_devicegroup SET scopes_json = 'no json'""",
    ],
)
def test_a_group_that_was_edited_is_noticed(devices: DatabaseAllowList, statement: str) -> None:
    sealed = current_list()
    sealed.change("alice", lambda pending: pending.put_group("store", ["stock:read"]))
    change(2, groups_json='["store"]')
    assert "stock:read" in known(2).scopes
    sql(statement)  # the triggers tell
    assert reason_of_failure() == "rows_mismatch"
    current.reset()
    forge(statement.replace("9,", "10,").replace("'other'", "'third'"))
    current._lists["default"] = sealed
    with pytest.raises(AllowListIntegrityFailure):  # nothing more is sealed on top
        sealed.change("alice", lambda pending: pending.put_group("more", []))
    current.reset()
    assert reason_of_failure() == "rows_mismatch"
    assert any("groups" in problem for problem in devices.verify().problems)
    if "no json" not in statement:
        devices.reseal(digest=devices.verify().digest)
        assert devices.verify().ok
    with pytest.raises(SealedModelError):
        DeviceGroup(name="x", scopes_json="[]").save()
    with pytest.raises(SealedModelError):
        DeviceGroup.objects.all().delete()


def test_what_was_sealed_goes_along_when_a_device_is_revoked_in_a_rejected_list(devices: DatabaseAllowList) -> None:
    moment = now()
    current_list().change("alice", lambda pending: pending.put_group("store", ["stock:read"]))
    change(1, groups_json='["store"]', expires_at=moment + LATER, suspended_at=moment, suspend_reason="audit")
    forge(
        "UPDATE amesh_device SET groups_json = '', expires_at = NULL, suspended_at = NULL, suspend_reason = '' WHERE groups_json <> ''"
    )
    current.reset()
    devices.revoke(entry(1).device_id, reason="stolen")
    assert devices.trouble is None and devices.verify().ok
    row = Device.objects.get(device_id=entry(1).device_id)
    assert (row.groups, row.expires_at, row.suspend_reason) == (["store"], moment + LATER, "audit")


def test_the_limit_counts_whom_a_clock_or_a_person_may_bring_back(devices: DatabaseAllowList) -> None:
    past = now() - LATER
    assert devices.count("controller") == 2
    for column in ("pending_since", "expires_at", "suspended_at"):
        change(1, **{column: past})
        assert devices.count("controller") == 2
    change(1, denied_at=past)
    assert devices.count("controller") == 1
    current.reset()
    assert devices.count("controller") == 1 and devices.verify().ok


def test_trusting_again_neither_lifts_nor_approves(devices: DatabaseAllowList) -> None:
    moment = now()
    change(1, suspended_at=moment, groups_json='["store"]', expires_at=moment + LATER)
    devices.add(entry(1))
    assert known(1).state(moment.timestamp()) == "suspended" and known(1).groups_json
    devices.revoke(entry(1).device_id)
    devices.add(entry(1))  # what was decided before the revocation is not decided again
    assert known(1).standing is UNRESTRICTED and not known(1).groups_json
    change(1, pending_since=moment, denied_at=moment)
    for again in (lambda: devices.add(entry(1)), lambda: devices.add_all([entry(1), entry(4)], even_revoked=True)):
        with pytest.raises(DeviceDenied, match="was denied; nothing was changed"):
            again()
    assert devices.add_all([entry(1), entry(4)]) == [entry(1)]  # an import leaves it out
