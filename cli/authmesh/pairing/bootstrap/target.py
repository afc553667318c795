"""The target's end of a bootstrap token at the relay: come with it, and verify the answer. Stores nothing."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from authmesh.device import Identity
from authmesh.protocol.encoding import b64encode
from authmesh.protocol.keys import encode_public_key
from authmesh.protocol.pairing.errors import (
    AlreadyWatched,
    InvalidAcknowledgement,
    InvalidInit,
    NoWatcher,
    OwnKey,
    PairingError,
    PeerGone,
    PeerSilent,
    ProofRequired,
    RateLimited,
    RelayClosed,
    RelayFull,
    RelayNotAllowed,
    RelayProtocolViolation,
    RelayUnreachable,
    StoreFailed,
    TokenAlreadyUsed,
    TokenExpired,
    TokenNotFound,
    TokenRefused,
    TokenWithdrawn,
    TokenWithoutKey,
)
from authmesh.protocol.pairing.token import BootstrapToken, init_message, init_proof, verify_acknowledgement

from ..client import Timeouts
from ..wire import frames
from ..wire.link import open_link

#: What may have another end a moment later. Everything else is final for a token.
PASSING: tuple[type[PairingError], ...] = (
    AlreadyWatched,
    NoWatcher,
    PeerGone,
    PeerSilent,
    RateLimited,
    RelayClosed,
    RelayFull,
    RelayUnreachable,
)
_REJECTIONS: dict[str, type[PairingError]] = {
    error.code: error
    for error in (
        InvalidInit,
        NoWatcher,
        OwnKey,
        ProofRequired,
        RelayFull,
        StoreFailed,
        TokenAlreadyUsed,
        TokenExpired,
        TokenNotFound,
        TokenWithdrawn,
    )
}
_OF_THE_CONTROLLER = {
    InvalidInit.code: "The controller says that this device did not prove that it holds the token. The relay may have changed what "
    "was sent. Nothing was stored here; make a new token, for another relay.",
    OwnKey.code: "The controller says that this device has its own key: this is a copy of its directory. Nothing was stored here.",
    StoreFailed.code: "The controller could not store this device; its screen says why. Nothing was stored here. Mend that, then "
    "make a new token with provision.",
    TokenNotFound.code: "The controller does not know this token, or waits for it no longer. Make a new one with provision.",
}


class Signs(Protocol):
    """What a device must be able to do here."""

    @property
    def identity(self) -> Identity:
        """Who it is."""
        ...

    def sign(self, message: bytes) -> bytes:
        """``r || s``, low-S, 64 bytes."""
        ...


def same_relay(one: str, other: str) -> bool:
    """True if two addresses lead to the same relay: case of the host, and a port that is the usual one, do not matter."""
    return _parts(one) == _parts(other)


def _parts(address: str) -> tuple[object, ...]:
    try:
        parts = urlsplit(address.strip())
        port = parts.port or {"ws": 80, "wss": 443}.get(parts.scheme)
    except ValueError:
        return (address,)
    return parts.scheme, parts.hostname, port, parts.path or "/", parts.query


def check_relay(token: BootstrapToken, allowed: Sequence[str] | None) -> None:
    """The relay of a token must be one of those that are allowed.

    Args:
        token: verified.
        allowed: addresses; None allows every one.

    Raises:
        RelayNotAllowed: it is none of them.
    """
    if allowed is not None and not any(same_relay(token.relay, one) for one in allowed):
        raise RelayNotAllowed()


def build_init(token: BootstrapToken, text: str, device: Signs, *, v1: bool = False) -> str:
    """The frame with which this device comes.

    Args:
        token: verified.
        text: the token itself; it goes out only where it has no key of its own, and only with *v1*.
        device: who comes.
        v1: that may be.

    Raises:
        TokenWithoutKey: it would have to go out, and may not.
        KeyStoreError: the key can't be used.
    """
    public_key = device.identity.public_key
    shown = encode_public_key(public_key)
    if token.key is None:
        if not v1:
            raise TokenWithoutKey()
        return frames.init_v1(token.jti, shown, token=text)
    signature = b64encode(device.sign(init_message(public_key, token.jti)))
    return frames.init(token.jti, shown, proof=init_proof(token.key, public_key, token.jti), target_signature=signature)


async def present(
    token: BootstrapToken,
    init: str,
    public_key: bytes,
    *,
    confirmed: Callable[[], None],
    timeouts: Timeouts | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Come to the relay with a token, and return when its controller has let this device in.

    Args:
        token: verified.
        init: from :func:`build_init`.
        public_key: this device's, 33 bytes.
        confirmed: called as soon as the answer is verified, before anything else can go wrong.
        timeouts: how long to wait for what.
        tls: what certificates are trusted; None trusts those of the system.

    Raises:
        PairingError: each failure its own. Those of :data:`PASSING` may go away by themselves.
    """
    timeouts = timeouts or Timeouts()
    async with open_link(token.relay, seconds=timeouts.connect, patience=timeouts.relay, tls=tls) as link:
        await link.send(init)
        _check_answer(await link.receive(timeouts.message, PeerSilent), token, public_key)
        confirmed()


def _check_answer(frame: frames.Frame, token: BootstrapToken, public_key: bytes) -> None:
    match frame:
        case frames.Acknowledged(jti, key, signature):
            if jti != token.jti:
                raise InvalidAcknowledgement()
            verify_acknowledgement(
                token, target_public_key=public_key, controller_public_key=key, controller_signature=signature
            )
        case frames.Rejected(jti, code):
            raise _rejection(code) if jti in (None, token.jti) else RelayProtocolViolation()
        case frames.Failed(PeerGone()):
            raise PeerGone(
                "The device that waits for this token left before it answered, and the relay may take the token no second time. If "
                "so, make a new one with provision."
            )
        case frames.Failed(error):
            raise error
        case _:
            raise RelayProtocolViolation()


def _rejection(code: str) -> PairingError:
    found = _REJECTIONS.get(code)
    if found is None:
        return TokenRefused()
    return found(_OF_THE_CONTROLLER.get(code, ""))
