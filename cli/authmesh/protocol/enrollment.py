"""Enrollment tokens, with which many machines become controllers of one server without a person at either (docs/fleet.md).

The server makes a token (:func:`build_token`). A machine reads it (:func:`parse_token`), proves that it has it, and signs with its own
key (:func:`build_request`). The server checks both (:func:`parse_request`, :func:`verify_proof`, :func:`verify_key`) and signs its answer
(:func:`build_answer`), which the machine verifies with the key in the token (:func:`verify_answer`) before it stores anything.
The secret of a token is never sent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from .encoding import b64decode, b64encode, b64url_decode, b64url_encode
from .enrollment_errors import InvalidEnrollmentToken, MalformedEnrollment, NotAnEnrollmentToken, UnverifiedAnswer
from .errors import InvalidInput
from .keys import decode_public_key, device_id, encode_public_key, load_public_key, verify_signature

PREFIX: Final = "amesh-et-v1."
#: Path of the address, relative to the URL in a token.
ENROLL_PATH: Final = "enroll"
VERSION: Final = 1
SECRET_BYTES: Final = 32
MAX_TOKEN_CHARACTERS: Final = 8192
#: Longest lifetime of a token, in seconds: 30 days.
MAX_LIFE_SECONDS: Final = 30 * 24 * 3600
#: Largest number of machines that one token may enroll.
MAX_USES: Final = 10_000
#: Largest difference between the clocks of machine and server, in seconds.
MAX_SKEW_SECONDS: Final = 60
MAX_NAME_CHARACTERS: Final = 128
ACTIVE: Final = "active"
PENDING: Final = "pending"
STATES: Final = (ACTIVE, PENDING)

_JTI = re.compile("et_[0-9a-f]{32}").fullmatch
_MAX_TIME = 1 << 53


@dataclass(frozen=True, slots=True)
class EnrollmentToken:
    """The contents of a token. They are not signed: only the answer of the server proves that the token is its own.

    Attributes:
        url: address of the server's ``amesh/``, with a slash at the end.
        issuer: device ID of the server.
        public_key: public key of the server, 33 bytes.
        jti: number of the token, ``et_`` and 32 hex characters.
        expires_at: time of expiry, Unix seconds.
        secret: 32 bytes. Never show, log or send it.
        name: name of the token; None if it has none. Clean it before you show it.
    """

    url: str
    issuer: str
    public_key: bytes
    jti: str
    expires_at: int
    secret: bytes = field(repr=False)
    name: str | None = None


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """The body of ``POST enroll``. Nothing in it is verified before :func:`verify_proof` and :func:`verify_key`.

    Attributes:
        jti: number of the token.
        public_key: public key of the machine, 33 bytes.
        friendly_name: name of the machine.
        issued_at: time of the request, Unix seconds.
        proof: HMAC-SHA256 with the secret of the token over the message.
        signature: signature of the machine over the message, 64 bytes.
    """

    jti: str
    public_key: bytes
    friendly_name: str
    issued_at: int
    proof: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def message(self, issuer: str) -> bytes:
        """Return the bytes that the machine proves and signs.

        Args:
            issuer: device ID of the server.
        """
        return enrollment_message(
            jti=self.jti,
            public_key=self.public_key,
            friendly_name=self.friendly_name,
            issued_at=self.issued_at,
            issuer=issuer,
        )


@dataclass(frozen=True, slots=True)
class EnrollmentAnswer:
    """A verified answer.

    Attributes:
        device_id: device ID of the machine.
        state: ``active``, or ``pending`` until a person at the server approves it.
        server_name: name of the server. It is not signed. Clean it before you show it.
    """

    device_id: str
    state: str
    server_name: str


def is_jti(text: str) -> bool:
    """Return True if *text* has the form of the number of a token."""
    return bool(_JTI(text))


def is_server_url(text: str) -> bool:
    """Return True for an ``http://`` or ``https://`` address that ends with a slash and has no user, query or fragment."""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and "@" not in parts.netloc
            and not parts.query
            and not parts.fragment
            and text.endswith("/")
            and text.isascii()
            and text.isprintable()
            and " " not in text
        )
    except ValueError:
        return False


def token_secret(key: bytes, jti: str) -> bytes:
    """Return the secret of a token, which the server derives and does not store.

    Args:
        key: the key of the server for this, 32 bytes.
        jti: number of the token.
    """
    return hmac.digest(key, jti.encode("ascii"), "sha256")


