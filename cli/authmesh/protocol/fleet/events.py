"""Events: what a hub says about one key."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from authmesh.protocol.encoding import b64decode_any, b64url_decode, b64url_encode, format_time, parse_time
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.keys import decode_public_key, encode_public_key, load_public_key
from authmesh.protocol.seal import canonical_json

from .errors import MalformedFeed

EventName = Literal["revoke", "suspend", "lift", "reinstate", "trust"]
EVENTS: Final[tuple[EventName, ...]] = get_args(EventName)

#: Events that also say what the device may do, if the server is to trust it.
_WITH_RIGHTS: Final[tuple[EventName, ...]] = ("suspend", "lift", "reinstate")
#: Largest serial: what JSON carries exactly.
MAX_SERIAL: Final = (1 << 53) - 1
#: Longest texts, in characters. A longer reason or name is cut.
MAX_TEXT: Final = 500
#: Levels of a permission's value at most: each part of the server that reads or seals the row must be able to follow them.
MAX_DEPTH: Final = 16
#: Reason of the revocation of a device that a server is no longer told to trust.
LEFT_GROUP: Final = "left_group"
_HASH_BYTES = 32
_DEVICE_ID = re.compile(r"am_[A-Za-z0-9_-]{16}")
_EPOCH = re.compile(r"[!-~]{0,32}")


@dataclass(frozen=True, slots=True)
class Trusted:
    """What an event ``trust`` says about the device: all that a server needs to let it in.

    Attributes:
        public_key: 33 bytes, compressed point.
        name: friendly name.
        permissions: name → value, without scopes.
        scopes: its scopes and those of its groups at the hub.
        expires_at: time from which its key is not accepted; None for no such time.
    """

    public_key: bytes
    name: str
    permissions: Mapping[str, Any] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()
    expires_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One event.

    Attributes:
        serial: revision of the hub's list. Several events may have the same.
        event: what happened.
        device_id: ``am_…``
        key: SHA-256 of the public key, 32 bytes.
        at: time at the hub.
        reason: in words; may be empty.
        until: end of a suspension; None for no end.
        effective_at: a key that was replaced is revoked from this time on (event ``revoke``); None for at once.
        successor: device ID of the key that replaced it; empty if none did.
        left: True if the server is not told to trust the device any more: what the hub has added there is revoked, whatever the event is. For
            any other device, ``revoke`` means nothing then, and another event what it always means.
        trusted: what the event ``trust`` says; ``suspend``, ``lift``, and ``reinstate`` say it, too, if the server is to trust the device as soon
            as it is not suspended. None for any other.
        still: True if the device was suspended before (event ``suspend``), and only what it may do has changed.
    """

    serial: int
    event: EventName
    device_id: str
    key: bytes
    at: dt.datetime
    reason: str = ""
    until: dt.datetime | None = None
    effective_at: dt.datetime | None = None
    successor: str = ""
    left: bool = False
    trusted: Trusted | None = None
    still: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object. Members that say nothing are left out."""
        found: dict[str, Any] = {
            "serial": self.serial,
            "event": self.event,
            "device": self.device_id,
            "key": b64url_encode(self.key),
            "at": format_time(self.at),
            "reason": self.reason[:MAX_TEXT],
        }
        if self.until is not None:
            found["until"] = format_time(self.until)
        if self.effective_at is not None:
            found |= {"effectiveAt": format_time(self.effective_at), "successor": self.successor}
        if self.left:
            found["left"] = True
        if self.still:
            found["still"] = True
        if self.trusted is not None:
            found["publicKey"] = encode_public_key(self.trusted.public_key)
            found["name"] = self.trusted.name[:MAX_TEXT]
            found["permissions"] = dict(self.trusted.permissions)
            found["scopes"] = list(self.trusted.scopes)
            if self.trusted.expires_at is not None:
                found["expiresAt"] = format_time(self.trusted.expires_at)
        return found

    @classmethod
    def from_json(cls, value: Any) -> FeedEvent:
        """Return the event in a JSON object. Members that are not known are ignored.

        Raises:
            MalformedFeed: a member is missing, or has the wrong form.
        """
        if not isinstance(value, dict) or value.get("event") not in EVENTS:
            raise MalformedFeed()
        try:
            device, reason, successor = (text(value, name) for name in ("device", "reason", "successor"))
            key = b64url_decode(text(value, "key"))
            if len(key) != _HASH_BYTES or not is_device_id(device) or not (not successor or is_device_id(successor)):
                raise MalformedFeed()
            moment = parse_time(text(value, "at"))
            until, effective_at, expires_at = (_time(value, name) for name in ("until", "effectiveAt", "expiresAt"))
            trusted = None
            if value["event"] == "trust" or (value["event"] in _WITH_RIGHTS and "publicKey" in value):
                trusted = _trusted(value, key, expires_at)
        except InvalidInput:
            raise MalformedFeed() from None
        return cls(
            serial=serial(value, "serial"),
            event=value["event"],
            device_id=device,
            key=key,
            at=moment,
            reason=reason[:MAX_TEXT],
            until=until,
            effective_at=effective_at,
            successor=successor,
            left=value.get("left") is True,
            trusted=trusted,
            still=value.get("still") is True,
        )


def key_hash(public_key: bytes) -> bytes:
    """Return the SHA-256 of a public key of 33 bytes: what an event names it by."""
    return hashlib.sha256(public_key).digest()


def device_id_of(key: bytes) -> str:
    """Return the device ID of a key with this hash. The one that an event names is for people."""
    return f"am_{b64url_encode(key)[:16]}"


def is_device_id(found: str) -> bool:
    """Return True if a text has the form of a device ID."""
    return _DEVICE_ID.fullmatch(found) is not None


def serial(value: Mapping[str, Any], name: str) -> int:
    """Return a member that is a serial.

    Raises:
        MalformedFeed: it is missing, or is not an integer from 0 to :data:`MAX_SERIAL`.
    """
    found = value.get(name)
    if type(found) is not int or not 0 <= found <= MAX_SERIAL:
        raise MalformedFeed()
    return found


def text(value: Mapping[str, Any], name: str) -> str:
    """Return a member that is a text; an empty text if it is missing.

    Raises:
        MalformedFeed: it is not a text.
    """
    found = value.get(name, "")
    if not isinstance(found, str):
        raise MalformedFeed()
    return found


def epoch(value: Mapping[str, Any]) -> str:
    """Return the member ``epoch``; an empty text if it is missing.

    Raises:
        MalformedFeed: it is longer than 32 characters, or has others than printable ASCII without spaces, which not every database can hold.
    """
    found = text(value, "epoch")
    if not _EPOCH.fullmatch(found):
        raise MalformedFeed()
    return found


def _time(value: Mapping[str, Any], name: str) -> dt.datetime | None:
    found = text(value, name)
    return parse_time(found) if found else None


def _trusted(value: Mapping[str, Any], key: bytes, expires_at: dt.datetime | None) -> Trusted:
    public_key = decode_public_key(b64_text(value))
    load_public_key(public_key)
    permissions, scopes = value.get("permissions", {}), value.get("scopes", [])
    if key_hash(public_key) != key or not isinstance(permissions, dict) or not isinstance(scopes, list):
        raise MalformedFeed()
    if not all(isinstance(scope, str) for scope in scopes) or not _can_be_sealed([permissions, scopes]):
        raise MalformedFeed()
    return Trusted(public_key, text(value, "name")[:MAX_TEXT], permissions, tuple(scopes), expires_at)


def _can_be_sealed(value: Any) -> bool:
    """Return True if a JSON value can become part of a sealed row: it is flat enough, and its numbers and texts can be written."""
    if not _is_flat(value, MAX_DEPTH):
        return False
    try:
        canonical_json(value)
    except (InvalidInput, OverflowError, ValueError):
        return False
    return True


def _is_flat(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(one, levels - 1) for one in inner)


def b64_text(value: Mapping[str, Any]) -> str:
    """Return the public key of an event as text.

    Raises:
        MalformedFeed: it is not a text.
        InvalidInput: it is not base64.
    """
    found = text(value, "publicKey")
    b64decode_any(found)
    return found
