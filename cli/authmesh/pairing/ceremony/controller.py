"""The ceremony on the controller, which runs ``invite`` and stores the peer as a target. A target may not authenticate to it."""

from __future__ import annotations

import secrets

from authmesh.protocol.allow_list import CONTROLLER, TARGET
from authmesh.protocol.pairing import v1, v2
from authmesh.protocol.pairing.codes import Peer, shared_secret
from authmesh.protocol.pairing.errors import (
    InvalidPayload,
    NotConfirmed,
    PairingDeclined,
    PairingError,
    PeerRefused,
    PeerSpeaksV1,
    PeerSpeaksV2,
    StoreFailed,
)

from .machine import Confirm, Ephemeral, Party, Receive, Script, Send, ShowCode, Store, tell


def controller_v2(me: Party, *, ephemeral: Ephemeral | None = None, nonce: bytes | None = None) -> Script:
    """Yield the actions of the controller, version 2 (protocol.md §6b).

    Args:
        me: this device.
        ephemeral: key pair of this device for this pairing. Defaults to a new one.
        nonce: 32 bytes. Defaults to random bytes.

    Raises:
        PairingError: the ceremony ended early. Unless it is NotConfirmed, nothing was stored.
    """
    ephemeral = ephemeral or Ephemeral.generate()
    share = v2.Share(ephemeral.public, nonce or secrets.token_bytes(v2.NONCE_BYTES))

    payload = yield Receive()
    if not v2.is_payload(payload):
        raise PeerSpeaksV1()
    committed = v2.decode_payload(payload, size=v2.COMMITMENT_BYTES)
    yield Send(v2.encode_share(share))
    theirs = v2.decode_share((yield Receive()))
    v2.check_commitment(committed, theirs)
    h = v2.transcript(theirs, share)
    keys = v2.derive_keys(shared_secret(ephemeral.private, theirs.ephemeral), h)
    tunnel = v2.Tunnel(sending=keys.controller, receiving=keys.target, h=h)

    yield Send(tunnel.seal(v2.build_identity(CONTROLLER, me.public_key, me.name, me.now(), h, me.sign)))
    peer = me.check(v2.parse_identity(tunnel.open((yield Receive())), TARGET, h, me.now()))

    yield ShowCode(peer, v2.sas(h))
    verdict = v2.parse_verdict(tunnel.open((yield Receive("person"))))
    if verdict == "rejected":
        raise PeerRefused()
    if verdict != "confirmed":
        raise InvalidPayload()

    if not (yield Confirm(peer)):
        yield from tell(tunnel.seal(v2.build_verdict("rejected")))
        raise PairingDeclined()
    if not (yield Store(peer, TARGET)):
        yield from tell(tunnel.seal(v2.build_verdict("rejected")))
        raise StoreFailed()

    # The peer is stored by now: every error from here on must say so.
    try:
        yield Send(tunnel.seal(v2.build_verdict("confirmed")))
        verdict = v2.parse_verdict(tunnel.open((yield Receive())))
    except PairingError:
        raise NotConfirmed() from None
    if verdict != "stored":
        raise NotConfirmed()
    return peer


def controller_v1(me: Party, *, ephemeral: Ephemeral | None = None) -> Script:
    """Yield the actions of the controller, version 1 (protocol.md §6). A malicious relay can break it.

    The reference stores the target as soon as the target confirms. Anyone between the two devices can forge that message, so the
    operator is asked, as in version 2.

    Args:
        me: this device.
        ephemeral: key pair of this device for this pairing. Defaults to a new one.

    Raises:
        PairingError: the ceremony ended early; nothing was stored.
    """
    ephemeral = ephemeral or Ephemeral.generate()

    payload = yield Receive()
    if v2.is_payload(payload):
        raise PeerSpeaksV2()
    shared = shared_secret(ephemeral.private, v1.decode_ephemeral(payload))
    key = v1.session_key(shared)
    yield Send(v1.encode_ephemeral(ephemeral.public))

    yield Send(v1.encrypt(key, v1.build_identity(me.public_key, me.name, me.now(), me.sign)))
    peer: Peer = me.check(v1.parse_identity(v1.decrypt(key, (yield Receive()))))

    yield ShowCode(peer, v1.sas(peer.public_key, me.public_key, shared))
    verdict = yield Receive("person")
    if verdict == v1.REJECTED:
        raise PeerRefused()
    if verdict != v1.CONFIRMED:
        raise InvalidPayload()

    if not (yield Confirm(peer)):
        raise PairingDeclined(
            "Declined. Nothing was stored here.",
            hint="The other device may list this one as its controller. If so, revoke this device there.",
        )
    if not (yield Store(peer, TARGET)):
        raise StoreFailed()
    return peer
