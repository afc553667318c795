"""Pairing over real sockets: both ends, every failure with its own error, a relay that does what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import ipaddress
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from amesh_django.device import Device, FileAllowList, init_device
from amesh_django.pairing import Met, Paired, Timeouts
from amesh_django.protocol.allow_list import DeviceEntry
from amesh_django.protocol.errors import (
    AllowListIntegrityFailure,
    ControllerLimitReached,
    DeviceNotFound,
    StorageError,
    WrongPassphrase,
)
from amesh_django.protocol.pairing_errors import (
    ClockSkew,
    CodeInUse,
    CodeNotFound,
    CodeTaken,
    InvalidCode,
    InvalidPayload,
    InvalidRelayAddress,
    InvalidSelfSignature,
    MessageTooBig,
    NobodyCame,
    NotConfirmed,
    OwnKey,
    PairingDeclined,
    PairingError,
    PeerGone,
    PeerRefused,
    PeerSilent,
    PeerSpeaksV1,
    PeerSpeaksV2,
    RateLimited,
    RelayCertificateNotTrusted,
    RelayClosed,
    RelayFull,
    RelayProtocolViolation,
    RelaySilent,
    RelayUnreachable,
    SessionDataLimit,
    TookTooLong,
    WrongVerificationCode,
)
from tests.hostile_relay import ACK, DONE, FOUND, HostileRelay, data, error
from tests.middles import AloneWithController, MiddleV2, SpeaksV1ToBoth
from tests.pairing_people import QUICK, MemoryDevice, Outcome, Two
from tests.pairing_world import MOMENT, MemoryAllowList, party

VERSIONS = pytest.mark.parametrize("version", [1, 2])
SHORT = 0.3


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "socks_proxy", "ws_proxy", "wss_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """A test that hangs fails."""

    async def limited() -> None:
        async with asyncio.timeout(20):
            await coroutine

    asyncio.run(limited())


def is_error(outcome: Outcome, kind: type[BaseException]) -> None:
    assert type(outcome) is kind, f"{kind.__name__} was expected, not {outcome!r}"


def entry(name: str, role: Any = "controller") -> DeviceEntry:
    return DeviceEntry.new(party().public_key, name, role, added_at=MOMENT)


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
    """Directories, encrypted keys, sealed lists."""
    environ = {"AUTH_MESH_PASSPHRASE": "a passphrase for tests"}
    for name in ("server", "laptop"):
        init_device(tmp_path / name, name, now=MOMENT, backend="encrypted-file", environ=environ)
    devices = [Device(tmp_path / name, environ=environ) for name in ("server", "laptop")]
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


def test_a_known_peer_is_refreshed() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            old = dataclasses.replace(
                entry("old name"),
                device_id=two.devices[1].identity.device_id,
                public_key=two.devices[1].identity.public_key,
                permissions={"shell": True},
            )
            two.lists[0].entries = [old]  # the one controller that there may be
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


def test_a_code_that_the_relay_has_is_replaced_by_another() -> None:
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
            assert two.typist.asked == []  # the code is shown once the relay has it, not before

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


# --- the people -----------------------------------------------------------------------------------------------------


@VERSIONS
def test_a_wrong_code(version: int) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            two.typist.types = lambda shown: "000000" if shown != "000000" else "000001"
            target, controller = await two.pair()
            is_error(target, WrongVerificationCode)
            is_error(controller, PeerRefused)
            assert two.nothing_stored and two.typist.asked == ["show_code", "enter"]  # one guess, no second

    run(test())


def test_a_typing_mistake_that_is_no_code_costs_nothing() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            answers = ["12345", ""]
            two.typist.types = lambda shown: answers.pop() if answers else f" {shown[:3]} {shown[3:]}\n"
            assert all(isinstance(outcome, Paired) for outcome in await two.pair())
            assert two.typist.asked[1:4] == ["enter", "again", "again"]

            two = Two(relay.url)
            two.typist.types = lambda shown: "?"
            target, controller = await two.pair()
            is_error(target, PairingDeclined)
            is_error(controller, PeerRefused)
            assert two.typist.asked == ["show_code", "enter", "again", "again"] and two.nothing_stored

    run(test())


@VERSIONS
@pytest.mark.parametrize("gives_up", [True, False])
def test_the_person_at_the_target_declines(version: int, gives_up: bool) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            if gives_up:
                two.typist.types = lambda shown: None
            else:
                two.typist.says = False
            target, controller = await two.pair()
            is_error(target, PairingDeclined)
            is_error(controller, PeerRefused)
            assert two.nothing_stored

    run(test())


def test_the_person_at_the_controller_declines() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.looker.says = False
            target, controller = await two.pair()
            is_error(target, PeerRefused)
            is_error(controller, PairingDeclined)
            assert two.nothing_stored

    run(test())


def test_no_is_what_nobody_says() -> None:
    """The defaults of the front end: no controller is replaced, nothing is confirmed."""
    from amesh_django.pairing.operators import ControllerOperator, TargetOperator

    met = Met(party(), None)  # type: ignore[arg-type]
    assert asyncio.run(ControllerOperator.confirm_verified(object(), met)) is False  # type: ignore[arg-type]
    assert asyncio.run(TargetOperator.choose_replaced(object(), met, [], 1)) is None  # type: ignore[arg-type]


@VERSIONS
def test_a_controller_is_replaced_only_where_somebody_says_so(version: int) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            old = entry("old")
            two.lists[0].entries = [entry("a target", "target"), old]
            target, controller = await two.pair()  # nobody says so
            is_error(target, PairingDeclined)
            is_error(controller, PeerRefused)
            assert [e.friendly_name for e in two.lists[0].entries] == ["a target", "old"] and two.lists[1].entries == []

            again = Two(relay.url, version)
            again.lists[0].entries = list(two.lists[0].entries)
            again.typist.replaces = lambda controllers: controllers[0].device_id
            target, _ = await again.pair()
            assert isinstance(target, Paired) and target.replaced == old
            assert [e.friendly_name for e in again.lists[0].entries] == ["a target", "laptop"]

    run(test())


def test_one_controller_less_would_not_be_enough() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.lists[0].entries = [entry("one"), entry("two")]
            target, controller = await two.pair()
            is_error(target, ControllerLimitReached)
            assert "Revoke 2 of them" in str(target)
            is_error(controller, PeerRefused)
            assert "replace" not in two.typist.asked

            two = Two(relay.url)
            two.lists[0].entries = [entry("one")]
            two.typist.replaces = lambda controllers: "am_somebodyelse"
            target, controller = await two.pair()
            is_error(target, DeviceNotFound)
            is_error(controller, PeerRefused)

    run(test())


class NobodyThere(Exception):
    """What a front end raises that can't ask."""


