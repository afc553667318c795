"""The messages of the relay: JSON text frames, built and read (protocol.md §6). What is in a payload is no matter of theirs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from amesh_django.protocol.display import clean
from amesh_django.protocol.pairing_errors import (
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


Frame = SessionOpen | PeerFound | Data | Done | Failed

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
    )
}
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


def parse_frame(text: str | bytes) -> Frame:
    """What a relay says.

    Raises:
        RelayProtocolViolation: binary, not JSON, or nothing that a relay says to one of the two sides.
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
