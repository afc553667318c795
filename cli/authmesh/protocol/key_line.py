"""A device's public key and name as one line of text, for trust that is made by hand.

``amesh-key-v1.<public key, base64url>.<name, percent-encoded UTF-8>.<check>``: no white space, nothing that a shell would
interpret. The check is the first eight hex characters of SHA-256 over all that stands before it (its dot left out); it finds
a line that was cut or mistyped. It is no protection against a forger: people compare the device id for that.
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
#: Longest line that is looked at; a name of 128 characters takes at most 1,536 of them.
MAX_LINE_CHARACTERS = 4096

_NAME_ALPHABET = frozenset(string.ascii_letters + string.digits + "-_~%")
_INCOMPLETE = (
    "This line is not complete, or was changed on the way. Run export-key on the other device and copy all of it again."
)


class KeyLine(NamedTuple):
    """What a line says: the public key (33 bytes, a point of P-256) and the name, as the other device gave it."""

    public_key: bytes
    name: str


def _check(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:8]


def build_key_line(public_key: bytes, name: str) -> str:
    """The line that ``export-key`` prints.

    Args:
        public_key: 33 bytes, compressed point.
        name: friendly name.
    """
    name_part = quote(name, safe="", errors="replace").replace(".", "%2E")
    line = f"{PREFIX}.{b64url_encode(public_key)}.{name_part}"
    return f"{line}.{_check(line)}"


def parse_key_line(text: str) -> KeyLine:
    """Read a line of :func:`build_key_line`; white space and line breaks anywhere, and quotes around it, are forgiven.

    Raises:
        InvalidInput: not such a line, not complete, or its key is not a point of P-256.
    """
    line = "".join(text[: 2 * MAX_LINE_CHARACTERS].split()).strip("\"'`")
    if len(line) > MAX_LINE_CHARACTERS or not line.startswith("amesh-key-"):
        raise InvalidInput(
            f"This is not a line of export-key: that begins with {PREFIX}. Run export-key on the other device and copy its line."
        )
    if not line.startswith(f"{PREFIX}."):
        raise InvalidInput(
            f"This line was made by another version of amesh; this one reads {PREFIX}. Update the older side."
        )
    parts = line.split(".")
    if len(parts) != 4 or not line.isascii() or _check(line.rpartition(".")[0]) != parts[3].lower():
        raise InvalidInput(_INCOMPLETE)
    _, key_part, name_part, _ = parts
    try:
        public_key = decode_public_key(key_part)
        load_public_key(public_key)
    except InvalidInput:
        raise InvalidInput(
            "The key in this line is not a P-256 key. Run export-key on the other device again."
        ) from None
    if not _NAME_ALPHABET.issuperset(name_part):
        raise InvalidInput(_INCOMPLETE)
    return KeyLine(public_key, unquote_to_bytes(name_part).decode("utf-8", "replace"))