@pytest.mark.parametrize("question", ["enter", "confirm", "replace", "look"])
def test_a_front_end_that_cannot_ask(question: str) -> None:
    """Its error comes out as it is, and the other side is told no."""

    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.lists[0].entries = [entry("old")]

            async def cannot(*args: Any, **options: Any) -> Any:
                raise NobodyThere

            if question == "look":
                two.lists[0].entries = []
                two.looker.confirm_verified = cannot  # type: ignore[method-assign]
            else:
                name = {"enter": "enter_verification_code", "confirm": "confirm_peer", "replace": "choose_replaced"}
                setattr(two.typist, name[question], cannot)
            target, controller = await two.pair()
            is_error(controller if question == "look" else target, NobodyThere)
            is_error(target if question == "look" else controller, PeerRefused)
            assert not any(e.friendly_name in ("laptop", "server") for held in two.lists for e in held.entries)

    run(test())


@pytest.mark.parametrize("question", ["enter", "confirm", "replace"])
def test_the_person_at_the_target_takes_too_long(question: str) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            if question == "replace":
                two.lists[0].entries = [entry("old")]
            two.change("target", timeouts=dataclasses.replace(QUICK, person=SHORT))
            two.typist.waits_at = question
            target, controller = await two.pair()
            is_error(target, TookTooLong)
            is_error(controller, PeerGone)
            assert two.typist.cancelled and two.lists[1].entries == []

    run(test())


def test_all_questions_of_the_target_share_one_limit() -> None:
    """The controller waits once for all of them."""

    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.change("target", timeouts=dataclasses.replace(QUICK, person=2 * SHORT))
            two.lists[0].entries = [entry("old")]

            async def slowly(*args: Any, **options: Any) -> bool:
                await asyncio.sleep(1.4 * SHORT)
                return True

            two.typist.confirm_peer = slowly  # type: ignore[method-assign]
            two.typist.choose_replaced = slowly  # type: ignore[assignment, method-assign]
            target, controller = await two.pair()
            is_error(target, TookTooLong)
            is_error(controller, PeerGone)

    run(test())


