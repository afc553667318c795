"""The words of hubs in the database: damage is found and stops no revocation, and what becomes of them with the list."""

from __future__ import annotations

import datetime as dt
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import receiving
from amesh_django.management import doctor
from amesh_django.management.home import DatabaseHome
from amesh_django.models import AllowListSeal, AuditEvent, Device, Hub, HubEntry
from amesh_django.test import EphemeralDevice
from amesh_django.trust import change
from authmesh.device import LocalDevice
from tests.enrollment.machines import come, make
from tests.fleet.hubs import TestHub, row, status
from tests.support.databases import as_default
from tests.support.front_ends import line_of
from tests.trust.test_rekeying import Secrets

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


@pytest.fixture
def hub(default_database: dict[str, str], amesh_server: LocalDevice) -> TestHub:
    found = TestHub(amesh_server.identity.device_id).trusted("revoke")
    found.greet()
    return found


@pytest.fixture
def amesh_trust() -> Trust:
    def trust(device: EphemeralDevice | None = None, **options: Any) -> EphemeralDevice:
        device = device or EphemeralDevice()
        DatabaseAllowList(by="person").add(device.entry(**options))
        return device

    return trust


@pytest.fixture
def secrets(tmp_path: Path, settings: Any) -> Secrets:
    return Secrets(tmp_path, settings)


