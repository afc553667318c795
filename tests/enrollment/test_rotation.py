"""Rotation: both keys are valid for a while, no good request is refused, and a crash leaves a device that gets in."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from django.contrib.auth import get_user_model
from django.urls import reverse

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.enrollment import rotating as server_rotating
from amesh_django.enrollment import tokens
from amesh_django.models import AuditEvent, Device
from amesh_django.test import AmeshClient, EphemeralDevice
from amesh_django.trust import verified
from amesh_django.trust.sealing import now as moment
from authmesh.client import enrolling, fetch, rotating
from authmesh.device import FileAllowList, LocalDevice, read_identity, replacing
from authmesh.device.servers import EnrolledServer, ServerStore
from authmesh.files.clock import utc_now
from authmesh.protocol import rotation
from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.enrollment import parse_token
from authmesh.protocol.enrollment_errors import UnverifiedAnswer
from authmesh.protocol.errors import DeviceNotFound, KeyStoreError, StorageError, Unauthorized
from tests.enrollment.machines import refusal
from tests.support.front_ends import invoke

PATH = "/amesh/rotate"
Trust = Callable[..., EphemeralDevice]


def ask(
    old: EphemeralDevice,
    new: EphemeralDevice,
    server: LocalDevice,
    *,
    signer: EphemeralDevice | None = None,
    **changes: Any,
) -> Any:
    """Ask the server to replace *old* by *new*."""
    body = rotation.build_rotation(
        old_device_id=old.identity.device_id,
        new_public_key=new.identity.public_key,
        audience=changes.pop("aud", server.identity.device_id),
        now=changes.pop("iat", int(time.time())),
        sign=(signer or new).sign,
    )
    return AmeshClient(old).post(PATH, {**body, **changes}, content_type="application/json")


def status(device: EphemeralDevice) -> int:
    return AmeshClient(device).get(CHECK_PATH).status_code


# --- the server -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_both_keys_are_valid_and_then_one(
    amesh_trust: Trust, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reverse("amesh_django:rotate") == PATH
    old, new = amesh_trust(permissions={"shell": True}), EphemeralDevice("other name")
    user = get_user_model().objects.create_user("robot")
    DatabaseAllowList().map_user(old.identity.device_id, user)
    response = ask(old, new, amesh_server)
    assert response.status_code == 200, response.content
    seconds = rotation.verify_rotated(
        response.json(),
        old_device_id=old.identity.device_id,
        new_public_key=new.identity.public_key,
        server_key=amesh_server.identity.public_key,
        audience=amesh_server.identity.device_id,
    )
    assert seconds == 600 and status(old) == status(new) == 200
    row = Device.objects.get(device_id=new.identity.device_id)
    assert (row.friendly_name, row.permissions, row.user) == (old.identity.friendly_name, {"shell": True}, user)
    assert DatabaseAllowList().count("controller") == 1 and DatabaseAllowList().verify().ok
    again = ask(old, new, amesh_server)
    assert again.json()["deviceId"] == new.identity.device_id and 590 <= again.json()["overlapSeconds"] <= 600
    assert refusal(ask(old, EphemeralDevice(), amesh_server)) == (409, "already_rotated")
    known = next(one for one in server_rotating.current_list().snapshot().by_key.values() if one.standing.revoked_from)
    assert not known.revoked
    later = time.time() + 601
    monkeypatch.setattr(verified.time, "time", lambda: later)
    assert known.revoked and known.friendly_name == old.identity.friendly_name
    before = Device.objects.get(device_id=old.identity.device_id)
    assert (before.revoke_reason, before.revoked_by) == ("rotated", new.identity.device_id)
    assert {event.actor for event in AuditEvent.objects.filter(device_id=new.identity.device_id)} == {
        f"rotation of {old.identity.device_id}"
    }


@pytest.mark.django_db
def test_after_the_overlap_the_old_key_is_revoked(
    amesh_trust: Trust, amesh_server: LocalDevice, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AMESH = {**settings.AMESH, "ROTATE_OVERLAP_SECONDS": 0}
    lifecycle.reset()
    old, new = amesh_trust(), EphemeralDevice()
    assert ask(old, new, amesh_server).status_code == 200
    assert (status(old), status(new)) == (401, 200)
    assert "device_revoked" in caplog.text
    assert ask(old, EphemeralDevice(), amesh_server).status_code == 401


@pytest.mark.django_db
@pytest.mark.parametrize("which", ["old", "new"])
def test_revoking_either_key_in_the_overlap_works_at_once(
    amesh_trust: Trust, amesh_server: LocalDevice, which: str
) -> None:
    old, new = amesh_trust(), EphemeralDevice()
    ask(old, new, amesh_server)
    DatabaseAllowList().revoke((old if which == "old" else new).identity.device_id, reason="stolen")
    # Neither key must outlive the other: a thief may have replaced it, or may have a copy of it.
    assert (status(old), status(new)) == (401, 401)
    with pytest.raises(DeviceNotFound):
        DatabaseAllowList().revoke(old.identity.device_id)
    assert DatabaseAllowList().verify().ok


@pytest.mark.django_db
@pytest.mark.parametrize("many", [False, True])
def test_pairing_again_in_the_overlap_reaches_both_keys(
    amesh_trust: Trust, amesh_server: LocalDevice, many: bool
) -> None:
    old, new = amesh_trust(permissions={"shell": True, "notes.write": True}), EphemeralDevice()
    ask(old, new, amesh_server)
    devices = DatabaseAllowList()

    def pair(role: Literal["controller", "target"]) -> dict[str, tuple[str, dict[str, Any]]]:
        entry = new.entry(role=role, permissions={"shell": True})
        devices.add_all([entry]) if many else devices.add(entry)
        return {row.device_id: (row.role, row.permissions) for row in Device.objects.all()}

    ids = [old.identity.device_id, new.identity.device_id]
    assert pair("controller") == dict.fromkeys(ids, ("controller", {"shell": True}))
    assert (status(old), status(new)) == (200, 200)
    assert pair("target") == dict.fromkeys(ids, ("target", {"shell": True}))
    assert (status(old), status(new)) == (401, 401)
    assert devices.verify().ok


@pytest.mark.django_db
def test_revoking_a_key_that_was_replaced_names_the_new_one(amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    old, new = amesh_trust(), EphemeralDevice()
    ask(old, new, amesh_server)
    after = moment() + dt.timedelta(hours=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amesh_django.trust.sealing.time.time", after.timestamp)
        with pytest.raises(DeviceNotFound, match=f"was replaced by {new.identity.device_id}, which is trusted"):
            DatabaseAllowList().revoke(old.identity.device_id)
    assert status(new) == 200


@pytest.mark.django_db
def test_refusals(amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    old, new, other = amesh_trust(), EphemeralDevice(), amesh_trust()
    gone = amesh_trust()
    DatabaseAllowList().revoke(gone.identity.device_id)
    assert refusal(ask(old, new, amesh_server, aud=other.identity.device_id)) == (403, "wrong_audience")
    assert refusal(ask(old, new, amesh_server, signer=old)) == (403, "invalid_new_key")
    assert refusal(ask(old, other, amesh_server)) == (409, "key_known")
    assert refusal(ask(old, gone, amesh_server)) == (403, "key_denied")
    assert refusal(ask(old, new, amesh_server, v=2)) == (400, "malformed_request")
    assert refusal(ask(old, new, amesh_server, iat=int(time.time()) - 62)) == (401, "timestamp_out_of_range")
    assert refusal(ask(new, EphemeralDevice(), amesh_server)) == (401, "unauthorized")
    assert AmeshClient(old).get(PATH).status_code == 405
    assert status(old) == 200 and status(new) == 401


@pytest.mark.django_db
@pytest.mark.parametrize("overlap", [0, 600])
def test_a_device_rotates_a_limited_number_of_times_an_hour(
    amesh_trust: Trust, amesh_server: LocalDevice, settings: Any, monkeypatch: pytest.MonkeyPatch, overlap: int
) -> None:
    settings.AMESH = {**settings.AMESH, "ROTATE_OVERLAP_SECONDS": overlap}
    lifecycle.reset()
    keys = [amesh_trust(), *(EphemeralDevice() for _ in range(server_rotating.MAX_PER_HOUR + 1))]
    began = moment()
    for number, (old, new) in enumerate(itertools.pairwise(keys[:-1])):
        at = began + dt.timedelta(seconds=number)
        monkeypatch.setattr(server_rotating, "moment", lambda at=at: at)
        assert ask(old, new, amesh_server).status_code == 200
    rows, (*_, before, last, further) = Device.objects.count(), keys
    refused = ask(last, further, amesh_server)
    assert refusal(refused) == (429, "too_many_rotations")
    assert refused.headers["Retry-After"] == str(3600 - server_rotating.MAX_PER_HOUR + 1)
    assert Device.objects.count() == rows and status(last) == 200
    if overlap:
        assert ask(before, last, amesh_server).status_code == 200  # the answer was lost
    assert ask(amesh_trust(), EphemeralDevice(), amesh_server).status_code == 200  # another device
    hour_later = began + dt.timedelta(hours=1)
    monkeypatch.setattr(server_rotating, "moment", lambda: hour_later)
    assert ask(last, further, amesh_server).status_code == 200


@pytest.mark.django_db
def test_the_new_key_asks_whether_it_was_accepted(amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    old, new = amesh_trust(), EphemeralDevice()
    assert refusal(ask(new, new, amesh_server)) == (401, "unauthorized")
    ask(old, new, amesh_server)
    changes = AuditEvent.objects.count()
    answer = ask(new, new, amesh_server)
    parts = {"new_public_key": new.identity.public_key, "audience": amesh_server.identity.device_id}
    key = amesh_server.identity.public_key
    assert rotation.verify_rotated(answer.json(), old_device_id=new.identity.device_id, server_key=key, **parts) == 0
    assert AuditEvent.objects.count() == changes
    with pytest.raises(UnverifiedAnswer):  # it says nothing about the old key
        rotation.verify_rotated(answer.json(), old_device_id=old.identity.device_id, server_key=key, **parts)


# --- the device -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(
    tmp_path: Path, amesh_server: LocalDevice, live_server: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A device that has enrolled at a server that runs."""
    path = tmp_path / "machine"
    monkeypatch.setenv("AUTH_MESH_DIR", str(path))
    text = tokens.make(url=f"{live_server.url}/amesh/", name="x", uses=1, lifetime=60, by="test").text
    enrolling.enroll(parse_token(text), directory=path, name="machine")
    yield path