def test_the_person_at_the_controller_takes_too_long() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.change("controller", timeouts=dataclasses.replace(QUICK, person=SHORT))
            two.looker.waits = True
            target, controller = await two.pair()
            is_error(controller, TookTooLong)
            is_error(target, PeerGone)
            assert two.nothing_stored

    run(test())


# --- somebody leaves ------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("question", ["enter", "confirm", "replace"])
def test_interrupted_at_a_question_of_the_target(version: int, question: str) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            before = two.lists[0].entries = [entry("old")] if question == "replace" else []
            two.typist.waits_at = question
            await two.meet()
            while question not in two.typist.asked:
                await asyncio.sleep(0.01)
            two.tasks["target"].cancel()
            target, controller = await two.ends()
            is_error(target, asyncio.CancelledError)
            is_error(controller, PeerGone)
            assert two.lists[0].entries == before and two.lists[1].entries == []

    run(test())


@pytest.mark.parametrize("question", ["enter", "confirm", "replace"])
def test_the_controller_leaves_while_the_target_is_asked(question: str) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            before = two.lists[0].entries = [entry("old")] if question == "replace" else []
            two.typist.waits_at = question
            await two.meet()
            while question not in two.typist.asked:
                await asyncio.sleep(0.01)
            two.tasks["controller"].cancel()
            target, _ = await two.ends()
            is_error(target, PeerGone)
            assert two.typist.cancelled, "the question is taken back"
            assert two.lists[0].entries == before

    run(test())


def test_interrupted_at_the_question_of_the_controller() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            for leaver in ("controller", "target"):
                two = Two(relay.url)
                two.looker.waits = True
                await two.meet()
                while "confirm" not in two.looker.asked:
                    await asyncio.sleep(0.01)
                two.tasks[leaver].cancel()
                target, controller = await two.ends()
                is_error(target if leaver == "controller" else controller, PeerGone)
                assert two.nothing_stored

    run(test())


def test_a_target_of_version_1_may_leave_before_the_controller_answers() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, 1)
            answer = asyncio.Event()

            async def slowly(met: Met) -> bool:
                await answer.wait()
                return True

            two.looker.confirm_verified = slowly  # type: ignore[method-assign]
            await two.meet()
            assert isinstance(await two.tasks["target"], Paired)
            await asyncio.sleep(0.05)
            answer.set()
            target, controller = await two.ends()
            assert isinstance(target, Paired) and isinstance(controller, Paired)

    run(test())


def test_the_target_stays_until_its_last_word_has_arrived() -> None:
    async def test() -> None:
        async with HostileRelay(on_data={7: []}).running() as relay:
            two = Two(relay.url, timeouts=dataclasses.replace(QUICK, message=SHORT, farewell=3))
            await two.meet()
            while "finished" not in two.typist.steps:
                await asyncio.sleep(0.01)
            assert not two.tasks["target"].done()
            target, controller = await two.ends()  # the controller gave up, so the target need not wait longer
            assert isinstance(target, Paired)
            is_error(controller, NotConfirmed)

    run(test())


class Slow(MemoryAllowList):
    """Takes its time to write."""

    def __init__(self) -> None:
        super().__init__()
        self.writing = False

    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        import time

        self.writing = True
        time.sleep(SHORT)
        super().add(entry, replacing=replacing)


def test_interrupted_while_it_is_written() -> None:
    """What is being written is written to its end, and the front end hears that it was."""

    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            slow = Slow()
            two.change("target", allow_list=slow)
            await two.meet()
            while not slow.writing:
                await asyncio.sleep(0.01)
            two.tasks["target"].cancel()
            target, controller = await two.ends()
            is_error(target, asyncio.CancelledError)
            assert len(slow.entries) == 1 and two.typist.steps[-1] == "stored"
            is_error(controller, NotConfirmed)
            assert [e.role for e in two.lists[1].entries] == ["target"]

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
    """Does not match its seal."""

    def read(self) -> list[DeviceEntry]:
        raise AllowListIntegrityFailure()


