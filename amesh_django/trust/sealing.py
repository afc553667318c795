"""Sealing: the columns of a device row, the groups, the seal row, and how each is hashed (design.md, decision 3)."""

from __future__ import annotations

import datetime as dt
import functools
import hmac
import re
import secrets
import time
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from amesh_django.models import AllowListSeal, Device, DeviceGroup
from amesh_django.states import revoked_from
from authmesh.device import LocalDevice
from authmesh.protocol.multiset import MODULUS, encode_row, mask, row_hash

from .damage import CHUNK_SIZE, reading
from .keys import SealKeys, all_seal_keys
from .marks import Mark

#: Sealed columns of version 0.1, in the order in which they are hashed.
FIRST_COLUMNS = (
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
#: Sealed columns of rows with a state. A row in which those after the first are empty is hashed without them, as in version 0.1.
_SECOND_COLUMNS = (
    *FIRST_COLUMNS,
    "pending_since",
    "denied_at",
    "denied_by",
    "deny_reason",
    "suspended_at",
    "suspended_until",
    "suspended_by",
    "suspend_reason",
    "expires_at",
    "groups_json",
)
#: All sealed columns. A row in which those after the second are empty is hashed without them. To append a column, give the encoding of
#: the other rows a new label.
_THIRD = ("kept_until", "kept_by", "kept_reason", "replaced_until", "replaced_by", "note", "rotation_requested_at")
COLUMNS = (*_SECOND_COLUMNS, *_THIRD)
_SECOND_LABEL, _ROW_LABEL = "amesh-device-row-v2", "amesh-device-row-v3"
_FIRST, _SECOND = len(FIRST_COLUMNS), len(_SECOND_COLUMNS)
_DENIED_AT = COLUMNS.index("denied_at")
#: Members of the seal row that its HMAC binds after those of version 0.1, by the label of the form that has them. The first form is
#: used in which all members that are set are.
_SEAL_FORMS = {
    "amesh-database-seal-v1": (),
    "amesh-database-seal-v2": ("epoch", "continues"),
    "amesh-database-seal-v3": ("epoch", "continues", "groups"),
    "amesh-database-seal-v4": ("epoch", "continues", "groups", "audit_seq", "audit_link"),
}
#: Rows that one statement inserts.
BATCH_SIZE = 1000
#: Epochs that fit in their column, 32 characters each.
_MAX_CONTINUED = 7
#: Length of the columns that hold the name of an actor.
_MAX_ACTOR = 150
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class SealRow(NamedTuple):
    """The seal row. ``touched`` is a hint from the triggers and is not sealed."""

    revision: int
    digest: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used
    controllers: int
    mask: str
    hmac: str
    epoch: str
    continues: str
    groups: str
    audit_seq: int
    audit_link: str
    touched: int

    @property
    def is_well_formed(self) -> bool:
        """False if a column holds a value of another type, which SQLite stores without an error."""
        texts = ("digest", "mask", "hmac", "epoch", "continues", "groups", "audit_link")
        return all(isinstance(value, str if name in texts else int) for name, value in self._asdict().items())

    @property
    def log_end(self) -> LogEnd:
        """The end of the audit log as of the newest change of the list."""
        return LogEnd(self.audit_seq, self.audit_link)

    @property
    def mark(self) -> Mark:
        """The high-water mark of the list with this seal."""
        return Mark(self.revision, self.hmac, self.epoch, self.continues)


class LogEnd(NamedTuple):
    """The end of the audit log: number and link of its newest event that has a place in it. 0 and empty for an empty log."""

    seq: int = 0
    link: str = ""


class Epoch(NamedTuple):
    """The random name of a list, and the names of the lists that it continues.

    A list has one name from its first seal until a person reseals it. It tells two lists apart that the same key sealed.
    """

    name: str
    continues: str = ""

    @classmethod
    def new(cls, *before: str) -> Epoch:
        """Return a new name for a list that continues others.

        Args:
            before: names of the lists that a person accepts as this one, and what they continue, the latest first.
        """
        names = dict.fromkeys(" ".join(before).split())
        return cls(secrets.token_hex(16), " ".join([*names][:_MAX_CONTINUED]))


class SealedRows:
    """The device rows and the seal row of one database, with the keys that seal them.

    This is the lowest layer of :class:`~amesh_django.trust.SealedList`.

    Args:
        using: database alias.
        device: a device that is not in place yet, such as during enrolment. Defaults to this server's own.
    """

    def __init__(self, using: str, *, device: LocalDevice | None = None) -> None:
        self.using = using
        self._device = device

    @functools.cached_property
    def all_keys(self) -> tuple[SealKeys, ...]:
        """The keys that the list may be sealed with. They are read at first use, so that a list can be made without them.

        Raises:
            IdentityMissing, DirectoryError, KeyStoreError: as for :func:`~amesh_django.trust.keys.all_seal_keys`.
        """
        return all_seal_keys(self._device)

    @property
    def keys(self) -> SealKeys:
        """The first of the keys, which hash rows and seal lists. While the secret is being replaced, see :meth:`under`."""
        return self.all_keys[0]

    @functools.cached_property
    def _older(self) -> tuple[SealedRows, ...]:
        return tuple(self._with(keys) for keys in self.all_keys[1:])

    def _with(self, keys: SealKeys) -> SealedRows:
        rows = SealedRows(self.using, device=self._device)
        rows.all_keys = (keys,)
        return rows

    def under(self, row: SealRow | None) -> SealedRows:
        """Return these rows with the keys that made a seal, so that a change keeps the secret. Only a rekey replaces it.

        Args:
            row: a genuine seal; with any other, the first keys are used.
        """
        if row is not None:
            for rows in self._older:
                if rows.is_genuine(row):
                    return rows
        return self

    def unlock(self) -> None:
        """Read the keys now. To be called before a lock is taken, because unlocking a key may take a second.

        Raises:
            IdentityMissing, DirectoryError, KeyStoreError: as for :attr:`all_keys`.
        """
        _keys = self.all_keys

    # --- reading ---

    def read_seal(self) -> SealRow | None:
        """Return the seal row, or None if there is no list yet. This is the one small row that a request reads.

        A row that was damaged so that it cannot be read is returned as one that is not well-formed.

        Raises:
            django.db.Error: the database is down or not migrated.
        """
        return _read_seal(connections[self.using])

    def read_committed_seal(self) -> SealRow | None:
        """Return the seal row as it is committed now, whatever an open transaction of this thread sees.

        Raises:
            django.db.Error: as for :meth:`read_seal`.
        """
        connection = connections[self.using]
        if not connection.in_atomic_block:
            return _read_seal(connection)
        other = connection.copy()
        try:
            return _read_seal(other)
        finally:
            other.close()

    def rows(self, **conditions: Any) -> Generator[tuple[Any, ...]]:
        """Yield all device rows, or those that meet *conditions*, as tuples in the order of :data:`COLUMNS`.

        To be closed: see :func:`~amesh_django.trust.damage.each_row`.

        Raises:
            ValueError: a row was damaged so that it cannot be read; or another error of :data:`~amesh_django.trust.damage.UNREADABLE`.
        """
        rows = Device.objects.using(self.using).filter(**conditions).order_by().values_list(*COLUMNS)
        with reading():
            yield from rows.iterator(chunk_size=CHUNK_SIZE)

    def groups(self) -> list[tuple[str, str]]:
        """Return name and scopes (a JSON text) of each group.

        Raises:
            ValueError: a row was damaged so that it cannot be read.
        """
        with reading():
            found = list(DeviceGroup.objects.using(self.using).order_by().values_list("name", "scopes_json"))
        if not all(isinstance(text, str) for group in found for text in group):
            raise ValueError("A group has a value that is not a text.")
        return found

    # --- the device rows and their seal ---

    def hash_row(self, values: Sequence[Any]) -> int:
        """Return the hash of a row: its term in the multiset hash, a number below 2^256.

        A null and an empty text hash alike. No column allows both.
        """
        if any(values[_SECOND:]):
            return row_hash(self.keys.hash, encode_row(_ROW_LABEL, *row_texts(values)))
        if any(values[_FIRST:_SECOND]):
            return row_hash(self.keys.hash, encode_row(_SECOND_LABEL, *row_texts(values[:_SECOND])))
        return row_hash(self.keys.hash, encode_row(*row_texts(values[:_FIRST])))

    def make_seal(
        self,
        epoch: Epoch,
        log_end: LogEnd,
        *,
        revision: int,
        total: int,
        count: int,
        controllers: int,
        groups: str,
        r: bytes,
    ) -> SealRow:
        """Return a new seal row.

        Args:
            epoch: that of the seal before, unless a person resealed the list.
            log_end: end of the audit log, with the events of the change.
            revision: revision of the list after the change.
            total: sum of :meth:`hash_row` over all rows.
            count: number of all rows.
            controllers: number of rows that :func:`is_counted_controller`.
            groups: :attr:`~amesh_django.trust.groups.Groups.digest` of all groups.
            r: 32 fresh random bytes.
        """
        digest = (total + mask(self.keys.hash, r)) % MODULUS
        row = SealRow(revision, f"{digest:064x}", count, controllers, r.hex(), "", *epoch, groups, *log_end, 0)
        return row._replace(hmac=self._seal_hmac(row))

    def is_genuine(self, row: SealRow) -> bool:
        """Return True if the seal row was made with one of our keys. Takes constant time for each."""
        if not row.is_well_formed:
            return False
        found = str(row.hmac).encode("utf-8", "replace")
        is_ours = hmac.compare_digest(self._seal_hmac(row).encode(), found)
        return is_ours or any(rows.is_genuine(row) for rows in self._older)

    def epoch_after(self, row: SealRow) -> Epoch:
        """Return the epoch of the list after a change. A list of version 0.1 gets one."""
        return Epoch(row.epoch, row.continues) if row.epoch else Epoch.new()

    def sealed_total(self, row: SealRow) -> int:
        """Return the sum of all row hashes that a genuine seal row holds, without its mask."""
        return (int(row.digest, 16) - mask(self.keys.hash, bytes.fromhex(row.mask))) % MODULUS

    def _seal_hmac(self, row: SealRow) -> str:
        """Return the HMAC-SHA256, in hex, that binds the seal row and the owner of the list."""
        label, members = _seal_form(row)
        message = encode_row(
            label,
            self.keys.owner,
            str(row.revision),
            row.digest,
            str(row.count),
            str(row.controllers),
            row.mask,
            *[str(getattr(row, name)) for name in members],
        )
        return hmac.digest(self.keys.seal, message, "sha256").hex()


def _seal_form(row: SealRow) -> tuple[str, tuple[str, ...]]:
    """Return the label of the HMAC of a seal row, and the members that it binds after those of version 0.1."""
    (*_others, newest) = _SEAL_FORMS.values()
    used = {name for name in newest if getattr(row, name)}
    return next((label, members) for label, members in _SEAL_FORMS.items() if used <= set(members))


@functools.cache
def _select(vendor: str, name: str) -> str:
    quote = "`" if vendor == "mysql" else '"'
    # With the name of the table: SQLite takes the name of a column that it does not have for a text.
    columns = ", ".join(f"{quote}{name}{quote}.{quote}{column}{quote}" for column in SealRow._fields)
    return f"SELECT {columns} FROM {quote}{name}{quote} WHERE id = 1"  # noqa: S608 -- constants only


def _read_seal(connection: BaseDatabaseWrapper) -> SealRow | None:
    try:
        with reading(), connection.cursor() as cursor:
            cursor.execute(_select(connection.vendor, AllowListSeal._meta.db_table))
            row = cursor.fetchone()
    except ValueError:
        row = [None] * len(SealRow._fields)
    return SealRow._make(row) if row is not None else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dt.datetime) and value.tzinfo is not None and value.tzinfo is not dt.UTC:
        value = value.astimezone(dt.UTC)
    return str(value)