def opens(path: Path, url: str) -> list[int]:
    """Return the statuses that the server gives to the keys in a device directory."""
    found = replacing.read_replacement(path)
    identities = [found.old, found.new] if found is not None else [read_identity(path)]
    statuses = []
    for one in identities:
        with suppress(KeyStoreError):  # the old key was deleted already
            statuses.append(fetch(f"{url}/amesh/check", device=LocalDevice(path, identity=one)).status_code)
    return statuses


live = pytest.mark.django_db(transaction=True)


@live
def test_the_command_replaces_the_key(home: Path, live_server: Any) -> None:
    before = LocalDevice(home)
    done = invoke(["rotate", "--json"])
    assert done.exit_code == 0, done.output
    answer, identity = json.loads(done.stdout), read_identity(home)
    assert (answer["replaced"], answer["deviceId"]) == (before.identity.device_id, identity.device_id)
    assert answer["finished"] and identity.device_id != before.identity.device_id
    assert identity.friendly_name == "machine" and opens(home, live_server.url) == [200]
    (entry,) = FileAllowList(LocalDevice(home)).read()  # sealed by the new key
    assert entry.role == "target"
    assert [path.name for path in (home / "keys").iterdir()] == [f"{identity.key_alias}.key.json"]
    assert not (home / "rotation.json").exists()
    assert "nothing to finish" in invoke(["rotate", "--finish"]).stdout
    assert invoke(["rotate", f"{live_server.url}/amesh"]).exit_code == 0


