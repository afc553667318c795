"""The seal over the device rows: what a row is, what the seal row is, and how both are hashed (design.md, decision 3)."""

from __future__ import annotations

import datetime as dt
import functools
import hmac
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from amesh_django.models import AllowListChange, AllowListSeal, Device
from authmesh.protocol.multiset import MODULUS, encode_row, mask, row_hash

from .keys import SealKeys

#: Sealed columns, in the order in which they are hashed. Appending one is a new format: it changes every digest.
COLUMNS = (
    "id",
    "device_id",
    "public_key",
    "friendly_name",
    "role",
    "permissions_json",
    "added_at",
    "added_by",
    "user_id",
    "revoked_at",
    "revoked_by",
    "revoke_reason",
    "revision",
)


class SealRow(NamedTuple):
    """The seal as it stands in the database; ``touched`` is the triggers' hint and not part of what is sealed."""

    revision: int
    digest: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    controllers: int
    mask: str
    hmac: str
    touched: int


@functools.cache
def _select(vendor: str, name: str) -> str:
    quote = "`" if vendor == "mysql" else '"'
    columns = ", ".join(f"{quote}{column}{quote}" for column in SealRow._fields)
    return f"SELECT {columns} FROM {quote}{name}{quote} WHERE id = 1"  # noqa: S608 -- constants only


def read_seal(using: str) -> SealRow | None:
    """Read the one small row that a request reads. None where there is no list yet.

    Raises:
        django.db.Error: the database is down or not migrated.
    """
    return read_seal_by(connections[using])


def read_seal_by(connection: BaseDatabaseWrapper) -> SealRow | None:
    """As :func:`read_seal`, by a connection of the caller's choice."""
    with connection.cursor() as cursor:
        cursor.execute(_select(connection.vendor, AllowListSeal._meta.db_table))
        row = cursor.fetchone()
    return SealRow._make(row) if row is not None else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dt.datetime) and value.tzinfo is not None and value.tzinfo is not dt.UTC:
        value = value.astimezone(dt.UTC)
    return str(value)


def row_texts(values: Sequence[Any]) -> tuple[str, ...]:
    """The sealed texts of a row.

    Args:
        values: in the order of :data:`COLUMNS`, as the ORM returns them.
    """
    return tuple([value if type(value) is str else _text(value) for value in values])


def row_values(device: Device) -> tuple[Any, ...]:
    """The values of a model instance in the order of :data:`COLUMNS`."""
    return tuple(getattr(device, name) for name in COLUMNS)


def hash_row(keys: SealKeys, values: Sequence[Any]) -> int:
    """The multiset hash's term of a row, a number below 2^256. A null is told from an empty text by its place."""
    return row_hash(keys.hash, encode_row(*row_texts(values)))


def is_active_controller(values: Sequence[Any]) -> bool:
    """True if the row counts towards ``maxControllers``."""
    return values[4] == "controller" and values[9] is None


def iterate_rows(using: str, **conditions: Any) -> Iterator[tuple[Any, ...]]:
    """All device rows, or those that meet *conditions*, as tuples in the order of :data:`COLUMNS`; not held in memory."""
    rows = Device.objects.using(using).filter(**conditions).order_by().values_list(*COLUMNS)
    return rows.iterator(chunk_size=5000)


def seal_hmac(keys: SealKeys, row: SealRow) -> str:
    """The HMAC-SHA256, hex, that binds revision, digest, counts, mask and owner."""
    message = encode_row(
        "amesh-database-seal-v1",
        keys.owner,
        str(row.revision),
        row.digest,
        str(row.count),
        str(row.controllers),
        row.mask,
    )
    return hmac.digest(keys.seal, message, "sha256").hex()


def is_well_formed(row: SealRow) -> bool:
    """False for what SQLite lets anybody write into a column, whatever its type."""
    return all(
        isinstance(value, str if name in ("digest", "mask", "hmac") else int) for name, value in row._asdict().items()
    )


def seal_is_genuine(keys: SealKeys, row: SealRow) -> bool:
    """True if the seal row was made with our key. Constant time."""
    return is_well_formed(row) and hmac.compare_digest(
        seal_hmac(keys, row).encode(), str(row.hmac).encode("utf-8", "replace")
    )


def total_of(keys: SealKeys, row: SealRow) -> int:
    """The unmasked sum in a genuine seal row."""
    return (int(row.digest, 16) - mask(keys.hash, bytes.fromhex(row.mask))) % MODULUS


def make_seal(keys: SealKeys, *, revision: int, total: int, count: int, controllers: int, r: bytes) -> SealRow:
    """A new seal row.

    Args:
        revision: of the list after the change.
        total: unmasked sum of :func:`hash_row`, mod 2^256.
        count: of all rows.
        controllers: how many rows are :func:`is_active_controller`.
        r: 32 fresh random bytes.
    """
    digest = (total + mask(keys.hash, r)) % MODULUS
    row = SealRow(revision, f"{digest:064x}", count, controllers, r.hex(), "", 0)
    return row._replace(hmac=seal_hmac(keys, row))


def journal_row(values: Sequence[Any]) -> str:
    """A row as the journal keeps it: JSON object, column → text."""
    return json.dumps(dict(zip(COLUMNS, row_texts(values), strict=True)), ensure_ascii=True)


def journal_mac(keys: SealKeys, line: AllowListChange) -> str:
    """HMAC-SHA256, hex, of a line of the journal: every column but its key, so that not even who and when can be altered."""
    columns = row_texts((line.revision, line.device_id, line.action, line.at, line.by, line.row))
    return hmac.digest(keys.journal, encode_row(*columns), "sha256").hex()


def journal_line_is_genuine(keys: SealKeys, line: AllowListChange) -> bool:
    """True if amesh wrote the line, with our key. Constant time."""
    return hmac.compare_digest(journal_mac(keys, line).encode(), line.mac.encode("utf-8", "replace"))
