"""Bootstrap tokens on the target: use a token at its relay, and verify the answer. This module stores nothing."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from authmesh.protocol.encoding import b64encode
from authmesh.protocol.errors import Hint, Run
from authmesh.protocol.keys import encode_public_key
from authmesh.protocol.pairing.errors import (
    OwnKey,
    PairingError,
    PeerGone,
    PeerSilent,
    RateLimited,
    RelayClosed,
    RelayFull,
    RelayProtocolViolation,
    RelayUnreachable,
    StoreFailed,
)
from authmesh.protocol.pairing.token import BootstrapToken, init_message, init_proof, verify_acknowledgement
from authmesh.protocol.pairing.token_errors import (
    AlreadyWatched,
    InvalidAcknowledgement,
    InvalidInit,
    NoWatcher,
    ProofRequired,
    RelayNotAllowed,
    TokenAlreadyUsed,
    TokenExpired,
    TokenNotFound,
    TokenRefused,
    TokenWithdrawn,
    TokenWithoutKey,
)

from ..options import Timeouts
from ..wire import frames
from ..wire.link import open_socket

#: Temporary errors: another attempt may succeed. Every other error is final for a token.
TEMPORARY: tuple[type[PairingError], ...] = (
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
#: Message and hint of errors that mean something else if the controller reports them.
_REPORTED = {
    InvalidInit.code: (
        "The controller reports that this device did not prove that it holds the token; the relay may have changed a message. "
        "Nothing was stored here.",
        "To make a new token for another relay, run provision on the controller.",
    ),
    OwnKey.code: (
        "The controller reports that this device has its key: this is a copy of the directory of the controller. Nothing was stored "
        "here.",
        "Use a device directory of its own.",
    ),
    StoreFailed.code: (
        "The controller could not store this device. Nothing was stored here.",
        "The screen of the controller has the reason. Fix it, then make a new token with provision.",
    ),
    TokenNotFound.code: (
        "The controller does not know this token, or no longer waits for it. Nothing was stored here.",
        "To make a new token, run provision on the controller.",
    ),
}

#: Its maker has no provision --resume, because that came with the tokens that have a key.
_NO_WATCHER_V1: Hint = (
    "The device that made it must wait at this relay, and the TypeScript command line never does. Pair by hand instead: on this device, run ",
    Run("init"),
    " and ",
    Run("listen", "--v1"),
    "; on the other device, run amesh invite with the code.",
)


def same_relay(one: str, other: str) -> bool:
    """Return True if two addresses are those of the same relay. The case of the host and a default port do not matter."""
    return _parts(one) == _parts(other)


def _parts(address: str) -> tuple[object, ...]:
    try:
        parts = urlsplit(address.strip())
        port = parts.port or {"ws": 80, "wss": 443}.get(parts.scheme)
    except ValueError:
        return (address,)
    return parts.scheme, parts.hostname, port, parts.path or "/", parts.query


def check_relay(token: BootstrapToken, allowed: Sequence[str] | None) -> None:
    """Check that the relay of a token is allowed.

    Args:
        token: a verified token.
        allowed: addresses of the allowed relays, or None for any relay.

    Raises:
        RelayNotAllowed: the relay is not among them.
    """
    if allowed is not None and not any(same_relay(token.relay, one) for one in allowed):
        raise RelayNotAllowed()


def build_init(
    token: BootstrapToken, text: str, public_key: bytes, sign: Callable[[bytes], bytes], *, v1: bool = False
) -> str:
    """Return the frame by which this device uses a token.

    Args:
        token: a verified token.
        text: the token itself. It is sent only if it has no key of its own, and only with *v1*.
        public_key: public key of this device, 33 bytes.
        sign: returns a signature made with the key of this device, 64 bytes.
        v1: True to allow sending the token itself.

    Raises:
        TokenWithoutKey: the token would have to be sent, and must not be.
        KeyStoreError: the key can't be used.
    """
    encoded = encode_public_key(public_key)
    if token.key is None:
        if not v1:
            raise TokenWithoutKey()
        return frames.init_v1(token.jti, encoded, token=text)
    signature = b64encode(sign(init_message(public_key, token.jti)))
    return frames.init(
        token.jti, encoded, proof=init_proof(token.key, public_key, token.jti), target_signature=signature
    )


async def present(
    token: BootstrapToken,
    init: str,
    public_key: bytes,
    *,
    confirmed: Callable[[], None],
    timeouts: Timeouts | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Use a token at its relay, and return when the controller has acknowledged this device.

    Args:
        token: a verified token.
        init: the frame of :func:`build_init`.
        public_key: public key of this device, 33 bytes.
        confirmed: called as soon as the answer is verified, before anything else can fail.
        timeouts: the longest waits.
        tls: the trusted certificates. Defaults to those of the system.

    Raises:
        PairingError: the device was not acknowledged. The errors in :data:`TEMPORARY` are worth another attempt.
    """
    timeouts = timeouts or Timeouts()
    async with open_socket(token.relay, seconds=timeouts.connect, patience=timeouts.relay, tls=tls) as socket:
        await socket.send(init)
        _check_answer(await socket.receive(timeouts.message, PeerSilent), token, public_key)
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
            raise _rejection(code, token) if jti in (None, token.jti) else RelayProtocolViolation()
        case frames.Failed(PeerGone()):
            raise PeerGone(
                "The controller left before it answered. Nothing was stored here.",
                hint="The relay may not accept this token again. If so, make a new one: run provision on the controller.",
            )
        case frames.Failed(error):
            raise error
        case _:
            raise RelayProtocolViolation()


def _rejection(code: str, token: BootstrapToken) -> PairingError:
    if code == NoWatcher.code and token.key is None:
        return NoWatcher(hint=_NO_WATCHER_V1)
    message, hint = _REPORTED.get(code, ("", ""))
    return _REJECTIONS.get(code, TokenRefused)(message, hint=hint)
