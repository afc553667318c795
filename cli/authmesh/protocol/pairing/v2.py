"""Version 2 of pairing: with a commitment, bound to the transcript, with authenticated verdicts (protocol.md §6b).

Because of the commitment, an attacker between the two devices cannot search for keys that give the same verification code on both
sides: the attacker must choose the keys for one side before the numbers of the other side are known (Vaudenay, "Secure
Communications over Insecure Channels Based on Short Authenticated Strings", CRYPTO 2005; as in RFC 6189 §4.4.1).
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
#: Longest plaintext; a name of 128 characters takes at most 1,536 of these bytes.
MAX_PLAINTEXT_BYTES: Final = 4096
#: Largest difference between the clocks of the two devices, in seconds.
MAX_SKEW_SECONDS: Final = 60

_TAG_BYTES = 16
_VERDICTS = ("confirmed", "rejected", "stored")
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z").fullmatch


class Share(NamedTuple):
    """The contribution of one side to the key agreement: an ephemeral public key (33 bytes) and a nonce (32 bytes)."""

    ephemeral: bytes
    nonce: bytes


def is_payload(payload: str) -> bool:
    """Return True if a payload is marked as one of version 2."""
    return payload.startswith(PREFIX)


def encode_payload(data: bytes) -> str:
    """Return a payload of version 2: ``v2.`` and base64url."""
    return PREFIX + b64url_encode(data)


def decode_payload(payload: str, *, size: int | None = None) -> bytes:
    """Return the bytes of a payload of version 2.

    Args:
        size: the exact number of bytes. Defaults to any number that a sealed message may have.

    Raises:
        InvalidPayload: *payload* is not of version 2, is not base64url, or has another size.
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
    """Return the payload that carries a share."""
    return encode_payload(share.ephemeral + share.nonce)


def decode_share(payload: str) -> Share:
    """Return the share in a payload.

    Raises:
        InvalidPayload: *payload* has another size, or its key is not a point of P-256.
    """
    data = decode_payload(payload, size=SHARE_BYTES)
    return Share(check_point(data[:PUBLIC_KEY_BYTES]), data[PUBLIC_KEY_BYTES:])


def commitment(share: Share) -> bytes:
    """Return the commitment to a share, 32 bytes. The target sends it first, which fixes the share without revealing it."""
    return hashlib.sha256(b"amesh-pair-v2/commit\n" + share.ephemeral + share.nonce).digest()


def check_commitment(committed: bytes, share: Share) -> None:
    """Check that a share is the one that was committed to.

    Raises:
        CommitmentMismatch: it is another share.
    """
    if not hmac.compare_digest(committed, commitment(share)):
        raise CommitmentMismatch()


def transcript(target: Share, controller: Share) -> bytes:
    """Return the transcript hash h, 32 bytes, which keys, signatures and the verification code depend on."""
    members = b"amesh-pair-v2\n" + target.ephemeral + target.nonce + controller.ephemeral + controller.nonce
    return hashlib.sha256(members).digest()


class TunnelKeys(NamedTuple):
    """The keys that the controller and the target send with, 32 bytes each."""

    controller: bytes
    target: bytes


def derive_keys(shared: bytes, h: bytes) -> TunnelKeys:
    """Return the keys of both directions (RFC 5869).

    Args:
        shared: result of :func:`authmesh.protocol.pairing.codes.shared_secret`.
        h: result of :func:`transcript`.
    """
    both = hkdf_sha256(shared, salt=h, info=b"amesh-pair-v2/keys", length=64)
    return TunnelKeys(both[:32], both[32:])


def sas(h: bytes) -> str:
    """Return the verification code, six digits."""
    digest = hashlib.sha256(b"amesh-pair-v2/sas\n" + h).digest()
    return six_digits(int.from_bytes(digest[:8], "big"))


