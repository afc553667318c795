"""Pairing over real sockets: success, and errors of this device itself."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from authmesh.device import FileAllowList, LocalDevice, init_device
from authmesh.pairing import Paired
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.errors import AllowListIntegrityFailure, StorageError, WrongPassphrase
from authmesh.protocol.pairing.errors import (
    ClockSkew,
    CodeInUse,
    NotConfirmed,
    OwnKey,
    PairingError,
    PeerGone,
    PeerRefused,
    PeerSpeaksV1,
    PeerSpeaksV2,
)
from tests.pairing.hostile_relay import HostileRelay, error
from tests.pairing.pairing_people import MemoryDevice, Two, entry, fails, is_error, run
from tests.pairing.pairing_world import MOMENT, MemoryAllowList

VERSIONS = pytest.mark.parametrize("version", [1, 2])


# --- it works -------------------------------------------------------------------------------------------------------


@VERSIONS
def test_two_devices_pair(version: int) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            two.permissions = {"shell": True}
            target, controller = await two.pair()
            assert isinstance(target, Paired) and isinstance(controller, Paired)
            assert target.entry == two.lists[0].entries[0] and controller.entry == two.lists[1].entries[0]
            assert (target.entry.role, target.entry.friendly_name) == ("controller", "laptop")
            assert (controller.entry.role, controller.entry.friendly_name) == ("target", "server")
            assert target.entry.permissions == {"shell": True} and controller.entry.permissions == {}
            assert {target.entry.added_by, controller.entry.added_by} == {"handshake"}
            assert (target.known, target.replaced, controller.known) == (None, None, None)
            assert two.typist.asked == ["show_code", "enter", "confirm"] and two.looker.asked == ["show", "confirm"]
            assert two.typist.met is not None and two.typist.met.peer.device_id == two.devices[1].identity.device_id
            assert two.typist.steps == [
                "connecting",
                "connected",
                "matched",
                "introduced",
                "verified",
                "decided",
                "stored",
                "finished",
            ]
            assert two.looker.steps == [
                "connecting",
                "connected",
                "matched",
                "introduced",
                "agreed",
                "verified",
                "stored",
                "finished",
            ]
            kinds = [json.loads(text)["type"] for _, text in relay.frames]
            assert kinds == ["listen", "connect"] + ["data"] * (5 if version == 1 else 8) + ["done"] * (version - 1)

    run(test())


def test_two_real_devices_pair(tmp_path: Path) -> None:
    """The devices have directories, encrypted keys and sealed lists."""
    environ = {"AUTH_MESH_PASSPHRASE": "a passphrase for tests"}
    for name in ("server", "laptop"):
        init_device(tmp_path / name, name, now=MOMENT, backend="encrypted-file", environ=environ)
    devices = [LocalDevice(tmp_path / name, environ=environ) for name in ("server", "laptop")]
    lists = [FileAllowList(device) for device in devices]

    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.change("target", device=devices[0], allow_list=lists[0])
            two.change("controller", device=devices[1], allow_list=lists[1])
            target, controller = await two.pair()
            assert isinstance(target, Paired) and isinstance(controller, Paired)

    run(test())
    assert [(e.device_id, e.role) for e in lists[0].read()] == [(devices[1].identity.device_id, "controller")]
    assert [(e.device_id, e.role) for e in lists[1].read()] == [(devices[0].identity.device_id, "target")]


def test_a_known_peer_is_updated() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            old = dataclasses.replace(
                entry("old name"),
                device_id=two.devices[1].identity.device_id,
                public_key=two.devices[1].identity.public_key,
                permissions={"shell": True},
            )
            two.lists[0].entries = [old]  # the only controller that the limit allows
            target, controller = await two.pair()
            assert isinstance(target, Paired) and isinstance(controller, Paired)
            assert target.known == old and two.typist.met is not None and two.typist.met.known == old
            assert [e.friendly_name for e in two.lists[0].entries] == ["laptop"]
            assert two.lists[0].entries[0].permissions == {} and "replace" not in two.typist.asked

    run(test())


def test_a_hostile_name_is_stored_as_it_is_shown() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.devices[1].identity = dataclasses.replace(
                two.devices[1].identity, friendly_name="\x1b]0;owned\x07evil\nTrusted: yes\u202e" + "x" * 9000
            )
            target, _ = await two.pair()
            assert isinstance(target, Paired)
            assert (
                target.entry.friendly_name.startswith("evil Trusted: yesx") and len(target.entry.friendly_name) == 128
            )

    run(test())


def test_another_code_is_used_if_the_relay_has_the_first() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            relay.on_listen = [[error("otc_in_use")], [error("otc_in_use")]]
            two = Two(relay.url)
            target, _ = await two.pair()
            assert isinstance(target, Paired)
            codes = [json.loads(text)["otc"] for _, text in relay.frames if "listen" in text]
            assert len(set(codes)) == 3 and two.room.one_time_code.result() == codes[2]

            relay.on_listen = [[error("otc_in_use")]] * 3
            two = Two(relay.url)
            is_error((await asyncio.gather(two.listen(), return_exceptions=True))[0], CodeInUse)
            assert two.typist.asked == []  # the code is shown only after the relay has it

    run(test())


def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            await two.pair()
            secret = [two.room.one_time_code.result(), two.room.verification_code.result()]
            secret += [json.loads(text)["payload"] for _, text in relay.frames if "payload" in text]
            ours = [r for r in caplog.records if not r.name.startswith(("websockets.server", "asyncio"))]
            assert not any(word in r.getMessage() for r in ours for word in secret)
            assert not any(r.name.startswith("websockets.client") for r in caplog.records)

    with caplog.at_level(logging.DEBUG):
        run(test())


# --- this device ----------------------------------------------------------------------------------------------------


def test_a_target_that_cannot_store() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.lists[0].broken = StorageError("disk full")
            target, controller = await two.pair()
            is_error(target, StorageError)
            is_error(controller, NotConfirmed)
            assert two.no_controller and [e.role for e in two.lists[1].entries] == ["target"]

    run(test())


def test_a_controller_that_cannot_store() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.lists[1].broken = StorageError("disk full")
            target, controller = await two.pair()
            is_error(target, PeerRefused)
            is_error(controller, StorageError)
            assert two.nothing_stored

    run(test())


class Damaged(MemoryAllowList):
    """A list that does not match its seal."""

    def read(self) -> list[DeviceEntry]:
        raise AllowListIntegrityFailure()


class Locked(MemoryDevice):
    """A device whose key cannot be unlocked."""

    def seal_secret(self) -> bytes:
        raise WrongPassphrase("This passphrase does not open the key.")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"allow_list": Damaged()}, AllowListIntegrityFailure), ({"device": Locked()}, WrongPassphrase)],
)
def test_errors_of_this_device_are_raised_before_connecting(changes: dict[str, Any], kind: type[Exception]) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.change("target", **changes)
            two.change("controller", **changes)
            await fails(two, kind)
            assert relay.frames == []

    run(test())


def test_clocks_far_apart() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.clock("controller", 3600)
            target, controller = await two.pair()
            is_error(target, ClockSkew)
            is_error(controller, ClockSkew)
            assert "3600 seconds" in str(target) and two.nothing_stored

    run(test())


@VERSIONS
def test_own_key(version: int) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            two.change("controller", device=two.devices[0])
            target, controller = await two.pair()
            is_error(target, OwnKey)
            is_error(controller, PeerGone)
            assert two.nothing_stored

    run(test())


@pytest.mark.parametrize(
    ("target_version", "controller_version", "target_error", "controller_error"),
    [(1, 2, PeerGone, PeerSpeaksV1), (2, 1, PeerGone, PeerSpeaksV2)],
)
def test_different_versions(
    target_version: int,
    controller_version: int,
    target_error: type[PairingError],
    controller_error: type[PairingError],
) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.change("target", version=target_version)
            two.change("controller", version=controller_version)
            target, controller = await two.pair()
            is_error(target, target_error)
            is_error(controller, controller_error)
            assert "--v1" in str(target) and "--v1" in str(controller) and two.nothing_stored

    run(test())