@live
def test_a_server_that_is_away_gets_the_old_key_later(home: Path, live_server: Any, amesh_server: LocalDevice) -> None:
    other = EphemeralDevice("away")
    FileAllowList(LocalDevice(home)).add(other.entry("target"))
    away = EnrolledServer(other.identity.device_id, "http://127.0.0.1:9/amesh/", "et_x", "active", utc_now())
    ServerStore(home).put(away)
    old = read_identity(home)
    done = invoke(["rotate", "--json"])
    assert done.exit_code == 1 and json.loads(done.stderr.splitlines()[-1])["error"] == "rotation_unfinished"
    answer = json.loads(done.stdout)
    assert answer["moved"] and not answer["finished"] and answer["away"][0]["error"] == "server_unreachable"
    assert read_identity(home).device_id == answer["deviceId"] and opens(home, live_server.url) == [200, 200]
    # It comes back, at the address of the real server.
    ServerStore(home).put(dataclasses.replace(away, url=f"{live_server.url}/amesh/"))
    found = replacing.read_replacement(home)
    assert found is not None and found.old == old
    done = invoke(["rotate", "--finish", "--json"])
    assert done.exit_code == 1  # the server there is another one
    assert json.loads(done.stdout)["away"][0]["error"] == "wrong_audience"
    assert opens(home, live_server.url) == [200, 200]


