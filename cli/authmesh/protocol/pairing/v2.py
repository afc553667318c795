"""Pairing, version 2: committed, bound to the transcript, with authenticated verdicts (protocol.md §6b).

The commitment makes the verification code a fair draw: whoever sits between the two sides must fix the keys of one side before
the numbers of the other are known (Vaudenay, "Secure Communications over Insecure Channels Based on Short Authenticated
Strings", CRYPTO 2005; as in RFC 6189 §4.4.1).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ..allow_list import Role
from ..encoding import b64decode, b64encode, b64url_decode, b64url_encode, format_time, parse_time
from ..errors import InvalidInput
from ..keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, decode_public_key, encode_public_key, verify_signature
from ..seal import hkdf_sha256
from .codes import Peer, check_point, parse_object, six_digits
from .errors import ClockSkew, CommitmentMismatch, InvalidPayload, InvalidSelfSignature

Verdict = Literal["confirmed", "rejected", "stored"]

PREFIX: Final = "v2."
NONCE_BYTES: Final = 32
COMMITMENT_BYTES: Final = 32
SHARE_BYTES: Final = PUBLIC_KEY_BYTES + NONCE_BYTES
#: Longest plaintext; a name of 128 characters takes 1,536 of them at most.
MAX_PLAINTEXT_BYTES: Final = 4096
#: How far the clocks of the two devices may be apart, in seconds.
MAX_SKEW_SECONDS: Final = 60

_TAG_BYTES = 16
_VERDICTS = ("confirmed", "rejected", "stored")
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z").fullmatch


class Share(NamedTuple):
    """What one side puts into the agreement: an ephemeral public key (33 bytes) and a nonce (32 bytes)."""

    ephemeral: bytes
    nonce: bytes


def is_payload(payload: str) -> bool:
    """True if a payload says that it is of version 2."""
    return payload.startswith(PREFIX)


def encode_payload(data: bytes) -> str:
    """``v2.`` and base64url."""
    return PREFIX + b64url_encode(data)


def decode_payload(payload: str, *, size: int | None = None) -> bytes:
    """The bytes of a payload.

    Args:
        size: exactly how many; None allows what a sealed message may have.

    Raises:
        InvalidPayload: not of version 2, not base64url, or of another size.
    """
    if not is_payload(payload):
        raise InvalidPayload()
    try:
        data = b64url_decode(payload[len(PREFIX) :])
    except InvalidInput:
        raise InvalidPayload() from None
    least, most = (size, size) if size is not None else (_TAG_BYTES + 1, _TAG_BYTES + MAX_PLAINTEXT_BYTES)
    if not least <= len(data) <= most:
        raise InvalidPayload()
    return data


def encode_share(share: Share) -> str:
    """The payload that carries a share."""
    return encode_payload(share.ephemeral + share.nonce)


def decode_share(payload: str) -> Share:
    """The share in a payload.

    Raises:
        InvalidPayload: of another size, or the key is not a point of P-256.
    """
    data = decode_payload(payload, size=SHARE_BYTES)
    return Share(check_point(data[:PUBLIC_KEY_BYTES]), data[PUBLIC_KEY_BYTES:])


def commitment(share: Share) -> bytes:
    """What the target sends first, 32 bytes: it fixes its share without showing it."""
    return hashlib.sha256(b"amesh-pair-v2/commit\n" + share.ephemeral + share.nonce).digest()


def check_commitment(committed: bytes, share: Share) -> None:
    """The share must be the one that was committed to.

    Raises:
        CommitmentMismatch: it is another.
    """
    if not hmac.compare_digest(committed, commitment(share)):
        raise CommitmentMismatch()


def transcript(target: Share, controller: Share) -> bytes:
    """h, 32 bytes: all that was agreed on. Keys, signatures and the verification code hang on it."""
    members = b"amesh-pair-v2\n" + target.ephemeral + target.nonce + controller.ephemeral + controller.nonce
    return hashlib.sha256(members).digest()


class Keys(NamedTuple):
    """The key that each side sends with, 32 bytes each."""

    controller: bytes
    target: bytes


def derive_keys(shared: bytes, h: bytes) -> Keys:
    """The key schedule (RFC 5869).

    Args:
        shared: 32 bytes of :func:`authmesh.protocol.pairing.codes.shared_secret`.
        h: 32 bytes of :func:`transcript`.
    """
    both = hkdf_sha256(shared, salt=h, info=b"amesh-pair-v2/keys", length=64)
    return Keys(both[:32], both[32:])


def sas(h: bytes) -> str:
    """The verification code, six digits."""
    digest = hashlib.sha256(b"amesh-pair-v2/sas\n" + h).digest()
    return six_digits(int.from_bytes(digest[:8], "big"))


class Tunnel:
    """Both directions of the encrypted part: ChaCha20-Poly1305, nonce a 96-bit big-endian counter from 0 (RFC 8439).

    A message that was left out, repeated, changed or sent back to its sender does not open.

    Args:
        sending: 32 bytes.
        receiving: 32 bytes.
        h: the transcript, associated data of every message.
    """

    def __init__(self, *, sending: bytes, receiving: bytes, h: bytes) -> None:
        self._sending = ChaCha20Poly1305(sending)
        self._receiving = ChaCha20Poly1305(receiving)
        self._h = h
        self._sent = 0
        self._received = 0

    def seal(self, plaintext: bytes) -> str:
        """The payload of the next message to the other side.

        Raises:
            InvalidInput: empty, or over 4096 bytes.
        """
        if not 0 < len(plaintext) <= MAX_PLAINTEXT_BYTES:
            raise InvalidInput(f"A message of pairing has 1 to {MAX_PLAINTEXT_BYTES} bytes; shorten the device's name.")
        ciphertext = self._sending.encrypt(self._sent.to_bytes(12, "big"), plaintext, self._h)
        self._sent += 1
        return encode_payload(ciphertext)

    def open(self, payload: str) -> bytes:
        """What the next message of the other side says.

        Raises:
            InvalidPayload: it is not that message, or was changed.
        """
        data = decode_payload(payload)
        try:
            plaintext = self._receiving.decrypt(self._received.to_bytes(12, "big"), data, self._h)
        except InvalidTag:
            raise InvalidPayload() from None
        self._received += 1
        return plaintext


def self_signature_message(role: Role, public_key: str, timestamp: str, name: str, h: bytes) -> bytes:
    """What a self-signature covers. Role, key and time can't hold a newline; name and transcript have a fixed size here."""
    head = f"amesh-pair-v2/identity\n{role}\n{public_key}\n{timestamp}\n".encode("ascii")
    return head + hashlib.sha256(name.encode("utf-8")).digest() + h


