"""The ceremony without a network: each side stores the right entries in the right order, whatever the other side or the relay does."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from types import SimpleNamespace
from typing import Any

import pytest

from authmesh.pairing.ceremony.controller import controller_v2
from authmesh.pairing.ceremony.machine import AskCode, Ceremony, Confirm, Decide, Receive, Send, ShowCode, Store
from authmesh.protocol.errors import KeyStoreError
from authmesh.protocol.pairing import v1 as pairing_v1
from authmesh.protocol.pairing import v2 as pairing_v2
from authmesh.protocol.pairing.errors import (
    ClockSkew,
    InvalidPayload,
    InvalidSelfSignature,
    NotConfirmed,
    OwnKey,
    PairingDeclined,
    PairingError,
    PeerGone,
    PeerRefused,
    PeerSpeaksV1,
    PeerSpeaksV2,
    StoreFailed,
    WrongVerificationCode,
)
from tests.pairing.pairing_world import MOMENT, Side, Wire, party, play, sides

VERSIONS = pytest.mark.parametrize("version", [1, 2])
#: The actions of each side in an undisturbed pairing, in order. No action may ever move up.
ORDER: dict[tuple[int, str], list[type]] = {
    (1, "target"): [Send, Receive, Receive, Send, AskCode, Decide, Send, Store],
    (1, "controller"): [Receive, Send, Send, Receive, ShowCode, Receive, Confirm, Store],
    (2, "target"): [Send, Receive, Send, Receive, Send, AskCode, Decide, Send, Receive, Store, Send],
    (2, "controller"): [
        Receive,
        Send,
        Receive,
        Send,
        Receive,
        ShowCode,
        Receive,
        Confirm,
        Store,
        Send,
        Receive,
    ],
}


def messages(version: int, name: str) -> int:
    """Return the number of payloads that a side sends."""
    return ORDER[version, name].count(Send)


def no_controller(target: Side, controller: Side) -> None:
    """Check the rule: no side stores a controller that was not agreed on; at most, the controller keeps a target entry."""
    assert target.stored == []
    assert all(store.role == "target" for store in controller.stored)


@VERSIONS
def test_two_honest_sides(version: int) -> None:
    t, c = party("server"), party("laptop")
    target, controller = sides(version, target=t, controller=c)
    play(target, controller)
    assert target.well and controller.well
    assert [(s.peer.public_key, s.peer.name, s.role) for s in target.stored] == [(c.public_key, "laptop", "controller")]
    assert [(s.peer.public_key, s.peer.name, s.role) for s in controller.stored] == [(t.public_key, "server", "target")]
    for side in (target, controller):
        assert [type(action) for action in side.done] == ORDER[version, side.name]
    assert controller.shown is not None and len(controller.shown) == 6


def test_the_controller_stores_first_and_says_so_before_the_target_stores() -> None:
    log: list[str] = []

    class Watched(Wire):
        def from_controller(self, payload: str) -> None:
            log.append(f"C sends, C stored {len(self.controller.stored)}, T stored {len(self.target.stored)}")
            super().from_controller(payload)

        def from_target(self, payload: str) -> None:
            log.append(f"T sends, C stored {len(self.controller.stored)}, T stored {len(self.target.stored)}")
            super().from_target(payload)

    play(*sides(2), Watched())
    assert log[-3:] == [
        "T sends, C stored 0, T stored 0",  # confirmed
        "C sends, C stored 1, T stored 0",  # confirmed
        "T sends, C stored 1, T stored 1",  # stored
    ]


#: The number of actions after which a side that dies has stored the other one, and is stored by it.
LAST_MOMENT = {
    (1, "target"): (8, 7),  # after storing; after sending its confirmation
    (1, "controller"): (8, 6),  # after storing; after receiving the confirmation of the target
    (2, "target"): (10, 8),  # after storing; after sending its confirmation
    (2, "controller"): (9, 10),  # after storing; after sending its confirmation
}


@pytest.mark.parametrize(
    ("version", "name", "number"), [(v, n, i) for (v, n), order in ORDER.items() for i in range(len(order))]
)
def test_either_side_may_die_at_any_step(version: int, name: str, number: int) -> None:
    target, controller = sides(version)
    dying, other = (target, controller) if name == "target" else (controller, target)
    dying.dies_at = number
    play(target, controller)
    assert dying.dead
    own, others = LAST_MOMENT[version, name]
    assert bool(dying.stored) is (number >= own)
    assert bool(other.stored) is (number >= others)
    if not other.stored:
        assert isinstance(other.error, PeerGone)
    elif other is controller and version == 2:
        assert isinstance(other.error, NotConfirmed)  # the message names the entry that is left
    else:
        assert other.well
    if version == 2 and target.stored:
        assert controller.stored, "nobody is let in who has not said yes"


@pytest.mark.parametrize("number", range(10))
def test_a_controller_that_dies_before_its_confirmation_is_never_stored(number: int) -> None:
    target, controller = sides(2)
    controller.dies_at = number  # number 9 is the Send of its confirmation
    play(target, controller)
    no_controller(target, controller)
    assert isinstance(target.error, PeerGone)
    assert "Nothing was stored" in target.error.message


@VERSIONS
@pytest.mark.parametrize("typed", ["000000", "", "12345", "\uff11\uff12\uff13\uff14\uff15\uff16", "abcdef"])
def test_a_wrong_code_stores_nothing(version: int, typed: str) -> None:
    target, controller = sides(version)
    target.types = lambda shown: typed if typed != shown else "000001"
    play(target, controller)
    assert target.stored == controller.stored == []
    assert isinstance(target.error, WrongVerificationCode) and "attack" in str(target.error)
    assert isinstance(controller.error, PeerRefused)


@VERSIONS
def test_the_person_at_the_target_says_no(version: int) -> None:
    target, controller = sides(version)
    target.decides = False
    play(target, controller)
    assert target.stored == controller.stored == []
    assert isinstance(target.error, PairingDeclined) and isinstance(controller.error, PeerRefused)


def test_the_person_at_the_controller_says_no() -> None:
    target, controller = sides(2)
    controller.confirms = lambda verified: False
    play(target, controller)
    assert target.stored == controller.stored == []
    assert isinstance(target.error, PeerRefused) and isinstance(controller.error, PairingDeclined)


def test_version_1_cannot_undo_the_entry_on_the_target() -> None:
    target, controller = sides(1)
    controller.confirms = lambda verified: False
    play(target, controller)
    assert controller.stored == [] and len(target.stored) == 1
    assert "revoke this device there" in str(controller.error)


@VERSIONS
def test_a_controller_that_cannot_store_is_not_stored(version: int) -> None:
    target, controller = sides(version)
    controller.can_store = False
    play(target, controller)
    assert isinstance(controller.error, StoreFailed) and controller.stored == []
    if version == 2:
        assert target.stored == [] and isinstance(target.error, PeerRefused)


@VERSIONS
def test_a_target_that_cannot_store_says_so(version: int) -> None:
    target, controller = sides(version)
    target.can_store = False
    play(target, controller)
    no_controller(target, controller)
    assert isinstance(target.error, StoreFailed)
    if version == 2:
        assert isinstance(controller.error, NotConfirmed) and len(controller.stored) == 1


@VERSIONS
def test_the_own_key_is_rejected(version: int) -> None:
    me = party("me")
    target, controller = sides(version, target=me, controller=dataclasses.replace(me, name="also me"))
    play(target, controller)
    assert target.stored == controller.stored == []
    assert isinstance(target.error, OwnKey)


def test_the_two_sides_must_speak_the_same_version() -> None:
    target, controller = sides(2)[0], sides(1)[1]
    play(target, controller)
    assert isinstance(controller.error, PeerSpeaksV2) and isinstance(target.error, PeerGone)
    assert "--v1" in str(target.error) and "--v1" in str(controller.error)
    target, controller = sides(1)[0], sides(2)[1]
    play(target, controller)
    assert isinstance(controller.error, PeerSpeaksV1) and isinstance(target.error, PeerGone)
    assert "--v1" in str(target.error) and "--v1" in str(controller.error)


@pytest.mark.parametrize(("seconds", "well"), [(60, True), (-60, True), (61, False), (-61, False), (-86_400, False)])
def test_clocks_far_apart(seconds: int, well: bool) -> None:
    off = party("laptop", now=MOMENT + dt.timedelta(seconds=seconds))
    target, controller = sides(2, controller=off)
    play(target, controller)
    assert (target.well, controller.well) == (well, well)
    if not well:  # both sides report it, although the target notices it first
        assert isinstance(target.error, ClockSkew) and isinstance(controller.error, ClockSkew)
        assert f"{abs(seconds)} seconds" in str(controller.error)
        assert target.stored == controller.stored == []


def test_a_key_that_does_not_sign_ends_the_ceremony() -> None:
    def broken(message: bytes) -> bytes:
        raise KeyStoreError("locked")

    target, controller = sides(2, target=dataclasses.replace(party(), sign=broken))
    play(target, controller)
    assert isinstance(target.error, KeyStoreError) and isinstance(controller.error, PeerGone)
    assert target.stored == controller.stored == []


def test_a_finished_ceremony_stays_finished() -> None:
    ceremony = Ceremony(controller_v2(party()))
    with pytest.raises(TypeError):
        ceremony.answer(True)
    with pytest.raises(PeerSpeaksV1):
        ceremony.answer("AAAA")
    for _ in range(2):
        with pytest.raises(PairingError):
            ceremony.answer("v2.AAAA")
        with pytest.raises(PeerGone):
            ceremony.fail(PeerGone())
    assert ceremony.action is None and ceremony.peer is None


def test_no_repr_contains_a_secret() -> None:
    target, controller = sides(2)
    play(target, controller)
    assert controller.shown is not None
    assert all(controller.shown not in repr(action) for action in controller.done if isinstance(action, ShowCode))


# --- what is inside the tunnel --------------------------------------------------------------------------------------


H = b"h" * 32


def identity(**changes: Any) -> bytes:
    me = party("laptop")
    value = json.loads(pairing_v2.build_identity("controller", me.public_key, "laptop", MOMENT, H, me.sign))
    return json.dumps({k: v for k, v in {**value, **changes}.items() if v is not None}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "target"},
        {"role": None},
        {"publicKey": None},
        {"publicKey": 5},
        {"publicKey": "AAAA"},
        {"publicKey": pairing_v1.encode_ephemeral(party().public_key)},
        {"friendlyName": "another"},
        {"friendlyName": "\ud800"},
        {"friendlyName": None},
        {"timestamp": "2026-03-28T10:05:00Z"},
        {"timestamp": "2026-03-28T10:05:01.000Z"},
        {"timestamp": "9999-99-99T99:99:99.999Z"},
        {"timestamp": "0001-01-01T00:00:00.000Z"},
        {"selfSig": ""},
        {"selfSig": "AAAA"},
        {"selfSig": "?"},
        {"selfSig": pairing_v1.encode_ephemeral(bytes(64))},
    ],
)
def test_a_changed_identity_is_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidPayload):
        pairing_v2.parse_identity(identity(**changes), "controller", H, MOMENT)


def test_an_identity_belongs_to_one_pairing_and_one_role() -> None:
    text = identity()
    assert pairing_v2.parse_identity(text, "controller", H, MOMENT).name == "laptop"
    with pytest.raises(InvalidSelfSignature):
        pairing_v2.parse_identity(text, "controller", b"i" * 32, MOMENT)
    with pytest.raises(InvalidPayload):
        pairing_v2.parse_identity(text, "target", H, MOMENT)
    twice = text.replace(b'"role"', b'"role": "controller", "role"', 1)
    with pytest.raises(InvalidPayload):
        pairing_v2.parse_identity(twice, "controller", H, MOMENT)
    assert pairing_v2.parse_identity(identity(more="later"), "controller", H, MOMENT)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"confirmed"',
        b"{}",
        b'{"verdict":"yes"}',
        b'{"verdict":["confirmed"]}',
        b"\xff",
        b"[" * 9999,
        b'{"verdict":"confirmed","verdict":"rejected"}',
        b'{"verdict":"confirmed","more":1}',
        b'{"verdict":1}',
    ],
)
def test_malformed_verdicts(text: bytes) -> None:
    with pytest.raises(InvalidPayload):
        pairing_v2.parse_verdict(text)


@pytest.mark.parametrize(
    ("name", "verdicts", "error"),
    [
        ("target", {"confirmed": "stored"}, InvalidPayload),
        ("target", {"stored": "confirmed"}, NotConfirmed),
        ("target", {"stored": "rejected"}, NotConfirmed),
        ("controller", {"confirmed": "stored"}, InvalidPayload),
        ("controller", {"confirmed": "rejected"}, PeerRefused),
    ],
)
def test_a_verdict_is_valid_at_its_own_step_only(
    name: str, verdicts: dict[str, Any], error: type[PairingError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A genuine verdict of another step is rejected like a forged one."""
    rogue = SimpleNamespace(**vars(pairing_v2))
    rogue.build_verdict = lambda verdict: pairing_v2.build_verdict(verdicts.get(verdict, verdict))
    monkeypatch.setattr(f"authmesh.pairing.ceremony.{name}.v2", rogue)
    target, controller = sides(2)
    play(target, controller)
    honest = controller if name == "target" else target
    assert isinstance(honest.error, error)
    if honest is target or error is InvalidPayload:
        no_controller(target, controller)
