"""The messages of the relay: JSON text frames, built and read (protocol.md §6, §7). What is in a payload is no matter of theirs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from authmesh.protocol.display import clean
from authmesh.protocol.pairing.errors import (
    AlreadyWatched,
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
    TokenNotTaken,
)


@dataclass(frozen=True, slots=True)
class SessionOpen:
    """The relay has taken the one-time code of a target."""


@dataclass(frozen=True, slots=True)
class PeerFound:
    """The relay has matched the two sides."""


@dataclass(frozen=True, slots=True)
class Data:
    """A payload of the other side; or of the relay, which can write what it likes."""

    payload: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Done:
    """The other side has finished; the relay has forgotten the session."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The relay reports an error."""

    error: PairingError


@dataclass(frozen=True, slots=True)
class Watching:
    """The relay will say when somebody comes with this token."""

    jti: str


@dataclass(frozen=True, slots=True)
class Init:
    """Somebody has come with a token. Nothing of it is proven yet.

    Attributes:
        token: the token itself, from a program of the reference; None from ours.
        proof: that the sender holds the token; None from the reference.
        target_signature: that the sender holds the key; None from the reference.
    """

    jti: str
    target_public_key: str
    token: str | None = field(default=None, repr=False)
    proof: str | None = field(default=None, repr=False)
    target_signature: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The controller has let this device in; or somebody says so, until its signature is verified."""

    jti: str
    controller_public_key: str
    controller_signature: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The controller, or the relay, takes this token not."""

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
_DISLIKES = ("invalid_message", "unknown_type")


def listen(code: str) -> str:
    """Target: open a session under a one-time code."""
    return json.dumps({"type": "listen", "otc": code})


def connect(code: str) -> str:
    """Controller: come with a one-time code."""
    return json.dumps({"type": "connect", "otc": code})


def data(payload: str) -> str:
    """Either: a payload for the other side."""
    return json.dumps({"type": "data", "payload": payload})


def done() -> str:
    """Either: the pairing is finished."""
    return json.dumps({"type": "done"})


def watch(jti: str) -> str:
    """Controller: wait for whoever comes with this token, or go on waiting."""
    return json.dumps({"type": "bootstrap_watch", "jti": jti})


def init(jti: str, target_public_key: str, *, proof: str, target_signature: str) -> str:
    """Target: come with a token, without showing it."""
    members = {"jti": jti, "targetPubKey": target_public_key, "proof": proof, "targetSig": target_signature}
    return json.dumps({"type": "bootstrap_init", **members})


def init_v1(jti: str, target_public_key: str, *, token: str) -> str:
    """Target: come with a token as the reference does. Whoever runs the relay has it then."""
    return json.dumps({"type": "bootstrap_init", "jti": jti, "token": token, "targetPubKey": target_public_key})


def acknowledge(jti: str, public_key: str, signature: str) -> str:
    """Controller: the target is let in."""
    members = {"jti": jti, "publicKey": public_key, "controllerSig": signature}
    return json.dumps({"type": "bootstrap_ack", **members})


def reject(jti: str, code: str) -> str:
    """Controller: the target is not let in."""
    return json.dumps({"type": "bootstrap_reject", "jti": jti, "error": code})


def parse_frame(text: str | bytes) -> Frame:
    """What a relay says.

    Raises:
        RelayProtocolViolation: binary, not JSON, or nothing that a relay says.
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
    if code in _DISLIKES:
        return RelayProtocolViolation(
            "The relay does not understand this program; it may be another kind of server, or another version. Check the "
            "address (--relay, AMESH_RELAY_URL)."
        )
    shown = clean(code[:40]) if isinstance(code, str) else "none"
    return RelayProtocolViolation(
        f"The relay refused for a reason that this program does not know: {shown}. Try again, or use another relay."
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
