"""The MACs of a pairing: over its row, and over each answer of a person.

Without them, someone who can write to the database could have a device of their own trusted while a person pairs another one: the row
has the one-time code, and that device shows the verification code. Or they could change what the device gets, or which device is shown.
"""

from __future__ import annotations

import hmac

from amesh_django.models import PairingSession
from amesh_django.trust.keys import SealKeys, all_seal_keys, seal_keys
from amesh_django.trust.sealing import row_texts
from authmesh.protocol.multiset import encode_row

#: Columns under the MAC, in the order in which they are hashed.
COLUMNS = (
    "token",
    "owner",
    "by",
    "begun_at",
    "ends_at",
    "chosen_json",
    "relay",
    "step",
    "code",
    "device_id",
    "public_key",
    "name",
    "wrong",
    "error_code",
    "error_json",
)


def mac_of(row: PairingSession, keys: SealKeys | None = None) -> str:
    """Return the MAC of a row.

    Args:
        row: the row.
        keys: the keys of the seal. Defaults to those of the first secret.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    keys = keys or seal_keys()
    return _mac(keys, "amesh-pairing-row-v1", *row_texts([getattr(row, name) for name in COLUMNS]))


def is_genuine(row: PairingSession) -> bool:
    """Return True if amesh wrote the row. Takes constant time for each secret of the seal.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    given = str(row.mac).encode("utf-8", "replace")
    return any(hmac.compare_digest(mac_of(row, keys).encode(), given) for keys in all_seal_keys())


def signed_answer(row: PairingSession, digits: str) -> str:
    """Return an answer as the row has it: the digits, and a MAC that binds them to the device that the person saw.

    Args:
        row: the row, as it was shown.
        digits: the verification code that was typed.
    """
    return f"{digits}.{_answer_mac(seal_keys(), row, digits)}"


def read_answer(row: PairingSession, text: str) -> str | None:
    """Return the digits of an answer; None if it was not given to this row, as it is now, by :func:`signed_answer`."""
    digits, _dot, given = text.partition(".")
    macs = [_answer_mac(keys, row, digits) for keys in all_seal_keys()]
    return digits if any(hmac.compare_digest(mac.encode(), given.encode("utf-8", "replace")) for mac in macs) else None


def _answer_mac(keys: SealKeys, row: PairingSession, digits: str) -> str:
    return _mac(keys, "amesh-pairing-answer-v1", row.token, str(row.wrong), row.device_id, digits)


def _mac(keys: SealKeys, label: str, *texts: str) -> str:
    return hmac.digest(keys.pairing, encode_row(label, keys.owner, *texts), "sha256").hex()
