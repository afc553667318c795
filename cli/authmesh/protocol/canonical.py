"""The canonical string that the signature of a request covers, and the targets that a verifier rejects (protocol.md §2)."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote_to_bytes

from .errors import InvalidInput

#: First line of the canonical string of version 1.
CANONICAL_TAG = "AMv1"
#: Lower-case hex SHA-256 of zero bytes.
EMPTY_BODY_HASH = hashlib.sha256(b"").hexdigest()

_LITERAL = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*-._")
_SERIALIZED = [chr(b) if b in _LITERAL else "+" if b == 0x20 else f"%{b:02X}" for b in range(256)]
_PLAIN_PAIR = r"[A-Za-z0-9*._-]+=[A-Za-z0-9*._-]*"
_PLAIN_QUERY = re.compile(f"{_PLAIN_PAIR}(?:&{_PLAIN_PAIR})*").fullmatch
_NOT_VISIBLE_ASCII = re.compile(r"[^\x21-\x7e]").search


def _decode(piece: bytes) -> str:
    return unquote_to_bytes(piece.replace(b"+", b" ")).decode("utf-8", "replace")


def _serialize(text: str) -> str:
    return "".join([_SERIALIZED[byte] for byte in text.encode("utf-8", "replace")])


def _name(pair: str) -> str:
    return pair.partition("=")[0]


def canonical_query(query: str) -> str:
    """Parse, sort and serialize a query as WHATWG ``URLSearchParams`` does with ``sort()`` and ``toString()``.

    Args:
        query: the text after the first ``?`` of a target. Another leading ``?`` is dropped, as the constructor of
            ``URLSearchParams`` does; a verifier has rejected such a target before (:func:`target_ambiguity`).

    Returns:
        the canonical query, possibly empty (URL Standard §5.1, §5.2, §6.2).
    """
    if _PLAIN_QUERY(query):  # nothing to decode: only the order may change
        return "&".join(sorted(query.split("&"), key=_name)) if "&" in query else query
    raw = query.removeprefix("?").encode("utf-8", "replace")
    pairs = []
    for piece in raw.split(b"&"):
        if piece:
            name, _, value = piece.partition(b"=")
            pairs.append((_decode(name), _decode(value)))
    pairs.sort(key=lambda pair: pair[0].encode("utf-16-be"))
    return "&".join([f"{_serialize(name)}={_serialize(value)}" for name, value in pairs])


def canonical_string_of_hash(method: str, target: str, timestamp: str, nonce: str, body_hash: str) -> str:
    """Return the same as :func:`canonical_string`, from the SHA-256 of the body in lower-case hex."""
    path, mark, query = target.partition("?")
    if mark:
        query = canonical_query(query)
        if query:
            path = f"{path}?{query}"
    canonical = f"{CANONICAL_TAG}\n{method.upper()}\n{path}\n{timestamp}\n{nonce}\n{body_hash}"
    if canonical.count("\n") != 5 or "\n" in target:
        raise InvalidInput(
            "Method, target, timestamp and nonce must not contain a line break.", hint="Remove the line break."
        )
    return canonical


def canonical_string(method: str, target: str, timestamp: str | int, nonce: str, body: bytes = b"") -> str:
    """Return the six lines that a signature of version 1 covers, joined by ``\\n``, without a newline at the end.

    Args:
        method: HTTP method, in any case.
        target: the path as sent on the request line (percent-encoding unchanged), ``?`` and query.
        timestamp: Unix seconds, decimal.
        nonce: 16 random bytes in base64url without padding (22 characters).
        body: raw bytes of the body.

    Raises:
        InvalidInput: method, path, timestamp or nonce has a line break.
    """
    return canonical_string_of_hash(method, target, str(timestamp), nonce, hashlib.sha256(body).hexdigest())


def target_ambiguity(target: str) -> str | None:
    """Return the reason why two parsers could read *target* differently, or None. A verifier rejects such targets.

    Args:
        target: the raw request target, percent-encoding unchanged.

    Returns:
        a short phrase for the log, or None if all parsers read the target in the same way.
    """
    if not target.startswith("/"):
        return "not origin-form"
    if _NOT_VISIBLE_ASCII(target):
        return "control character, space or raw non-ASCII"
    if "\\" in target or "#" in target:
        return "backslash or fragment"
    path, _, query = target.partition("?")
    if path.startswith("//"):
        return "leading double slash"
    if query.startswith("?"):
        return "query that begins with a question mark"
    if "." in path or "%" in path:
        decoded = unquote_to_bytes(path).replace(b"\\", b"/")
        if any(segment in (b".", b"..") for segment in decoded.split(b"/")):
            return "dot segment"
    return None
