"""The ceremony on the target, which runs ``listen`` and stores the peer as a controller, last of all."""

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
    """Yield the actions of the target, version 2 (protocol.md §6b).

    Args:
        me: this device.
        ephemeral: key pair of this device for this pairing. Defaults to a new one.
        nonce: 32 bytes. Defaults to random bytes.

    Raises:
        PairingError: the ceremony ended early; nothing was stored.
    """
    ephemeral = ephemeral or Ephemeral.generate()
    share = v2.Share(ephemeral.public, nonce or secrets.token_bytes(v2.NONCE_BYTES))

    yield Send(v2.encode_payload(v2.commitment(share)))
    try:
        payload = yield Receive()
    except PeerGone:  # a program of version 1 exits at the first payload that it cannot read
        raise PeerGone(
            "The other device left at once: it may support only version 1 of pairing. Nothing was stored.",
            hint="Update the other device. If you cannot, and you trust the relay, use --v1 on both devices.",
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
        yield from tell(tunnel.seal(own))  # so that the other device notices the skew, too
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
            "The operator of the controller declined, or the controller could not store this device. Nothing was stored here.",
            hint="Pair again.",
        )
    if verdict != "confirmed":
        raise InvalidPayload()
    if not (yield Store(peer, CONTROLLER)):
        yield from tell(tunnel.seal(v2.build_verdict("rejected")))
        raise StoreFailed()
    yield from tell(tunnel.seal(v2.build_verdict("stored")))
    return peer


def target_v1(me: Party, *, ephemeral: Ephemeral | None = None) -> Script:
    """Yield the actions of the target, version 1 (protocol.md §6). A malicious relay can break it.

    Args:
        me: this device.
        ephemeral: key pair of this device for this pairing. Defaults to a new one.

    Raises:
        PairingError: the ceremony ended early; nothing was stored.
    """
    ephemeral = ephemeral or Ephemeral.generate()

    yield Send(v1.encode_ephemeral(ephemeral.public))
    try:
        payload = yield Receive()
    except PeerGone:
        raise PeerGone(
            "The other device left at once: it may use version 2 of pairing. Nothing was stored.",
            hint="Omit --v1 here, or use it on the other device, too.",
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
