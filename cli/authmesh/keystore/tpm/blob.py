"""The key file of the TPM store, and the shapes of the objects in it (TPM 2.0 Library, Part 1, 23 and 27; Part 2, 12.2)."""

from __future__ import annotations

import json
import struct
from typing import Any, Final, NamedTuple

from authmesh.files.storage import json_text
from authmesh.protocol.encoding import b64decode, b64encode
from authmesh.protocol.errors import InvalidInput, KeyStoreError
from authmesh.protocol.keys import GROUP_ORDER, encode_public_key, load_public_key

FILE_VERSION: Final = "1"
_MEMBERS: Final = ("parent", "public", "private", "sealPublic", "sealPrivate", "mark")
#: Length of the value that a key without PIN asks for.
MARK_BYTES: Final = 16
_MOST_BYTES: Final = 4096

# TPMA_OBJECT (Part 2, 8.3): what cannot be taken to another TPM, was made in this one, asks for its password and knows no lock-out.
_FIXED: Final = 0x0002 | 0x0010  # fixedTPM, fixedParent
_MADE_HERE: Final = 0x0020  # sensitiveDataOrigin
_PASSWORD: Final = 0x0040 | 0x0400  # userWithAuth, noDA
_RESTRICTED, _DECRYPT, _SIGN = 0x10000, 0x20000, 0x40000
_PARENT_ATTRIBUTES: Final = _FIXED | _MADE_HERE | _PASSWORD | _RESTRICTED | _DECRYPT
_KEY_ATTRIBUTES: Final = _FIXED | _MADE_HERE | _PASSWORD | _SIGN
_SEAL_ATTRIBUTES: Final = _FIXED | _PASSWORD

# Algorithms (Part 2, 6.3) and the curve (6.4).
_AES, _KEYEDHASH, _SHA256, _NULL, _ECDSA, _ECC, _CFB = 0x0006, 0x0008, 0x000B, 0x0010, 0x0018, 0x0023, 0x0043
_P256: Final = 0x0003


def _public(kind: int, attributes: int, *parameters: int) -> bytes:
    """A TPMT_PUBLIC up to its last member: no policy, then the parameters."""
    return struct.pack(f">HHIH{len(parameters)}H", kind, _SHA256, attributes, 0, *parameters)


#: The parent: a storage key for AES-128. The TPM derives the same one from it each time, so it must never change.
_PARENT: Final = _public(_ECC, _PARENT_ATTRIBUTES, _AES, 128, _CFB, _NULL, _P256, _NULL)
_KEY: Final = _public(_ECC, _KEY_ATTRIBUTES, _NULL, _ECDSA, _SHA256, _P256, _NULL)
_SIGNATURE: Final = struct.pack(">HH", _ECDSA, _SHA256)
_SEAL: Final = _public(_KEYEDHASH, _SEAL_ATTRIBUTES, _NULL)


def _template(library: Any, shape: bytes, unique: bytes) -> Any:
    whole = shape + unique
    return library.TPM2B_PUBLIC.unmarshal(struct.pack(">H", len(whole)) + whole)[0]


def parent_template(library: Any) -> Any:
    """What the parent is derived from."""
    return _template(library, _PARENT, bytes(4))


def key_template(library: Any) -> Any:
    """A key that signs, ECDSA P-256 with SHA-256, and does nothing else."""
    return _template(library, _KEY, bytes(4))


def seal_template(library: Any) -> Any:
    """Data that only this TPM gives back."""
    return _template(library, _SEAL, bytes(2))


def compressed_point(public: bytes) -> bytes:
    """The public key, 33 bytes, in the public part of a key; checked to be one that :func:`key_template` asked for.

    Args:
        public: a marshalled TPM2B_PUBLIC.

    Raises:
        InvalidInput: it is anything else.
    """
    head = struct.pack(">H", len(public) - 2) + _KEY
    try:
        if not public.startswith(head):
            raise InvalidInput("It is not the public part of a signing key that stays in its TPM.")
        rest = public[len(head) :]
        size = struct.unpack_from(">H", rest)[0]
        x, rest = rest[2 : 2 + size], rest[2 + size :]
        y = rest[2:]
        if not 0 < len(x) <= 32 or not 0 < len(y) <= 32 or struct.unpack_from(">H", rest)[0] != len(y):
            raise InvalidInput("Its point is not one of P-256.")
    except struct.error:
        raise InvalidInput("Its point is missing.") from None
    return bytes([2 + (y[-1] & 1)]) + x.rjust(32, b"\0")


