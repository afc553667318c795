"""The public key and name of a device as one line of text, for trust that is set up by hand.

``amesh-key-v1.<public key, base64url>.<name, percent-encoded UTF-8>.<check>``: no white space, and nothing that a shell interprets.
The check is the first eight hex characters of the SHA-256 of everything before it, without the dot; it detects a line that was cut or
mistyped. It does not protect against forgery: people compare the device ID for that.
"""

from __future__ import annotations

import hashlib
import string
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from .encoding import b64url_encode
from .errors import InvalidInput
from .keys import decode_public_key, load_public_key

PREFIX = "amesh-key-v1"
#: Longest line that is parsed; a name of 128 characters takes at most 1,536 of them.
MAX_LINE_CHARACTERS = 4096

_NAME_ALPHABET = frozenset(string.ascii_letters + string.digits + "-_~%")
_COPY_AGAIN = "Run export-key on the other device, and copy all of its line again."


class KeyLine(NamedTuple):
    """The content of a line: the public key (33 bytes, a point of P-256) and the name, as the other device wrote it."""

    public_key: bytes
    name: str


def _incomplete() -> InvalidInput:
    return InvalidInput("This line is incomplete, or was changed on its way.", hint=_COPY_AGAIN)


def _check(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:8]


def build_key_line(public_key: bytes, name: str) -> str:
    """Return the line that ``export-key`` prints.

    Args:
        public_key: 33 bytes, compressed point.
        name: friendly name.
    """
    name_part = quote(name, safe="", errors="replace").replace(".", "%2E")
    line = f"{PREFIX}.{b64url_encode(public_key)}.{name_part}"
    return f"{line}.{_check(line)}"


def parse_key_line(text: str) -> KeyLine:
    """Parse a line of :func:`build_key_line`. White space anywhere in it and quotes around it are ignored.

    Raises:
        InvalidInput: *text* is not such a line, is incomplete, or its key is not a point of P-256.
    """
    line = "".join(text[: 2 * MAX_LINE_CHARACTERS].split()).strip("\"'`")
    if len(line) > MAX_LINE_CHARACTERS or not line.startswith("amesh-key-"):
        raise InvalidInput(
            f"This is not a line of export-key, which starts with {PREFIX}.",
            hint=_COPY_AGAIN,
        )
    if not line.startswith(f"{PREFIX}."):
        raise InvalidInput(
            f"This line was made by another version of amesh; this version reads {PREFIX} only.",
            hint="Update the older one of the two devices.",
        )
    parts = line.split(".")
    if len(parts) > 4:  # a name has no dots
        raise InvalidInput(
            "This is more than one line of export-key.",
            hint="Use one line, or write all lines to the stdin of trust -.",
        )
    if len(parts) != 4 or not line.isascii() or _check(line.rpartition(".")[0]) != parts[3].lower():
        raise _incomplete()
    _, key_part, name_part, _ = parts
    try:
        public_key = decode_public_key(key_part)
        load_public_key(public_key)
    except InvalidInput:
        raise InvalidInput("The key in this line is not a P-256 key.", hint=_COPY_AGAIN) from None
    if not _NAME_ALPHABET.issuperset(name_part):
        raise _incomplete()
    return KeyLine(public_key, unquote_to_bytes(name_part).decode("utf-8", "replace"))