class Locked(MemoryDevice):
    """Its key can't be unlocked."""

    def seal_secret(self) -> bytes:
        raise WrongPassphrase("This passphrase does not open the key.")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"allow_list": Damaged()}, AllowListIntegrityFailure), ({"device": Locked()}, WrongPassphrase)],
)
def test_what_this_device_lacks_is_found_before_the_relay_is_dialled(
    changes: dict[str, Any], kind: type[Exception]
) -> None:
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
def test_ones_own_key(version: int) -> None:
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


# --- the relay can't be reached -------------------------------------------------------------------------------------


async def fails(two: Two, kind: type[BaseException], *, code: str = "482916", ends: str = "both") -> str:
    """Each end fails like that when it dials; the sentence of the target."""
    target = (await asyncio.gather(two.listen(), return_exceptions=True))[0] if ends != "controller" else None
    if target is not None:
        is_error(target, kind)
    if ends != "target":
        controller = (await asyncio.gather(two.invite(code), return_exceptions=True))[0]
        is_error(controller, kind)
    assert two.nothing_stored
    return str(target)


@pytest.mark.parametrize(
    "address", ["", "relay.example", "https://relay.example/ws", "wss://", "ws://:1/ws", "ws://a b/ws", "ws://h:99999"]
)
def test_no_address(address: str) -> None:
    async def test() -> None:
        await fails(Two(address), InvalidRelayAddress)

    run(test())


@pytest.mark.parametrize("code", ["", "12345", "012345", "abcdef"])
def test_no_code(code: str) -> None:
    async def test() -> None:
        await fails(Two("ws://127.0.0.1:1/ws"), InvalidCode, code=code, ends="controller")

    run(test())


def test_nothing_listens_there() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        assert "nothing listens there" in await fails(Two(f"ws://127.0.0.1:{port}/ws"), RelayUnreachable)
        assert "nothing listens there" in await fails(Two(f"ws://localhost:{port}/ws"), RelayUnreachable)

    run(test())


def test_no_such_name() -> None:
    async def test() -> None:
        sentence = await fails(Two("ws://relay.invalid/ws"), RelayUnreachable)
        assert "ws://relay.invalid/ws can't be reached" in sentence and "--relay" in sentence

    run(test())


