"""The target's side: it runs ``listen``, and stores the other side as a controller, last of all."""

from __future__ import annotations

import secrets

from authmesh.protocol.allow_list import CONTROLLER, TARGET
from authmesh.protocol.pairing import v1, v2
from authmesh.protocol.pairing.codes import Peer, shared_secret, verify_sas
from authmesh.protocol.pairing.errors import (
    ClockSkew,
    InvalidPayload,
    PairingDeclined,
    PeerGone,
    PeerRefused,
    PeerSpeaksV1,
    PeerSpeaksV2,
    StoreFailed,
    WrongVerificationCode,
)

from .machine import AskCode, Decide, Ephemeral, Party, Receive, Script, Send, Store, tell


def target_v2(me: Party, *, ephemeral: Ephemeral | None = None, nonce: bytes | None = None) -> Script:
    """The target of version 2 (protocol.md §6b).

    Args:
        me: this side.
        ephemeral: None takes a new one.
        nonce: 32 bytes; None takes random ones.

    Raises:
        PairingError: from the generator, wherever the ceremony ends early. Nothing is stored then.
    """
    ephemeral = ephemeral or Ephemeral.generate()
    share = v2.Share(ephemeral.public, nonce or secrets.token_bytes(v2.NONCE_BYTES))

    yield Send(v2.encode_payload(v2.commitment(share)))
    try:
        payload = yield Receive()
    except PeerGone:  # a program of version 1 ends at the first payload that it can't read
        raise PeerGone(
            "The other side left at once. It may speak only version 1 of pairing: update it, or say --v1 on both sides if you "
            "trust the relay. Nothing was stored."
        ) from None
    if not v2.is_payload(payload):
        raise PeerSpeaksV1()
    theirs = v2.decode_share(payload)
    h = v2.transcript(share, theirs)
    keys = v2.derive_keys(shared_secret(ephemeral.private, theirs.ephemeral), h)
    tunnel = v2.Tunnel(sending=keys.target, receiving=keys.controller, h=h)
    yield Send(v2.encode_share(share))

    introduction = tunnel.open((yield Receive()))
    own = v2.build_identity(TARGET, me.public_key, me.name, me.now(), h, me.sign)
    try:
        peer = me.check(v2.parse_identity(introduction, CONTROLLER, h, me.now()))
    except ClockSkew:
        yield from tell(tunnel.seal(own))  # so that the other side sees it too, and says so
        raise
    yield Send(tunnel.seal(own))

    if not verify_sas((yield AskCode(peer)), v2.sas(h)):
        yield from tell(tunnel.seal(v2.build_verdict("rejected")))
        raise WrongVerificationCode()
    if not (yield Decide(peer)):
        yield from tell(tunnel.seal(v2.build_verdict("rejected")))
        raise PairingDeclined()
    yield Send(tunnel.seal(v2.build_verdict("confirmed")))

    verdict = v2.parse_verdict(tunnel.open((yield Receive("person"))))
    if verdict == "rejected":
        raise PeerRefused(
            "The operator of the controller said no, or it could not store this device. Nothing was stored here; pair again."
        )
    if verdict != "confirmed":
        raise InvalidPayload()
    if not (yield Store(peer, CONTROLLER)):
        yield from tell(tunnel.seal(v2.build_verdict("rejected")))
        raise StoreFailed()
    yield from tell(tunnel.seal(v2.build_verdict("stored")))
    return peer


def target_v1(me: Party, *, ephemeral: Ephemeral | None = None) -> Script:
    """The target of version 1 (protocol.md §6). A malicious relay can break it.

    Args:
        me: this side.
        ephemeral: None takes a new one.

    Raises:
        PairingError: from the generator, wherever the ceremony ends early. Nothing is stored then.
    """
    ephemeral = ephemeral or Ephemeral.generate()

    yield Send(v1.encode_ephemeral(ephemeral.public))
    try:
        payload = yield Receive()
    except PeerGone:
        raise PeerGone(
            "The other side left at once. It may speak version 2 of pairing: leave --v1 out here, or say it there too. Nothing "
            "was stored."
        ) from None
    if v2.is_payload(payload):
        raise PeerSpeaksV2()
    shared = shared_secret(ephemeral.private, v1.decode_ephemeral(payload))
    key = v1.session_key(shared)

    peer: Peer = me.check(v1.parse_identity(v1.decrypt(key, (yield Receive()))))
    yield Send(v1.encrypt(key, v1.build_identity(me.public_key, me.name, me.now(), me.sign)))

    if not verify_sas((yield AskCode(peer)), v1.sas(me.public_key, peer.public_key, shared)):
        yield from tell(v1.REJECTED)
        raise WrongVerificationCode()
    if not (yield Decide(peer)):
        yield from tell(v1.REJECTED)
        raise PairingDeclined()
    yield Send(v1.CONFIRMED)
    if not (yield Store(peer, CONTROLLER)):
        raise StoreFailed()
    return peer
