"""The MACs over the rows of hubs and of their words, and the masked hash of a hub over all of its words."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from typing import Any

from amesh_django.models import Hub
from authmesh.protocol.multiset import MASK_BYTES, MODULUS, encode_row, mask, row_hash

from .keys import SealKeys
from .sealing import row_texts

#: Columns under the MAC of a hub, in the order in which they are hashed.
HUB_COLUMNS = (
    "device_id",
    "url",
    "epoch",
    "applied",
    "head",
    "past",
    "issued_at",
    "list_epoch",
    "list_serial",
    "last_contact_at",
    "entries",
    "digest",
    "mask",
)
#: Columns under the MAC of a word, in the order in which they are hashed.
ENTRY_COLUMNS = (
    "hub",
    "key",
    "device_id",
    "epoch",
    "serial",
    "event",
    "at",
    "reason",
    "suspended",
    "suspended_until",
    "added",
    "expires_at",
    "given_json",
    "expiry_limit",
    "decided_json",
    "allowed_epoch",
    "allowed_serial",
    "allowed_at",
)


def hub_mac(hub: Any, keys: SealKeys) -> str:
    """Return the MAC of the row of a hub."""
    return _mac("amesh-hub-v1", [getattr(hub, name) for name in HUB_COLUMNS], keys)


def entry_mac(entry: Any, keys: SealKeys) -> str:
    """Return the MAC of a word."""
    return _mac("amesh-hub-entry-v1", [getattr(entry, name) for name in ENTRY_COLUMNS], keys)


def _mac(label: str, values: Sequence[Any], keys: SealKeys) -> str:
    return hmac.digest(keys.feed, encode_row(label, keys.owner, *row_texts(values)), "sha256").hex()


def term(keys: SealKeys, mac: str) -> int:
    """Return the term of a word in the hash of its hub."""
    return row_hash(keys.feed, encode_row("amesh-hub-digest-v1", keys.owner, mac))


def total_of(keys: SealKeys, hub: Hub) -> int:
    """Return the sum of all terms that the genuine row of a hub holds, without its mask."""
    return (int(hub.digest, 16) - mask(keys.feed, bytes.fromhex(hub.mask))) % MODULUS


def set_total(keys: SealKeys, hub: Hub, total: int) -> None:
    """Give the row of a hub the sum of all terms, under a new mask."""
    r = secrets.token_bytes(MASK_BYTES)
    hub.mask, hub.digest = r.hex(), f"{(total + mask(keys.feed, r)) % MODULUS:064x}"
