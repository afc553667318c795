"""list, revoke, grant and trust with several devices, which are named by ID, by the beginning of an ID, or by name."""

from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent, DeviceActivity
from amesh_django.models import Device as DeviceRow
from amesh_django.test.devices import EphemeralDevice
from authmesh.device import AllowList, FileAllowList, LocalDevice
from tests.support.front_ends import HOSTILE, Result, id_of, invoke, line_of


class FrontEnd:
    """One of the two front ends, with the allow list that its commands change."""

    def __init__(self, allow_list: AllowList, directory: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allow_list = allow_list
        self._directory = directory
        self._patch = monkeypatch

    def __call__(self, *words: str, given: str = "") -> Result:
        if self._directory is not None:
            return invoke(["--dir", self._directory, *words], given)
        out, err, code = io.StringIO(), io.StringIO(), 0
        self._patch.setattr("sys.stdin", io.StringIO(given))
        name, *rest = words
        try:
            call_command(f"amesh_{name}", *rest, stdout=out, stderr=err)
        except CommandError as error:
            err.write(f"{error}\n")
            code = error.returncode
        return Result(code, out.getvalue().encode(), err.getvalue())

    def trusted(self) -> dict[str, dict[str, object]]:
        return {entry.device_id: dict(entry.permissions) for entry in self.allow_list.read()}

    def allow(self, *names: str, role: str = "controller") -> list[str]:
        devices = [EphemeralDevice(name) for name in names]
        self.allow_list.add_all([device.entry(role) for device in devices])  # type: ignore[arg-type]
        return [id_of(device) for device in devices]


@pytest.fixture(params=["amesh", "manage.py"])
def amesh(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FrontEnd:
    if request.param == "amesh":
        device: LocalDevice = EphemeralDevice("own").write(tmp_path / "device", max_controllers=10)
        return FrontEnd(FileAllowList(device), tmp_path / "device", monkeypatch)
    request.getfixturevalue("db")
    request.getfixturevalue("amesh_server")
    return FrontEnd(DatabaseAllowList(), None, monkeypatch)


@pytest.fixture
def listed(db: None, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch) -> FrontEnd:
    return FrontEnd(DatabaseAllowList(), None, monkeypatch)


def test_several_devices_are_revoked_after_one_question(amesh: FrontEnd) -> None:
    one, two, three, four = amesh.allow("one", "two", "three words here", "four")
    done = amesh("revoke", one, two[:9], "three words here", one, given="y\n")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("[y/N]") == 1
    assert "Revoke these 3 devices? [y/N]" in done.stderr
    assert list(amesh.trusted()) == [four]
    assert all(f"Revoked: {device_id}" in done.stdout for device_id in (one, two, three))


def test_a_no_revokes_none_of_several(amesh: FrontEnd) -> None:
    ids = amesh.allow("one", "two")
    assert amesh("revoke", "one", "two", given="n\n").exit_code == 1
    assert list(amesh.trusted()) == ids


@pytest.mark.parametrize("command", [["revoke", "--yes"], ["grant", "--shell"], ["list"]])
def test_a_name_that_is_not_unique_changes_nothing_and_lists_the_candidates(
    amesh: FrontEnd, command: list[str]
) -> None:
    same = amesh.allow("web", "web", "other")
    name, *options = command
    done = amesh(name, "other", "web", *options)
    assert done.exit_code == 1
    assert "Several devices have the name 'web'" in done.stderr
    assert f"{same[0]} (web), {same[1]} (web)" in done.stderr and "other" not in done.stderr
    assert amesh.trusted() == {key: {} for key in same}
    done = amesh(name, same[0], *options)  # the device ID is always exact
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", [["revoke", "--yes"], ["grant", "--shell"], ["list"]])
@pytest.mark.parametrize("word", ["lap", "am_", "", "am_0000000000000000", "\x1b[31mx"])
def test_an_unknown_name_changes_nothing_and_lists_the_candidates(
    amesh: FrontEnd, command: list[str], word: str
) -> None:
    """The beginning of a name is not enough: a device chooses its name itself."""
    (laptop,) = amesh.allow("laptop")
    name, *options = command
    done = amesh(name, word, *options)
    assert done.exit_code == 1
    assert f"{laptop} (laptop)" in done.stderr
    assert not set("\x1b") & set(done.stderr.splitlines()[0].replace("\\x1b", ""))
    assert amesh.trusted() == {laptop: {}}


def test_a_device_that_calls_itself_like_another_id_is_not_taken_for_it(amesh: FrontEnd) -> None:
    (phone,) = amesh.allow("phone")
    others = amesh.allow(phone, phone[:8])
    assert amesh("grant", phone[:8], "--shell").exit_code == 0
    assert amesh.trusted() == {phone: {"shell": True}, **{key: {} for key in others}}
    assert amesh("revoke", phone, "--yes").exit_code == 0
    assert list(amesh.trusted()) == others


@pytest.mark.parametrize("word", ["", " ", "\u200b", "\udcff", "(no name)"])
def test_a_word_that_shows_nothing_is_not_a_device_without_a_name(amesh: FrontEnd, word: str) -> None:
    nameless = amesh.allow("\u200b")
    assert amesh("revoke", word, "--yes").exit_code == 1
    assert list(amesh.trusted()) == nameless


@pytest.mark.parametrize("command", [["revoke", "--yes"], ["grant", "--shell"], ["list"]])
def test_the_id_of_a_revoked_device_is_not_the_name_of_another(amesh: FrontEnd, command: list[str]) -> None:
    """A device chooses its own name. If it chooses the device ID of another, it must not receive what that one should."""
    (phone,) = amesh.allow("phone")
    (impostor,) = amesh.allow(phone)
    assert amesh("revoke", phone, "--yes").exit_code == 0
    name, *options = command
    for word in (phone, phone[:8], "am_"):
        done = amesh(name, word, *options)
        assert done.exit_code == 1
        assert f"No trusted device has a device ID that begins with {word!r}. Nothing was changed." in done.stderr
    assert amesh.trusted() == {impostor: {}}


def test_a_shell_is_granted_to_several_or_to_none(amesh: FrontEnd) -> None:
    one, two = amesh.allow("one", "two")
    (target,) = amesh.allow("server", role="target")
    assert amesh("grant", "one", "server", "--shell").exit_code == 1
    assert amesh.trusted() == {one: {}, two: {}, target: {}}
    done = amesh("grant", "one", "two", "--shell", "--json")
    found = json.loads(done.stdout)["devices"]
    assert [(each["deviceId"], each["changed"], each["permissions"]) for each in found] == [
        (one, True, {"shell": True}),
        (two, True, {"shell": True}),
    ]
    done = amesh("grant", "one", "--no-shell")
    assert "may not open a shell" in done.stdout
    done = amesh("grant", "one", "two", "--shell")
    assert f"{two} (two) may open a shell on this device, as before." in done.stdout


def test_revoke_says_to_revoke_on_the_other_side(amesh: FrontEnd) -> None:
    own = json.loads(amesh("list", "--json").stdout)["device"]["deviceId"]
    amesh.allow("one", "two", "three")
    assert f"on the other device  amesh revoke {own}" in amesh("revoke", "one", "--yes").stdout
    assert f"on each of the other devices  amesh revoke {own}" in amesh("revoke", "two", "three", "--yes").stdout


def test_an_empty_list_names_listen_and_invite(amesh: FrontEnd) -> None:
    shown = amesh("list").stdout.replace("manage.py amesh_", "amesh ")
    for text in ("No device is trusted yet", "amesh listen", "amesh invite CODE", "amesh trust LINE"):
        assert text in shown
    assert "  Backend     " in shown


def test_list_shows_only_what_is_named(amesh: FrontEnd) -> None:
    one, two, three = amesh.allow("one", "two", "three")
    shown = amesh("list", "three", one[:10]).stdout
    assert one in shown and three in shown and two not in shown
    assert "Trusted devices: 3 " in shown
    found = json.loads(amesh("list", "two", "--json").stdout)["devices"]
    assert [(each["deviceId"], each["lastSeen"], each["user"], each["revokedAt"]) for each in found] == [
        (two, None, None, None)
    ]


def test_list_of_a_database_shows_all_that_it_knows(listed: FrontEnd) -> None:
    one, two = listed.allow("one", HOSTILE)
    databases = DatabaseAllowList(by="ada\x1b[31m (admin)")
    databases.map_user(one, get_user_model().objects.create_user("worker"))
    seen = dt.datetime(2026, 3, 28, 10, 5, tzinfo=dt.UTC)
    DeviceActivity.objects.create(device=DeviceRow.objects.get(device_id=one), last_seen_at=seen)
    databases.revoke(two, reason="sold\x1b[31m")
    shown = listed("list").stdout
    assert "last seen 2026-03-28 10:05 UTC, no shell" in shown
    assert "acts as the user worker" in shown
    assert "Trusted devices: 1 (1 of 100 controllers), 1 revoked (shown by --all)" in shown
    assert two not in shown
    shown = listed("list", "--all").stdout
    assert f"[revoked]     {two}" in shown
    assert "was a controller" in shown and "by ada (admin): sold" in shown
    assert not set("\x1b\x07\x9b\u202e") & set(shown)
    found = json.loads(listed("list", "--all", "--json").stdout)["devices"]
    assert [(each["lastSeen"], each["user"], each["revokedAt"] is None) for each in found] == [
        ("2026-03-28T10:05:00.000Z", "worker", True),
        (None, None, False),
    ]
    assert found[1]["revokeReason"] == "sold\x1b[31m"
    assert [each["deviceId"] for each in json.loads(listed("list", "--json").stdout)["devices"]] == [one]
    assert listed("list", two).exit_code == 1
    assert two in listed("list", "--all", two).stdout


def test_list_works_without_time_zones(listed: FrontEnd) -> None:
    with override_settings(USE_TZ=False):
        (one,) = listed.allow("one")
        DeviceActivity.objects.create(device=DeviceRow.objects.get(device_id=one), last_seen_at=timezone.now())
        listed.allow_list.revoke(one)
        assert "last seen" not in listed("list", "--all").output
        assert listed("list", "--all").exit_code == 0


def test_several_are_one_change_of_the_sealed_list(listed: FrontEnd) -> None:
    listed.allow("one", "two")
    listed("grant", "one", "two", "--shell")
    listed("revoke", "one", "two", "--yes")
    lines = AuditEvent.objects.order_by("revision").values_list("revision", "kind")
    assert sorted(lines) == [(1, "trust"), (1, "trust"), (2, "grant"), (2, "grant"), (3, "revoke"), (3, "revoke")]


# --- trust - ----------------------------------------------------------------------------------------------------------


def test_many_lines_are_one_table_and_one_question(amesh: FrontEnd) -> None:
    old, *new = EphemeralDevice("old name"), EphemeralDevice("one"), EphemeralDevice(HOSTILE)
    amesh.allow_list.add(old.entry())
    renamed = EphemeralDevice("new name", private_key=old._private_key)
    lines = [line_of(device) for device in (*new, renamed)]
    text = f"{lines[0][:50]}\n{lines[0][50:]}\n\n'{lines[1]}' {lines[2]}\n{lines[0]}\n"
    done = amesh("trust", "-", "--role", "controller", "--no-input", given=text)
    assert (done.exit_code, list(amesh.trusted())) == (1, [id_of(old)])
    done = amesh("trust", "-", "--role", "controller", "--shell", "--yes", "--json", given=text)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    ids = [id_of(device) for device in (*new, renamed)]
    assert [(each["deviceId"], each["refreshed"]) for each in found["devices"]] == [
        *((one, False) for one in ids[:2]),
        (ids[2], True),
    ]
    assert found["replaced"] is None
    assert amesh.trusted() == {key: {"shell": True} for key in ids}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda lines: [lines[0], lines[1][:-1]], "Line 2 of 2 is not valid. This line is incomplete"),
        (lambda lines: [*lines, "amesh-key-v9.x"], "Line 3 of 3 is not valid."),
        (lambda lines: [*lines, "OWN"], "the key of this device itself"),
        (lambda lines: [*lines, "TWIN"], "Line 3 of 3 has the key of an earlier line, and another name."),
        (lambda lines: lines * 6, None),
    ],
)
def test_one_bad_line_stops_all(amesh: FrontEnd, change: object, text: str | None) -> None:
    one, two = EphemeralDevice("one"), EphemeralDevice("two")
    special = {
        "OWN": lambda: amesh("export_key").stdout if amesh._directory is None else amesh("export-key").stdout,
        "TWIN": lambda: line_of(EphemeralDevice("twin", private_key=one._private_key)),
    }
    lines = [special[line]() if line in special else line for line in change([line_of(one), line_of(two)])]  # type: ignore[operator]
    done = amesh("trust", "-", "--role", "controller", "--yes", given="\n".join(lines))
    if text is None:
        assert len(amesh.trusted()) == 2
        return
    assert done.exit_code == 1
    assert text in done.stderr and "Nothing was changed." in done.stderr
    assert not amesh.trusted()


