"""The messages of the relay: JSON text frames, built and parsed (protocol.md §6, §7). Payloads are opaque to them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from authmesh.protocol.display import clean
from authmesh.protocol.pairing.errors import (
    CodeInUse,
    CodeNotFound,
    CodeTaken,
    InvalidCode,
    PairingError,
    PeerGone,
    RateLimited,
    RelayFull,
    RelayProtocolViolation,
    SessionDataLimit,
)
from authmesh.protocol.pairing.token_errors import AlreadyWatched, TokenNotTaken


@dataclass(frozen=True, slots=True)
class SessionOpen:
    """The relay has registered the one-time code of a target."""


@dataclass(frozen=True, slots=True)
class PeerFound:
    """The relay has matched the two devices."""


@dataclass(frozen=True, slots=True)
class Data:
    """A payload of the other device, or of the relay, which can forge one."""

    payload: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Done:
    """The other device has finished, and the relay has ended the session."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The relay reports an error."""

    error: PairingError


@dataclass(frozen=True, slots=True)
class Watching:
    """The relay will report every device that uses this token."""

    jti: str


@dataclass(frozen=True, slots=True)
class Init:
    """A device uses a token. Nothing in this frame is proven yet.

    Attributes:
        jti: the number of the token.
        target_public_key: the public key to enroll, base64.
        token: the token itself if the device runs the reference, else None.
        proof: proof that the sender holds the token; None if the device runs the reference.
        target_signature: proof that the sender holds the key; None if the device runs the reference.
    """

    jti: str
    target_public_key: str
    token: str | None = field(default=None, repr=False)
    proof: str | None = field(default=None, repr=False)
    target_signature: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The controller has stored this device. Until the signature is verified, anyone may have sent this frame."""

    jti: str
    controller_public_key: str
    controller_signature: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The controller or the relay rejects the token."""

    jti: str | None
    code: str


Frame = SessionOpen | PeerFound | Data | Done | Failed | Watching | Init | Acknowledged | Rejected

_ERRORS: dict[str, type[PairingError]] = {
    error.code: error
    for error in (
        InvalidCode,
        CodeInUse,
        CodeNotFound,
        CodeTaken,
        RateLimited,
        RelayFull,
        SessionDataLimit,
        PeerGone,
        AlreadyWatched,
        TokenNotTaken,
    )
}
_MEMBERS = ("jti", "error", "targetPubKey", "token", "proof", "targetSig", "controllerPubKey", "controllerSig")
_NOT_UNDERSTOOD = ("invalid_message", "unknown_type")


def listen(code: str) -> str:
    """Return the frame by which a target opens a session with a one-time code."""
    return json.dumps({"type": "listen", "otc": code})


def connect(code: str) -> str:
    """Return the frame by which a controller uses a one-time code."""
    return json.dumps({"type": "connect", "otc": code})


def data(payload: str) -> str:
    """Return the frame that carries a payload to the other device."""
    return json.dumps({"type": "data", "payload": payload})


def done() -> str:
    """Return the frame that ends a pairing."""
    return json.dumps({"type": "done"})


def watch(jti: str) -> str:
    """Return the frame by which a controller starts or goes on to wait for devices that use a token."""
    return json.dumps({"type": "bootstrap_watch", "jti": jti})


def init(jti: str, target_public_key: str, *, proof: str, target_signature: str) -> str:
    """Return the frame by which a target uses a token without revealing it."""
    members = {"jti": jti, "targetPubKey": target_public_key, "proof": proof, "targetSig": target_signature}
    return json.dumps({"type": "bootstrap_init", **members})


def init_v1(jti: str, target_public_key: str, *, token: str) -> str:
    """Return the frame by which a target uses a token as the reference does. It reveals the token to the relay."""
    return json.dumps({"type": "bootstrap_init", "jti": jti, "token": token, "targetPubKey": target_public_key})


def acknowledge(jti: str, public_key: str, signature: str) -> str:
    """Return the frame by which a controller accepts a target."""
    members = {"jti": jti, "publicKey": public_key, "controllerSig": signature}
    return json.dumps({"type": "bootstrap_ack", **members})


def reject(jti: str, code: str) -> str:
    """Return the frame by which a controller rejects a target."""
    return json.dumps({"type": "bootstrap_reject", "jti": jti, "error": code})


def parse_frame(text: str | bytes) -> Frame:
    """Parse a frame that came from a relay.

    Raises:
        RelayProtocolViolation: the frame is binary, not JSON, or not one of those above.
    """
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RelayProtocolViolation()
    kind, payload = value.get("type"), value.get("payload")
    if kind == "data" and isinstance(payload, str):
        return Data(payload)
    if kind == "ack" and value.get("message") == "session_open":
        return SessionOpen()
    if kind == "peer_found":
        return PeerFound()
    if kind == "done":
        return Done()
    if kind == "error":
        return Failed(_error(value.get("code")))
    if isinstance(kind, str) and kind.startswith("bootstrap_"):
        return _bootstrap(kind, value)
    raise RelayProtocolViolation()


def _error(code: object) -> PairingError:
    if isinstance(code, str) and code in _ERRORS:
        return _ERRORS[code]()
    if code in _NOT_UNDERSTOOD:
        return RelayProtocolViolation(
            "The relay does not understand this program: it may be another kind of server, or another version.",
            hint="Check the address of the relay (--relay, AMESH_RELAY_URL).",
        )
    shown = clean(code[:40]) if isinstance(code, str) else "none"
    return RelayProtocolViolation(
        f"The relay reported an error that this program does not know: {shown}.",
        hint="Try again, or use another relay.",
    )


def _bootstrap(kind: str, value: dict[str, Any]) -> Frame:
    found = {name: value.get(name) for name in _MEMBERS}
    if not all(text is None or isinstance(text, str) for text in found.values()):
        raise RelayProtocolViolation()
    jti, error = found["jti"], found["error"]
    if kind == "bootstrap_reject" and error is not None:
        return Rejected(jti, error)
    if jti is None:
        raise RelayProtocolViolation()
    if kind == "bootstrap_watching":
        return Watching(jti)
    if kind == "bootstrap_init" and found["targetPubKey"] is not None:
        return Init(jti, found["targetPubKey"], found["token"], found["proof"], found["targetSig"])
    if kind == "bootstrap_ack" and found["controllerPubKey"] is not None:
        return Acknowledged(jti, found["controllerPubKey"], found["controllerSig"] or "")
    raise RelayProtocolViolation()