def build_token(
    *, url: str, public_key: bytes, jti: str, expires_at: int, secret: bytes, name: str | None = None
) -> str:
    """Return the text of a token.

    Args:
        url, public_key, jti, expires_at, secret, name: as in :class:`EnrollmentToken`.

    Raises:
        InvalidInput: *url* or *jti* is not valid.
    """
    if not is_server_url(url):
        raise InvalidInput(
            "The address of the server is not valid. No token was made.",
            hint="It starts with https:// (or http://) and ends with a slash, such as https://api.example/amesh/.",
        )
    if not is_jti(jti):
        raise InvalidInput("The number of an enrollment token is et_ and 32 hex characters. No token was made.")
    members: dict[str, Any] = {
        "url": url,
        "iss": device_id(public_key),
        "pub": encode_public_key(public_key),
        "jti": jti,
        "exp": expires_at,
    }
    if name is not None:
        members["name"] = name
    text = json.dumps(members, ensure_ascii=True, separators=(",", ":"))
    return f"{PREFIX}{b64url_encode(text.encode())}.{b64url_encode(secret)}"


def parse_token(text: str) -> EnrollmentToken:
    """Return the contents of a token. White space around it is ignored, because files end with a line break.

    Raises:
        NotAnEnrollmentToken: *text* is not a token, or ``iss`` is not the device ID of ``pub``.
    """
    text = text.strip()
    parts = text[len(PREFIX) :].split(".")
    if len(text) > MAX_TOKEN_CHARACTERS or not text.startswith(PREFIX) or len(parts) != 2:
        raise NotAnEnrollmentToken()
    try:
        value = json.loads(b64url_decode(parts[0]).decode("utf-8"))
        secret = b64url_decode(parts[1])
        if not isinstance(value, dict) or len(secret) != SECRET_BYTES:
            raise NotAnEnrollmentToken()
        url, issuer, pub, jti = (_text(value, name) for name in ("url", "iss", "pub", "jti"))
        name = _text(value, "name") if value.get("name") is not None else None
        expires_at = _number(value, "exp")
        public_key = decode_public_key(pub)
        load_public_key(public_key)
    except NotAnEnrollmentToken:
        raise
    except (ValueError, RecursionError):  # InvalidInput is a ValueError
        raise NotAnEnrollmentToken() from None
    if not is_server_url(url) or not is_jti(jti) or issuer != device_id(public_key):
        raise NotAnEnrollmentToken()
    return EnrollmentToken(url, issuer, public_key, jti, expires_at, secret, name)