def build_identity(
    role: Role, public_key: bytes, name: str, now: dt.datetime, h: bytes, sign: Callable[[bytes], bytes]
) -> bytes:
    """The JSON by which a device introduces itself, to be sealed.

    Args:
        role: what the sender is in this pairing.
        public_key: 33 bytes.
        name: without lone surrogates.
        now: with a time zone.
        h: the transcript.
        sign: signs with the device's key, 64 bytes.
    """
    key, timestamp = encode_public_key(public_key), format_time(now)
    signature = b64encode(sign(self_signature_message(role, key, timestamp, name, h)))
    value = {"role": role, "publicKey": key, "friendlyName": name, "timestamp": timestamp, "selfSig": signature}
    return json.dumps(value, ensure_ascii=False).encode("utf-8")


def parse_identity(plaintext: bytes, role: Role, h: bytes, now: dt.datetime) -> Peer:
    """Who the other side is, its signature verified. Unknown members are left aside.

    Args:
        role: what the other side must be.
        h: the transcript.
        now: this device's time.

    Raises:
        InvalidPayload: not the JSON of an identity, or of the wrong role.
        InvalidSelfSignature: not signed by the key that it names, for this pairing.
        ClockSkew: signed, but more than 60 s ago or ahead.
    """
    value = parse_object(plaintext, unique=True)
    members = [value.get(name) for name in ("role", "publicKey", "friendlyName", "timestamp", "selfSig")]
    if not all(isinstance(member, str) for member in members):
        raise InvalidPayload()
    stated_role, key, name, timestamp, signature = cast("list[str]", members)
    if stated_role != role or not _TIMESTAMP(timestamp):
        raise InvalidPayload()
    try:
        public_key, raw, moment = decode_public_key(key), b64decode(signature), parse_time(timestamp)
        message = self_signature_message(role, key, timestamp, name, h)
    except ValueError:  # among them UnicodeEncodeError: a lone surrogate in the name
        raise InvalidPayload() from None
    if key != encode_public_key(public_key) or len(raw) != SIGNATURE_BYTES:
        raise InvalidPayload()
    if not verify_signature(public_key, message, raw):
        raise InvalidSelfSignature()
    apart = abs((now - moment).total_seconds())
    if apart > MAX_SKEW_SECONDS:
        raise ClockSkew(
            f"The clocks of the two devices are {apart:.0f} seconds apart: this one says {format_time(now)}, the other one "
            f"{format_time(moment)}. Set both by NTP, then pair again. Nothing was stored."
        )
    return Peer.claiming(public_key, name)


def build_verdict(verdict: Verdict) -> bytes:
    """The JSON of a verdict, to be sealed."""
    return json.dumps({"verdict": verdict}, separators=(",", ":")).encode("ascii")


def parse_verdict(plaintext: bytes) -> Verdict:
    """What the other side decided.

    Raises:
        InvalidPayload: not the JSON of a verdict, with anything besides, or with an unknown one.
    """
    value = parse_object(plaintext, unique=True)
    verdict = value.get("verdict")
    if len(value) != 1 or verdict not in _VERDICTS:
        raise InvalidPayload()
    return cast("Verdict", verdict)