def manage(name: str, *words: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command(f"amesh_{name}", *words, stdout=out, stderr=err)
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{err.getvalue()}{error}"
    return 0, out.getvalue() + err.getvalue()


def answer_of(name: str, *words: str) -> Any:
    """Return the JSON that a command prints."""
    return json.JSONDecoder().raw_decode(manage(name, *words, "--json")[1])[0]


def sql(statement: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE amesh_hubentry SET event = 'lift' WHERE serial = 1", "was changed outside Django"),
        ("UPDATE amesh_hubentry SET allowed_serial = 99, allowed_epoch = epoch", "was changed outside Django"),
        ("UPDATE amesh_hubentry SET at = '9999-12-31 23:59:59'", "was changed outside Django"),
        ("DELETE FROM amesh_hubentry WHERE serial = 1", "1 row with what the hub said about a device is missing"),
        ("UPDATE amesh_hub SET applied = 1", "the row of the hub was changed or removed"),
        ("DELETE FROM amesh_hub", "the row of the hub was changed or removed"),
    ],
)
def test_damage_is_named_stops_nothing_and_stays_visible(
    hub: TestHub, amesh_trust: Trust, statement: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    device, gone, more = amesh_trust(), EphemeralDevice(), amesh_trust()
    hub.say(hub.event("revoke", gone), hub.event("revoke", device))
    assert manage("integrity")[0] == 0 and [one.status for one in doctor.hub_words()] == ["ok"]
    sql(statement)
    code, text = manage("integrity")
    assert code == 1 and said in " ".join(text.split()) and hub.id in text
    assert "problem" in [one.status for one in doctor.hub_words()]
    assert answer_of("integrity")["hubs"]
    # The hub goes on: at most it sends the list again, and every device is out.
    event = hub.event("revoke", more)
    if hub.post(hub.message(event)).status_code == 409:
        hub.greet({gone: 1, device: 2, more: 3}, until=3, head=3)
    assert [row(one).state for one in (device, more)] == ["revoked"] * 2
    if "hubentry SET" in statement:
        hub.say(hub.event("suspend", gone), hub.event("revoke", gone))  # the row is written anew
        assert "CRITICAL" in [record.levelname for record in caplog.records]
    assert manage("integrity")[0] == 1  # a person has to look
    code, text = manage("integrity", "--reseal", "--no-input", "--yes")
    assert code == 0, text
    assert manage("integrity")[0] == 0
    later = amesh_trust()
    if hub.post(hub.message(hub.event("revoke", later))).status_code == 409:
        hub.greet({gone: 5, later: 6}, until=6, head=6)
    assert status(later) == 401 and manage("integrity")[0] == 0


def test_the_words_count_without_the_row_of_the_hub(hub: TestHub) -> None:
    """Otherwise one statement of SQL would let a key enroll that the hub has revoked."""
    gone = EphemeralDevice()
    hub.say(hub.event("revoke", gone))
    sql("DELETE FROM amesh_hub")
    assert [word["event"] for word in DatabaseHome("person").hub_words(gone.identity.public_key)] == ["revoke"]
    assert DatabaseAllowList(by="import").add_all([gone.entry()]) and not Device.objects.filter(
        device_id=gone.identity.device_id
    )


def test_an_older_row_that_is_put_back_is_found(hub: TestHub) -> None:
    device = EphemeralDevice()
    hub.say(hub.event("reinstate", device))
    old = HubEntry.objects.values().get()
    hub.say(hub.event("revoke", device))
    HubEntry.objects.filter(pk=old["id"]).update(**old)
    code, text = manage("integrity")
    assert code == 1 and "an older one that was restored" in " ".join(text.split())


def test_a_crash_leaves_neither_a_word_nor_a_change(
    hub: TestHub, amesh_trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, unknown = amesh_trust(), EphemeralDevice()
    events = [hub.event("revoke", unknown), hub.event("revoke", device)]
    before = AllowListSeal.objects.values().get(), Hub.objects.values().get()

    def crash(self: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(change.Change, "write", crash)
        with pytest.raises(MemoryError):
            hub.post(hub.message(*events))
    assert (AllowListSeal.objects.values().get(), Hub.objects.values().get()) == before
    assert not HubEntry.objects.exists() and status(device) == 200
    assert hub.say(*events).applied == 2 and status(device) == 401


def test_a_server_that_was_restored_from_a_backup_catches_up(hub: TestHub, amesh_trust: Trust) -> None:
    devices = [amesh_trust() for _ in range(3)]
    hub.say(hub.event("revoke", devices[0]))
    rows, words = Hub.objects.values().get(), list(HubEntry.objects.values())
    hub.say(hub.event("revoke", devices[1]))
    HubEntry.objects.all().delete()
    HubEntry.objects.bulk_create([HubEntry(**one) for one in words])
    Hub.objects.filter(pk=rows["id"]).update(**rows)
    assert not DatabaseAllowList().verify().hubs
    third = hub.event("revoke", devices[2])
    assert hub.say(third, after=2, head=3, status=409).applied == 1
    second = hub.event("revoke", devices[1], 2)
    assert hub.say(second, third, after=1, head=3).applied == 3
    assert [row(one).state for one in devices] == ["revoked"] * 3 and not DatabaseAllowList().verify().hubs


def test_more_than_the_limit_of_a_minute_waits(
    hub: TestHub, amesh_trust: Trust, settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AMESH = {**settings.AMESH, "HUB_MAX_PER_MINUTE": 3}
    lifecycle.reset()
    devices = [amesh_trust() for _ in range(7)]
    unknown = [hub.event("revoke", EphemeralDevice()) for _ in range(5)]  # changes no device here
    events = [*unknown, *[hub.event("revoke", device) for device in devices[:2]]]
    events += [hub.event("revoke", device, 8) for device in devices[2:]]  # one revision
    message = hub.message(*events)
    response = hub.post(message)
    assert response.status_code == 429 and 0 < int(response["Retry-After"]) <= 60
    assert response.json()["applied"] == 7 and [status(one) for one in devices] == [401] * 3 + [200] * 4
    assert hub.post(message).status_code == 429
    critical = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert len(critical) == 1 and "HUB_MAX_PER_MINUTE" in critical[0].message
    assert AuditEvent.objects.filter(kind="hub_held").count() == 1
    for minute, left in ((1, 1), (2, 0)):
        Hub.objects.update(minute_at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=61))
        assert hub.post(message).status_code == (429 if left else 200), minute
        assert [status(one) for one in devices].count(200) == left
    assert Hub.objects.get().applied == 8 and not DatabaseAllowList().verify().hubs


def test_the_oldest_words_about_unknown_keys_go_first(
    hub: TestHub, amesh_trust: Trust, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(receiving, "MAX_TOMBSTONES", 3)
    known, unknown = amesh_trust(), [EphemeralDevice() for _ in range(5)]
    hub.say(hub.event("revoke", known), *[hub.event("revoke", device) for device in unknown])
    left = {entry.device_id for entry in HubEntry.objects.all()}
    assert left == {one.identity.device_id for one in (known, *unknown[2:])}
    assert "2 of the oldest words" in caplog.text and not DatabaseAllowList().verify().hubs


def test_no_hub_uses_up_what_another_one_may_say(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_TOMBSTONES", 3)
    hub.say(*[hub.event("revoke", EphemeralDevice()) for _ in range(3)])
    other, lost = TestHub(hub.server).trusted("revoke"), EphemeralDevice()
    other.greet()
    other.say(other.event("revoke", lost))
    assert HubEntry.objects.filter(hub=other.id).count() == 1 and HubEntry.objects.count() == 4
    assert DatabaseAllowList(by="import").add_all([lost.entry()])  # skipped
    hub.say(hub.event("revoke", EphemeralDevice()))
    assert HubEntry.objects.filter(hub=hub.id).count() == 3 and not DatabaseAllowList().verify().hubs


def test_another_secret_of_the_seal(hub: TestHub, amesh_trust: Trust, secrets: Secrets) -> None:
    """The words of hubs get it with the list, and damage does not become good by that."""
    gone, other = EphemeralDevice(), EphemeralDevice()
    second = TestHub(hub.server).trusted("revoke")
    second.greet()
    hub.say(hub.event("revoke", gone))
    second.say(second.event("revoke", gone), second.event("revoke", other))
    sql("UPDATE amesh_hubentry SET event = 'lift' WHERE hub = %s AND serial = 2", second.id)
    secrets.use(secrets.new, None)
    assert DatabaseAllowList().verify().hubs
    assert hub.say(hub.event("revoke", EphemeralDevice())).applied == 2  # under the old secret
    assert DatabaseAllowList().rekey()
    secrets.use(secrets.new)
    found = DatabaseAllowList().verify()
    assert found.ok and found.hubs and all(second.id in text for text in found.hubs)
    device = amesh_trust()
    assert hub.say(hub.event("revoke", device)).applied == 3 and status(device) == 401
    assert come(make(), gone).json() == {"error": "key_denied"}


def test_people_are_told_before_they_trust(hub: TestHub) -> None:
    device, other = EphemeralDevice("laptop"), EphemeralDevice()
    hub.say(hub.event("revoke", device, reason="stolen"))
    remarks = DatabaseHome("person").remarks(device.identity.public_key) or ""
    assert f"The hub {hub.id} revoked it" in remarks and "stolen" in remarks and "in spite of that" in remarks
    assert manage("trust", line_of(device), "--role", "controller", "--no-input")[0] == 1
    assert not Device.objects.filter(device_id=device.identity.device_id).exists()
    answer = answer_of("trust", line_of(device), "--role", "controller", "--yes")
    (word,) = answer["devices"][0]["hubs"]
    assert (word["hub"], word["event"], word["reason"]) == (hub.id, "revoke", "stolen")
    assert status(device) == 200
    assert DatabaseHome("person").remarks(device.identity.public_key) is None  # it is decided
    answer = answer_of("trust", line_of(other), "--role", "controller", "--yes")
    assert "hubs" not in answer["devices"][0]
    answer = answer_of("trust", line_of(device), "--role", "controller", "--yes")
    assert "hubs" not in answer["devices"][0]  # it is decided


def test_people_lift_and_reinstate_in_spite_of_a_hub(hub: TestHub, amesh_trust: Trust) -> None:
    second = TestHub(hub.server).trusted("revoke")
    second.greet()
    device, people = amesh_trust(), DatabaseAllowList(by="person")
    hub.say(hub.event("suspend", device))
    people.lift([device.identity.device_id])
    second.say(second.event("suspend", device), second.event("lift", device))
    assert status(device) == 200  # the first hub does not suspend it again
    hub.say(hub.event("revoke", device))
    people.reinstate(device.identity.device_id)
    second.say(second.event("revoke", device), second.event("reinstate", device))
    assert status(device) == 200 and not people.verify().hubs


def test_messages_of_one_hub_at_once(hub: TestHub, amesh_trust: Trust, default_database: dict[str, str]) -> None:
    """Heartbeats, events, and decisions of people, in threads of their own: no word is lost, and no lock waits for another one."""
    devices = [amesh_trust() for _ in range(8)]
    events = [hub.event("revoke", device) for device in devices]
    problems: list[object] = []

    def run(number: int) -> None:
        try:
            for event in events[number::2]:
                response = hub.post(hub.message(*events[: event.serial], after=0, head=8, until=event.serial))
                if response.status_code != 200:
                    problems.append(response.content)
                hub.post(hub.message(after=0, head=8, until=0))
        except BaseException as error:
            problems.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems and Hub.objects.get().applied == 8
    assert HubEntry.objects.count() == 8 and {row(one).state for one in devices} == {"revoked"}
    assert not DatabaseAllowList().verify().hubs


class ToOther:
    """A router that keeps the tables of amesh in another database than the default one."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "other" if model._meta.app_label == "amesh" else None

    db_for_write = db_for_read


@contextmanager
def other_database(database: dict[str, str]) -> Iterator[None]:
    """Make a database another one than the default, with transactions around each request."""
    found = connections.configure_settings({"default": {}, "other": {**database, "ATOMIC_REQUESTS": True}})
    connections.settings["other"] = found["other"]
    try:
        with override_settings(DATABASE_ROUTERS=[f"{__name__}.ToOther"]):
            lifecycle.reset()
            yield
    finally:
        connections["other"].close()
        del connections["other"]
        del connections.settings["other"]
        lifecycle.reset()


def test_a_list_in_another_database_with_atomic_requests(
    default_database: dict[str, str], amesh_server: LocalDevice
) -> None:
    empty = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "ATOMIC_REQUESTS": True}
    with as_default(empty), other_database(default_database):
        hub, device = TestHub(amesh_server.identity.device_id).trusted("revoke"), EphemeralDevice()
        hub.greet()
        DatabaseAllowList(by="person").add(device.entry())
        hub.say(hub.event("revoke", device), hub.event("revoke", EphemeralDevice()))
        assert status(device) == 401 and Hub.objects.db_manager("other").get().entries == 2
        assert not DatabaseAllowList().verify().hubs


def test_a_list_that_comes_again_goes_on_where_it_ended(
    hub: TestHub, amesh_trust: Trust, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that got no answer in time sends all of it again. What was applied is skipped: nothing is written, recorded, or counted twice."""
    devices = [amesh_trust() for _ in range(6)]
    unknown = [EphemeralDevice() for _ in range(3)]
    settings.AMESH = {**settings.AMESH, "HUB_MAX_PER_MINUTE": len(devices)}
    lifecycle.reset()
    monkeypatch.setattr(receiving, "MAX_EVENTS", 2)
    apply, sizes = receiving._apply, list[int]()

    def applies(pending: Any, message: Any, events: Any, *args: Any, **options: Any) -> Any:
        if len(sizes) == ends_at:
            raise MemoryError  # the process is killed
        sizes.append(len(events))
        return apply(pending, message, events, *args, **options)

    monkeypatch.setattr(receiving, "_apply", applies)
    hub.epoch = "f" * 32
    message = hub.message(revocations=hub.list([*devices, *unknown]), after=0, head=1, until=1)
    ends_at = 2
    with pytest.raises(MemoryError):
        hub.post(message)
    assert sizes == [2, 2] and [status(one) for one in devices] == [401] * 4 + [200] * 2
    sizes, ends_at = [], 99
    assert hub.post(message).status_code == 200
    assert sizes == [2, 2, 1, 0] and [status(one) for one in devices] == [401] * 6
    assert AuditEvent.objects.filter(kind="revoke", actor=hub.by).count() == 6
    assert (Hub.objects.get().minute_count, HubEntry.objects.count()) == (6, 9)
    sizes = []
    assert hub.post(message).status_code == 200 and sizes == [0]
    # A word that was changed outside Django does not count, and its key is revoked again.
    back = row(devices[5])
    DatabaseAllowList(by="person").reinstate(back.device_id)
    sql("UPDATE amesh_hubentry SET serial = 9, allowed_serial = NULL WHERE device_id = %s", back.device_id)
    Hub.objects.update(minute_at=None)
    sizes = []
    assert hub.post(message).status_code == 200 and sizes == [1, 0] and status(devices[5]) == 401