def test_many_lines_do_not_exceed_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = EphemeralDevice().write(tmp_path, max_controllers=2)
    amesh = FrontEnd(FileAllowList(device), tmp_path, monkeypatch)
    amesh.allow("present")
    text = "\n".join(line_of(EphemeralDevice(f"new {number}")) for number in range(2))
    done = amesh("trust", "-", "--role", "controller", given=f"{text}\n")
    assert done.exit_code == 1
    assert "It trusts 1, and these would be 2 more. Nothing was changed." in done.stderr
    assert "[y/N]" not in done.stderr
    assert len(amesh.trusted()) == 1
    assert amesh("trust", "-", "--role", "target", "--yes", given=text).exit_code == 0
    done = amesh("trust", "-", "--role", "target", "--replace", "am_x", given=text)
    assert done.exit_code == 2


def test_many_lines_trust_revoked_devices_again_and_say_so(listed: FrontEnd) -> None:
    one, two = EphemeralDevice("one"), EphemeralDevice("two")
    listed.allow_list.add(one.entry())
    DatabaseAllowList().map_user(id_of(one), get_user_model().objects.create_superuser("root"))
    listed.allow_list.revoke(id_of(one), reason="lost")
    text = f"{line_of(one)}\n{line_of(two)}\n"
    done = listed("trust", "-", "--role", "controller", "--yes", given=text)
    assert done.exit_code == 0, done.output
    row = DeviceRow.objects.get(device_id=id_of(one))
    assert (row.user, row.is_revoked, row.revoke_reason) == (None, False, "")
    assert list(AuditEvent.objects.filter(device_id=id_of(one)).values_list("kind", flat=True)[:2]) == [
        "trust",
        "revoke",
    ]