@live
def test_no_server_answers(home: Path, live_server: Any) -> None:
    (server,) = ServerStore(home).read()
    ServerStore(home).put(dataclasses.replace(server, url="http://127.0.0.1:9/amesh/"))
    before = read_identity(home)
    done = invoke(["rotate", "--json"])
    assert done.exit_code == 1 and not json.loads(done.stdout)["moved"] and read_identity(home) == before
    found = replacing.read_replacement(home)
    ServerStore(home).put(server)
    assert invoke(["rotate"]).exit_code == 0
    assert found is not None and read_identity(home) == found.new  # the same new key


@live
def test_an_answer_that_is_lost_for_longer_than_the_overlap(home: Path, live_server: Any, settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "ROTATE_OVERLAP_SECONDS": 0}
    lifecycle.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotating, "verify_rotated", lambda *a, **b: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rotating.rotate(home, ServerStore(home).read(), server_key=lambda one: b"")
    assert opens(home, live_server.url) == [401, 200]
    assert invoke(["rotate", "--finish"]).exit_code == 0
    assert opens(home, live_server.url) == [200]


@live
def test_an_answer_that_the_server_did_not_sign_moves_nothing(home: Path, live_server: Any) -> None:
    before = read_identity(home)
    done = rotating.rotate(home, ServerStore(home).read(), server_key=lambda one: EphemeralDevice().identity.public_key)
    assert not done.moved and [error.code for _, error in done.away] == ["unverified_answer"]
    assert read_identity(home) == before and opens(home, live_server.url) == [200, 200]


@live
def test_what_is_between_cannot_say_that_the_new_key_was_accepted(home: Path, live_server: Any) -> None:
    """It rejects the old key, and answers 200 to the new one, which it cannot sign."""
    before = read_identity(home)

    def between(method: str, url: str, *, auth: Any, **options: Any) -> Any:
        if auth._device.identity == before:
            raise Unauthorized()
        return {"deviceId": auth._device.identity.device_id, "role": "controller"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotating, "read_answer", between)
        done = invoke(["rotate", "--json"])
    assert json.loads(done.stdout)["away"][0]["error"] == "unverified_answer"
    assert read_identity(home) == before and opens(home, live_server.url) == [200, 401]