class Tunnel:
    """Encrypt and decrypt messages with ChaCha20-Poly1305; the nonce is a 96-bit big-endian counter from 0 (RFC 8439).

    A message that was omitted, repeated, changed or sent back to its sender cannot be opened.

    Args:
        sending: key for messages to the other device, 32 bytes.
        receiving: key for messages of the other device, 32 bytes.
        h: the transcript hash, associated data of every message.
    """

    def __init__(self, *, sending: bytes, receiving: bytes, h: bytes) -> None:
        self._sending = ChaCha20Poly1305(sending)
        self._receiving = ChaCha20Poly1305(receiving)
        self._h = h
        self._sent = 0
        self._received = 0

    def seal(self, plaintext: bytes) -> str:
        """Return the payload of the next message to the other device.

        Raises:
            InvalidInput: *plaintext* is empty, or has more than 4096 bytes.
        """
        if not 0 < len(plaintext) <= MAX_PLAINTEXT_BYTES:
            raise InvalidInput(
                f"A message of pairing must have from 1 to {MAX_PLAINTEXT_BYTES} bytes.",
                hint="Shorten the name of this device.",
            )
        ciphertext = self._sending.encrypt(self._sent.to_bytes(12, "big"), plaintext, self._h)
        self._sent += 1
        return encode_payload(ciphertext)

    def open(self, payload: str) -> bytes:
        """Return the plaintext of the next message of the other device.

        Raises:
            InvalidPayload: *payload* is not the next message, or was changed.
        """
        data = decode_payload(payload)
        try:
            plaintext = self._receiving.decrypt(self._received.to_bytes(12, "big"), data, self._h)
        except InvalidTag:
            raise InvalidPayload() from None
        self._received += 1
        return plaintext


def self_signature_message(role: Role, public_key: str, timestamp: str, name: str, h: bytes) -> bytes:
    """Return the bytes that a self-signature covers.

    They are unambiguous: role, key and time cannot contain a newline, and name hash and transcript hash have a fixed size.
    """
    head = f"amesh-pair-v2/identity\n{role}\n{public_key}\n{timestamp}\n".encode("ascii")
    return head + hashlib.sha256(name.encode("utf-8")).digest() + h


def build_identity(
    role: Role, public_key: bytes, name: str, now: dt.datetime, h: bytes, sign: Callable[[bytes], bytes]
) -> bytes:
    """Return the JSON by which a device introduces itself, before it is sealed.

    Args:
        role: role of this device in the pairing.
        public_key: 33 bytes.
        name: friendly name, without lone surrogates.
        now: the current time, with a time zone.
        h: the transcript hash.
        sign: returns a signature made with the key of the device, 64 bytes.
    """
    key, timestamp = encode_public_key(public_key), format_time(now)
    signature = b64encode(sign(self_signature_message(role, key, timestamp, name, h)))
    value = {"role": role, "publicKey": key, "friendlyName": name, "timestamp": timestamp, "selfSig": signature}
    return json.dumps(value, ensure_ascii=False).encode("utf-8")


def parse_identity(plaintext: bytes, role: Role, h: bytes, now: dt.datetime) -> Peer:
    """Return the other device, after verifying its signature. Unknown members are ignored.

    Args:
        role: role that the other device must have.
        h: the transcript hash.
        now: the current time on this device.

    Raises:
        InvalidPayload: *plaintext* is not the JSON of an identity, or has the wrong role.
        InvalidSelfSignature: it is not signed for this pairing with the key that it contains.
        ClockSkew: its time differs from *now* by more than 60 seconds.
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
    except ValueError:  # including UnicodeEncodeError: a lone surrogate in the name
        raise InvalidPayload() from None
    if key != encode_public_key(public_key) or len(raw) != SIGNATURE_BYTES:
        raise InvalidPayload()
    if not verify_signature(public_key, message, raw):
        raise InvalidSelfSignature()
    apart = abs((now - moment).total_seconds())
    if apart > MAX_SKEW_SECONDS:
        raise ClockSkew(
            f"The clocks of the two devices are {apart:.0f} seconds apart: {format_time(now)} on this device, "
            f"{format_time(moment)} on the other one. Nothing was stored.",
            hint=ClockSkew.default_hint,
        )
    return Peer.claiming(public_key, name)


def build_verdict(verdict: Verdict) -> bytes:
    """Return the JSON of a verdict, before it is sealed."""
    return json.dumps({"verdict": verdict}, separators=(",", ":")).encode("ascii")


def parse_verdict(plaintext: bytes) -> Verdict:
    """Return the decision of the other device.

    Raises:
        InvalidPayload: *plaintext* is not the JSON of a verdict, has other members, or the verdict is unknown.
    """
    value = parse_object(plaintext, unique=True)
    verdict = value.get("verdict")
    if len(value) != 1 or verdict not in _VERDICTS:
        raise InvalidPayload()
    return cast("Verdict", verdict)
