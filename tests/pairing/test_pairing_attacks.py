"""Attacks of a malicious relay on both versions of pairing. Only those on version 1 succeed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from authmesh.pairing.ceremony.controller import controller_v1, controller_v2
from authmesh.pairing.ceremony.machine import Ephemeral
from authmesh.pairing.ceremony.target import target_v1, target_v2
from authmesh.protocol.keys import encode_public_key
from authmesh.protocol.pairing import v1 as pairing_v1
from authmesh.protocol.pairing import v2 as pairing_v2
from authmesh.protocol.pairing.errors import (
    CommitmentMismatch,
    InvalidPayload,
    InvalidSelfSignature,
    NotConfirmed,
    PairingDeclined,
    PairingError,
    PeerRefused,
    PeerSilent,
    PeerSpeaksV1,
    WrongVerificationCode,
)
from tests.pairing.middles import AloneWithController, Meddler, MiddleV1, MiddleV2, SpeaksV1ToBoth, other_key
from tests.pairing.pairing_world import Side, Wire, party, play, sides
from tests.pairing.test_pairing_ceremony import VERSIONS, messages, no_controller
from tests.support.services import ROOT

pytestmark = pytest.mark.unversioned

# --- a malicious relay ----------------------------------------------------------------------------------------------


def dropped(m: Meddler, payload: str) -> list[str]:
    return []


def repeated(m: Meddler, payload: str) -> list[str]:
    return [payload, payload]


def truncated(m: Meddler, payload: str) -> list[str]:
    return [payload[:-1]]


def halved(m: Meddler, payload: str) -> list[str]:
    return [payload[: len(payload) // 2]]


def flipped(m: Meddler, payload: str) -> list[str]:
    middle = len(payload) // 2
    return [payload[:middle] + ("A" if payload[middle] != "A" else "B") + payload[middle + 1 :]]


def emptied(m: Meddler, payload: str) -> list[str]:
    return [""]


def reflected(m: Meddler, payload: str) -> list[str]:
    """Deliver the last payload of the receiver itself."""
    own = [text for name, text in m.seen if name != m.name]
    return own[-1:] or [payload]


def earlier(m: Meddler, payload: str) -> list[str]:
    """Deliver an earlier payload again."""
    before = [text for name, text in m.seen[:-1] if name == m.name]
    return before[-1:] or [""]


def rekeyed(m: Meddler, payload: str) -> list[str]:
    return [other_key(payload)]


def forged(m: Meddler, payload: str) -> list[str]:
    return [pairing_v2.encode_payload(pairing_v2.build_verdict("confirmed") + bytes(16))]


def confirmed_v1(m: Meddler, payload: str) -> list[str]:
    return [pairing_v1.CONFIRMED]


MISCHIEF = [
    dropped,
    repeated,
    truncated,
    halved,
    flipped,
    emptied,
    reflected,
    earlier,
    rekeyed,
    forged,
    confirmed_v1,
]


@pytest.mark.parametrize("change", MISCHIEF)
@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in ("target", "controller") for number in range(messages(2, name))]
)
def test_no_payload_of_version_2_can_be_changed(name: str, number: int, change: Callable[..., list[str]]) -> None:
    target, controller = sides(2)
    meddler = Meddler(name, number, change)
    play(target, controller, meddler)
    assert meddler.met
    nothing_yet = change is reflected and (name, number) == ("target", 0)
    never_read = change is repeated and (name, number) in (
        ("target", 4),
        ("controller", 2),
    )  # sent after its last message
    if nothing_yet or never_read:
        assert target.well and controller.well
    elif (name, number) == ("target", 4) or (change is repeated and (name, number) == ("target", 3)):
        # Both people said yes, and the target has stored the controller, which only learns that it can't be sure.
        assert target.well and isinstance(controller.error, NotConfirmed)
    else:
        no_controller(target, controller)
        assert isinstance(target.error, PairingError) and isinstance(controller.error, PairingError)


@pytest.mark.parametrize("change", [c for c in MISCHIEF if c is not confirmed_v1])
@pytest.mark.parametrize(("name", "number"), [("target", 0), ("target", 1), ("controller", 0), ("controller", 1)])
def test_version_1_detects_simple_changes(name: str, number: int, change: Callable[..., list[str]]) -> None:
    target, controller = sides(1)
    play(target, controller, Meddler(name, number, change))
    if target.well:
        assert controller.well
        assert change is reflected or (change is repeated and (name, number) == ("controller", 1))  # never read
    else:
        no_controller(target, controller)


@VERSIONS
def test_payloads_in_another_order(version: int) -> None:
    class Swaps(Wire):
        """Swap the payloads of the controller in pairs."""

        def start(self) -> None:
            self.held: list[str] = []

        def from_controller(self, payload: str) -> None:
            self.held.insert(0, payload)
            if len(self.held) == 2:
                self.target.inbox.extend(self.held)
                self.held.clear()

    target, controller = sides(version)
    play(target, controller, Swaps())
    no_controller(target, controller)


def test_a_whole_pairing_cannot_be_replayed() -> None:
    recorded = Meddler("nobody", 0, dropped)
    t, c = party("server"), party("laptop")
    play(*sides(2, target=t, controller=c), recorded)

    class Replays(Wire):
        def start(self) -> None:
            self.target.inbox.extend(text for name, text in recorded.seen if name == "controller")
            self.controller.inbox.extend(text for name, text in recorded.seen if name == "target")

        def from_target(self, payload: str) -> None:
            """Drop the payload."""

        from_controller = from_target

    target, controller = sides(2, target=t, controller=c)
    play(target, controller, Replays())
    assert target.stored == controller.stored == []
    assert isinstance(target.error, InvalidPayload) and isinstance(controller.error, InvalidPayload)


def test_a_relay_cannot_downgrade_either_side() -> None:
    target, controller = sides(2)
    play(target, controller, SpeaksV1ToBoth())
    assert target.stored == controller.stored == []
    assert isinstance(target.error, PeerSpeaksV1) and isinstance(controller.error, PeerSpeaksV1)


@VERSIONS
def test_a_relay_that_never_forwards(version: int) -> None:
    class Swallows(Wire):
        def from_target(self, payload: str) -> None:
            """Drop the payload."""

        from_controller = from_target

    target, controller = sides(version)
    play(target, controller, Swallows())
    assert target.stored == controller.stored == []
    assert isinstance(target.error, PeerSilent) and isinstance(controller.error, PeerSilent)


@VERSIONS
@pytest.mark.parametrize("stored", [True, False])
def test_a_relay_that_talks_to_the_controller_alone(version: int, stored: bool) -> None:
    """The relay pretends to be the target and confirms everything, but the screen of the real target shows nothing."""
    target, controller = sides(version)
    play(target, controller, AloneWithController(version, stored=stored))
    assert target.stored == controller.stored == []
    assert isinstance(controller.error, PairingDeclined)
    assert controller.verified is False and target.verified is False


@VERSIONS
def test_a_controller_that_confirms_blindly_stores_only_a_target(version: int) -> None:
    target, controller = sides(version)
    controller.confirms = lambda verified: True
    play(target, controller, AloneWithController(version))
    assert target.stored == []
    assert [store.role for store in controller.stored] == ["target"]


@pytest.mark.parametrize("as_controller", [True, False])
@pytest.mark.parametrize("as_target", [True, False])
def test_swapped_keys_and_identities_in_version_1_show_in_the_code(as_controller: bool, as_target: bool) -> None:
    target, controller = sides(1)
    evil = party("laptop")
    middle = MiddleV1(as_controller=evil if as_controller else None, as_target=evil if as_target else None)
    play(target, controller, middle)
    assert target.stored == controller.stored == []
    assert isinstance(target.error, WrongVerificationCode) and isinstance(controller.error, PeerRefused)


def fixed(number: int) -> bytes:
    """Return a private key that is the same in every run, so that a search always takes the same time."""
    return number.to_bytes(32, "big")


OWN = (Ephemeral.of(fixed(13)), Ephemeral.of(fixed(14)))


@pytest.mark.slow
def test_version_1_is_broken_by_a_relay_that_searches_for_keys() -> None:
    """Both devices trust a relay that tries keys until the codes agree. This is why version 1 needs --v1 and prints a warning.

    The search takes a million tries on average, about two seconds; with these keys, it takes a quarter of that.
    """
    evil = party("laptop", private=fixed(103))
    t, c = party("server", private=fixed(101)), party("laptop", private=fixed(102))
    target = Side("target", target_v1(t, ephemeral=Ephemeral.of(fixed(11))))
    controller = Side("controller", controller_v1(c, ephemeral=Ephemeral.of(fixed(12))))
    middle = MiddleV1(as_controller=evil, grinds=True, start_at=10**9, ephemerals=OWN)
    play(target, controller, middle)
    assert target.well and controller.well and middle.tried == 250_121
    assert target.keys == [evil.public_key], "the target lets the relay in"
    assert controller.keys[0] not in (t.public_key, c.public_key), "and the controller trusts a key that the relay made"


@pytest.mark.parametrize("target_first", [True, False])
@pytest.mark.parametrize("as_controller", [True, False])
@pytest.mark.parametrize("as_target", [True, False])
def test_the_middle_of_version_2_has_one_guess(target_first: bool, as_controller: bool, as_target: bool) -> None:
    """In any order and with any identity, the attack succeeds only if the codes agree by chance, one time in 10^6."""
    agreed = 0
    for _ in range(25):
        evil = party("laptop")
        target, controller = sides(2)
        middle = MiddleV2(
            as_controller=evil if as_controller else None,
            as_target=evil if as_target else None,
            target_first=target_first,
        )
        play(target, controller, middle)
        if middle.codes["target"] == middle.codes["controller"]:
            agreed += 1
            continue
        assert target.stored == controller.stored == []
        if not as_controller:
            assert isinstance(
                target.error, InvalidSelfSignature
            )  # the identity of the real device is bound to its own pairing
        elif not as_target:
            assert isinstance(controller.error, InvalidSelfSignature)
        else:
            assert isinstance(target.error, WrongVerificationCode) and isinstance(controller.error, PeerRefused)
    assert agreed < 2


def test_an_active_relay_learns_names_and_keys_of_both_sides() -> None:
    """Each side introduces itself before the codes are compared. SECURITY.md and docs/relay.md say so."""
    real = {"target": party("the real server"), "controller": party("the real laptop")}
    target, controller = sides(2, **real)
    middle = MiddleV2(as_controller=party("laptop"), as_target=party("server"))
    play(target, controller, middle)
    assert target.stored == controller.stored == []
    for name, one in real.items():
        learned = json.loads(middle._plain[name])
        assert (learned["friendlyName"], learned["publicKey"]) == (one.name, encode_public_key(one.public_key))
    for page in ("SECURITY.md", "docs/relay.md"):
        text = " ".join((ROOT / page).read_text("utf-8").split())
        assert "learns the names and the public keys of both devices" in text


def test_version_2_resists_a_relay_that_searches_for_keys() -> None:
    """The relay finds numbers that make the codes agree, as in version 1, but has committed to others before."""
    target = Side("target", target_v2(party("server"), ephemeral=Ephemeral.of(fixed(11)), nonce=b"t" * 32))
    controller = Side("controller", controller_v2(party("laptop"), ephemeral=Ephemeral.of(fixed(12)), nonce=b"\t" * 32))
    evil = party("laptop")
    middle = MiddleV2(as_controller=evil, as_target=party("server"), opens_another=True, ephemerals=OWN)
    play(target, controller, middle)
    assert middle.wished == 116_944 and middle.codes["controller"] == middle.codes["target"]
    assert isinstance(controller.error, CommitmentMismatch)
    assert controller.shown is None and target.stored == controller.stored == []


def test_the_code_of_version_2_depends_on_every_number() -> None:
    share = pairing_v2.Share(b"\x02" * 33, b"a" * 32)
    other = pairing_v2.Share(b"\x02" * 33, b"b" * 32)
    hashes = {pairing_v2.transcript(t, c) for t in (share, other) for c in (share, other)}
    assert len(hashes) == 4
    assert all(len(pairing_v2.sas(h)) == 6 for h in hashes)