@live
@pytest.mark.parametrize("way", ["list", "enroll", "first request"])
def test_a_list_that_is_sealed_by_the_new_key_already(
    home: Path, live_server: Any, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The device was interrupted between its two last files. What uses the list next completes the move."""
    before, real, server_key = read_identity(home), replacing.atomic_write, amesh_server.identity.public_key

    def interrupted(path: Path, text: str, **options: Any) -> None:
        if path.name == "identity.json":
            raise KeyboardInterrupt
        real(path, text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replacing, "atomic_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rotating.rotate(home, ServerStore(home).read(), server_key=lambda one: server_key)
    assert read_identity(home) == before
    made = tokens.make(url=f"{live_server.url}/amesh/", name="m", uses=1, lifetime=60, by="test")
    if way == "list":
        assert invoke(["list"]).exit_code == 0
    elif way == "enroll":
        enrolling.enroll(parse_token(made.text), directory=home)
    else:
        monkeypatch.setenv(enrolling.ENROLL_VARIABLE, made.text)
        assert fetch(f"{live_server.url}/amesh/check").status_code == 200
    assert read_identity(home) != before
    assert invoke(["rotate", "--finish"]).exit_code == 0 and opens(home, live_server.url) == [200]


@live
@pytest.mark.parametrize("at", ["rotation.json", "identity.json", "keys"])
def test_a_full_disk_after_a_server_has_accepted_the_key(home: Path, live_server: Any, at: str) -> None:
    real = replacing.atomic_write

    def full(path: Path, text: str = "", **options: Any) -> None:
        if path.name == at and '"accepted": []' not in text:
            raise StorageError(f"{path} cannot be written (No space left on device).", hint="Make room on the disk.")
        real(path, text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replacing, "atomic_write", full)
        if at == "keys":
            patch.setattr(replacing, "delete_key", lambda path, *rest: full(path / "keys"))
        done = invoke(["rotate"])
    assert done.exit_code == 1
    said = " ".join(done.stderr.split())
    assert "No space left on device" in said and "Make room on the disk. Then run amesh rotate --finish." in said
    assert ("has accepted the new key" in said) == (at != "keys")
    assert 200 in opens(home, live_server.url)
    assert invoke(["rotate", "--finish"]).exit_code == 0 and opens(home, live_server.url) == [200]


@live
def test_another_identity_ends_a_rotation(home: Path, live_server: Any) -> None:
    (server,) = ServerStore(home).read()
    ServerStore(home).put(dataclasses.replace(server, url="http://127.0.0.1:9/amesh/"))
    assert invoke(["rotate"]).exit_code == 1
    saved = (home / "rotation.json").read_text()
    assert invoke(["init", "--name", "n", "--force", "--yes"]).exit_code == 0
    identity = read_identity(home)
    assert not (home / "rotation.json").exists() and not (home / "servers.json").exists()
    assert [path.name for path in (home / "keys").iterdir()] == [f"{identity.key_alias}.key.json"]
    (home / "rotation.json").write_text(saved.replace('"moving": false', '"moving": true'))  # such as from a backup
    assert invoke(["list"]).exit_code == 0 and read_identity(home) == identity


@live
def test_without_a_server_nothing_is_changed(tmp_path: Path) -> None:
    EphemeralDevice("m").write(tmp_path / "m")
    done = invoke(["rotate", "--dir", tmp_path / "m"])
    assert done.exit_code == 1 and "knows the address of no server" in done.stderr
    assert not (tmp_path / "m" / "rotation.json").exists()


@live
@pytest.mark.slow
def test_a_crash_at_any_step_leaves_a_device_that_gets_in(
    home: Path, live_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before each file that is written or removed; then the next try finishes."""
    monkeypatch.setattr(server_rotating, "MAX_PER_HOUR", 1000)

    class Killed(BaseException):
        pass

    steps = 0
    for at in range(1, 60):
        before, count = read_identity(home), 0

        def step(*words: Any, real: Callable[..., Any], at: int = at, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise Killed
            return real(*words, **options)

        with pytest.MonkeyPatch.context() as patch:
            for name in ("replace", "unlink"):
                real = getattr(os, name)
                patch.setattr(os, name, lambda *words, real=real, **options: step(*words, real=real, **options))
            try:
                invoke(["rotate"])
                interrupted = False
            except Killed:
                interrupted = True
        assert 200 in opens(home, live_server.url), at
        fetched = fetch(f"{live_server.url}/amesh/check", device=LocalDevice(home)).status_code
        assert fetched == 200, at  # the key that identity.json names, within the overlap
        done = invoke(["rotate", "--finish"])
        assert done.exit_code == 0, (at, done.output)
        assert opens(home, live_server.url) == [200] and FileAllowList(LocalDevice(home)).read()
        steps += interrupted
        if not interrupted:
            assert read_identity(home) != before
            break
    assert steps >= 5