def raw_signature(made: bytes) -> bytes:
    """``r || s``, low-S, 64 bytes, of a marshalled TPMT_SIGNATURE of ECDSA with SHA-256 (Part 2, 11.3.4).

    Raises:
        KeyStoreError: it is anything else.
    """
    try:
        size = struct.unpack_from(">H", made, 4)[0]
        r, rest = int.from_bytes(made[6 : 6 + size], "big"), made[6 + size :]
        s = int.from_bytes(rest[2:], "big")
        if made[:4] == _SIGNATURE and struct.unpack_from(">H", rest)[0] == len(rest) - 2:
            if 0 < r < GROUP_ORDER and 0 < s < GROUP_ORDER:
                return r.to_bytes(32, "big") + min(s, GROUP_ORDER - s).to_bytes(32, "big")
    except struct.error:
        pass
    raise KeyStoreError("The TPM answered with something that is not an ECDSA signature. Restart it.")


class KeyFile(NamedTuple):
    """What stands in ``keys/<alias>.tpm``. Nothing in it is of use without the TPM that wrapped it.

    Attributes:
        public_key: 33 bytes, out of *public*.
        parent: name of the parent (a hash of its public part): tells another TPM from a damaged file.
        public: the key, marshalled.
        private: its private part, encrypted and authenticated by the TPM.
        seal_public: the seal secret, marshalled.
        seal_private: its private part.
        mark: what a key without PIN has in the place of one, 16 bytes. No secret: another key that was put into its slot has
            another one, and is noticed.
        has_pin: each signature asks for the PIN.
    """

    public_key: bytes
    parent: bytes
    public: bytes
    private: bytes
    seal_public: bytes
    seal_private: bytes
    mark: bytes
    has_pin: bool


def make_key_file(parent: bytes, blobs: tuple[bytes, bytes, bytes, bytes], mark: bytes) -> KeyFile:
    """A key file out of what the TPM made.

    Args:
        mark: empty for a key that has a PIN.

    Raises:
        InvalidInput: the public part is not that of :func:`key_template`.
    """
    public_key = compressed_point(blobs[0])
    load_public_key(public_key)
    return KeyFile(public_key, parent, *blobs, mark, not mark)


def key_file_text(file: KeyFile) -> str:
    """The text of the file."""
    blobs = dict(zip(_MEMBERS, map(b64encode, file[1:7]), strict=True))
    return json_text(
        {"version": FILE_VERSION, "publicKey": encode_public_key(file.public_key), **blobs, "pin": file.has_pin}
    )


def parse_key_file(text: str) -> KeyFile:
    """Read the text of a key file.

    Raises:
        KeyStoreError: not JSON, a member missing or too long, or not a key as this store makes them.
    """
    try:
        value = json.loads(text)
        parent, *blobs, mark = (b64decode(value[name]) for name in _MEMBERS)
        if not all(0 < len(blob) <= _MOST_BYTES for blob in (parent, *blobs)):
            raise InvalidInput("a member is empty or too long")
        file = make_key_file(parent, (blobs[0], blobs[1], blobs[2], blobs[3]), mark)
        if value["pin"] is not file.has_pin or len(mark) not in (0, MARK_BYTES):
            raise InvalidInput("either there is a PIN or a mark")
        if value["publicKey"] != encode_public_key(file.public_key):
            raise InvalidInput("publicKey is not that of the key")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged() from None
    return file


def damaged() -> KeyStoreError:
    """The error for a file that no TPM takes."""
    return KeyStoreError(
        "The TPM's key file is damaged. Restore it from a backup of this machine, or make a new identity: init --force."
    )
