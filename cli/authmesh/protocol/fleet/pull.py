"""The pull: a server asks its hub for changes by itself, and the hub signs its answer (docs/fleet.md).

The question is an ordinary signed request of the server. The answer is a message of the feed, with a signature over its exact bytes and the
nonce of the question, so that nothing in between can answer instead, or with an answer to an earlier question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from authmesh.protocol.encoding import b64decode_any, b64url_encode
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.keys import verify_signature

from .errors import MalformedFeed, UnverifiedMessage
from .events import epoch, serial, text
from .feed import VERSION, pull_message


@dataclass(frozen=True, slots=True)
class PullQuestion:
    """The body of ``POST feed/pull``.

    Attributes:
        audience: device ID of the hub.
        epoch: epoch of the hub's list that the server knows; empty if it knows none.
        after: serial up to which the server has applied all events of that epoch.
    """

    audience: str
    epoch: str = ""
    after: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"v": VERSION, "aud": self.audience, "epoch": self.epoch, "after": self.after}

    @classmethod
    def from_json(cls, value: Any) -> PullQuestion:
        """Return the question in a JSON object.

        Raises:
            MalformedFeed: a member is missing, or has the wrong form.
        """
        if not isinstance(value, dict) or value.get("v") != VERSION or value["v"] is True:
            raise MalformedFeed()
        audience = text(value, "aud")
        if not audience:
            raise MalformedFeed()
        return cls(audience, epoch(value), serial(value, "after"))


def sign_answer(body: bytes, *, issuer: str, audience: str, nonce: str, sign: Callable[[bytes], bytes]) -> str:
    """Return the header ``Amesh-Signature`` of an answer.

    Args:
        body: the exact bytes of the answer.
        issuer: device ID of the hub.
        audience: device ID of the server.
        nonce: nonce of the question, as in its header.
        sign: returns a signature made with the key of the hub, 64 bytes.
    """
    answered = _message(body, issuer, audience, nonce)
    return b64url_encode(sign(answered))


def verify_answer(body: bytes, signature: str, *, issuer: str, audience: str, nonce: str, issuer_key: bytes) -> None:
    """Check that the hub signed an answer, for this server, and to this question.

    Args:
        body, issuer, audience, nonce: as for :func:`sign_answer`.
        signature: value of the header; empty if there is none.
        issuer_key: public key of the hub, 33 bytes.

    Raises:
        UnverifiedMessage: it did not.
    """
    try:
        raw = b64decode_any(signature)
    except InvalidInput:
        raise UnverifiedMessage() from None
    if not verify_signature(issuer_key, _message(body, issuer, audience, nonce), raw):
        raise UnverifiedMessage()


def _message(body: bytes, issuer: str, audience: str, nonce: str) -> bytes:
    return pull_message(issuer=issuer, audience=audience, nonce=nonce, body_hash=hashlib.sha256(body).hexdigest())