def _text(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise InvalidInput("A member is missing or is not text.")
    found.encode("utf-8")  # a lone surrogate is a ValueError
    return found


def _number(value: dict[str, Any], name: str) -> int:
    found = value.get(name)
    if type(found) is not int or not 0 <= found < _MAX_TIME:
        raise InvalidInput("A member is missing or is not a time.")
    return found


# --- the request ----------------------------------------------------------------------------------------------------


def enrollment_message(*, jti: str, public_key: bytes, friendly_name: str, issued_at: int, issuer: str) -> bytes:
    """Return the bytes that a machine proves and signs.

    Args:
        jti: number of the token.
        public_key: public key of the machine, 33 bytes.
        friendly_name: name of the machine.
        issued_at: time of the request, Unix seconds.
        issuer: device ID of the server.
    """
    name_hash = hashlib.sha256(friendly_name.encode()).hexdigest()
    key = encode_public_key(public_key)
    return f"amesh-enroll-v1\n{jti}\n{key}\n{name_hash}\n{issued_at}\n{issuer}".encode()


def build_request(
    token: EnrollmentToken, *, public_key: bytes, friendly_name: str, now: int, sign: Callable[[bytes], bytes]
) -> dict[str, Any]:
    """Return the body of ``POST enroll``.

    Args:
        token: the token.
        public_key: public key of this machine, 33 bytes.
        friendly_name: name of this machine.
        now: Unix seconds.
        sign: returns a signature made with the key of this machine, 64 bytes.
    """
    request = enrollment_message(
        jti=token.jti, public_key=public_key, friendly_name=friendly_name, issued_at=now, issuer=token.issuer
    )
    return {
        "v": VERSION,
        "jti": token.jti,
        "publicKey": encode_public_key(public_key),
        "friendlyName": friendly_name,
        "iat": now,
        "proof": b64encode(hmac.digest(token.secret, request, "sha256")),
        "sig": b64encode(sign(request)),
    }


def parse_request(value: Any) -> EnrollmentRequest:
    """Return the request in a JSON value.

    Raises:
        MalformedEnrollment: a member is missing, or has the wrong form.
    """
    try:
        if not isinstance(value, dict) or value.get("v") != VERSION or value["v"] is True:
            raise MalformedEnrollment()
        jti, name = _text(value, "jti"), _text(value, "friendlyName")
        public_key = decode_public_key(_text(value, "publicKey"))
        load_public_key(public_key)
        request = EnrollmentRequest(
            jti,
            public_key,
            name,
            _number(value, "iat"),
            b64decode(_text(value, "proof")),
            b64decode(_text(value, "sig")),
        )
    except ValueError:
        raise MalformedEnrollment() from None
    if not is_jti(jti) or not name.strip() or len(name) > MAX_NAME_CHARACTERS:
        raise MalformedEnrollment()
    return request


def verify_proof(request: EnrollmentRequest, *, secret: bytes, issuer: str) -> None:
    """Check that the machine has the token. Takes constant time.

    Args:
        request: the request.
        secret: secret of the token, 32 bytes.
        issuer: device ID of this server.

    Raises:
        InvalidEnrollmentToken: the proof is wrong.
    """
    if not hmac.compare_digest(hmac.digest(secret, request.message(issuer), "sha256"), request.proof):
        raise InvalidEnrollmentToken(detail="wrong proof", device_id=device_id(request.public_key))


def verify_key(request: EnrollmentRequest, *, issuer: str) -> None:
    """Check that the machine has the private key of the public key that it enrolls.

    Raises:
        InvalidEnrollmentToken: the signature is not valid.
    """
    if not verify_signature(request.public_key, request.message(issuer), request.signature):
        raise InvalidEnrollmentToken(detail="wrong signature", device_id=device_id(request.public_key))


# --- the answer -----------------------------------------------------------------------------------------------------


def answer_message(*, jti: str, public_key: bytes, state: str) -> bytes:
    """Return the bytes that the server signs after it has stored a machine.

    Args:
        jti: number of the token.
        public_key: public key of the machine, 33 bytes.
        state: ``active`` or ``pending``.
    """
    return f"amesh-enrolled-v1\n{jti}\n{encode_public_key(public_key)}\n{state}".encode()


def build_answer(
    request: EnrollmentRequest, *, state: str, server_key: bytes, server_name: str, sign: Callable[[bytes], bytes]
) -> dict[str, Any]:
    """Return the body of the answer.

    Args:
        request: the request of the machine, which is stored.
        state: ``active`` or ``pending``.
        server_key: public key of this server, 33 bytes.
        server_name: name of this server.
        sign: returns a signature made with the key of this server, 64 bytes.
    """
    answer = answer_message(jti=request.jti, public_key=request.public_key, state=state)
    return {
        "deviceId": device_id(request.public_key),
        "state": state,
        "server": {"publicKey": encode_public_key(server_key), "friendlyName": server_name},
        "sig": b64encode(sign(answer)),
    }


def verify_answer(token: EnrollmentToken, *, public_key: bytes, value: Any) -> EnrollmentAnswer:
    """Check that the server that made the token has stored this machine.

    The signature must be made with the key in the token, never with the key in the answer.

    Args:
        token: the token.
        public_key: public key of this machine, 33 bytes.
        value: the JSON value of the answer.

    Raises:
        UnverifiedAnswer: a member is wrong, or the signature is not valid. Store nothing.
    """
    try:
        if not isinstance(value, dict) or not isinstance(value.get("server"), dict):
            raise UnverifiedAnswer()
        state, stated = _text(value, "state"), decode_public_key(_text(value["server"], "publicKey"))
        name, signature = _text(value["server"], "friendlyName"), b64decode(_text(value, "sig"))
        named = _text(value, "deviceId")
    except ValueError:
        raise UnverifiedAnswer() from None
    if state not in STATES or stated != token.public_key or named != device_id(public_key):
        raise UnverifiedAnswer()
    message = answer_message(jti=token.jti, public_key=public_key, state=state)
    if not verify_signature(token.public_key, message, signature):
        raise UnverifiedAnswer()
    return EnrollmentAnswer(named, state, name)