@contextlib.asynccontextmanager
async def tcp_server(answer: bytes | None) -> AsyncIterator[str]:
    """Answers whatever comes, or never; nothing of a relay."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(4096)
            if answer is not None:
                writer.write(answer)
                await writer.drain()
            else:
                await reader.read()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
    finally:
        server.close()
        await asyncio.sleep(0.05)


def http(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 0", "", ""]).encode()


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (http("404 Not Found"), RelayUnreachable, "404"),
        (http("200 OK"), RelayUnreachable, "200"),
        (http("429 Too Many Requests"), RateLimited, "Wait a minute"),
        (http("503 Service Unavailable"), RelayFull, "full"),
        (http("301 Moved", "Location: ws://127.0.0.1:1/ws"), RelayUnreachable, "301"),  # and it is not followed
        (b"SSH-2.0-OpenSSH_9.6\r\n", RelayUnreachable, "not a relay"),
        (b"", RelayUnreachable, "not a relay"),
        (None, RelaySilent, "does not answer"),
    ],
)
def test_something_else_listens_there(answer: bytes | None, kind: type[PairingError], says: str) -> None:
    async def test() -> None:
        async with tcp_server(answer) as url:
            two = Two(url, timeouts=dataclasses.replace(QUICK, connect=SHORT))
            assert says in await fails(two, kind)
            assert two.typist.asked == []

    run(test())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, signed by nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test relay")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "relay.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


def test_tls(certificate: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)

    async def test() -> None:
        async with HostileRelay().running(tls=server) as relay:
            sentence = await fails(Two(relay.url), RelayCertificateNotTrusted)
            assert "not trusted here" in sentence and relay.url in sentence
            assert all(
                isinstance(outcome, Paired)
                for outcome in await Two(relay.url, tls=ssl.create_default_context(cafile=certificate)).pair()
            )
            assert await fails(Two(relay.url.replace("wss:", "ws:")), RelayUnreachable)
        async with HostileRelay().running() as relay:
            sentence = await fails(Two(relay.url.replace("ws:", "wss:")), RelayUnreachable)
            assert "ws://" in sentence

    run(test())


def test_without_websockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "websockets.asyncio.client", None)

    async def test() -> None:
        assert "amesh-django[cli]" in await fails(Two("ws://127.0.0.1:1/ws"), RelayUnreachable)

    run(test())


# --- the relay before the two are matched ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_otc", InvalidCode),
        ("otc_not_found", CodeNotFound),
        ("peer_already_connected", CodeTaken),
        ("rate_limited", RateLimited),
        ("relay_capacity", RelayFull),
        ("session_data_limit", SessionDataLimit),
        ("invalid_message", RelayProtocolViolation),
        ("unknown_type", RelayProtocolViolation),
        ("\x1b[2Jsomething new", RelayProtocolViolation),
        (None, RelayProtocolViolation),
        ([], RelayProtocolViolation),
    ],
)
def test_the_relay_refuses(code: Any, kind: type[PairingError]) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            relay.on_listen, relay.on_connect = [[error(code)]], [[error(code)]]
            assert "\x1b" not in await fails(Two(relay.url), kind)

    run(test())


def test_a_code_that_nobody_has() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            await fails(Two(relay.url), CodeNotFound, ends="controller")

    run(test())


def test_a_code_is_good_for_one() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.typist.waits_at = "enter"
            await two.meet()
            while "enter" not in two.typist.asked:
                await asyncio.sleep(0.01)
            late = Two(relay.url)
            await fails(late, CodeTaken, code=two.room.one_time_code.result(), ends="controller")
            two.tasks["target"].cancel()
            await two.ends()

    run(test())


NONSENSE = [
    "",
    "hello",
    "null",
    "5",
    "[]",
    '"ack"',
    "{}",
    b"\x00\xff",
    '{"type":"ack"}',
    '{"type":"ack","message":5}',
    '{"type":["ack"],"message":"session_open"}',
    '{"type":"data","payload":5}',
    '{"type":"later"}',
    "[" * 50_000,
    DONE,
    data("x"),
]


@pytest.mark.parametrize("raw", NONSENSE)
def test_a_relay_that_talks_nonsense(raw: str | bytes) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            relay.on_listen, relay.on_connect = [[raw]], [[raw]]
            await fails(Two(relay.url), RelayProtocolViolation)
            relay.on_listen = [[FOUND]]  # before anybody could have come
            two = Two(relay.url)
            await fails(two, RelayProtocolViolation, ends="target")
            assert two.typist.asked == []

    run(test())


@pytest.mark.parametrize(
    ("code", "kind"), [(1000, RelayClosed), (1011, RelayClosed), (1013, RelayFull), (1009, MessageTooBig)]
)
def test_the_relay_closes(code: int, kind: type[PairingError]) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            relay.on_listen, relay.on_connect = [[code]], [[code]]
            await fails(Two(relay.url), kind)

    run(test())


def test_a_relay_that_never_answers() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            relay.on_listen, relay.on_connect = [[]], [[]]
            await fails(Two(relay.url, timeouts=dataclasses.replace(QUICK, relay=SHORT)), RelaySilent)

    run(test())


@pytest.mark.parametrize("how", ["silence", "error", "close"])
def test_nobody_comes(how: str) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, timeouts=dataclasses.replace(QUICK, peer=SHORT))
            listening = two.listen()
            code = await two.room.one_time_code
            if how != "silence":
                await asyncio.sleep(0.95 * SHORT)
                peer = relay.sessions[code].target
                await (peer.send(error("otc_not_found")) if how == "error" else peer.close(1000))
            is_error((await asyncio.gather(listening, return_exceptions=True))[0], NobodyCame)

    run(test())


# --- the relay between the two --------------------------------------------------------------------------------------


@VERSIONS
def test_found_twice(version: int) -> None:
    async def test() -> None:
        async with HostileRelay(on_match=[FOUND]).running() as relay:
            two = Two(relay.url, version)
            for outcome in await two.pair():
                is_error(outcome, RelayProtocolViolation)
            assert two.nothing_stored

    run(test())


@VERSIONS
@pytest.mark.parametrize(
    ("raws", "kinds"),
    [
        (["x" * (64 * 1024 + 1)], {MessageTooBig}),
        ([data("x" * 64 * 1024)], {MessageTooBig}),
        ([data("v2.AAAA")] * 2000, {InvalidPayload, PeerSpeaksV2, PeerGone, RelayClosed}),
        ([DONE], {PeerGone}),
        ([ACK], {RelayProtocolViolation}),
        ([b"\x00"], {RelayProtocolViolation}),
        (["hello"], {RelayProtocolViolation}),
        ([error("session_data_limit")], {SessionDataLimit}),
        ([error("otc_not_found")], {RelayClosed}),  # what has no place here
        ([1011], {RelayClosed, PeerGone}),
    ],
)
def test_what_else_may_come_once_they_are_matched(version: int, raws: list[Any], kinds: set[type]) -> None:
    async def test() -> None:
        async with HostileRelay(on_match=raws).running() as relay:
            two = Two(relay.url, version)
            outcomes = await two.pair()
            assert {type(outcome) for outcome in outcomes} <= kinds
            assert two.nothing_stored

    run(test())


@VERSIONS
@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("raw", [error("peer_disconnected"), DONE, FOUND, "x" * 70_000, 1011, data("nonsense")])
def test_at_every_message(version: int, number: int, raw: Any) -> None:
    """In place of any message anything else may come: nobody is stored as a controller who was not agreed on."""

    async def test() -> None:
        async with HostileRelay(on_data={number: [raw]}).running() as relay:
            two = Two(
                relay.url, version, timeouts=dataclasses.replace(QUICK, message=SHORT, person=SHORT, farewell=0.05)
            )
            target, controller = await two.pair()
            if version == 1:
                if number < 4:
                    assert two.nothing_stored and isinstance(target, PairingError)
                assert isinstance(controller, PairingError if number < 5 else Paired)
            elif number < 7:
                assert isinstance(target, PairingError) and isinstance(controller, PairingError)
                assert two.no_controller
                assert two.nothing_stored or number == 6
            else:  # the last message: the target is done
                assert isinstance(target, Paired) and isinstance(controller, NotConfirmed)

    run(test())


def test_a_side_that_goes_silent() -> None:
    async def test() -> None:
        async with HostileRelay(on_data={0: []}).running() as relay:
            two = Two(relay.url, timeouts=dataclasses.replace(QUICK, message=SHORT))
            relay.tells = False
            for outcome in await two.pair():
                is_error(outcome, PeerSilent)
            assert two.nothing_stored

    run(test())


def test_version_1_spoken_to_both() -> None:
    async def test() -> None:
        async with HostileRelay(wire=SpeaksV1ToBoth).running() as relay:
            two = Two(relay.url)
            for outcome in await two.pair():
                assert isinstance(outcome, PeerSpeaksV1 | PeerGone)
            assert two.nothing_stored

    run(test())


@VERSIONS
def test_a_relay_that_talks_to_the_controller_alone(version: int) -> None:
    async def test() -> None:
        async with HostileRelay(wire=lambda: AloneWithController(version)).running() as relay:
            two = Two(relay.url, version, timeouts=dataclasses.replace(QUICK, message=SHORT))
            target, controller = await two.pair()
            is_error(controller, PairingDeclined)
            assert isinstance(target, PeerSilent | PeerGone) and two.nothing_stored

    run(test())


def test_a_relay_in_the_middle() -> None:
    def middle() -> MiddleV2:
        return MiddleV2(as_controller=party("laptop"), as_target=party("server"))

    async def test() -> None:
        async with HostileRelay(wire=middle).running() as relay:
            two = Two(relay.url)
            target, controller = await two.pair()
            is_error(target, WrongVerificationCode)
            is_error(controller, PeerRefused)
            assert two.nothing_stored
        async with HostileRelay(wire=MiddleV2).running() as relay:
            two = Two(relay.url)
            target, controller = await two.pair()
            is_error(target, InvalidSelfSignature)
            assert isinstance(controller, PairingError) and two.nothing_stored

    run(test())


def test_the_defaults_are_those_of_the_protocol() -> None:
    timeouts = Timeouts()
    assert (timeouts.peer, timeouts.message, timeouts.person) == (60, 30, 90)


def test_fifty_pairings_at_once() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            twos = [Two(relay.url) for _ in range(50)]
            outcomes = await asyncio.gather(*(two.pair() for two in twos))
            assert all(isinstance(outcome, Paired) for pair in outcomes for outcome in pair)

    run(test())