def row_texts(values: Sequence[Any]) -> tuple[str, ...]:
    """Return the texts of a row that are hashed.

    Args:
        values: in the order of :data:`COLUMNS`, as the ORM returns them.
    """
    return tuple([value if type(value) is str else _text(value) for value in values])


def row_values(device: Device) -> tuple[Any, ...]:
    """Return the values of a model instance in the order of :data:`COLUMNS`."""
    return tuple(getattr(device, name) for name in COLUMNS)


def is_counted_controller(values: Sequence[Any]) -> bool:
    """Return True if the row counts towards ``maxControllers``.

    Devices that wait for approval, are suspended, or have expired are counted: an act of one person, or a clock, must not let the list
    have more controllers than it may have. So the number under the seal does not depend on the clock.
    """
    return values[4] == "controller" and values[9] is None and values[_DENIED_AT] is None


def is_revoked(values: Sequence[Any]) -> bool:
    """Return True if a row is revoked now."""
    since = revoked_from(*values[9:12])
    return since is not None and since <= time.time()


def storable(text: str) -> str:
    """Return text that every database can store, without NUL and lone surrogates."""
    return _UNSTORABLE.sub("\ufffd", text)


def actor(by: str) -> str:
    """Return the name of who made a change as its column can store it."""
    return storable(by)[:_MAX_ACTOR]


def now() -> dt.datetime:
    """Return the time for device rows, in milliseconds, which every database can store."""
    moment = timezone.now()
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
