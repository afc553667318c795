"""The whole life of a rotation at two servers: one is away, one is gone, one was paired by hand, and each side is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pytest_django.plugin import DjangoDbBlocker

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from authmesh.client import enrolling, fetch, forget_devices, rotating
from authmesh.device import FileAllowList, LocalDevice, init_device, read_identity, replacing
from authmesh.device.servers import ServerStore
from authmesh.files.clock import utc_now
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.enrollment import parse_token
from authmesh.protocol.errors import AmeshError
from tests.enrollment.sites import Site, site
from tests.keystore.tpms import running_swtpm
from tests.support.front_ends import invoke
from tests.support.services import ROOT

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def running(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site]]:
    folder = tmp_path_factory.mktemp("sites")
    with site("a", folder / "a", _sqlite_template) as a, site("b", folder / "b", _sqlite_template) as b:
        yield a, b


@pytest.fixture
def sites(running: tuple[Site, Site], django_db_blocker: DjangoDbBlocker) -> Iterator[tuple[Site, Site]]:
    """Two servers, for all tests of this module."""
    with django_db_blocker.unblock():
        yield running


@pytest.fixture
def device(sites: tuple[Site, Site], machine: Path) -> Path:
    """A device that has enrolled at the first server."""
    enrolling.enroll(parse_token(sites[0].token()), directory=machine, name="machine")
    return machine


def pair(device: Path, server: Site) -> None:
    """Let a device and a server trust each other, as a pairing does."""
    own, now = LocalDevice(device), utc_now()
    with server.here():
        DatabaseAllowList().add(DeviceEntry.new(own.identity.public_key, "machine", "controller", added_at=now))
    FileAllowList(own).add(DeviceEntry.new(server.device.identity.public_key, "b", "target", added_at=now))


def rotate(*words: str) -> tuple[int, dict[str, Any], str]:
    done = invoke(["rotate", *words, "--json", "--no-input"])
    return done.exit_code, json.loads(done.stdout or "{}"), done.stderr


def statuses(*servers: Site) -> list[int]:
    """Return what the servers answer to a program that uses the default device."""
    return [fetch(f"{one.url}check").status_code for one in servers]


def test_a_server_is_away_and_another_one_was_paired_by_hand(sites: tuple[Site, Site], device: Path) -> None:
    a, b = sites
    pair(device, b)
    before = read_identity(device)
    done = invoke(["rotate", "--no-input"])
    assert done.exit_code != 0 and "The address of 1 server is not known" in done.stderr and b.device_id in done.stderr
    assert not (device / "rotation.json").exists()
    with a.server.down():
        code, answer, _ = rotate(a.url, b.url)
        assert code == 1 and answer["moved"] and not answer["finished"]
        assert (answer["accepted"], [one["url"] for one in answer["waiting"]]) == ([b.device_id], [a.url])
        assert statuses(b) == [200]
    assert {one.url for one in ServerStore(device).read()} == {a.url, b.url}  # stored
    assert statuses(a, b) == [200, 200]  # one by the old key, one by the new one
    new = read_identity(device)
    assert new.device_id == answer["deviceId"] != before.device_id
    assert invoke(["list"]).exit_code == 0
    examined = invoke(["doctor", "--no-relay", "--json"])
    (finding,) = [one for one in json.loads(examined.stdout)["checks"] if one["id"] == "rotation"]
    assert finding["status"] == "warning" and a.url in finding["message"] and b.url not in finding["message"]
    code, answer, _ = rotate("--finish")
    assert code == 0 and answer["finished"] and answer["deviceId"] == new.device_id
    assert statuses(a, b) == [200, 200] and not (device / "rotation.json").exists()
    assert [path.name for path in (device / "keys").iterdir()] == [f"{new.key_alias}.key.json"]


def test_only_one_server_is_named(sites: tuple[Site, Site], device: Path) -> None:
    a, b = sites
    pair(device, b)
    assert rotate(a.url, "--yes")[0] == 0  # b is not known yet
    assert not (device / "rotation.json").exists() and statuses(a) == [200]
    pair(device, b)
    code, answer, _ = rotate(b.url)
    assert code == 0 and answer["moved"] and not answer["finished"]
    assert [one["url"] for one in answer["waiting"]] == [a.url]
    assert statuses(a, b) == [200, 200]  # the old key was not deleted
    assert rotate("--finish")[1]["finished"] and statuses(a, b) == [200, 200]


def test_a_server_at_which_the_new_key_enrolls_has_nothing_to_accept(sites: tuple[Site, Site], device: Path) -> None:
    a, b = sites
    enrolling.enroll(parse_token(b.token()), directory=device)
    with b.server.down():
        rotate()
    assert read_identity(device) == replacing.read_replacement(device).new  # type: ignore[union-attr]
    enrolling.enroll(parse_token(b.token()), directory=device)
    assert b.device_id in replacing.read_replacement(device).accepted  # type: ignore[union-attr]
    assert statuses(a, b) == [200, 200]


def test_the_device_moves_with_the_first_server_that_accepts(sites: tuple[Site, Site], device: Path) -> None:
    b = sites[1]
    enrolling.enroll(parse_token(b.token()), directory=device)
    old, moved = read_identity(device), []

    def asked(found: Any, *rest: Any) -> Any:
        moved.append(read_identity(device) != old)
        return ask(found, *rest)

    ask = rotating._ask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotating, "_ask", asked)
        assert rotate()[1]["finished"]
    assert moved == [False, True]


def test_a_server_is_gone_for_good(sites: tuple[Site, Site], device: Path) -> None:
    a, b = sites
    enrolling.enroll(parse_token(b.token()), directory=device)
    with b.server.down():
        code, _, said = rotate()
        assert code == 1 and json.loads(said.splitlines()[-1])["error"] == "rotation_unfinished"
        assert f"amesh revoke {b.device_id}" in said
        assert invoke(["revoke", b.device_id, "--yes"]).exit_code == 0
        assert rotate("--finish")[1]["finished"] and statuses(a) == [200]


def test_a_server_that_this_device_does_not_know(sites: tuple[Site, Site], device: Path) -> None:
    _, b = sites
    code, _, said = rotate(b.url)
    assert code == 1 and json.loads(said.splitlines()[-1])["error"] == "unauthorized"
    with b.here():
        entry = DeviceEntry.new(LocalDevice(device).identity.public_key, "m", "controller", added_at=utc_now())
        DatabaseAllowList().add(entry)
    code, _, said = rotate(b.url)
    assert code == 1 and b.device_id in said and "does not know" in said
    assert not (device / "rotation.json").exists()
    assert rotate("api.example")[0] == 2


def test_a_key_in_a_tpm(sites: tuple[Site, Site], machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = sites
    with running_swtpm() as tpm:
        monkeypatch.setenv("AMESH_TPM_TCTI", tpm.tcti)
        old = init_device(machine, "machine", now=utc_now(), backend="tpm2")
        enrolling.enroll(parse_token(a.token()), directory=machine)
        code, answer, _ = rotate()
        assert code == 0 and answer["finished"] and statuses(a) == [200]
        new = read_identity(machine)
        assert (new.storage_backend, new.device_id) == ("tpm2", answer["deviceId"])
        names = {path.name.partition(".")[0] for path in (machine / "keys").iterdir()}
        assert new.key_alias in names and old.key_alias not in names
        forget_devices()


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.unversioned  # no version changes the order in which files are written
def test_the_device_is_killed_at_every_step(sites: tuple[Site, Site], device: Path) -> None:
    a, b = sites
    enrolling.enroll(parse_token(b.token()), directory=device)
    words = [sys.executable, "-m", "tests.enrollment.rotation_killed", str(device), a.url, b.url]
    printed = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    found = json.loads(printed.splitlines()[-1])
    assert [case["ended"] for case in found if case["ended"] != 9] == [0]  # the last one is not killed
    assert len(found) > 20
    for case in found:
        assert all(200 in one for one in case["left"]), case  # a key that is accepted
        assert case["default"] == [200, 200], case  # and programs use it
        assert case["then"] == 0 and case["after"] == [[200], [200]], case
    assert statuses(a, b) == [200, 200]


def test_the_server_is_killed_again_and_again(sites: tuple[Site, Site], device: Path) -> None:
    a, _ = sites
    failures, moved = list[str](), set[str]()
    end = time.monotonic() + 60

    def rotate_often() -> None:
        while len(moved) < 6 and time.monotonic() < end:
            done = rotating.rotate(
                device, ServerStore(device).read(), server_key=lambda one: a.device.identity.public_key
            )
            failures.extend(error.code for _, error in done.away)
            if done.moved:
                moved.add(done.replacement.new.device_id)

    thread = threading.Thread(target=rotate_often)
    thread.start()
    while thread.is_alive() and len(failures) < 3:
        a.server.stop(signal.SIGKILL)
        time.sleep(0.05)
        a.server.start()
        thread.join(0.1)
    thread.join()
    assert len(moved) == 6 and "server_unreachable" in failures
    assert statuses(a) == [200] and not (device / "rotation.json").exists()
    with a.here():
        assert DatabaseAllowList().verify().ok
        active = Device.objects.filter(device_id__in=moved, revoked_at=None)
        assert [row.device_id for row in active] == [read_identity(device).device_id]


# --- two processes, and another identity ----------------------------------------------------------------------------


def test_two_processes_rotate_at_the_same_moment(sites: tuple[Site, Site], device: Path) -> None:
    """Neither brings back what the other one has finished."""
    a, _ = sites
    ended: list[bool] = []

    def work() -> None:
        with suppress(AmeshError):  # such as: the other process has deleted the old key
            done = rotating.rotate(
                device, ServerStore(device).read(), server_key=lambda one: a.device.identity.public_key
            )
            ended.append(done.moved)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True in ended
    assert rotate("--finish")[0] == 0 and statuses(a) == [200]
    assert len(list((device / "keys").iterdir())) == 1


def test_a_slow_process_does_not_bring_a_finished_rotation_back(sites: tuple[Site, Site], device: Path) -> None:
    a, _ = sites
    state = replacing.begin(device, now=utc_now())
    assert rotate()[0] == 0  # another process finishes
    for step in (
        lambda: replacing.accept(device, state, a.device_id),
        lambda: replacing.move(device, state, now=utc_now()),
        lambda: replacing.end(device, state),
    ):
        step()
        assert not (device / "rotation.json").exists()
    assert read_identity(device) == state.new and statuses(a) == [200]
