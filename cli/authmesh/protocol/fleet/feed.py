"""The feed: the message with which a hub tells a server what changed, its answer, and what is signed (docs/fleet.md).

A message is an ordinary signed request of the hub. It names the server that it is for, because version 1 of the request signature does
not: the server could hand it on to another one. The answer is signed, because it moves the cursor of the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from authmesh.protocol.encoding import b64decode_any, b64url_encode
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.keys import verify_signature

from .errors import MalformedFeed, UnverifiedMessage
from .events import FeedEvent, epoch, serial, text

#: Paths of the addresses, relative to the URL of a server or hub.
FEED_PATH: Final = "feed"
PULL_PATH: Final = "feed/pull"
LIST_PATH: Final = "revocations.jwt"
#: Header with the signature of a hub under the answer to a pull.
SIGNATURE_HEADER: Final = "Amesh-Signature"
VERSION: Final = 1
#: Largest difference between ``iat`` and the clock of the server, in seconds.
MAX_SKEW_SECONDS: Final = 60
#: Events in one message, and how far a server may lag before it gets the whole list instead.
MAX_EVENTS: Final = 1000
#: Revocations of one revision, which a hub never divides, beyond which it sends the signed list instead: that is shorter.
MAX_IN_MESSAGE: Final = 10 * MAX_EVENTS
#: Largest message, in bytes: one with a list of 100,000 revocations fits.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FeedMessage:
    """The body of ``POST feed``, and of the answer to ``POST feed/pull``.

    Attributes:
        issuer: device ID of the hub.
        audience: device ID of the server.
        url: address of the hub's ``amesh/``; empty if it has none.
        epoch: epoch of the hub's list.
        after: the serial after which the events begin.
        head: newest serial of the hub.
        issued_at: Unix seconds.
        events: in the order of their serials; a revision is in one message as a whole.
        until: newest serial that the message covers. Equal to *head* unless more messages follow.
        revocations: signed list (JWS) of all revocations; empty unless the server needs it: its epoch is another one, or it is far behind.
    """

    issuer: str
    audience: str
    url: str
    epoch: str
    after: int
    head: int
    issued_at: int
    events: Sequence[FeedEvent] = ()
    until: int = 0
    revocations: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        found: dict[str, Any] = {
            "v": VERSION,
            "iss": self.issuer,
            "aud": self.audience,
            "url": self.url,
            "epoch": self.epoch,
            "after": self.after,
            "head": self.head,
            "iat": self.issued_at,
            "until": self.until,
            "events": [event.to_json() for event in self.events],
        }
        return {**found, "list": self.revocations} if self.revocations else found

    @classmethod
    def from_json(cls, value: Any) -> FeedMessage:
        """Return the message in a JSON object. Nothing in it is verified.

        Raises:
            MalformedFeed: a member is missing, or has the wrong form.
        """
        if not isinstance(value, dict) or value.get("v") != VERSION or value["v"] is True:
            raise MalformedFeed()
        raw = value.get("events")
        if not isinstance(raw, list):
            raise MalformedFeed()
        events = [FeedEvent.from_json(one) for one in raw]
        after, head = serial(value, "after"), serial(value, "head")
        # A hub that does not say how far the message goes has sent all up to its last event; without events, there are none.
        default = max((event.serial for event in events), default=head)
        until = serial({"until": value.get("until", default)}, "until")
        if not after <= until <= head and not (until == head < after):
            raise MalformedFeed()
        serials = [event.serial for event in events]
        if serials != sorted(serials) or any(not after < one <= until for one in serials):
            raise MalformedFeed()
        issuer, audience, url = (text(value, name) for name in ("iss", "aud", "url"))
        known = epoch(value)
        if not issuer or not audience or len(url) > 500 or not known:
            raise MalformedFeed()
        return cls(
            issuer, audience, url, known, after, head, serial(value, "iat"), tuple(events), until, text(value, "list")
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """One event that a server did not apply.

    Attributes:
        serial: its serial.
        device_id: its device.
        why: a stable word, such as ``max_controllers``.
    """

    serial: int
    device_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The answer of a server: 200, or 409 if the message begins after events that it lacks.

    Attributes:
        epoch: epoch of the hub's list that the server knows; empty if it knows none.
        applied: all up to this serial is applied, or refused for good.
        refused: events of this message that were not applied.
        needs_list: True if the server needs the signed list: the epoch is another one, or it is far behind.
    """

    epoch: str
    applied: int
    refused: Sequence[Refused] = ()
    needs_list: bool = False

    def to_json(self, *, issuer: str, audience: str, nonce: str, sign: Callable[[bytes], bytes]) -> dict[str, Any]:
        """Return the signed JSON object.

        Args:
            issuer: device ID of the hub.
            audience: device ID of the server.
            nonce: nonce of the request that is answered, as in its header.
            sign: returns a signature made with the key of the server, 64 bytes.
        """
        acknowledged = ack_message(
            issuer=issuer, audience=audience, epoch=self.epoch, applied=self.applied, nonce=nonce
        )
        return {
            "epoch": self.epoch,
            "applied": self.applied,
            "refused": [{"serial": one.serial, "device": one.device_id, "why": one.why} for one in self.refused],
            **({"need": "list"} if self.needs_list else {}),
            "sig": b64url_encode(sign(acknowledged)),
        }

    @classmethod
    def from_json(cls, value: Any, *, issuer: str, audience: str, nonce: str, server_key: bytes) -> Acknowledgement:
        """Return the answer in a JSON object, after its signature was verified.

        Args:
            value: the JSON value.
            issuer, audience, nonce: as for :meth:`to_json`.
            server_key: public key of the server, 33 bytes.

        Raises:
            UnverifiedMessage: the server did not sign it, or signed it for another request.
        """
        try:
            if not isinstance(value, dict):
                raise UnverifiedMessage()
            found = cls(epoch(value), serial(value, "applied"), needs_list=value.get("need") == "list")
            signature = b64decode_any(text(value, "sig"))
        except (MalformedFeed, InvalidInput):
            raise UnverifiedMessage() from None
        message = ack_message(issuer=issuer, audience=audience, epoch=found.epoch, applied=found.applied, nonce=nonce)
        if not verify_signature(server_key, message, signature):
            raise UnverifiedMessage()
        return cls(found.epoch, found.applied, tuple(_refused(value.get("refused"))), found.needs_list)


def _refused(value: Any) -> list[Refused]:
    """Return what an answer says about refused events. It is not signed, and only shown."""
    found = []
    for one in value if isinstance(value, list) else []:
        if isinstance(one, dict) and type(one.get("serial")) is int and isinstance(one.get("why"), str):
            found.append(Refused(one["serial"], str(one.get("device", ""))[:32], one["why"][:64]))
    return found


def ack_message(*, issuer: str, audience: str, epoch: str, applied: int, nonce: str) -> bytes:
    """Return the bytes that a server signs for its answer."""
    return f"amesh-feed-ack-v1\n{issuer}\n{audience}\n{epoch}\n{applied}\n{nonce}".encode()


def pull_message(*, issuer: str, audience: str, nonce: str, body_hash: str) -> bytes:
    """Return the bytes that a hub signs for its answer to a pull.

    Args:
        issuer: device ID of the hub.
        audience: device ID of the server.
        nonce: nonce of the request that is answered.
        body_hash: SHA-256 of the body of the answer, in lower-case hex.
    """
    return f"amesh-feed-pull-v1\n{issuer}\n{audience}\n{nonce}\n{body_hash}".encode()
