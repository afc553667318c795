"""The key file of the TPM store, and the shapes of the objects in it (TPM 2.0 Library, Part 1, 23 and 27; Part 2, 12.2)."""

from __future__ import annotations

import json
import struct
from typing import Any, Final, NamedTuple

from authmesh.files.storage import json_text
from authmesh.protocol.encoding import b64decode, b64encode
from authmesh.protocol.errors import InvalidInput, KeyStoreError
from authmesh.protocol.keys import GROUP_ORDER, encode_public_key, load_public_key

from ..base import NEW_IDENTITY

FILE_VERSION: Final = "1"
_MEMBERS: Final = ("parent", "public", "private", "sealPublic", "sealPrivate", "mark")
#: Length of the password of a key without a PIN.
MARK_BYTES: Final = 16
_MAX_BYTES: Final = 4096

# TPMA_OBJECT (Part 2, 8.3): the object cannot move to another TPM, was created in this one, and has a password without lockout.
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
    """Return a TPMT_PUBLIC without its last member: no policy, then the parameters."""
    return struct.pack(f">HHIH{len(parameters)}H", kind, _SHA256, attributes, 0, *parameters)


#: The parent: a storage key for AES-128. The TPM derives the same key from this template every time, so it must never change.
_PARENT: Final = _public(_ECC, _PARENT_ATTRIBUTES, _AES, 128, _CFB, _NULL, _P256, _NULL)
_KEY: Final = _public(_ECC, _KEY_ATTRIBUTES, _NULL, _ECDSA, _SHA256, _P256, _NULL)
_SIGNATURE: Final = struct.pack(">HH", _ECDSA, _SHA256)
_SEAL: Final = _public(_KEYEDHASH, _SEAL_ATTRIBUTES, _NULL)


def _template(library: Any, shape: bytes, unique: bytes) -> Any:
    whole = shape + unique
    return library.TPM2B_PUBLIC.unmarshal(struct.pack(">H", len(whole)) + whole)[0]


def parent_template(library: Any) -> Any:
    """Return the template from which the parent is derived."""
    return _template(library, _PARENT, bytes(4))


def key_template(library: Any) -> Any:
    """Return the template of a key that can only sign: ECDSA P-256 with SHA-256."""
    return _template(library, _KEY, bytes(4))


def seal_template(library: Any) -> Any:
    """Return the template of data that only this TPM can return."""
    return _template(library, _SEAL, bytes(2))


def compressed_point(public: bytes) -> bytes:
    """Return the public key, 33 bytes, from the public part of a key made with :func:`key_template`.

    Args:
        public: a marshalled TPM2B_PUBLIC.

    Raises:
        InvalidInput: it is the public part of any other object.
    """
    head = struct.pack(">H", len(public) - 2) + _KEY
    try:
        if not public.startswith(head):
            raise InvalidInput("This is not the public part of a signing key that stays in its TPM.")
        rest = public[len(head) :]
        size = struct.unpack_from(">H", rest)[0]
        x, rest = rest[2 : 2 + size], rest[2 + size :]
        y = rest[2:]
        if not 0 < len(x) <= 32 or not 0 < len(y) <= 32 or struct.unpack_from(">H", rest)[0] != len(y):
            raise InvalidInput("The public part has no point of P-256.")
    except struct.error:
        raise InvalidInput("The public part has no point.") from None
    return bytes([2 + (y[-1] & 1)]) + x.rjust(32, b"\0")


def raw_signature(made: bytes) -> bytes:
    """Return ``r || s``, low-S, 64 bytes, from a marshalled TPMT_SIGNATURE of ECDSA with SHA-256 (Part 2, 11.3.4).

    Raises:
        KeyStoreError: it is not such a signature.
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
    raise KeyStoreError("The TPM returned something that is not an ECDSA signature.", hint="Restart the TPM.")


class KeyFile(NamedTuple):
    """The contents of ``keys/<alias>.tpm``. They are useless without the TPM that wrapped them.

    Attributes:
        public_key: 33 bytes, taken from *public*.
        parent: name of the parent (a hash of its public part). It distinguishes the key of another TPM from a damaged file.
        public: public part of the key, marshalled.
        private: private part of the key, encrypted and authenticated by the TPM.
        seal_public: public part of the seal secret, marshalled.
        seal_private: private part of the seal secret.
        mark: password of a key without a PIN, 16 bytes. It is not a secret; it detects that another key was loaded into the slot of
            this one.
        has_pin: True if each signature needs the PIN.
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
    """Return the key file for objects that the TPM created.

    Args:
        parent: name of the parent.
        blobs: public and private part of the key, then of the seal secret.
        mark: empty for a key with a PIN.

    Raises:
        InvalidInput: the key was not created from :func:`key_template`.
    """
    public_key = compressed_point(blobs[0])
    load_public_key(public_key)
    return KeyFile(public_key, parent, *blobs, mark, not mark)


def key_file_text(file: KeyFile) -> str:
    """Return the text of a key file."""
    blobs = dict(zip(_MEMBERS, map(b64encode, file[1:7]), strict=True))
    return json_text(
        {"version": FILE_VERSION, "publicKey": encode_public_key(file.public_key), **blobs, "pin": file.has_pin}
    )


def parse_key_file(text: str) -> KeyFile:
    """Parse the text of a key file.

    Raises:
        KeyStoreError: not JSON, a member is missing or too long, or this store does not create such keys.
    """
    try:
        value = json.loads(text)
        parent, *blobs, mark = (b64decode(value[name]) for name in _MEMBERS)
        if not all(0 < len(blob) <= _MAX_BYTES for blob in (parent, *blobs)):
            raise InvalidInput("A member is empty or too long.")
        file = make_key_file(parent, (blobs[0], blobs[1], blobs[2], blobs[3]), mark)
        if value["pin"] is not file.has_pin or len(mark) not in (0, MARK_BYTES):
            raise InvalidInput("A key has either a PIN or a mark.")
        if value["publicKey"] != encode_public_key(file.public_key):
            raise InvalidInput("publicKey does not belong to the key.")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged() from None
    return file


def damaged() -> KeyStoreError:
    """Return the error for a file that no TPM accepts."""
    return KeyStoreError(
        "The TPM key file is damaged.",
        hint=("Restore it from a backup of this machine. Or to make a new identity, run ", NEW_IDENTITY, "."),
    )
